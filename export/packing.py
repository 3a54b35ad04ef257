"""Weights at their true width in the file, and the nodes that widen them when a model is loaded.

ONNX Runtime folds Cast and integer arithmetic on constants at load, so the decoder costs nothing per image. It
does not fold QuantizeLinear or DequantizeLinear, which is why none appears here.
"""

from typing import Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ofq_deploy.export.builder import Builder
from ofq_deploy.model.frozen import CodedLinear
from ofq_deploy.model.planes import pack_planes

_BITS = ((np.arange(256)[:, None] >> np.arange(8)) & 1).astype(np.int8)  # of every byte, lowest first
Storage = Literal["INT2", "INT4", "planes", "INT8"]
INT4_OPSET, INT2_OPSET = 21, 25


def storage(bits: int, opset: int) -> Storage:
    """How codes of that width are kept: a packed ONNX type where the opset has it, else bit planes in bytes."""
    if bits > 4:
        return "INT8"
    if bits == 4 and opset >= INT4_OPSET:
        return "INT4"
    if bits == 2 and opset >= INT2_OPSET:
        return "INT2"
    return "planes"


def packed_bytes(bits: int, count: int) -> int:
    """Bytes that `count` codes take in the file: their true width up to 4 bits, one byte each above."""
    return -(-bits * count // 8) if bits <= 4 else count


def is_wide(linear: CodedLinear) -> bool:
    """The odd integers of 8-bit StatsQ need 9 bits: the graph keeps the codes and rebuilds 2 k + 1 in int32."""
    return linear.grid == "half" and linear.bits == 8


def weight(b: Builder, name: str, linear: CodedLinear, how: Storage, columns: slice = slice(None)) -> ir.Value:
    """int8 [in, out], the integers of `linear` (its codes where `is_wide`).

    columns: the input columns that are wanted (the patch embedding takes one channel at a time)
    """
    codes = np.ascontiguousarray(linear.codes[:, columns].T)
    double = linear.grid == "half" and not is_wide(linear)
    if how == "INT8":
        stored = 2 * codes.astype(np.int16) + 1 if double else codes
        return b.constant(f"{name}.weight", stored.astype(np.int8))
    if how == "planes":
        return _decode_planes(b, name, codes, linear.bits, double)
    narrow = {"INT4": (ml_dtypes.int4, ir.DataType.INT4), "INT2": (ml_dtypes.int2, ir.DataType.INT2)}[how]
    packed = b.constant(f"{name}.weight.codes", codes.astype(narrow[0]), narrow[1])
    if not double:
        return b.cast(packed, ir.DataType.INT8, f"{name}.weight")
    wide = b.cast(packed, ir.DataType.INT8, f"{name}.weight.wide")
    even = b.op("Mul", [wide, b.constant("two", np.int8(2))], f"{name}.weight.even")
    return b.op("Add", [even, b.constant("one_int8", np.int8(1))], f"{name}.weight")


def _decode_planes(b: Builder, name: str, codes: NDArray[np.int8], bits: int, double: bool) -> ir.Value:
    """One lookup per plane: a byte yields eight weights' share, already multiplied. Few and small steps, because the
    runtime keeps all of them while it loads.
    """
    weight, unit = f"{name}.weight", 2 if double else 1
    packed = b.constant(f"{weight}.codes", pack_planes(codes, bits))
    indices, shares, label = b.cast(packed, ir.DataType.INT32, f"{weight}.bytes"), _BITS, "byte"
    if codes.size % 8:  # a plane does not end with a byte: look single bits up
        indices, shares, label = _single_bits(b, weight, indices, bits * codes.size), np.arange(2, dtype=np.int8), "bit"
    lowest = -unit * 2 ** (bits - 1) + (1 if double else 0)
    total = None
    for plane, value in enumerate(b.split(indices, [f"{weight}.plane{plane}" for plane in range(bits)], 0)):
        factor, offset = unit << plane, 0 if plane else lowest
        table = b.constant(f"{label}_times{factor}_plus{offset}", shares * factor + offset, ir.DataType.INT8)
        term = b.op("Gather", [table, value], f"{weight}.term{plane}")
        total = term if total is None else b.op("Add", [total, term], f"{weight}.sum{plane}")
    assert total is not None
    shape = b.constant(f"shape.{codes.shape[0]}x{codes.shape[1]}", np.asarray(codes.shape, dtype=np.int64))
    return b.op("Reshape", [total, shape], weight)


def _single_bits(b: Builder, weight: str, indices: ir.Value, count: int) -> ir.Value:
    """int32 [count]: the first bits of a stream of bytes."""
    bits = b.op("Gather", [b.constant("byte_bits", _BITS), indices], f"{weight}.bits")
    flat = b.op("Reshape", [bits, b.constant("shape.flat", np.asarray([-1], dtype=np.int64))], f"{weight}.flat")
    start, end = (b.constant(f"slice.at{at}", np.asarray([at], dtype=np.int64)) for at in (0, count))
    return b.cast(b.op("Slice", [flat, start, end], f"{weight}.cut"), ir.DataType.INT32, f"{weight}.indices")
