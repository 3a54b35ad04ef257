"""What differs between targets: how one integer product becomes a float.

Everything else about a network is in network.py.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ofq_deploy.export.builder import CONTRIB, Builder

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


class Target(Protocol):
    """One kind of graph. `takes_scalar_scales`: a scale may be a single number."""

    name: str
    takes_scalar_scales: bool

    def overridable(self, b: Builder) -> list[ir.Value]:
        """Initializers that are graph inputs too."""
        ...

    def rescaled_product(self, b: Builder, name: str, a: ir.Value, w: ir.Value, zero: int, to: Rescale) -> ir.Value:
        """float32 [..., m, n]: (a - zero) @ w in integers, rescaled.

        a: uint8 [..., m, k];  w: int8 [k, n] or [..., k, n]
        """
        ...


class OrtCpu:
    """ONNX Runtime's fused integer product, MatMulIntegerToFloat."""

    name = "ort-cpu"
    takes_scalar_scales = True

    def overridable(self, b: Builder) -> list[ir.Value]:
        return []

    def rescaled_product(self, b: Builder, name: str, a: ir.Value, w: ir.Value, zero: int, to: Rescale) -> ir.Value:
        # A bias beside a row-wise a_scale would be multiplied with it: then the bias is an Add of its own.
        scale = b.float(f"{name}.scale", to.scale if to.scale.size > 1 else to.scale.reshape(()))
        left = b.float("one", 1.0) if to.row is None else _row(b, name, to.row)
        operands: list[ir.Value | None] = [a, w, left, scale, zero_point(b, zero)]
        if to.bias is None or to.row is not None:
            product = b.op("MatMulIntegerToFloat", operands, f"{name}.scaled", domain=CONTRIB)
            return add_bias(b, name, product, to)
        operands += [None, b.float(f"{name}.bias", to.bias)]
        return b.op("MatMulIntegerToFloat", operands, f"{name}.out", domain=CONTRIB)


class Portable:
    """Standard operators only. ONNX Runtime still fuses them, because `one` can be overridden.

    Mul(one, scale) is not constant for the optimizer, and that inner Mul is what its fusion looks for. Each
    layer needs a scale initializer of its own, written as a vector: equal scalars would be shared and unfused.
    """

    name = "portable"
    takes_scalar_scales = False

    def overridable(self, b: Builder) -> list[ir.Value]:
        return [b.float("one", 1.0)]

    def rescaled_product(self, b: Builder, name: str, a: ir.Value, w: ir.Value, zero: int, to: Rescale) -> ir.Value:
        total = b.op("MatMulInteger", [a, w, zero_point(b, zero)], f"{name}.total")
        factor = b.op("Mul", [b.float("one", 1.0), b.float(f"{name}.scale", to.scale)], f"{name}.factor")
        return rescale(b, name, total, factor, to)


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


def _row(b: Builder, name: str, row: Floats) -> ir.Value:
    return b.float(f"{name}.row_step", row.reshape(1, -1, 1))


TARGETS: dict[str, Target] = {"portable": Portable(), "ort-cpu": OrtCpu()}
