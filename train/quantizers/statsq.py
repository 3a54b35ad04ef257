"""StatsQ: weights on the half grid of an even number of levels, scaled by the row's mean magnitude."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from ofq_deploy.model.grids import Grid
from ofq_deploy.train.quantizers.coded import Coded
from ofq_deploy.train.quantizers.weight import WeightQuantizer, near_threshold

DEAD_ROW_SCALE = 1e-12  # StatsQ's scale of a row of zeros


class StatsQFunction(torch.autograd.Function):
    """StatsQ's value; the gradient passes to every weight, or only near a threshold when a range is given."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bits: int, boundary_range: float | None) -> Tensor:
        ctx.bits, ctx.boundary_range = bits, boundary_range
        if boundary_range is not None:
            ctx.save_for_backward(weight)
        codes, step = statsq_codes(weight, bits)
        return (codes * 2 + 1).to(weight.dtype) * step.to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        if ctx.boundary_range is not None:
            grad = grad * near_threshold(statsq_units(ctx.saved_tensors[0], ctx.bits)[0], ctx.bits, ctx.boundary_range)
        return grad, None, None


def statsq_units(weight: Tensor, bits: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Where each weight lies on the code axis, and the step of each row.

    weight:  float [rows, columns]
    dtype:   what it is read as; codes are always those of float32, so that a float64 model has the same ones
    returns: units [rows, columns], code = round(units); step [rows, 1] = S / (2 n), S = 2 mean|w| of the row,
             n = 2**(bits - 1); both of `dtype`
    """
    half = 2 ** (bits - 1)
    weight = weight.to(dtype)
    row_scale = (2 * weight.abs().mean(-1, keepdim=True)).clamp_min(DEAD_ROW_SCALE)
    return (weight / row_scale).clamp_(-1, 1 - 1e-6).mul_(half).sub_(0.5), row_scale / (2 * half)


def statsq_codes(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes float32 [rows, columns] and step float32 [rows, 1]; the weight is (2 * code + 1) * step."""
    units, step = statsq_units(weight, bits)
    return units.round_().clamp_(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1), step


class StatsQ(WeightQuantizer):
    """StatsQ on a weight [rows, columns]: no parameters, the scale is twice the row's mean magnitude."""

    grid: ClassVar[Grid] = "half"

    def __init__(self, bits: int) -> None:
        super().__init__(bits)
        self.boundary_range: float | None = None  # set while annealing masks the gradient inside the quantizer

    def quantized(self, weight: Tensor) -> Tensor:
        return StatsQFunction.apply(weight, self.bits, self.boundary_range)

    def coded(self, weight: Tensor) -> Coded:
        codes, step = statsq_codes(weight.detach(), self.bits)
        return Coded(codes.to(torch.int8), step, torch.zeros_like(step), self.grid)

    def units(self, weight: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return statsq_units(weight.detach(), self.bits, dtype)[0]
