"""Nodes that several targets write alike."""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ofq_deploy.export.builder import Builder
from ofq_deploy.export.targets.protocol import Floats, Rescale, Steps


def zero_point(b: Builder, zero: int) -> ir.Value:
    """The left operand's zero point, always written: some runtimes misread its absence."""
    return b.constant(f"zero_uint8_{zero}", np.uint8(zero))


def rescale(b: Builder, name: str, total: ir.Value, factor: ir.Value, to: Rescale) -> ir.Value:
    """Sums float32 [..., m, n] to values by operators of its own; `factor` is the scale."""
    out = b.op("Mul", [total, factor], f"{name}.scaled")
    if to.row is not None:
        out = b.op("Mul", [out, row_constant(b, name, to.row)], f"{name}.stepped")
    return add_bias(b, name, out, to)


def add_bias(b: Builder, name: str, x: ir.Value, to: Rescale) -> ir.Value:
    """The bias as an Add: one-dimensional where the product fuses it, else three-dimensional.

    A one-dimensional Add in front of Gelu would become the slower BiasGelu.
    """
    if to.bias is None:
        return x
    bias = to.bias if to.row is None else to.bias.reshape(1, 1, -1)
    return b.op("Add", [x, b.float(f"{name}.bias", bias)], f"{name}.out")


def constant_integers(w: ir.Value) -> NDArray[np.int64]:
    """int64 [k, n], of a constant"""
    assert w.const_value is not None
    return w.const_value.numpy().astype(np.int64)


def int8_zero(b: Builder) -> ir.Value:
    """Written though it is 0: without it ONNX means uint8, and TensorRT int8."""
    return b.constant("zero_int8_0", np.int8(0))


def axis_constant(b: Builder, axis: int) -> ir.Value:
    names = {-1: "axis.last", -2: "axis.last_but_one"}
    return b.constant(names[axis], np.asarray([axis], dtype=np.int64))


def scale_constant(b: Builder, name: str, to: Rescale) -> ir.Value:
    return b.float(f"{name}.scale", to.scale if to.scale.size > 1 else to.scale.reshape(()))


def row_constant(b: Builder, name: str, row: Floats) -> ir.Value:
    return b.float(f"{name}.row_step", row.reshape(1, -1, 1))


def code_range(dtype: type[np.integer[Any]]) -> tuple[int, int]:
    return np.iinfo(dtype).min, np.iinfo(dtype).max


def quantize_linear(
    b: Builder, x: ir.Value, name: str, step_name: str, steps: Steps, dtype: type[np.integer[Any]], zero: int
) -> ir.Value:
    """QuantizeLinear, which divides and rounds half to even; the zero point in the shape of the steps."""
    count = steps.values.size
    shape = np.shape(steps.values) if count > 1 else ()
    zeros = b.constant(f"zero_{dtype.__name__}_{zero}x{count}", np.full(shape, zero, dtype))
    operands = [x, b.float(step_name, steps.values.reshape(shape)), zeros]
    return b.op("QuantizeLinear", operands, name, {"axis": steps.axis} if count > 1 else {})
