"""Host memory is exact, zeroed and counted; a layer's state keeps every bit of its parameters."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from slideformer.layout import FlatLayout
from slideformer.memory import host
from slideformer.memory.host import HostAllocator, LayerState

LAYOUT = FlatLayout({"w": (5, 30), "b": (7,)}, no_decay=["b"])


def new_state(allocator: HostAllocator | None = None) -> LayerState:
    return LayerState("layer", LAYOUT, allocator or HostAllocator(pin=False), pin_lo=False, threads=1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int16, torch.int64])
def test_memory_is_zeroed_of_the_shape_and_counted_by_name(dtype: torch.dtype):
    allocator = HostAllocator(pin=False)
    one = allocator.empty("a", (3, 1000), dtype)
    allocator.empty("a", (10,), dtype)
    allocator.empty("b", (), dtype)
    assert one.shape == (3, 1000) and one.dtype == dtype and not one.any()
    one.fill_(1)
    assert allocator.allocated_bytes == {"a": 3010 * dtype.itemsize, "b": dtype.itemsize}


def test_memory_of_no_elements():
    assert HostAllocator(pin=False).empty("a", (0, 4), torch.float32).shape == (0, 4)


def test_memory_lives_as_long_as_its_tensor():
    allocator = HostAllocator(pin=False)
    view = allocator.empty("a", (1 << 20,), torch.float32)[5:9]
    allocator.close()
    view += 1
    assert view.tolist() == [1, 1, 1, 1]


class FakeCudart:
    """Registers memory, up to a limit."""

    def __init__(self, limit: int):
        self.limit, self.registered = limit, {}

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802
        if sum(self.registered.values()) + size > self.limit:
            return 2
        self.registered[address] = size
        return 0

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        del self.registered[address]
        return 0


@pytest.fixture
def cudart(monkeypatch: pytest.MonkeyPatch) -> FakeCudart:
    fake = FakeCudart(limit=1000)
    cuda: Any = SimpleNamespace(cudart=lambda: fake)
    monkeypatch.setattr(host.torch, "cuda", cuda)
    return fake


def test_pinned_memory_is_registered_at_its_exact_size_and_given_back(cudart: FakeCudart):
    allocator = HostAllocator(pin=True)
    tensors = [allocator.empty("a", (size,), torch.int16, pinned=pinned) for size, pinned in ((5, True), (9, False))]
    assert cudart.registered == {tensors[0].data_ptr(): 10}
    allocator.close()
    assert cudart.registered == {}


def test_memory_that_cannot_be_pinned_warns_once_and_works(cudart: FakeCudart):
    allocator = HostAllocator(pin=True)
    allocator.empty("a", (400,), torch.int16, pinned=True)
    with pytest.warns(UserWarning, match=r"could not pin 800 bytes .*`ulimit -l unlimited`"):
        tensor = allocator.empty("a", (400,), torch.int16, pinned=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        allocator.empty("a", (400,), torch.int16, pinned=True)
    assert not tensor.any()
    allocator.close()
    assert cudart.registered == {}


@pytest.mark.gpu
def test_pinned_memory_is_pinned():
    allocator = HostAllocator(pin=True)
    assert allocator.empty("a", (5000,), torch.float32, pinned=True).is_pinned()
    assert not allocator.empty("a", (5000,), torch.float32).is_pinned()
    allocator.close()


@pytest.mark.parametrize(("moments", "bytes_each"), [(torch.float32, 12), (torch.bfloat16, 8)])
def test_a_state_is_twelve_bytes_a_parameter_or_eight(moments: torch.dtype, bytes_each: int):
    allocator = HostAllocator(pin=False)
    state = LayerState("layer", LAYOUT, allocator, pin_lo=False, threads=1, moment_dtype=moments)
    assert sum(allocator.allocated_bytes.values()) == LayerState.bytes_needed(LAYOUT, moments)
    assert LayerState.bytes_needed(LAYOUT, moments) == bytes_each * LAYOUT.numel
    assert state.tensors()["exp_avg"].dtype == state.tensors()["exp_avg_sq"].dtype == moments


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_bit_of_a_loaded_parameter_is_kept(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(host, "SPLIT_CHUNK", 64)  # several chunks, the last one short
    state, value = new_state(), torch.randn(5, 30).to(dtype)
    state.load("w", value)
    assert torch.equal(state.read("w", torch.float32), value.float())
    assert not state.read("b", torch.float32).any()
    assert not any(padding.any() for padding in LAYOUT.padding_views(state.hi))


def test_a_strided_value_is_loaded_in_its_order():
    state, value = new_state(), torch.randn(30, 5).T
    state.load("w", value)
    assert torch.equal(state.read("w", torch.float32), value)


def test_bf16_reads_are_views_and_fp32_reads_copies():
    state = new_state()
    state.load("w", torch.randn(5, 30))
    state.hi.fill_(2.0)
    state.lo.zero_()
    assert state.read("w", torch.bfloat16).data_ptr() == state.hi.data_ptr()
    copy = state.read("w", torch.float32)
    copy.zero_()
    assert bool((state.hi == 2).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_are_copied_whole(dtype: torch.dtype):
    state, value = new_state(), torch.randn(5, 30)
    state.load("w", value)
    out = torch.full((LAYOUT.numel,), float("nan"), dtype=dtype)
    state.copy_weights(out)
    expected = value if dtype == torch.float32 else state.read("w", dtype)
    assert torch.equal(LAYOUT.views(out)["w"], expected)
    assert not any(padding.any() for padding in LAYOUT.padding_views(out))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_are_copied_whole_to_the_gpu(dtype: torch.dtype):
    state = new_state()
    state.load("w", torch.randn(5, 30))
    on_host, on_device = torch.empty(LAYOUT.numel, dtype=dtype), torch.empty(LAYOUT.numel, dtype=dtype, device="cuda")
    state.copy_weights(on_host)
    state.copy_weights(on_device)
    assert torch.equal(on_device.cpu(), on_host)


def test_decay_reaches_only_what_decays():
    state = new_state()
    assert state.adam.decay_spans == [(0, 256, True), (256, 384, False)]
