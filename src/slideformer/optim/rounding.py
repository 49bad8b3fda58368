"""Stochastic rounding of fp32 to bfloat16, with random bits that are a function of where and when, and no state.

The bits of an element are a hash of its index under a key, and the key one of (seed, step, unit). The hash is Chris
Wellons' `lowbias32` (the Hash Prospector, 2018): two rounds of xorshift and multiply, a bijection of the 32-bit numbers
with an exact avalanche bias of 0.174, where the best possible is 0.021. The second half of the key enters between its
rounds, so that the numbers of two steps are not the same sequence, shifted.
"""

import hashlib
import struct
from dataclasses import dataclass

import torch
from torch import Tensor

LOW_32, LOW_16 = 0xFFFFFFFF, 0xFFFF


@dataclass(frozen=True)
class Rounding:
    """The source of random bits of one unit.

    Args:
        seed: of the run.
        unit: the unit's number among those of the model.
    """

    seed: int = 0
    unit: int = 0

    def key(self, step: int) -> int:
        """64 bits for a step; changing any of seed, step and unit changes about half of them."""
        packed = struct.pack("<3Q", self.seed, step, self.unit)
        return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little")


def random_bits(key: int, index: Tensor) -> Tensor:
    """32 random bits for each element.

    Args:
        index: [n] int64: the elements' places in the unit; they count modulo 2^32.

    Returns:
        [n] int64, each in [0, 2^32).
    """
    x = (index + (key & LOW_32)) & LOW_32
    x = (x ^ (x >> 16)) * 0x7FEB352D & LOW_32  # the product may wrap around 2^64; its low half is right all the same
    x = x ^ (key >> 32)
    x = (x ^ (x >> 15)) * 0x846CA68B & LOW_32
    return x ^ (x >> 16)


def round_stochastically(values: Tensor, random: Tensor) -> Tensor:
    """bfloat16 of fp32 values: away from zero as often as the part that is cut off says, exactly right on average.

    Adds 16 random bits below the kept mantissa and cuts 16 bits off. Signs stay, and so do zeros, infinities and
    whatever bfloat16 holds exactly. A quiet NaN stays NaN. A magnitude above the largest bfloat16, 3.39e38, may become
    infinite.

    Args:
        values: [n] float32.
        random: [n] int64, each in [0, 2^16).
    """
    bits = values.view(torch.int32).long() & LOW_32
    rounded = bits + torch.where(values.isnan(), 0, random)  # a NaN's payload could carry into the sign
    return (rounded >> 16).to(torch.uint16).view(torch.bfloat16)
