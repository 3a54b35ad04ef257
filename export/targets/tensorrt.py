"""Graphs for TensorRT."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ofq_deploy.export.builder import Builder
from ofq_deploy.export.targets.operators import (
    axis_constant,
    code_range,
    constant_integers,
    int8_zero,
    rescale,
    scale_constant,
)
from ofq_deploy.export.targets.pairs import Pairs
from ofq_deploy.export.targets.protocol import Rescale, Steps
from ofq_deploy.model.frozen import Frozen
from ofq_deploy.targets import TENSORRT

INT8_MAX = 127


class TensorRt(Pairs):
    """What TensorRT's compiler turns into int8 products: both operands of a MatMul behind int8 pairs without offset.

    All pairs have scale 1: a Div in front quantizes as the definition does (TensorRT's QuantizeLinear multiplies by
    the reciprocal of its scale), Mul applies steps and scales behind the product. So the operands are whole numbers,
    and their sums are the same in any runtime, in integers or floats, as long as they stay below 2**24. Nothing but
    changes of layout may lie between a pair and its product, or the product becomes a float one.
    """

    name, packs_weights = TENSORRT.name, TENSORRT.packs_weights
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
        elif limits != code_range(np.int8):
            bounds = [b.float(f"limit_{end}", end) for end in limits]
            x = b.op("Clip", [x, *bounds], f"{name}.clipped")
        codes = b.op("QuantizeLinear", [x, b.float("one", 1.0), int8_zero(b)], name)
        return b.op("DequantizeLinear", [codes, b.float("one", 1.0), int8_zero(b)], f"{name}.real")

    def linear_product(self, b: Builder, name: str, a: ir.Value, w: ir.Value, zero: int, to: Rescale) -> ir.Value:
        return self._finish(b, name, self._product(b, name, a, w), constant_integers(w), zero, to)

    def wide_product(self, b: Builder, name: str, a: ir.Value, w: ir.Value, zero: int, to: Rescale) -> ir.Value:
        """2 (a @ w) + sum(a): the 9 bits of 2 w + 1 do not fit into int8."""
        integers = 2 * constant_integers(w) + 1
        doubled = b.op("Mul", [self._product(b, name, a, w), b.float("two_float", 2.0)], f"{name}.doubled")
        sums = self.row_sum(b, f"{name}.row_sum", a, 0, len(integers))
        total = b.op("Add", [doubled, sums], f"{name}.odd_total")
        return self._finish(b, name, total, integers, zero, to)

    def batched_product(self, b: Builder, name: str, a: ir.Value, w: ir.Value, zero: int, to: Rescale) -> ir.Value:
        total = b.op("MatMul", [a, w], f"{name}.total")
        if zero:
            sums = b.op("ReduceSum", [w, axis_constant(b, -2)], f"{name}.column_sum", {"keepdims": 1})
            shift = b.op("Mul", [sums, b.float(f"offset_{-zero}", -zero)], f"{name}.column_sum.out")
            total = b.op("Add", [total, shift], f"{name}.centred")
        return b.op("Mul", [total, scale_constant(b, name, to)], f"{name}.scaled")

    @staticmethod
    def _product(b: Builder, name: str, a: ir.Value, w: ir.Value) -> ir.Value:
        real = b.op("DequantizeLinear", [w, b.float("one", 1.0), int8_zero(b)], f"{name}.weight.real")
        return b.op("MatMul", [a, real], f"{name}.total")

    @staticmethod
    def _finish(
        b: Builder, name: str, total: ir.Value, integers: NDArray[np.int64], zero: int, to: Rescale
    ) -> ir.Value:
        if zero:
            total = b.op("Add", [total, b.float(f"{name}.column_sum", -zero * integers.sum(0))], f"{name}.centred")
        return rescale(b, name, total, scale_constant(b, name, to), to)
