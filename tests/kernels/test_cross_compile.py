"""Every Triton kernel of ours compiles for the GPUs we name, none of which need be here."""

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET", "0") != "0":
    pytest.skip("kernels are interpreted in this process", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from slideformer.kernels import (
    accumulate_triton,
    adamw_triton,
    cross_entropy_shards_triton,
    cross_entropy_triton,
    gradient_flush_triton,
)

CUDA = [GPUTarget("cuda", capability, 32) for capability in (80, 89, 90, 100, 120)]
HIP = [GPUTarget("hip", name, 64) for name in ("gfx90a", "gfx942", "gfx950")] + [GPUTarget("hip", "gfx1100", 32)]
HOPPER = CUDA[2]


@dataclass(frozen=True)
class Case:
    """A kernel as one of its callers launches it.

    Args:
        types: of its run-time arguments, in Triton's words; pointers count as aligned to 16 bytes, as PyTorch's are.
        constants: its other arguments.
    """

    kernel: Any
    options: dict[str, Any]
    types: dict[str, str]
    constants: dict[str, Any] = field(default_factory=dict)

    def compile(self, target: GPUTarget) -> Any:
        signature = {name: self.types.get(name, "constexpr") for name in self.kernel.arg_names}
        aligned = [k for k, type_name in enumerate(signature.values()) if type_name.startswith("*")]
        attributes = {(k,): [["tt.divisibility", 16]] for k in aligned}
        source = ASTSource(self.kernel, signature=signature, constexprs=self.constants, attrs=attributes)
        return triton.compile(source, target=target, options=self.options)


def adamw(moment: str, grad: str | None, gate: bool) -> Case:
    types = {"hi": "*i16", "lo": "*i16", "exp_avg": f"*{moment}", "exp_avg_sq": f"*{moment}"}
    types |= {"start": "i64", "stop": "i64", "key_low": "i32", "key_high": "i32"}
    types |= {"grad": f"*{grad}"} if grad else {}
    types |= {"gate": "*fp32"} if gate else {}
    constants = {"block": adamw_triton.BLOCK}
    constants |= {name: None for name in ("grad", "gate") if name not in types}
    scalars = [name for name in adamw_triton._adamw_kernel.arg_names if name not in types | constants]
    types |= dict.fromkeys(scalars, "fp32")
    return Case(adamw_triton._adamw_kernel, adamw_triton.OPTIONS, types, constants)


def flush(source: str, destination: str | None) -> Case:
    types = {"source": f"*{source}", "partials": "*fp32", "count": "i64"}
    types |= {"destination": f"*{destination}"} if destination else {}
    wider = max(4 if name == "fp32" else 2 for name in (source, destination or source))
    constants = {"block": gradient_flush_triton.block_for(wider), "programs": gradient_flush_triton.PROGRAMS}
    constants |= {} if destination else {"destination": None}
    return Case(gradient_flush_triton._flush_kernel, gradient_flush_triton.OPTIONS, types, constants)


def flush_sum(add: bool) -> Case:
    constants = {"add": add, "programs": gradient_flush_triton.PROGRAMS}
    types = {"partials": "*fp32", "square": "*fp32"}
    return Case(gradient_flush_triton._sum_kernel, gradient_flush_triton.OPTIONS, types, constants)


def accumulate(first: bool) -> Case:
    types = {"total": "*fp32", "gradient": "*i16", "count": "i64"}
    constants = {"first": first, "block": accumulate_triton.BLOCK}
    return Case(accumulate_triton._accumulate_kernel, accumulate_triton.OPTIONS, types, constants)


def cross_entropy(logits: str) -> Case:
    types = {"logits": f"*{logits}", "gradient": f"*{logits}", "targets": "*i64", "losses": "*fp32"}
    types |= {"row_stride": "i32", "vocabulary": "i32", "scale": "fp32"}
    return Case(cross_entropy_triton._cross_entropy_kernel, cross_entropy_triton.OPTIONS, types, {"block": 4096})


def shard(logits: str, gradient: bool) -> Case:
    module, of_both = cross_entropy_shards_triton, {"logits": f"*{logits}", "targets": "*i64"}
    types = of_both | {"row_stride": "i32", "width": "i32", "first": "i32"}
    if gradient:
        types |= {"gradient": f"*{logits}", "log_sums": "*fp32", "scale": "fp32"}
        return Case(module._gradient_kernel, module.OPTIONS, types, {"block": 4096})
    types |= dict.fromkeys(("largests", "totals", "target_logits"), "*fp32")
    return Case(module._statistics_kernel, module.OPTIONS, types, {"block": 4096})


ADAMW = {
    "adamw": adamw("fp32", "i16", gate=True),
    "adamw, fp32 gradient": adamw("fp32", "fp32", gate=False),
    "adamw, no gradient": adamw("fp32", None, gate=False),
    "adamw, bf16 moments": adamw("i16", "i16", gate=True),
}
CASES = ADAMW | {
    "flush to bf16": flush("fp32", "i16"),
    "flush to fp32": flush("i16", "fp32"),
    "squares alone": flush("i16", None),
    "sum of partial sums": flush_sum(add=False),
    "sum of partial sums, added": flush_sum(add=True),
    "first gradient": accumulate(first=True),
    "further gradients": accumulate(first=False),
    "cross-entropy, bf16": cross_entropy("bf16"),
    "cross-entropy, fp32": cross_entropy("fp32"),
    "statistics of a shard, bf16": shard("bf16", gradient=False),
    "statistics of a shard, fp32": shard("fp32", gradient=False),
    "gradient of a shard, bf16": shard("bf16", gradient=True),
    "gradient of a shard, fp32": shard("fp32", gradient=True),
}


@pytest.fixture(autouse=True)
def compiled_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("target", CUDA + HIP, ids=lambda target: f"{target.backend} {target.arch}")
def test_compiles(target: GPUTarget, case: str):
    compiled = CASES[case].compile(target)
    assert compiled.asm["cubin" if target.backend == "cuda" else "hsaco"]


@pytest.mark.parametrize("case", ADAMW)
@pytest.mark.parametrize("target", CUDA, ids=lambda target: f"cuda {target.arch}")
def test_adamw_has_the_operations_that_are_written_and_no_others(target: GPUTarget, case: str):
    found = float_operations(ADAMW[case].compile(target).asm["ptx"])
    elements = 2 * adamw_triton.BLOCK // (32 * adamw_triton.OPTIONS["num_warps"])  # a thread; with and without mask
    assert found["fma.rn.f32"] == 2 * elements
    assert found["div.rn.f32"] == 2 * elements
    assert found["sqrt.rn.f32"] == elements
    kinds = {name.split(".")[0] for name in found}
    assert kinds <= {"fma", "div", "sqrt", "mul", "add", "sub", "setp", "selp", "neg"}, found
    inexact = [name for name in found if re.search("ftz|approx|full|sat", name)]
    assert not inexact


def float_operations(ptx: str) -> Counter[str]:
    """How often each fp32 instruction occurs; one that works on two numbers counts as two."""
    operations: Counter[str] = Counter()
    for name in re.findall(r"^\s+(?:@!?%p\d+\s+)?([a-z0-9_.]+\.f32(?:x2)?)\s", ptx, re.MULTILINE):
        operations[name.removesuffix("x2")] += 2 if name.endswith("x2") else 1
    return operations


@pytest.mark.parametrize("case", ADAMW)
def test_adamw_reads_and_writes_wide(case: str):
    """Whole vectors, and no exchange of layouts through shared memory."""
    compiled = ADAMW[case].compile(HOPPER)
    wide = "v4" if "bf16" not in case else "v2"
    assert f"ld.global.{wide}.b32" in compiled.asm["ptx"] and f"st.global.{wide}.b32" in compiled.asm["ptx"]
    assert compiled.metadata.shared == 0
