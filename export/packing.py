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
from ofq_deploy.frozen import Linear

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


def is_wide(linear: Linear) -> bool:
    """The odd integers of 8-bit StatsQ need 9 bits: the graph keeps the codes and rebuilds 2 k + 1 in int32."""
    return linear.grid == "half" and linear.bits == 8


def weight(b: Builder, name: str, linear: Linear, opset: int, columns: slice = slice(None)) -> ir.Value:
    """int8 [in, out], the integers of `linear` (its codes where `is_wide`), stored packed.

    columns: the input columns that are wanted (the patch embedding takes one channel at a time)
    """
    codes = np.ascontiguousarray(linear.codes[:, columns].T)
    double = linear.grid == "half" and not is_wide(linear)
    how = storage(linear.bits, opset)
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
    """One lookup per plane: a byte yields eight weights' share, already multiplied. Fewer and smaller steps than
    masks: the runtime keeps all of them while it loads.
    """
    weight, unit = f"{name}.weight", 2 if double else 1
    if codes.size % 8:
        return _decode_stream(b, name, codes, bits, double)
    packed = b.constant(f"{weight}.codes", pack_planes(codes, bits))
    indices = b.cast(packed, ir.DataType.INT32, f"{weight}.bytes")
    lowest = -unit * 2 ** (bits - 1) + (1 if double else 0)
    total = None
    for plane, value in enumerate(b.split(indices, [f"{weight}.plane{plane}" for plane in range(bits)], 0)):
        offset = 0 if plane else lowest
        table = b.constant(
            f"bits_times{unit << plane}_plus{offset}", _BITS * (unit << plane) + offset, ir.DataType.INT8
        )
        term = b.op("Gather", [table, value], f"{weight}.term{plane}")
        total = term if total is None else b.op("Add", [total, term], f"{weight}.sum{plane}")
    assert total is not None
    shape = b.constant(f"shape.{codes.shape[0]}x{codes.shape[1]}", np.asarray(codes.shape, dtype=np.int64))
    return b.op("Reshape", [total, shape], weight)


def _decode_stream(b: Builder, name: str, codes: NDArray[np.int8], bits: int, double: bool) -> ir.Value:
    """The same where planes do not end with a byte."""
    weight = f"{name}.weight"
    packed = b.constant(f"{weight}.codes", pack_planes(codes, bits)[:, None])
    masks = b.constant("bit_masks", (1 << np.arange(8)).astype(np.uint8))
    bits_of = b.op("BitwiseAnd", [packed, masks], f"{weight}.bits")
    flags = b.cast(b.cast(bits_of, ir.DataType.BOOL, f"{weight}.flags"), ir.DataType.INT8, f"{weight}.ones")
    flat = b.op("Reshape", [flags, b.constant("shape.flat", np.asarray([-1], dtype=np.int64))], f"{weight}.flat")
    if bits * codes.size % 8:
        zero = b.constant("slice.start", np.asarray([0], dtype=np.int64))
        end = b.constant(f"slice.end{bits * codes.size}", np.asarray([bits * codes.size], dtype=np.int64))
        flat = b.op("Slice", [flat, zero, end], f"{weight}.cut")
    unit = 2 if double else 1
    total = None
    for plane, value in enumerate(b.split(flat, [f"{weight}.plane{plane}" for plane in range(bits)], 0)):
        factor = b.constant(f"plane_factor{unit << plane}", np.int8(unit << plane))
        term = b.op("Mul", [value, factor], f"{weight}.term{plane}")
        total = term if total is None else b.op("Add", [total, term], f"{weight}.sum{plane}")
    lowest = -unit * 2 ** (bits - 1) + (1 if double else 0)
    assert total is not None
    shifted = b.op("Add", [total, b.constant(f"lowest{lowest}", np.int8(lowest))], f"{weight}.integers")
    shape = b.constant(f"shape.{codes.shape[0]}x{codes.shape[1]}", np.asarray(codes.shape, dtype=np.int64))
    return b.op("Reshape", [shifted, shape], weight)
