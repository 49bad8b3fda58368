"""What of a model is one unit, and how each lies in memory."""

from collections.abc import Mapping

from slideformer.layout import FlatLayout
from slideformer.models.architecture import Decoder

EMBEDDING, HEAD, SHELL, UNUSED = "embedding", "head", "shell", "unused"


def layouts(decoder: Decoder) -> dict[str, FlatLayout]:
    """Unit -> flat layout, in the order in which a forward pass uses them."""
    units = {
        EMBEDDING: {decoder.embedding_name: (decoder.vocabulary, decoder.embedding_width)},
        SHELL: decoder.shell_shapes,
    }
    unused = {UNUSED: decoder.unused_shapes} if decoder.unused_shapes else {}
    blocks = {name: decoder.block_shapes(i) for i, name in enumerate(decoder.block_names)}
    head = {} if decoder.tied else {HEAD: {decoder.head_name: decoder.head_shape}}

    def layout(unit: str, shapes: Mapping[str, tuple[int, ...]]) -> FlatLayout:
        prefix = f"{unit}." if unit in blocks else ""
        undecayed, frozen = (
            {name for name in shapes if prefix + name in names} for names in (decoder.undecayed, decoder.frozen)
        )
        return FlatLayout(shapes, undecayed, frozen)

    return {unit: layout(unit, shapes) for unit, shapes in {**units, **blocks, **head, **unused}.items()}
