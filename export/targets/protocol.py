"""What differs between targets: how one integer product becomes a float. Everything else is in network.py."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ofq_deploy.export.builder import Builder
from ofq_deploy.model.frozen import Frozen

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
    """Activation steps: float32 [1], or one per index of `axis` of a tensor of `rank` axes."""

    values: Floats
    axis: int
    rank: int


class TargetOperators(Protocol):
    """One kind of graph; `ofq_deploy.targets` has a record of each.

    name, packs_weights: of the record
    takes_scalar_scales: a scale may be a single number
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
