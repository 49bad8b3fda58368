"""Looking for parts in a model: its lists of blocks, and which parameters an output depends on."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from slideformer.errors import UnsupportedModel


def block_lists(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """The ModuleLists of a model with their names, the one with most of the parameters first.

    Raises:
        UnsupportedModel: there are none.
    """
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    if not lists:
        raise UnsupportedModel(
            f"{type(model).__name__} has no list of blocks", "decoder models built of a ModuleList work"
        )
    # The sort is stable: of nested lists of equal size (a model with one layer of experts) the outermost comes first.
    return sorted(lists, key=lambda item: -sum(p.numel() for p in item[1].parameters()))


def reached(output: Tensor, parameters: Mapping[str, Tensor]) -> set[str]:
    """Names of the leaves that an output depends on, by autograd's graph alone: no gradient is computed.

    A table of a few rows that are read has a gradient as large as the table, which may be the largest of the model.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    found: set[str] = set()
    seen: set[Any] = set()
    nodes: list[Any] = [output.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None and id(leaf) in names:
            found.add(names[id(leaf)])
        nodes.extend(following for following, _ in node.next_functions)
    return found


def refuse_extras(module: nn.Module, known: set[str]) -> None:
    """A stand-in for a module with parameters of its own would lose them."""
    if extras := [name for name, _ in module.named_parameters() if name not in known]:
        raise UnsupportedModel(
            f"its {type(module).__name__} has parameters beside {' and '.join(sorted(known))}: {', '.join(extras)}",
            "models with a plain embedding and a plain linear head can be streamed",
        )


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    name = next(name for name, module in model.named_modules() if module is old)
    model.set_submodule(name, new)
