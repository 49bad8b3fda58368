"""A Hugging Face causal LM taken apart into embedding, blocks and head, with nothing of a family written again.

The model is built with its parameters on the meta device. Its blocks, its embedding and its LM head are then replaced
by stand-ins, and the model's *own* forward runs over them: up to the last block it computes what the blocks are called
with (scaled embeddings, masks, rotary tables), and behind the last block it computes the logits (final norm, scale,
soft-cap). Weights are handed in at every call, so a block is the same code whichever slot holds its weights.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.trainer_pt_utils import get_parameter_names

from slideformer.errors import UnsupportedModel
from slideformer.models.block_call import leaf_at, leaves_of, with_leaves
from slideformer.models.boundary import Boundary
from slideformer.models.handed_in import HandedIn
from slideformer.models.meta import build_on_meta, draws_at_random, move_buffers, refuse_untrainable
from slideformer.models.packed_attention import Documents, attending, use_packed_attention
from slideformer.models.packed_rows import PackedRows
from slideformer.models.search import block_lists, reached, refuse_extras, replace_module
from slideformer.models.stand_ins import (
    NOT_HIDDEN,
    NOT_STREAMABLE,
    BlockChain,
    BlockStandIn,
    DecoderInputs,
    EmbeddingStandIn,
    HeadStandIn,
    StopForward,
)
from slideformer.models.tail import Tail, Weights

# What transformers' Trainer leaves out of weight decay, beside nn.LayerNorm modules.
UNDECAYED_PATTERNS = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]


class Decoder:
    """The parts of one model, as functions of weights handed in.

    Args:
        config: the model's configuration.
        device: where it computes; buffers live there.
        attention: transformers' name of the attention implementation; None takes its own choice for the model.
        customize: called with the whole model (parameters on meta) before it is taken apart, to swap in fused kernels.
        trust_remote_code: whether code from the model's directory may run.
        freeze: all parameter names -> those that are not trained.
        packed: rows may hold several documents, which attention then keeps apart.

    Attributes:
        depth: number of blocks.
        blocks: the blocks, parameters on meta. `block_names[i]` is the i-th block's prefix in the model's names.
        boundary: the shape of the hidden states between blocks; `hidden` is their elements for each token.
        tail: what comes behind the last block.
        embedding_name, head_name: names of the embedding and LM head weights; equal when `tied`.
        shell_shapes: every other parameter that the forward reaches (position tables, outer norms, projections, head
            bias) and its shape; `entry_names` are those that it reaches before the blocks.
        unused_shapes: parameters that text never reaches, such as a vision tower.
        frozen: names of the parameters that are not trained.

    Raises:
        UnsupportedModel: the model has no chain of blocks that can be run one by one, or packed, documents cannot be
            kept apart.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        device: torch.device,
        attention: str | None = None,
        customize: Callable[[PreTrainedModel], None] | None = None,
        trust_remote_code: bool = False,
        freeze: Callable[[Iterable[str]], Collection[str]] = lambda names: (),
        packed: bool = False,
    ):
        refuse_untrainable(config)
        self.config = config = deepcopy(config) if packed else config  # which is told of the packed attention
        self.device, self.packed, self.trust_remote_code = device, packed, trust_remote_code
        model = build_on_meta(config, attention, trust_remote_code)
        model.train()
        if packed:
            self._own_attention, self._packed_attention = use_packed_attention(model)
        if customize:
            customize(model)
        self.model, self._rows = model, PackedRows()
        self.parameter_shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        self.undecayed = set(self.parameter_shapes) - set(
            get_parameter_names(model, [nn.LayerNorm], UNDECAYED_PATTERNS)
        )
        untrained = {name for name, p in model.named_parameters() if not p.requires_grad}  # such as sinusoidal tables
        self.draws_at_random = draws_at_random(config.to_dict())
        move_buffers(model, device)
        self._take_apart(model)
        self._refuse_shared_parameters()
        self._called = [HandedIn(block) for block in self.blocks]
        self.frozen = frozenset(freeze(self.parameter_shapes)) | self.unused_shapes.keys() | untrained
        self._frozen_in_block = [
            frozenset(name for name in self.block_shapes(i) if f"{prefix}.{name}" in self.frozen)
            for i, prefix in enumerate(self.block_names)
        ]

    def _take_apart(self, model: PreTrainedModel) -> None:
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        if not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear):
            raise UnsupportedModel(
                f"{type(model).__name__} has a {type(embedding).__name__} embedding and a {type(head).__name__} head",
                "models with one nn.Embedding and one nn.Linear head can be trained",
            )
        refuse_extras(embedding, {"weight"})
        refuse_extras(head, {"weight", "bias"})
        self.tied = head.weight is embedding.weight
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.embedding_name, self.head_name = names[id(embedding.weight)], names[id(head.weight)]
        self.head_bias_name = None if head.bias is None else names[id(head.bias)]
        self.vocabulary, self.embedding_width = embedding.weight.shape
        self.head_shape = (head.weight.shape[0], head.weight.shape[1])
        self.padding_row = embedding.padding_idx
        self._embedding, self._head = EmbeddingStandIn(embedding), HeadStandIn(head)
        replace_module(model, embedding, self._embedding)
        replace_module(model, head, self._head)
        self._find_chain(model)

    def _find_chain(self, model: PreTrainedModel) -> None:
        """The list of blocks that the forward runs through; of several towers, one that text does not pass is none."""
        refusal: UnsupportedModel | None = None
        for name, blocks in block_lists(model):
            self.blocks, self.depth = list(blocks), len(blocks)
            self.block_names = [f"{name}.{i}" for i in range(len(blocks))]
            self._chain = BlockChain(len(blocks))
            stand_ins = [BlockStandIn(i, block, self._chain) for i, block in enumerate(blocks)]
            model.set_submodule(name, nn.ModuleList(stand_ins))
            self.shell_shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
            try:
                return self._learn_boundary()
            except UnsupportedModel as error:
                refusal = refusal or error
                model.set_submodule(name, blocks)
        assert refusal is not None
        raise refusal

    def _refuse_shared_parameters(self) -> None:
        """A parameter of two blocks is listed under one of its names only."""
        for i, prefix in enumerate(self.block_names):
            for name in self.block_shapes(i):
                if f"{prefix}.{name}" not in self.parameter_shapes:
                    raise UnsupportedModel(
                        f"{prefix} shares {name} with another block",
                        "only models whose blocks have weights of their own can be streamed",
                    )

    def _learn_boundary(self) -> None:
        """Whether the model's forward takes a tensor from a block or unpacks a tuple: the form that keeps the chain;
        and the shape of what passes."""
        refusal, progress = None, (0, False)
        forms = [(arity, extra) for extra in (NOT_HIDDEN, None) for arity in range(4)]
        for self._chain.arity, self._chain.extra in forms:
            try:
                shapes = {size: self._probe(*size).shape for size in ((2, 3), (5, 7))}
                self.boundary = Boundary.learn(shapes)
                self.hidden = self.boundary.elements_per_token
                self.tail = Tail(
                    self.model, self._embedding, self._chain, self._head, self.boundary, self.head_bias_name,
                    self._rows,
                )  # fmt: skip
                return self._learn_reach()
            except Exception as error:  # the model's own code over stand-ins raises what it likes
                reached = (len(self._chain.recorded), isinstance(error, UnsupportedModel))
                if reached >= progress:  # the form that came furthest tells most
                    refusal, progress = error, reached
        assert refusal is not None
        if isinstance(refusal, UnsupportedModel):
            raise refusal
        raise UnsupportedModel(f"{type(self.model).__name__}: its forward fails over stand-ins: {refusal}") from refusal

    def _probe(self, b: int, t: int) -> Tensor:
        """What enters the blocks, of weights that are zero and take no memory."""
        rows = torch.zeros(1, self.embedding_width, device=self.device)
        return self._enter_zero(b, t, rows, self._zeros(self.shell_shapes)).hidden

    def _enter_zero(self, b: int, t: int, rows: Tensor, shell: Weights) -> DecoderInputs:
        ids = torch.zeros(b, t, dtype=torch.int64, device=self.device)
        return self.enter(ids, rows, ids, shell, seed=0)

    def _zeros(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        zero = torch.zeros((), device=self.device)
        return {name: zero.expand(shape) for name, shape in shapes.items()}

    def _learn_reach(self) -> None:
        """Which of the parameters outside blocks the forward reaches, before the blocks and behind them, and what else
        the blocks are called with depends on them or on the embedding."""
        rows = torch.zeros(1, self.embedding_width, device=self.device).requires_grad_()
        shell = {name: value.requires_grad_() for name, value in self._zeros(self.shell_shapes).items()}
        head = torch.zeros((), device=self.device).expand(self.head_shape)
        with torch.enable_grad():
            entered = self._enter_zero(2, 3, rows, shell)
            self._side_paths = [
                [path for path, leaf in leaves_of(call) if leaf.requires_grad] for call in entered.calls
            ]
            before = set().union(*(reached(one, shell) for one in [entered.hidden, *self.all_sides(entered)]))
            hidden = torch.zeros(self.boundary.of(2, 1), device=self.device)
            behind = reached(self.tail.logits(hidden, head, None, shell), shell)
        self.entry_names = frozenset(before)
        self.unused_shapes = {n: s for n, s in self.shell_shapes.items() if n not in before | behind}
        self.shell_shapes = {n: s for n, s in self.shell_shapes.items() if n in before | behind}

    def frozen_in_block(self, i: int) -> frozenset[str]:
        """Names inside block i that are not trained."""
        return self._frozen_in_block[i]

    def block_shapes(self, i: int) -> dict[str, tuple[int, ...]]:
        """Parameter name inside block i -> shape."""
        return {name: tuple(p.shape) for name, p in self.blocks[i].named_parameters()}

    # ---- what comes before the blocks, and the blocks

    def enter(
        self,
        input_ids: Tensor,
        rows: Tensor,
        row_of: Tensor,
        shell: Weights,
        seed: int,
        documents: Documents | None = None,
        **arguments: Any,
    ) -> DecoderInputs:
        """Embed tokens and collect what each block is called with, by the model's own forward.

        Args:
            input_ids: int64 [b, t].
            rows: gathered embedding rows [u, hidden]; `row_of` [b, t] says which row each token uses.
            shell: parameters outside blocks.
            seed: draws the dropout masks.
            documents: of packed rows; None: each row is one.
            arguments: further ones of the model's forward, such as masks, positions or a cache.
        """
        if documents and not self.packed:
            raise ValueError("packed rows for a decoder that was built without packed=True")
        given = {"input_ids": input_ids, "use_cache": False, **arguments}
        if documents:
            given["position_ids"] = documents.positions
        self._embedding.bind(rows, row_of)
        self._chain.start_recording()
        self._seed(seed)
        try:
            with self._rows.known():
                functional_call(self.model, dict(shell), (), given)
        except StopForward:
            pass
        finally:
            self._embedding.unbind()
        return replace(self._chain.take(), documents=documents)

    def block(
        self, i: int, weights: Weights, x: Tensor, inputs: DecoderInputs, seed: int, sides: Sequence[Tensor] = ()
    ) -> Tensor:
        """Block i over hidden states x; `sides` take the places of those in its call."""
        call = (
            with_leaves(inputs.calls[i], dict(zip(self._side_paths[i], sides, strict=True)))
            if sides
            else inputs.calls[i]
        )
        self._seed(seed)
        with attending(inputs.documents):
            y = self._called[i](weights, x, *call.args, **call.kwargs)
        if not isinstance(y, tuple | list):
            return y
        if self._chain.extra is None and any(value is not None for value in y[1 : self._chain.arity]):
            raise NOT_STREAMABLE
        return y[0]

    def sides(self, i: int, inputs: DecoderInputs) -> list[Tensor]:
        """What block i is called with, beside hidden states, that has a gradient."""
        return [leaf_at(inputs.calls[i], path) for path in self._side_paths[i]]

    def all_sides(self, inputs: DecoderInputs) -> list[Tensor]:
        """Those of all blocks, each once, in the order in which they come."""
        return list({id(side): side for i in range(self.depth) for side in self.sides(i, inputs)}.values())

    @contextmanager
    def unpacked(self) -> Iterator[None]:
        """Within, a packed model attends as its family does: over whole rows, with masks, and to keys of a cache."""
        if not self.packed:
            yield
            return
        self.model.config._attn_implementation = self._own_attention
        try:
            yield
        finally:
            self.model.config._attn_implementation = self._packed_attention

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Within, the model is in evaluation mode."""
        modules = [self.model, *self.blocks]
        for module in modules:
            module.eval()
        try:
            yield
        finally:
            for module in modules:
                module.train()

    def _seed(self, seed: int) -> None:
        if self.draws_at_random and self.model.training:  # evaluation draws nothing, and leaves the generator alone
            torch.manual_seed(seed)  # a recomputed forward draws what the first drew
