"""From one layout to the other by ordinary operators (ofq_deploy/model/tiles.py says how tiles lie)."""

import numpy as np
import onnx_ir as ir

from ofq_deploy.export.builder import Builder
from ofq_deploy.model.tiles import LANES, LINE, QUAD, lines_of, round_up, tiles_of


def tile_codes(b: Builder, x: ir.Value, shape: tuple[int, int], name: str) -> ir.Value:
    """uint8 [batch, tokens, width] -> [batch, tiles, lines, 64]; shape: [tokens, width]"""
    tiles, lines = tiles_of(shape[0]), lines_of(shape[1])
    x = _fill(b, x, shape, (tiles * LANES, lines * QUAD), f"{name}.filled")
    x = b.reshape(x, [0, tiles, LANES, lines, QUAD], f"{name}.tokens")
    x = b.transpose(x, (0, 1, 3, 2, 4), f"{name}.lines")
    return b.reshape(x, [0, tiles, lines, LINE], name)


def tile_floats(b: Builder, x: ir.Value, shape: tuple[int, int], name: str) -> ir.Value:
    """float32 [batch, tokens, channels] -> [batch, tiles, channels rounded up to 16, 16]; shape: [tokens, channels]"""
    tiles, channels = tiles_of(shape[0]), round_up(shape[1], LANES)
    x = _fill(b, x, shape, (tiles * LANES, channels), f"{name}.filled")
    x = b.reshape(x, [0, tiles, LANES, channels], f"{name}.tokens")
    return b.transpose(x, (0, 1, 3, 2), name)


def untile_codes(b: Builder, x: ir.Value, tokens: range, width: int, name: str) -> ir.Value:
    """uint8 [batch, tiles, lines, 64] -> [batch, tokens, width], of some tokens that end with the last tile's."""
    tiles, lines = tiles_of(tokens.stop), lines_of(width)
    x = b.reshape(x, [0, tiles, lines, LANES, QUAD], f"{name}.lines")
    x = b.transpose(x, (0, 1, 3, 2, 4), f"{name}.tokens")
    return _cut(b, b.reshape(x, [0, tiles * LANES, lines * QUAD], f"{name}.filled"), tokens, width, name)


def untile_floats(b: Builder, x: ir.Value, tokens: range, width: int, name: str) -> ir.Value:
    """float32 [batch, tiles, channels rounded up to 16, 16] -> [batch, tokens, channels], as above."""
    x = b.transpose(x, (0, 1, 3, 2), f"{name}.tokens")
    shape = [0, tiles_of(tokens.stop) * LANES, round_up(width, LANES)]
    return _cut(b, b.reshape(x, shape, f"{name}.filled"), tokens, width, name)


def _fill(b: Builder, x: ir.Value, shape: tuple[int, int], wanted: tuple[int, int], name: str) -> ir.Value:
    """Zeros behind the tokens and the channels."""
    if shape == wanted:
        return x
    behind = [0, 0, 0, 0, *(size - own for size, own in zip(wanted, shape, strict=True))]
    label = "x".join(map(str, behind[-2:]))
    return b.op("Pad", [x, b.constant(f"fill.{label}", np.asarray(behind, dtype=np.int64))], name)


def _cut(b: Builder, x: ir.Value, tokens: range, width: int, name: str) -> ir.Value:
    bounds = {"from": (tokens.start, 0), "to": (tokens.stop, width), "axes": (1, 2)}
    constants = [
        b.constant(f"cut.{'x'.join(map(str, value))}.{kind}", np.asarray(value)) for kind, value in bounds.items()
    ]
    return b.op("Slice", [x, *constants], name)
