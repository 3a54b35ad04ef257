"""What every weight quantizer has: bits, a grid, one function that makes codes, and where they lie between thresholds."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from ofq_deploy.model.grids import Grid, code_range
from ofq_deploy.train.quantizers.coded import Coded


class WeightQuantizer(nn.Module, ABC):
    """Quantizes a weight [rows, columns]; a subclass's constructor takes the bits and the weight to start from.

    enabled: whether `forward` quantizes; otherwise the weight passes as it is
    """

    grid: ClassVar[Grid]

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.low, self.high = code_range(self.grid, bits)  # refuses widths without a grid
        self.bits, self.enabled = bits, True

    def extra_repr(self) -> str:
        return f"bits={self.bits}"

    def forward(self, weight: Tensor) -> Tensor:
        """The value that the network sees, float [rows, columns]."""
        return self.quantized(weight) if self.enabled else weight

    @abstractmethod
    def quantized(self, weight: Tensor) -> Tensor:
        """`coded(weight).dequantize()` bit for bit, with gradients."""

    @abstractmethod
    def coded(self, weight: Tensor) -> Coded:
        """Codes and the step of each row; nothing of it carries gradients."""

    @abstractmethod
    def units(self, weight: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """[rows, columns] of `dtype`: where each weight lies on the code axis; its code is the nearest legal integer."""

    def trainable(self, weight: Tensor, boundary_range: float) -> Tensor:
        """Bool [rows, columns]: the weights that confidence-guided annealing leaves free."""
        return near_threshold(self.units(weight.detach()), self.bits, boundary_range)


def near_threshold(units: Tensor, bits: int, boundary_range: float) -> Tensor:
    """Bool: lies within `boundary_range` codes of a threshold between two legal codes (OFQ section 4.3)."""
    threshold = (units - 0.5).round() + 0.5
    low, high = code_range("signed", bits)
    return ((units - threshold).abs() <= boundary_range) & (threshold > low) & (threshold < high)
