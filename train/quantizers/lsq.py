"""LSQ with a learned step: on activations with learned shifts, on weights with one step per row."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ofq_deploy.model.grids import Grid, code_range
from ofq_deploy.model.nodes import Granularity
from ofq_deploy.train.quantizers.coded import Coded
from ofq_deploy.train.quantizers.weight import WeightQuantizer

STEP_FLOOR = 1e-5  # a step at or below it acts as it; the parameter itself still learns


def lsq_codes(x: Tensor, step: Tensor, low: int, high: int, before: Tensor | None = None) -> Tensor:
    """Codes of x + before [...] as floats: divide, clamp, round half to even (never times a reciprocal)."""
    units = x / step if before is None else (x + before).div_(step)
    return units.clamp_(low, high).round_()


class LsqFunction(torch.autograd.Function):
    """codes * step + after, with LSQ's gradients.

    Inside the range: 1 for x and (code - units) for the step; outside: 0 for x and the limit for the step.
    The shifts are in here so that the backward keeps the raw x, which its producer usually holds anyway.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        step: Tensor,
        before: Tensor | None,
        after: Tensor | None,
        low: int,
        high: int,
        gradient_scale: float,
    ) -> Tensor:
        ctx.save_for_backward(x, step, before)
        ctx.settings = low, high, gradient_scale, None if after is None else after.shape
        floored = step.clamp_min(STEP_FLOOR)
        value = lsq_codes(x, floored, low, high, before).mul_(floored)
        return value.add_(0.0 if after is None else after)  # + 0.0 turns -0.0 into the 0.0 that code 0 stands for

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, step, before = ctx.saved_tensors
        low, high, gradient_scale, after_shape = ctx.settings
        floored = step.clamp_min(STEP_FLOOR)
        units = x / floored if before is None else (x + before).div_(floored)
        inside = (units >= low) & (units <= high)
        grad_x = grad * inside
        grad_step = None
        if ctx.needs_input_grad[1]:
            codes = units.clamp(low, high).round_()
            grad_step = codes.sub_(units.mul_(inside)).mul_(grad).sum_to_size(step.shape) * gradient_scale
        grad_before = None if before is None else grad_x.sum_to_size(before.shape)
        grad_after = None if after_shape is None else grad.sum_to_size(after_shape)
        return grad_x, grad_step, grad_before, grad_after, None, None, None


class LsqQuantizer(nn.Module):
    """LSQ on an activation, with a learned shift before and after.

    step_shape:        broadcastable to the input: [tokens, 1], [dim], [1], ...
    elements_per_step: elements of one image that share a step (for the gradient scale)
    shift_shapes:      shapes of the shifts before and after, None for none
    reference_batch:   constant batch size in the gradient scale, so that neither the batch at hand nor the
                       number of processes changes the training

    Steps are allocated here and filled by `calibrate`; before that a forward raises RuntimeError.
    """

    initialized: Tensor
    signed: Tensor
    granularity: Granularity  # of quantizers that a model's `Quantizers` made; freezing asks it

    def __init__(
        self,
        bits: int,
        grid: Grid,
        step_shape: tuple[int, ...],
        elements_per_step: int,
        *,
        before: tuple[int, ...] | None = None,
        after: tuple[int, ...] | None = None,
        reference_batch: int = 1,
    ) -> None:
        super().__init__()
        self.bits, self.enabled, self.calibrating = bits, True, False
        self.start_factor = 4.0 if grid == "unsigned" else 2.0
        self.elements = elements_per_step * reference_batch
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))
        self.register_buffer("signed", torch.zeros((), dtype=torch.bool))
        self.set_grid(grid)
        self.register_load_state_dict_post_hook(_restore_grid)
        self.step = nn.Parameter(torch.ones(step_shape))
        self.before = nn.Parameter(torch.zeros(before)) if before else None
        self.after = nn.Parameter(torch.zeros(after)) if after else None

    def set_grid(self, grid: Grid) -> None:
        self.grid: Grid = grid
        self.signed.fill_(grid == "signed")
        self.low, self.high = code_range(grid, self.bits)
        self.gradient_scale = (self.high * self.elements) ** -0.5

    def extra_repr(self) -> str:
        return f"bits={self.bits}, grid={self.grid}, step={tuple(self.step.shape)}, shifts={self.before is not None}"

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            x = x if self.before is None else x + self.before
            return x if self.after is None else x + self.after
        if self.calibrating:
            self._start(x if self.before is None else x + self.before)
        if not self.initialized:
            raise RuntimeError("an activation quantizer has no steps yet: run calibrate() first")
        settings = self.low, self.high, self.gradient_scale
        return LsqFunction.apply(x, self.step, self.before, self.after, *settings)

    def coded(self, x: Tensor) -> Coded:
        """The codes of x; their `dequantize` is `forward(x)` bit for bit."""
        step = self.step.detach().clamp_min(STEP_FLOOR)
        before = None if self.before is None else self.before.detach()
        codes = lsq_codes(x.detach(), step, self.low, self.high, before)
        zero = torch.zeros_like(step) if self.after is None else self.after.detach()
        return Coded(codes.to(torch.int8 if self.high < 128 else torch.int16), step, zero, self.grid)

    @torch.no_grad()
    def _start(self, x: Tensor) -> None:
        """OFQ's start value: factor * mean|x| / sqrt(high), over the elements that share a step."""
        total = x.abs().sum_to_size(self.step.shape)
        mean = total * (self.step.numel() / x.numel())
        self.step.copy_((self.start_factor * mean / self.high**0.5).clamp_min(STEP_FLOOR))
        self.initialized.fill_(True)


def _restore_grid(quantizer: nn.Module, _: Any) -> None:
    """After loading: the image's grid was decided at calibration and travels in the buffer `signed`."""
    assert isinstance(quantizer, LsqQuantizer)
    quantizer.set_grid("signed" if quantizer.signed else "unsigned")


class LsqWeight(WeightQuantizer):
    """LSQ on a weight [rows, columns] with one learned step per row."""

    grid: ClassVar[Grid] = "signed"

    def __init__(self, bits: int, weight: Tensor) -> None:
        super().__init__(bits)
        self.gradient_scale = (self.high * weight.shape[1]) ** -0.5
        start = 2 * weight.detach().abs().mean(1, keepdim=True) / self.high**0.5
        self.step = nn.Parameter(start.clamp_min(STEP_FLOOR))

    def quantized(self, weight: Tensor) -> Tensor:
        return LsqFunction.apply(weight, self.step, None, None, self.low, self.high, self.gradient_scale)

    def coded(self, weight: Tensor) -> Coded:
        step = self.step.detach().clamp_min(STEP_FLOOR)
        codes = lsq_codes(weight.detach(), step, self.low, self.high)
        return Coded(codes.to(torch.int8), step, torch.zeros_like(step), self.grid)

    def units(self, weight: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return weight.detach().to(dtype) / self.step.detach().to(dtype).clamp_min(STEP_FLOOR)
