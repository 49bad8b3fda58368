"""A Hugging Face causal LM taken apart into embedding, blocks and head, with nothing of a family written again.

The model is built with its parameters on the meta device. Its blocks, its embedding and its LM head are then replaced
by stand-ins, and the model's *own* forward runs over them: up to the last block it computes what the blocks are called
with (scaled embeddings, masks, rotary tables), and behind the last block it computes the logits (final norm, scale,
soft-cap). Weights are handed in at every call (`torch.func.functional_call`), so a block is the same code whichever
slot holds its weights.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.trainer_pt_utils import get_parameter_names
from transformers.utils import logging

from slideformer.errors import UnsupportedModel
from slideformer.models.stand_ins import (
    BlockChain,
    BlockStandIn,
    DecoderInputs,
    EmbeddingStandIn,
    HeadStandIn,
    StopForward,
)

Weights = Mapping[str, Tensor]

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

    Attributes:
        depth: number of blocks.
        blocks: the blocks, parameters on meta. `block_names[i]` is the i-th block's prefix in the model's names.
        hidden: width of the hidden states between blocks.
        embedding_name, head_name: names of the embedding and LM head weights; equal when `tied`.
        shell_shapes: every other parameter (position tables, outer norms, projections, head bias) and its shape.

    Raises:
        UnsupportedModel: the model has no chain of blocks that can be run one by one.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        device: torch.device,
        attention: str | None = None,
        customize: Callable[[PreTrainedModel], None] | None = None,
        trust_remote_code: bool = False,
    ):
        _refuse_unsupported(config)
        self.config = config
        self.device = device
        model = build_on_meta(config, attention, trust_remote_code)
        model.train()
        if customize:
            customize(model)
        self.model = model
        self.parameter_shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        self.undecayed = set(self.parameter_shapes) - set(
            get_parameter_names(model, [nn.LayerNorm], UNDECAYED_PATTERNS)
        )
        self.has_dropout = any("drop" in key and isinstance(v, float) and v > 0 for key, v in config.to_dict().items())
        _move_buffers(model, device)
        self._take_apart(model)
        self._learn_block_arity()

    def _take_apart(self, model: PreTrainedModel) -> None:
        blocks_name, block_list = find_blocks(model)
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        if not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear):
            raise UnsupportedModel(
                f"{type(model).__name__} has a {type(embedding).__name__} embedding and a {type(head).__name__} head",
                "models with one nn.Embedding and one nn.Linear head can be trained",
            )
        self.tied = head.weight is embedding.weight
        names = {id(module): name for name, module in model.named_modules()}
        self.embedding_name = names[id(embedding)] + ".weight"
        self.head_name = self.embedding_name if self.tied else names[id(head)] + ".weight"
        self.vocabulary, self.embedding_width = embedding.weight.shape
        self.head_shape = (head.weight.shape[0], head.weight.shape[1])
        self.padding_row = embedding.padding_idx
        self.blocks = list(block_list)
        self.depth = len(self.blocks)
        self.block_names = [f"{blocks_name}.{i}" for i in range(len(self.blocks))]

        self._embedding, self._head = EmbeddingStandIn(embedding), HeadStandIn(head)
        _replace(model, embedding, self._embedding)
        _replace(model, head, self._head)
        self._chain = BlockChain(len(self.blocks))
        stand_ins = [BlockStandIn(i, block, self._chain) for i, block in enumerate(self.blocks)]
        model.set_submodule(blocks_name, nn.ModuleList(stand_ins))
        self.shell_shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}

    def _learn_block_arity(self) -> None:
        """Whether the model's forward takes a tensor from a block or unpacks a tuple: the form that keeps the chain."""
        shell = {name: torch.zeros(shape, device=self.device) for name, shape in self.shell_shapes.items()}
        rows = torch.zeros(1, self.embedding_width, device=self.device)
        ids = torch.zeros(1, 2, dtype=torch.int64, device=self.device)
        refusal: Exception | None = None
        for self._chain.arity in range(4):
            try:
                self.hidden = self.enter(ids, rows, ids, shell, seed=0).hidden.shape[-1]
                return
            except (UnsupportedModel, TypeError, ValueError, AttributeError, IndexError) as error:
                refusal = refusal or error
        assert refusal is not None
        if isinstance(refusal, UnsupportedModel):
            raise refusal
        raise UnsupportedModel(f"{type(self.model).__name__}: its forward fails over stand-ins: {refusal}") from refusal

    def block_shapes(self, i: int) -> dict[str, tuple[int, ...]]:
        """Parameter name inside block i -> shape."""
        return {name: tuple(p.shape) for name, p in self.blocks[i].named_parameters()}

    # ---- the three parts of a forward pass

    def enter(
        self, input_ids: Tensor, rows: Tensor, row_of: Tensor, shell: Weights, seed: int, **arguments: Any
    ) -> DecoderInputs:
        """Embed tokens and collect what each block is called with, by the model's own forward.

        Args:
            input_ids: int64 [b, t].
            rows: gathered embedding rows [u, hidden]; `row_of` [b, t] says which row each token uses.
            shell: parameters outside blocks.
            seed: draws the dropout masks.
            arguments: further ones of the model's forward, such as masks, positions or a cache.
        """
        given = {"input_ids": input_ids, "use_cache": False, **arguments}
        self._embedding.bind(rows, row_of)
        self._chain.start_recording()
        self._seed(seed)
        try:
            functional_call(self.model, dict(shell), (), given)
        except StopForward:
            pass
        finally:
            self._embedding.unbind()
        return self._chain.take()

    def block(self, i: int, weights: Weights, x: Tensor, inputs: DecoderInputs, seed: int) -> Tensor:
        """Block i over hidden states x [b, t, hidden]."""
        call = inputs.calls[i]
        self._seed(seed)
        y = functional_call(self.blocks[i], dict(weights), (x, *call.args), call.kwargs)
        return y[0] if isinstance(y, tuple) else y

    def logits(self, hidden: Tensor, head_weight: Tensor, head_grad: Tensor | None, shell: Weights) -> Tensor:
        """Logits [c, 1, vocabulary] of c hidden states [c, 1, hidden] leaving the last block.

        In backward the head weight's gradient is added to `head_grad` (fp32 [vocabulary, hidden]), and autograd sees
        only the hidden states and the shell. Tokens are passed as c sequences of one token: nothing behind the last
        block mixes tokens, and no position table limits c.
        """
        ignored = hidden.new_zeros(hidden.shape[0], 1, self.embedding_width)  # some models scale it in place
        self._embedding.bind(ignored, None)
        self._head.bind(head_weight, head_grad)
        self._chain.start_passing(hidden)
        ids = torch.zeros(hidden.shape[:2], dtype=torch.int64, device=hidden.device)
        try:
            return functional_call(self.model, dict(shell), (), {"input_ids": ids, "use_cache": False}).logits
        finally:
            self._head.unbind()

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
        if self.has_dropout and self.model.training:  # evaluation draws nothing, and leaves the generator alone
            torch.manual_seed(seed)  # a recomputed forward draws the mask of the first


def build_on_meta(
    config: PreTrainedConfig, attention: str | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The model with its parameters on the meta device and its buffers real."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(
                config, attn_implementation=attention, trust_remote_code=trust_remote_code
            )
    finally:
        logging.set_verbosity(verbosity)
    model.tie_weights()  # putting parameters on meta made copies of shared ones
    return model


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The ModuleList that holds most of the parameters, with its name.

    Raises:
        UnsupportedModel: no list of blocks holds at least half of the parameters outside embedding and head.
    """
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    if not lists:
        raise UnsupportedModel(
            f"{type(model).__name__} has no list of blocks", "decoder models built of a ModuleList work"
        )

    def size(item: tuple[str, nn.Module]) -> int:
        return sum(p.numel() for p in item[1].parameters())

    largest = max(size(item) for item in lists)
    # Of nested lists of equal size (a model with one layer of experts) the outermost is the list of blocks.
    return next((name, m) for name, m in lists if size((name, m)) == largest)


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    name = next(name for name, module in model.named_modules() if module is old)
    model.set_submodule(name, new)


def _move_buffers(model: nn.Module, device: torch.device) -> None:
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer is not None:
                module._buffers[name] = buffer.to(device)


def _refuse_unsupported(config: PreTrainedConfig) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(
            f"{config.model_type} is an encoder-decoder model", "use a decoder-only (causal) language model"
        )
    if getattr(config, "output_router_logits", False):
        raise UnsupportedModel(
            f"{config.model_type}: the router's auxiliary loss (output_router_logits) is not trained exactly yet",
            "set output_router_logits to false in the model's config.json",
        )
    if getattr(config, "layerdrop", 0):
        raise UnsupportedModel(f"{config.model_type}: layerdrop skips blocks at random", "set layerdrop to 0")
