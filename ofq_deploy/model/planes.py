"""Codes as bit planes: weights at their true width in bytes, whatever the width (docs/kernels.md, export/packing.py)."""

import numpy as np
from numpy.typing import NDArray


def pack_planes(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Bit planes of codes + 2**(bits - 1), one after the other in one bit stream, lowest bit first.

    codes:   int8, any shape, in [-2**(bits - 1), 2**(bits - 1) - 1]
    returns: uint8 [ceil(bits * count / 8)]
    """
    shifted = (codes.astype(np.int16).ravel() + 2 ** (bits - 1)).astype(np.uint8)
    planes = (shifted >> np.arange(bits, dtype=np.uint8)[:, None]) & 1
    return np.packbits(planes.ravel(), bitorder="little")


def unpack_planes(packed: NDArray[np.uint8], bits: int, shape: tuple[int, ...]) -> NDArray[np.int8]:
    """The codes that `pack_planes` packed."""
    count = int(np.prod(shape))
    planes = np.unpackbits(packed, count=bits * count, bitorder="little").reshape(bits, count)
    shifted = (planes << np.arange(bits, dtype=np.uint8)[:, None]).sum(0, dtype=np.int16)
    return (shifted - 2 ** (bits - 1)).astype(np.int8).reshape(shape)
