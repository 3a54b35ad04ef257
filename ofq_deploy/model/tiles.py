"""How values lie between fused operators: tile by tile, 16 tokens in the lanes (docs/kernels.md has the picture).

codes:  uint8 [batch, tiles, rows, 64], four channels of 16 tokens a line; a byte is code + zero
floats: float32 [batch, tiles, channels rounded up to 16, 16]

Tokens and channels that only fill up a tile are 0 here and nothing in particular in a runtime: nobody reads them.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

LANES, LINE, BLOCK = 16, 64, 64  # tokens of a tile, bytes of a line, inputs of a block of weights
QUAD = LINE // LANES  # channels of a line

Array = NDArray[Any]


def tiles_of(tokens: int) -> int:
    return -(-tokens // LANES)


def lines_of(width: int) -> int:
    """Lines of a tile of codes with so many channels."""
    return round_up(width, BLOCK) // QUAD


def round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def tile_codes(codes: Array) -> Array:
    """[batch, tokens, width] -> [batch, tiles, lines, 64]"""
    batch, tokens, width = codes.shape
    whole = _filled(codes, (batch, tiles_of(tokens) * LANES, lines_of(width) * QUAD))
    quads = whole.reshape(batch, -1, LANES, lines_of(width), QUAD).swapaxes(2, 3)
    return quads.reshape(batch, -1, lines_of(width), LINE)


def untile_codes(tiled: Array, tokens: int, width: int) -> Array:
    """[batch, tiles, lines, 64] -> [batch, tokens, width]"""
    batch, _, lines, _ = tiled.shape
    quads = tiled.reshape(batch, -1, lines, LANES, QUAD).swapaxes(2, 3)
    return quads.reshape(batch, -1, lines * QUAD)[:, :tokens, :width]


def tile_floats(values: Array) -> Array:
    """[batch, tokens, channels] -> [batch, tiles, channels rounded up to 16, 16]"""
    batch, tokens, channels = values.shape
    whole = _filled(values, (batch, tiles_of(tokens) * LANES, round_up(channels, LANES)))
    return np.ascontiguousarray(whole.reshape(batch, -1, LANES, round_up(channels, LANES)).swapaxes(2, 3))


def untile_floats(tiled: Array, tokens: int, channels: int) -> Array:
    """[batch, tiles, channels rounded up to 16, 16] -> [batch, tokens, channels]"""
    batch, _, wide, _ = tiled.shape
    return tiled.swapaxes(2, 3).reshape(batch, -1, wide)[:, :tokens, :channels]


def tile_patches(codes: Array, patch: int, first: int, parts: int, zero: int) -> Array:
    """Codes of images [batch, channels, size, size] as tiles of patches, from token `first` on; those before hold `zero`.

    parts: of the channels; each begins at a multiple of 64
    """
    batch, channels, size, _ = codes.shape
    side, width = size // patch, channels // parts * patch**2
    cut = codes.reshape(batch, channels, side, patch, side, patch).transpose(0, 2, 4, 1, 3, 5)
    cut = cut.reshape(batch, side * side, parts, width)
    whole = np.full((batch, first + side * side, parts, round_up(width, BLOCK)), zero, dtype=codes.dtype)
    whole[:, first:, :, :width] = cut
    return tile_codes(whole.reshape(batch, first + side * side, -1))


def untile_patches(tiled: Array, shape: tuple[int, int, int], patch: int, first: int, parts: int) -> Array:
    """What `tile_patches` tiled; shape: [channels, size, size]"""
    batch, (channels, size, _) = len(tiled), shape
    side, width = size // patch, channels // parts * patch**2
    tokens = untile_codes(tiled, first + side * side, parts * round_up(width, BLOCK))[:, first:]
    cut = tokens.reshape(batch, side * side, parts, -1)[..., :width]
    cut = cut.reshape(batch, side, side, channels, patch, patch).transpose(0, 3, 1, 4, 2, 5)
    return cut.reshape(batch, *shape)


def _filled(values: Array, shape: tuple[int, ...]) -> Array:
    """Zeros behind the last index of every axis, up to `shape`."""
    return np.pad(values, [(0, wanted - size) for size, wanted in zip(values.shape, shape, strict=True)])
