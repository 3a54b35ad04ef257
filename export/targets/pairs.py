"""Graphs of quantize-dequantize pairs."""

import onnx_ir as ir

from ofq_deploy.export.builder import Builder
from ofq_deploy.export.targets.operators import axis_constant


class Pairs:
    """Quantize-dequantize pairs. Codes travel as floats behind a DequantizeLinear of scale 1."""

    takes_scalar_scales = True

    def overridable(self, b: Builder) -> list[ir.Value]:
        return []

    def row_sum(self, b: Builder, name: str, codes: ir.Value, zero: int, width: int) -> ir.Value:
        total = b.op("ReduceSum", [codes, axis_constant(b, -1)], f"{name}.real", {"keepdims": 1})
        return (
            b.op("Add", [total, b.float(f"sum_{-zero}x{width}", -zero * width)], f"{name}.centred") if zero else total
        )

    def to_float(self, b: Builder, name: str, codes: ir.Value, zero: int) -> ir.Value:
        assert zero == 0, "only codes of softmax and fc2 have an offset, and nobody asks for their floats"
        return codes
