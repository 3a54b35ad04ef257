"""What differs between targets: how one integer product becomes a float.

Everything else about a network is in network.py.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ofq_deploy.errors import UnsupportedByTarget
from ofq_deploy.export.builder import CONTRIB, Builder
from ofq_deploy.frozen import Frozen

HIGHEST_OPSET = 26
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Rescale:
    """From int32 sums to floats: total * scale [* row] [+ bias].

    scale: float32 [n], or [1] or [1, heads, 1, n] where the right operand is batched
    bias:  float32 [n], for a right operand [k, n] only
    row:   float32 [m], the step of each row of the left operand [batch, m, k], for a right operand [k, n] only
    """

    scale: Floats
    bias: Floats | None = None
    row: Floats | None = None


@dataclass(frozen=True, slots=True)
class Steps:
    """Activation steps: float32 [1], or one per index of `axis`."""

    values: Floats
    axis: int


class Target(Protocol):
    """One kind of graph.

    takes_scalar_scales: a scale may be a single number
    highest_opset:       that the runtime reads
    """

    name: str
    takes_scalar_scales: bool
    highest_opset: int

    def check(self, frozen: Frozen) -> None:
        """Raise UnsupportedByTarget for a model that this kind of graph cannot hold in integers."""
        ...

    def overridable(self, b: Builder) -> list[ir.Value]:
        """Initializers that are graph inputs too."""
        ...

    def left_zero(self, limits: tuple[int, int]) -> int:
        """What the codes of a left operand are offset by."""
        ...

    def quantize(
        self, b: Builder, x: ir.Value, name: str, steps: Steps, limits: tuple[int, int], left: bool
    ) -> ir.Value:
        """The codes clip(round(x / step)) named `name`, as the left or right operand of a product reads them."""
        ...

    def linear_product(self, b: Builder, name: str, a: ir.Value, w: ir.Value, zero: int, to: Rescale) -> ir.Value:
        """float32 [..., m, n]: (a - zero) @ w in integers, rescaled; w: int8 [k, n], a constant"""
        ...

    def batched_product(self, b: Builder, name: str, a: ir.Value, w: ir.Value, zero: int, to: Rescale) -> ir.Value:
        """float32 [..., m, n]: (a - zero) @ w in integers, rescaled; w: codes [..., k, n]"""
        ...

    def row_sum(self, b: Builder, name: str, codes: ir.Value, width: int) -> ir.Value:
        """float32 [..., 1]: the sum of the codes (of zero point 0) over the last axis, which has `width`."""
        ...


class _IntegerOperators:
    """Codes in integers: uint8 with a zero point on the left, int8 on the right."""

    def check(self, frozen: Frozen) -> None:
        return

    def left_zero(self, limits: tuple[int, int]) -> int:
        return -limits[0]

    def quantize(
        self, b: Builder, x: ir.Value, name: str, steps: Steps, limits: tuple[int, int], left: bool
    ) -> ir.Value:
        low, high = limits
        zero = self.left_zero(limits) if left else 0
        dtype = np.uint8 if left else np.int8
        clipped = (low + zero, high + zero) != _range(dtype)
        rounded = _round(b, x, f"{name}.rounded" if clipped else name, f"{name}.step", steps, dtype, zero)
        if not clipped:
            return rounded
        top = b.constant(f"limit_{dtype.__name__}_{high + zero}", dtype(high + zero))
        if left:  # saturation at 0 already is the lower limit
            return b.op("Min", [rounded, top], name)
        return b.op("Clip", [rounded, b.constant(f"limit_int8_{low}", np.int8(low)), top], name)

    def row_sum(self, b: Builder, name: str, codes: ir.Value, width: int) -> ir.Value:
        ones = b.constant(f"ones.{width}", np.ones((width, 1), dtype=np.int8))
        total = b.op("MatMulInteger", [codes, ones, zero_point(b, 0)], f"{name}.total")
        return b.cast(total, ir.DataType.FLOAT, f"{name}.real")


class OrtCpu(_IntegerOperators):
    """ONNX Runtime's fused integer product, MatMulIntegerToFloat."""

    name = "ort-cpu"
    takes_scalar_scales = True
    highest_opset = HIGHEST_OPSET

    def overridable(self, b: Builder) -> list[ir.Value]:
        return []

    def linear_product(self, b: Builder, name: str, a: ir.Value, w: ir.Value, zero: int, to: Rescale) -> ir.Value:
        # A bias beside a row-wise a_scale would be multiplied with it: then the bias is an Add of its own.
        left = b.float("one", 1.0) if to.row is None else _row(b, name, to.row)
        operands: list[ir.Value | None] = [a, w, left, _scale(b, name, to), zero_point(b, zero)]
        if to.bias is None or to.row is not None:
            product = b.op("MatMulIntegerToFloat", operands, f"{name}.scaled", domain=CONTRIB)
            return add_bias(b, name, product, to)
        operands += [None, b.float(f"{name}.bias", to.bias)]
        return b.op("MatMulIntegerToFloat", operands, f"{name}.out", domain=CONTRIB)

    batched_product = linear_product


class Portable(_IntegerOperators):
    """Standard operators only. ONNX Runtime still fuses them, because `one` can be overridden.

    Mul(one, scale) is not constant for the optimizer, and that inner Mul is what its fusion looks for. Each
    layer needs a scale initializer of its own, written as a vector: equal scalars would be shared and unfused.
    """

    name = "portable"
    takes_scalar_scales = False
    highest_opset = HIGHEST_OPSET

    def overridable(self, b: Builder) -> list[ir.Value]:
        return [b.float("one", 1.0)]

    def linear_product(self, b: Builder, name: str, a: ir.Value, w: ir.Value, zero: int, to: Rescale) -> ir.Value:
        total = b.op("MatMulInteger", [a, w, zero_point(b, zero)], f"{name}.total")
        factor = b.op("Mul", [b.float("one", 1.0), b.float(f"{name}.scale", to.scale)], f"{name}.factor")
        return rescale(b, name, total, factor, to)

    batched_product = linear_product


class OpenVino:
    """Quantize-dequantize pairs, which OpenVINO's low-precision passes turn into integer products.

    Codes travel as floats behind a DequantizeLinear of scale 1: its passes want layout changes behind the pairs.
    They are clipped in float before an 8-bit rounding, the only width that these passes know.
    """

    name = "openvino"
    takes_scalar_scales = True
    highest_opset = 24  # from 25 on 2-bit codes are INT2, a type that it does not know

    def check(self, frozen: Frozen) -> None:
        if frozen.quantization.act_step == "token":
            raise UnsupportedByTarget(
                "OpenVINO multiplies in integers only with one activation step per tensor, this model has one per "
                "token; export it with --target ort-cpu, which OpenVINO reads too at a fixed batch size"
            )
        if any(linear["grid"] == "half" and linear["bits"] == 8 for linear in frozen.linears.values()):
            raise UnsupportedByTarget(
                "OpenVINO has no exact product for 8-bit StatsQ weights, whose integers need 9 bits; export the model "
                "with --target ort-cpu, or train it with --weights lsq"
            )

    def overridable(self, b: Builder) -> list[ir.Value]:
        return []

    def left_zero(self, limits: tuple[int, int]) -> int:
        return 0

    def quantize(
        self, b: Builder, x: ir.Value, name: str, steps: Steps, limits: tuple[int, int], left: bool
    ) -> ir.Value:
        dtype = np.int8 if limits[0] else np.uint8
        if limits != _range(dtype):
            ends = zip(("low", "high"), limits, strict=True)
            bounds = [b.float(f"{name}.{side}", np.float32(end) * steps.values[0]) for side, end in ends]
            x = b.op("Clip", [x, *bounds], f"{name}.clipped")
        codes = _round(b, x, name, f"{name}.step", steps, dtype, 0)
        zero = b.constant(f"zero_{dtype.__name__}_0", dtype(0))
        return b.op("DequantizeLinear", [codes, b.float("one", 1.0), zero], f"{name}.real")

    def linear_product(self, b: Builder, name: str, a: ir.Value, w: ir.Value, zero: int, to: Rescale) -> ir.Value:
        zeros = b.constant(f"zero_int8_0x{to.scale.size}", np.zeros(to.scale.shape, dtype=np.int8))
        operands = [w, b.float(f"{name}.scale", to.scale), zeros]
        weight = b.op("DequantizeLinear", operands, f"{name}.weight.real", {"axis": 1})
        return add_bias(b, name, b.op("MatMul", [a, weight], f"{name}.scaled"), to)

    def batched_product(self, b: Builder, name: str, a: ir.Value, w: ir.Value, zero: int, to: Rescale) -> ir.Value:
        total = b.op("MatMul", [a, w], f"{name}.total")
        return b.op("Mul", [total, _scale(b, name, to)], f"{name}.scaled")

    def row_sum(self, b: Builder, name: str, codes: ir.Value, width: int) -> ir.Value:
        last = b.constant("axis.last", np.asarray([-1], dtype=np.int64))
        return b.op("ReduceSum", [codes, last], f"{name}.real", {"keepdims": 1})


def zero_point(b: Builder, zero: int) -> ir.Value:
    """The left operand's zero point, always written: some runtimes misread its absence."""
    return b.constant(f"zero_uint8_{zero}", np.uint8(zero))


def rescale(b: Builder, name: str, total: ir.Value, factor: ir.Value, to: Rescale) -> ir.Value:
    """int32 [..., m, n] to float32 by operators of its own; `factor` is the scale."""
    out = b.op("Mul", [b.cast(total, ir.DataType.FLOAT, f"{name}.real"), factor], f"{name}.scaled")
    if to.row is not None:
        out = b.op("Mul", [out, _row(b, name, to.row)], f"{name}.stepped")
    return add_bias(b, name, out, to)


def add_bias(b: Builder, name: str, x: ir.Value, to: Rescale) -> ir.Value:
    """The bias as an Add: one-dimensional where the product fuses it, else three-dimensional.

    A one-dimensional Add in front of Gelu would become the slower BiasGelu.
    """
    if to.bias is None:
        return x
    bias = to.bias if to.row is None else to.bias.reshape(1, 1, -1)
    return b.op("Add", [x, b.float(f"{name}.bias", bias)], f"{name}.out")


def _scale(b: Builder, name: str, to: Rescale) -> ir.Value:
    return b.float(f"{name}.scale", to.scale if to.scale.size > 1 else to.scale.reshape(()))


def _row(b: Builder, name: str, row: Floats) -> ir.Value:
    return b.float(f"{name}.row_step", row.reshape(1, -1, 1))


def _range(dtype: type[np.integer[Any]]) -> tuple[int, int]:
    return np.iinfo(dtype).min, np.iinfo(dtype).max


def _round(
    b: Builder, x: ir.Value, name: str, step_name: str, steps: Steps, dtype: type[np.integer[Any]], zero: int
) -> ir.Value:
    """QuantizeLinear, which divides and rounds half to even; the zero point in the shape of the steps."""
    count = steps.values.size
    shape = np.shape(steps.values) if count > 1 else ()
    zeros = b.constant(f"zero_{dtype.__name__}_{zero}x{count}", np.full(shape, zero, dtype))
    operands = [x, b.float(step_name, steps.values.reshape(shape)), zeros]
    return b.op("QuantizeLinear", operands, name, {"axis": steps.axis} if count > 1 else {})


TARGETS: dict[str, Target] = {"portable": Portable(), "ort-cpu": OrtCpu(), "openvino": OpenVino()}
