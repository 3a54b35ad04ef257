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
from ofq_deploy.export.lowering import HIGHEST_OPSET
from ofq_deploy.model.frozen import Frozen
from ofq_deploy.model.graph import PerToken, PerTokenHead

INT8_MAX = 127
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
    """Activation steps: float32 [1], or one per index of `axis` of a tensor of `rank` axes."""

    values: Floats
    axis: int
    rank: int


class Target(Protocol):
    """One kind of graph.

    takes_scalar_scales: a scale may be a single number
    packs_weights:       weights lie at their true width, behind nodes that the runtime folds
    highest_opset:       that the runtime reads
    """

    name: str
    takes_scalar_scales: bool
    packs_weights: bool
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

    def wide_product(self, b: Builder, name: str, a: ir.Value, w: ir.Value, zero: int, to: Rescale) -> ir.Value:
        """float32 [..., m, n]: (a - zero) @ (2 w + 1) in integers, rescaled; w: int8 [k, n], a constant"""
        ...

    def batched_product(self, b: Builder, name: str, a: ir.Value, w: ir.Value, zero: int, to: Rescale) -> ir.Value:
        """float32 [..., m, n]: (a - zero) @ w in integers, rescaled; w: codes [..., k, n]"""
        ...

    def row_sum(self, b: Builder, name: str, codes: ir.Value, zero: int, width: int) -> ir.Value:
        """float32 [..., 1]: the sum of codes - zero over the last axis, which has `width`."""
        ...

    def to_float(self, b: Builder, name: str, codes: ir.Value, zero: int) -> ir.Value:
        """float32, of the codes' shape: codes - zero"""
        ...


class _IntegerOperators:
    """Codes in integers: uint8 with a zero point on the left, int8 on the right."""

    packs_weights = True

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

    def wide_product(self, b: Builder, name: str, a: ir.Value, w: ir.Value, zero: int, to: Rescale) -> ir.Value:
        """2 (a @ w) + sum(a), exact in int32."""
        half = b.op("MatMulInteger", [a, w, _zero_point(b, zero)], f"{name}.half_total")
        doubled = b.op("Mul", [half, b.constant("two_int32", np.int32(2))], f"{name}.doubled")
        sums = self._row_total(b, f"{name}.row_sum", a, zero, len(_integers(w)))
        total = b.op("Add", [doubled, sums], f"{name}.total")
        total = b.cast(total, ir.DataType.FLOAT, f"{name}.real")
        out = _rescale(b, name, total, b.float(f"{name}.scale", to.scale), Rescale(to.scale, row=to.row))
        if to.bias is None:
            return out
        return b.op("Add", [out, b.float(f"{name}.bias", to.bias.reshape(1, 1, -1))], f"{name}.out")

    def row_sum(self, b: Builder, name: str, codes: ir.Value, zero: int, width: int) -> ir.Value:
        return b.cast(self._row_total(b, name, codes, zero, width), ir.DataType.FLOAT, f"{name}.real")

    def to_float(self, b: Builder, name: str, codes: ir.Value, zero: int) -> ir.Value:
        if not zero:
            return b.cast(codes, ir.DataType.FLOAT, name)
        return b.op("DequantizeLinear", [codes, b.float("one", 1.0), _zero_point(b, zero)], name)

    @staticmethod
    def _row_total(b: Builder, name: str, codes: ir.Value, zero: int, width: int) -> ir.Value:
        ones = b.constant(f"ones.{width}", np.ones((width, 1), dtype=np.int8))
        return b.op("MatMulInteger", [codes, ones, _zero_point(b, zero)], f"{name}.total")


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
        operands: list[ir.Value | None] = [a, w, left, _scale(b, name, to), _zero_point(b, zero)]
        if to.bias is None or to.row is not None:
            product = b.op("MatMulIntegerToFloat", operands, f"{name}.scaled", domain=CONTRIB)
            return _add_bias(b, name, product, to)
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
        total = b.op("MatMulInteger", [a, w, _zero_point(b, zero)], f"{name}.total")
        factor = b.op("Mul", [b.float("one", 1.0), b.float(f"{name}.scale", to.scale)], f"{name}.factor")
        return _rescale(b, name, b.cast(total, ir.DataType.FLOAT, f"{name}.real"), factor, to)

    batched_product = linear_product


class _Pairs:
    """Quantize-dequantize pairs. Codes travel as floats behind a DequantizeLinear of scale 1."""

    takes_scalar_scales = True

    def overridable(self, b: Builder) -> list[ir.Value]:
        return []

    def row_sum(self, b: Builder, name: str, codes: ir.Value, zero: int, width: int) -> ir.Value:
        total = b.op("ReduceSum", [codes, _axis(b, -1)], f"{name}.real", {"keepdims": 1})
        return (
            b.op("Add", [total, b.float(f"sum_{-zero}x{width}", -zero * width)], f"{name}.centred") if zero else total
        )

    def to_float(self, b: Builder, name: str, codes: ir.Value, zero: int) -> ir.Value:
        assert zero == 0, "only codes of softmax and fc2 have an offset, and nobody asks for their floats"
        return codes


class OpenVino(_Pairs):
    """What OpenVINO's low-precision passes turn into integer products: they want layout changes behind the pairs.

    Codes are clipped in float before an 8-bit rounding, the only width that these passes know.
    """

    name = "openvino"
    packs_weights = True
    highest_opset = 24  # from 25 on 2-bit codes are INT2, a type that it does not know

    def check(self, frozen: Frozen) -> None:
        if any(isinstance(node.granularity, (PerToken, PerTokenHead)) for node in frozen.quantizers.values()):
            raise UnsupportedByTarget(
                "OpenVINO multiplies in integers only with one activation step per tensor, this model has one per "
                "token; export it with --target ort-cpu, which OpenVINO reads too at a fixed batch size"
            )
        if any(linear.grid == "half" and linear.bits == 8 for linear in frozen.linears.values()):
            raise UnsupportedByTarget(
                "OpenVINO has no exact product for 8-bit StatsQ weights, whose integers need 9 bits; export the model "
                "with --target ort-cpu, or train it with --weights lsq"
            )

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
        return _add_bias(b, name, b.op("MatMul", [a, weight], f"{name}.scaled"), to)

    def wide_product(self, b: Builder, name: str, a: ir.Value, w: ir.Value, zero: int, to: Rescale) -> ir.Value:
        raise NotImplementedError("check refuses such models")

    def batched_product(self, b: Builder, name: str, a: ir.Value, w: ir.Value, zero: int, to: Rescale) -> ir.Value:
        total = b.op("MatMul", [a, w], f"{name}.total")
        return b.op("Mul", [total, _scale(b, name, to)], f"{name}.scaled")


class TensorRt(_Pairs):
    """What TensorRT's compiler turns into int8 products: both operands of a MatMul behind int8 pairs without offset.

    All pairs have scale 1: a Div in front quantizes as the definition does (TensorRT's QuantizeLinear multiplies by
    the reciprocal of its scale), Mul applies steps and scales behind the product. So the operands are whole numbers,
    and their sums are the same in any runtime, in integers or floats, as long as they stay below 2**24. Nothing but
    changes of layout may lie between a pair and its product, or the product becomes a float one.
    """

    name = "tensorrt"
    packs_weights = False  # its parser takes no 2-bit constants, and decodes 4-bit ones for every image
    highest_opset = 20  # from 21 on ONNX Runtime, where this file is proven, trips over int8 pairs

    def check(self, frozen: Frozen) -> None:
        return

    def left_zero(self, limits: tuple[int, int]) -> int:
        return min(0, INT8_MAX - limits[1])

    def quantize(
        self, b: Builder, x: ir.Value, name: str, steps: Steps, limits: tuple[int, int], left: bool
    ) -> ir.Value:
        if (steps.values != 1).any():
            shape = (-1, *(steps.rank - 1 - steps.axis) * (1,)) if steps.values.size > 1 else ()
            x = b.op("Div", [x, b.float(f"{name}.step", steps.values.reshape(shape))], f"{name}.divided")
        if zero := self.left_zero(limits):  # rounded first: beside the offset a float has fewer digits
            x = b.op("Round", [x], f"{name}.rounded")
            x = b.op("Add", [x, b.float(f"offset_{zero}", zero)], f"{name}.shifted")
        elif limits != _range(np.int8):
            bounds = [b.float(f"limit_{end}", end) for end in limits]
            x = b.op("Clip", [x, *bounds], f"{name}.clipped")
        codes = b.op("QuantizeLinear", [x, b.float("one", 1.0), _int8_zero(b)], name)
        return b.op("DequantizeLinear", [codes, b.float("one", 1.0), _int8_zero(b)], f"{name}.real")

    def linear_product(self, b: Builder, name: str, a: ir.Value, w: ir.Value, zero: int, to: Rescale) -> ir.Value:
        return self._finish(b, name, self._product(b, name, a, w), _integers(w), zero, to)

    def wide_product(self, b: Builder, name: str, a: ir.Value, w: ir.Value, zero: int, to: Rescale) -> ir.Value:
        """2 (a @ w) + sum(a): the 9 bits of 2 w + 1 do not fit into int8."""
        integers = 2 * _integers(w) + 1
        doubled = b.op("Mul", [self._product(b, name, a, w), b.float("two_float", 2.0)], f"{name}.doubled")
        sums = self.row_sum(b, f"{name}.row_sum", a, 0, len(integers))
        total = b.op("Add", [doubled, sums], f"{name}.odd_total")
        return self._finish(b, name, total, integers, zero, to)

    def batched_product(self, b: Builder, name: str, a: ir.Value, w: ir.Value, zero: int, to: Rescale) -> ir.Value:
        total = b.op("MatMul", [a, w], f"{name}.total")
        if zero:
            sums = b.op("ReduceSum", [w, _axis(b, -2)], f"{name}.column_sum", {"keepdims": 1})
            shift = b.op("Mul", [sums, b.float(f"offset_{-zero}", -zero)], f"{name}.column_sum.out")
            total = b.op("Add", [total, shift], f"{name}.centred")
        return b.op("Mul", [total, _scale(b, name, to)], f"{name}.scaled")

    @staticmethod
    def _product(b: Builder, name: str, a: ir.Value, w: ir.Value) -> ir.Value:
        real = b.op("DequantizeLinear", [w, b.float("one", 1.0), _int8_zero(b)], f"{name}.weight.real")
        return b.op("MatMul", [a, real], f"{name}.total")

    @staticmethod
    def _finish(
        b: Builder, name: str, total: ir.Value, integers: NDArray[np.int64], zero: int, to: Rescale
    ) -> ir.Value:
        if zero:
            total = b.op("Add", [total, b.float(f"{name}.column_sum", -zero * integers.sum(0))], f"{name}.centred")
        return _rescale(b, name, total, _scale(b, name, to), to)


def _zero_point(b: Builder, zero: int) -> ir.Value:
    """The left operand's zero point, always written: some runtimes misread its absence."""
    return b.constant(f"zero_uint8_{zero}", np.uint8(zero))


def _rescale(b: Builder, name: str, total: ir.Value, factor: ir.Value, to: Rescale) -> ir.Value:
    """Sums float32 [..., m, n] to values by operators of its own; `factor` is the scale."""
    out = b.op("Mul", [total, factor], f"{name}.scaled")
    if to.row is not None:
        out = b.op("Mul", [out, _row(b, name, to.row)], f"{name}.stepped")
    return _add_bias(b, name, out, to)


def _add_bias(b: Builder, name: str, x: ir.Value, to: Rescale) -> ir.Value:
    """The bias as an Add: one-dimensional where the product fuses it, else three-dimensional.

    A one-dimensional Add in front of Gelu would become the slower BiasGelu.
    """
    if to.bias is None:
        return x
    bias = to.bias if to.row is None else to.bias.reshape(1, 1, -1)
    return b.op("Add", [x, b.float(f"{name}.bias", bias)], f"{name}.out")


def _integers(w: ir.Value) -> NDArray[np.int64]:
    """int64 [k, n], of a constant"""
    assert w.const_value is not None
    return w.const_value.numpy().astype(np.int64)


def _int8_zero(b: Builder) -> ir.Value:
    """Written though it is 0: without it ONNX means uint8, and TensorRT int8."""
    return b.constant("zero_int8_0", np.int8(0))


def _axis(b: Builder, axis: int) -> ir.Value:
    names = {-1: "axis.last", -2: "axis.last_but_one"}
    return b.constant(names[axis], np.asarray([axis], dtype=np.int64))


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


TARGETS: dict[str, Target] = {
    "portable": Portable(),
    "ort-cpu": OrtCpu(),
    "openvino": OpenVino(),
    "tensorrt": TensorRt(),
}
