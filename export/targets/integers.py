"""Graphs whose codes travel as integers."""

import numpy as np
import onnx_ir as ir

from ofq_deploy.export.builder import Builder
from ofq_deploy.export.targets.operators import code_range, constant_integers, quantize_linear, rescale, zero_point
from ofq_deploy.export.targets.protocol import Rescale, Steps
from ofq_deploy.model.frozen import Frozen


class IntegerOperators:
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
        clipped = (low + zero, high + zero) != code_range(dtype)
        rounded = quantize_linear(b, x, f"{name}.rounded" if clipped else name, f"{name}.step", steps, dtype, zero)
        if not clipped:
            return rounded
        top = b.constant(f"limit_{dtype.__name__}_{high + zero}", dtype(high + zero))
        if left:  # saturation at 0 already is the lower limit
            return b.op("Min", [rounded, top], name)
        return b.op("Clip", [rounded, b.constant(f"limit_int8_{low}", np.int8(low)), top], name)

    def wide_product(self, b: Builder, name: str, a: ir.Value, w: ir.Value, zero: int, to: Rescale) -> ir.Value:
        """2 (a @ w) + sum(a), exact in int32."""
        half = b.op("MatMulInteger", [a, w, zero_point(b, zero)], f"{name}.half_total")
        doubled = b.op("Mul", [half, b.constant("two_int32", np.int32(2))], f"{name}.doubled")
        sums = self._row_total(b, f"{name}.row_sum", a, zero, len(constant_integers(w)))
        total = b.op("Add", [doubled, sums], f"{name}.total")
        total = b.cast(total, ir.DataType.FLOAT, f"{name}.real")
        out = rescale(b, name, total, b.float(f"{name}.scale", to.scale), Rescale(to.scale, row=to.row))
        if to.bias is None:
            return out
        return b.op("Add", [out, b.float(f"{name}.bias", to.bias.reshape(1, 1, -1))], f"{name}.out")

    def row_sum(self, b: Builder, name: str, codes: ir.Value, zero: int, width: int) -> ir.Value:
        return b.cast(self._row_total(b, name, codes, zero, width), ir.DataType.FLOAT, f"{name}.real")

    def to_float(self, b: Builder, name: str, codes: ir.Value, zero: int) -> ir.Value:
        if not zero:
            return b.cast(codes, ir.DataType.FLOAT, name)
        return b.op("DequantizeLinear", [codes, b.float("one", 1.0), zero_point(b, zero)], name)

    @staticmethod
    def _row_total(b: Builder, name: str, codes: ir.Value, zero: int, width: int) -> ir.Value:
        ones = b.constant(f"ones.{width}", np.ones((width, 1), dtype=np.int8))
        return b.op("MatMulInteger", [codes, ones, zero_point(b, zero)], f"{name}.total")
