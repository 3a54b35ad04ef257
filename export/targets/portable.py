"""Graphs of standard operators only."""

import onnx_ir as ir

from ofq_deploy.export.builder import Builder
from ofq_deploy.export.targets.integers import IntegerOperators
from ofq_deploy.export.targets.operators import rescale, zero_point
from ofq_deploy.export.targets.protocol import HIGHEST_OPSET, Rescale
from ofq_deploy.targets import PORTABLE


class Portable(IntegerOperators):
    """Standard operators only. ONNX Runtime still fuses them, because `one` can be overridden.

    Mul(one, scale) is not constant for the optimizer, and that inner Mul is what its fusion looks for. Each
    layer needs a scale initializer of its own, written as a vector: equal scalars would be shared and unfused.
    """

    name, packs_weights = PORTABLE.name, PORTABLE.packs_weights
    takes_scalar_scales = False
    highest_opset = HIGHEST_OPSET

    def overridable(self, b: Builder) -> list[ir.Value]:
        return [b.float("one", 1.0)]

    def linear_product(self, b: Builder, name: str, a: ir.Value, w: ir.Value, zero: int, to: Rescale) -> ir.Value:
        total = b.op("MatMulInteger", [a, w, zero_point(b, zero)], f"{name}.total")
        factor = b.op("Mul", [b.float("one", 1.0), b.float(f"{name}.scale", to.scale)], f"{name}.factor")
        return rescale(b, name, b.cast(total, ir.DataType.FLOAT, f"{name}.real"), factor, to)

    batched_product = linear_product
