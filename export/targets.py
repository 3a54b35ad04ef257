"""What differs between targets: how one integer product becomes a float.

Everything else about a network is in network.py. A target is a class with `name`, `overridable` and
`rescaled_product`.
"""

from typing import Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ofq_deploy.export.builder import CONTRIB, Builder

Floats = NDArray[np.float32]


class Target(Protocol):
    name: str

    def overridable(self, b: Builder) -> list[ir.Value]:
        """Initializers that are graph inputs too."""
        ...

    def rescaled_product(
        self,
        b: Builder,
        name: str,
        a: ir.Value,
        w: ir.Value,
        zero: int,
        scale: Floats,
        bias: Floats | None,
        row: Floats | None,
    ) -> ir.Value:
        """float32: ((a - zero) @ w) * scale [* row] [+ bias], integers up to the first multiplication.

        a:     uint8 [..., m, k];  w: int8 [k, n] or [..., k, n]
        scale: float32 [n], or [1] or [1, heads, 1, n] for batched w
        bias:  float32 [n], for 2-D w only
        row:   float32 [m], the step of each row of a: for 2-D w and [batch, m, k] only
        """
        ...


def zero_point(b: Builder, zero: int) -> ir.Value:
    """A's zero point, always written: some runtimes misread its absence."""
    return b.constant(f"zero_uint8_{zero}", np.uint8(zero))


class OrtCpu:
    """ONNX Runtime's fused integer product, MatMulIntegerToFloat."""

    name = "ort-cpu"

    def overridable(self, b: Builder) -> list[ir.Value]:
        return []

    def rescaled_product(
        self,
        b: Builder,
        name: str,
        a: ir.Value,
        w: ir.Value,
        zero: int,
        scale: Floats,
        bias: Floats | None,
        row: Floats | None,
    ) -> ir.Value:
        # A bias beside a row-wise a_scale would be multiplied with it: then the bias is an Add of its own, and
        # three-dimensional, or it fuses with a following Gelu into a slower kernel.
        scales = b.float(f"{name}.scale", scale if scale.size > 1 else scale.reshape(()))
        if row is None:
            inside = None if bias is None else b.float(f"{name}.bias", bias)
            operands = [
                a,
                w,
                b.float("one", 1.0),
                scales,
                zero_point(b, zero),
                *([None, inside] if inside else []),
            ]
            return b.op("MatMulIntegerToFloat", operands, f"{name}.out", domain=CONTRIB)
        steps = b.float(f"{name}.row_step", row.reshape(1, -1, 1))
        product = b.op(
            "MatMulIntegerToFloat",
            [a, w, steps, scales, zero_point(b, zero)],
            f"{name}.scaled",
            domain=CONTRIB,
        )
        if bias is None:
            return product
        return b.op("Add", [product, b.float(f"{name}.bias", bias.reshape(1, 1, -1))], f"{name}.out")


class Portable:
    """Standard operators only. ONNX Runtime still fuses them, because `one` can be overridden.

    Mul(one, scale) is not constant for the optimizer, and that inner Mul is what its fusion looks for. Each
    layer needs a scale initializer of its own, written as a vector: equal scalars would be shared and unfused.
    """

    name = "portable"

    def overridable(self, b: Builder) -> list[ir.Value]:
        return [b.float("one", 1.0)]

    def rescaled_product(
        self,
        b: Builder,
        name: str,
        a: ir.Value,
        w: ir.Value,
        zero: int,
        scale: Floats,
        bias: Floats | None,
        row: Floats | None,
    ) -> ir.Value:
        total = b.op("MatMulInteger", [a, w, zero_point(b, zero)], f"{name}.total")
        real = b.cast(total, ir.DataType.FLOAT, f"{name}.real")
        factor = b.op("Mul", [b.float("one", 1.0), b.float(f"{name}.scale", scale)], f"{name}.factor")
        out = b.op("Mul", [real, factor], f"{name}.scaled")
        if row is not None:
            out = b.op("Mul", [out, b.float(f"{name}.row_step", row.reshape(1, -1, 1))], f"{name}.stepped")
        if bias is None:
            return out
        return b.op(
            "Add",
            [out, b.float(f"{name}.bias", bias if row is None else bias.reshape(1, 1, -1))],
            f"{name}.out",
        )


TARGETS: dict[str, Target] = {"portable": Portable(), "ort-cpu": OrtCpu()}
