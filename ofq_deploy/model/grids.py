"""The grids of legal codes (OFQ, ICML 2023; LSQ, ICLR 2020)."""

from typing import Literal

Grid = Literal["signed", "unsigned", "half"]

MIN_BITS, MAX_BITS = 2, 8
EDGE_BITS = 8  # of the patch embedding and the heads, whatever the blocks have (OFQ section 4)


def recipe_bits(name: str, bits: int) -> int:
    """Bits that a recipe gives the layer or quantizer `name`, whose blocks have `bits`."""
    return bits if name.startswith("blocks.") else EDGE_BITS


def code_range(grid: Grid, bits: int) -> tuple[int, int]:
    """Lowest and highest code of a grid; there are exactly 2**bits codes.

    signed:   value = code * step
    unsigned: value = code * step
    half:     value = (2 * code + 1) * step, StatsQ's grid: symmetric, without a zero

    Raises ValueError outside 2 to 8 bits (at 1 bit StatsQ's ties leave the grid).
    """
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"bits must be {MIN_BITS} to {MAX_BITS}, got {bits}")
    if grid == "unsigned":
        return 0, 2**bits - 1
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
