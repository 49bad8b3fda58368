"""Bytes and durations as people read and write them."""

import math
import re

KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40

_UNIT_BYTES = {
    "": 1, "b": 1,
    "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9, "t": 10**12, "tb": 10**12,
    "kib": KIB, "mib": MIB, "gib": GIB, "tib": TIB,
}  # fmt: skip


def parse_bytes(text: str | int) -> int:
    """Read "24GiB", "1.5 GB" or a plain number of bytes.

    Raises:
        ValueError: the text is not a size.
    """
    if isinstance(text, int):
        return text
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", text)
    if not match or match[2].lower() not in _UNIT_BYTES:
        raise ValueError(f"{text!r} is not a size; write it as '24GiB', '500MB' or a number of bytes")
    return int(float(match[1]) * _UNIT_BYTES[match[2].lower()])


def format_bytes(size_bytes: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit, scale in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(size_bytes) >= scale:
            return f"{size_bytes / scale:.{1 if size_bytes < 100 * scale else 0}f} {unit}"
    return f"{int(size_bytes)} B"


def gib_that_hold(size_bytes: int) -> str:
    """3_000_000_000 -> '3GiB': a budget that is not too small."""
    return f"{-(-size_bytes // GIB)}GiB"


def size_that_holds(size_bytes: int) -> str:
    """3_000_000_000 -> '2.8GiB', 300_000_000 -> '287MiB': a budget that is not too small, and hardly too large."""
    if size_bytes > 100 * GIB:
        return gib_that_hold(size_bytes)
    if size_bytes <= GIB:
        return f"{-(-size_bytes // MIB)}MiB"
    parts = 10 if size_bytes > 10 * GIB else 100
    return f"{math.ceil(size_bytes * parts / GIB) / parts:g}GiB"


def format_seconds(seconds: float) -> str:
    """75 -> '1:15', 4000 -> '1:06:40'; what is no number of seconds, or a sum too large to be one, -> '?'."""
    if not math.isfinite(seconds):
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
