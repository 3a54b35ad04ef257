"""A quantized tensor as integers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ofq_deploy.model.grids import Grid


@dataclass(frozen=True, slots=True)
class Coded:
    """A quantized tensor as integers.

    codes: int8 or, on an unsigned 8-bit grid, int16, in the shape of the input
    step:  float, broadcastable to codes
    zero:  float, broadcastable: the value is codes * step + zero (an activation's shift after), or for grid
           "half" (2 * codes + 1) * step
    grid:  which codes are legal
    """

    codes: Tensor
    step: Tensor
    zero: Tensor
    grid: Grid

    def integers(self, dtype: torch.dtype) -> Tensor:
        """What the step is multiplied with: the codes, or 2 * codes + 1 on the grid "half"."""
        codes = self.codes.to(dtype)
        return codes * 2 + 1 if self.grid == "half" else codes

    def dequantize(self) -> Tensor:
        """The value that the network sees, bit for bit."""
        return self.integers(self.step.dtype) * self.step + self.zero

    def rows(self, part: slice) -> "Coded":
        """A weight's codes and steps of some of its rows."""
        return Coded(self.codes[part].contiguous(), self.step[part], self.zero[part], self.grid)
