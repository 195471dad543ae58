"""The parts of a quantised matrix that is in the blocks of a GGUF file."""

from typing import NamedTuple

from torch import Tensor


class Blocks(NamedTuple):
    """The parts of a quantised matrix: codes * scales * scale_units + minimums * minimum_units."""

    codes: Tensor
    """[R, C] int8, or [R, C / 2] uint8: two codes of 4 bits in each byte."""

    scales: Tensor
    """[R, groups]: a group has C / groups neighbouring weights of a row."""

    minimums: Tensor | None = None
    """[R, groups]; None: zero."""

    scale_units: Tensor | None = None
    """[R, larger groups] float16; None: one."""

    minimum_units: Tensor | None = None
    """[R, larger groups] float16; None: one."""

    half: int = 0
    """With 4-bit codes: the low bits of this many bytes come first, then their high bits."""

    offset: int = 0
    """Number that is subtracted from each code."""
