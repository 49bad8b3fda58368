"""Model shapes that benchmarks use: those of `slideformer bench`."""

from slideformer.bench.shapes import SHAPES

__all__ = ["SHAPES"]
