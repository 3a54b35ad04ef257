"""Graphs for ONNX Runtime on CPUs."""

import onnx_ir as ir

from ofq_deploy.export.builder import CONTRIB, Builder
from ofq_deploy.export.targets.integers import IntegerOperators
from ofq_deploy.export.targets.operators import add_bias, row_constant, scale_constant, zero_point
from ofq_deploy.export.targets.protocol import HIGHEST_OPSET, Rescale
from ofq_deploy.targets import ORT_CPU


class OrtCpu(IntegerOperators):
    """ONNX Runtime's fused integer product, MatMulIntegerToFloat."""

    name, packs_weights = ORT_CPU.name, ORT_CPU.packs_weights
    takes_scalar_scales = True
    highest_opset = HIGHEST_OPSET

    def overridable(self, b: Builder) -> list[ir.Value]:
        return []

    def linear_product(self, b: Builder, name: str, a: ir.Value, w: ir.Value, zero: int, to: Rescale) -> ir.Value:
        # A bias beside a row-wise a_scale would be multiplied with it: then the bias is an Add of its own.
        left = b.float("one", 1.0) if to.row is None else row_constant(b, name, to.row)
        operands: list[ir.Value | None] = [a, w, left, scale_constant(b, name, to), zero_point(b, zero)]
        if to.bias is None or to.row is not None:
            product = b.op("MatMulIntegerToFloat", operands, f"{name}.scaled", domain=CONTRIB)
            return add_bias(b, name, product, to)
        operands += [None, b.float(f"{name}.bias", to.bias)]
        return b.op("MatMulIntegerToFloat", operands, f"{name}.out", domain=CONTRIB)

    batched_product = linear_product
