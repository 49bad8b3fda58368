"""The held-out loss of a saved model, streamed through an engine of its own."""

from typing import TYPE_CHECKING, Any

from slideformer.data.batches import Batch, BatchStream
from slideformer.data.examples import make_examples
from slideformer.data.source import make_record
from slideformer.engine.pretrained import Engine

if TYPE_CHECKING:
    from datasets import Dataset

ENGINE_SETTINGS = ("device", "compute_dtype", "attn_implementation", "trust_remote_code")
ANY_VOCABULARY = 2**31  # the tokenizer has been checked against the model's by training


def mean_loss(model: str, dataset: "Dataset", *, batch_size: int, max_length: int, **engine_settings: Any) -> float:
    """The mean negative log-likelihood of all trained tokens of a data set of `input_ids` and `labels`."""
    batches = _batches(dataset, batch_size, max_length)
    longest = max(max(batch.lengths) for batch in batches)
    with Engine.from_pretrained(
        model, batch_size=batch_size, max_length=longest, clipping=False, parity_check=False, **engine_settings
    ) as engine:
        return engine.evaluate(batches).loss


def _batches(dataset: "Dataset", batch_size: int, max_length: int) -> list[Batch]:
    rows: Any = enumerate(dataset)
    records = (make_record(i, f"eval_dataset, row {i + 1}", row) for i, row in rows)
    examples, _ = make_examples(
        records, None, max_length=max_length, too_long="truncate", vocab_size=ANY_VOCABULARY
    )  # fmt: skip
    stream = BatchStream(examples, batch_size, shuffle=False, seed=0)
    return [stream.at(step) for step in range(stream.steps_per_epoch)]
