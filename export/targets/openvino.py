"""Graphs for OpenVINO."""

import numpy as np
import onnx_ir as ir

from ofq_deploy.errors import UnsupportedByTarget
from ofq_deploy.export.builder import Builder
from ofq_deploy.export.targets.operators import add_bias, code_range, quantize_linear, scale_constant
from ofq_deploy.export.targets.pairs import Pairs
from ofq_deploy.export.targets.protocol import Rescale, Steps
from ofq_deploy.model.frozen import Frozen
from ofq_deploy.model.nodes import PerToken, PerTokenHead
from ofq_deploy.targets import OPENVINO


class OpenVino(Pairs):
    """What OpenVINO's low-precision passes turn into integer products: they want layout changes behind the pairs.

    Codes are clipped in float before an 8-bit rounding, the only width that these passes know.
    """

    name, packs_weights = OPENVINO.name, OPENVINO.packs_weights
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
        if limits != code_range(dtype):
            ends = zip(("low", "high"), limits, strict=True)
            bounds = [b.float(f"{name}.{side}", np.float32(end) * steps.values[0]) for side, end in ends]
            x = b.op("Clip", [x, *bounds], f"{name}.clipped")
        codes = quantize_linear(b, x, name, f"{name}.step", steps, dtype, 0)
        zero = b.constant(f"zero_{dtype.__name__}_0", dtype(0))
        return b.op("DequantizeLinear", [codes, b.float("one", 1.0), zero], f"{name}.real")

    def linear_product(self, b: Builder, name: str, a: ir.Value, w: ir.Value, zero: int, to: Rescale) -> ir.Value:
        zeros = b.constant(f"zero_int8_0x{to.scale.size}", np.zeros(to.scale.shape, dtype=np.int8))
        operands = [w, b.float(f"{name}.scale", to.scale), zeros]
        weight = b.op("DequantizeLinear", operands, f"{name}.weight.real", {"axis": 1})
        return add_bias(b, name, b.op("MatMul", [a, weight], f"{name}.scaled"), to)

    def wide_product(self, b: Builder, name: str, a: ir.Value, w: ir.Value, zero: int, to: Rescale) -> ir.Value:
        raise NotImplementedError("check refuses such models")

    def batched_product(self, b: Builder, name: str, a: ir.Value, w: ir.Value, zero: int, to: Rescale) -> ir.Value:
        total = b.op("MatMul", [a, w], f"{name}.total")
        return b.op("Mul", [total, scale_constant(b, name, to)], f"{name}.scaled")
