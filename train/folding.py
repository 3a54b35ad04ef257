"""Numbers as the frozen file holds them: folded in float64, cast once to float32."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ofq_deploy.errors import ModelError
from ofq_deploy.model.architecture import Coding
from ofq_deploy.model.nodes import PerTensor
from ofq_deploy.train.quantizers import STEP_FLOOR, Coded, LsqQuantizer

Double = NDArray[np.float64]


class Writer:
    """Collects arrays (cast to float32 once), and on which grids codes lie."""

    def __init__(self) -> None:
        self.arrays: dict[str, NDArray[Any]] = {}
        self.quantizers: dict[str, Coding] = {}
        self.linears: dict[str, Coding] = {}

    def put(self, name: str, value: Double | None) -> None:
        """An array, or nothing where the model has none. Raises ModelError when a number is not finite."""
        if value is not None:
            if not np.isfinite(value).all():
                raise ModelError(
                    f"{name} is not finite when frozen; the weights are too large or the training diverged"
                )
            self.arrays[name] = np.ascontiguousarray(value, dtype=np.float32)

    def quantizer(self, name: str, source: LsqQuantizer, step: Double) -> None:
        """`step` in the frozen file's shape."""
        self.quantizers[name] = Coding(source.grid, source.bits)
        self.put(f"{name}.step", step)

    def linear(self, name: str, coded: Coded, bits: int, scale: Double, bias: Double | None) -> None:
        """`scale` [out] or [channels, out] in units of the weight's step: what the accumulator is multiplied with."""
        self.linears[name] = Coding(coded.grid, bits)
        step = double(coded.step)[:, 0]
        self.arrays[f"{name}.weight.codes"] = coded.codes.numpy()
        self.put(f"{name}.weight.step", step)
        self.put(f"{name}.scale", scale * step)
        self.put(f"{name}.bias", bias)


def double(tensor: torch.Tensor) -> Double:
    """In float64, of the same shape."""
    return tensor.detach().double().numpy()


def step_of(quantizer: LsqQuantizer) -> Double:
    """The step that acts, never below its floor; in the shape that training has."""
    return double(quantizer.step.clamp_min(STEP_FLOOR))


def optional(shift: torch.Tensor | None) -> Double | None:
    return None if shift is None else double(shift)


def folded_step(quantizer: LsqQuantizer, step: Double | None = None) -> float:
    """What folds into a scale: the step of a tensor quantizer. Token steps stay outside and count as 1 here.

    step: as the frozen file has it, where a fold must use that
    """
    if not isinstance(quantizer.granularity, PerTensor):
        return 1.0
    return (step_of(quantizer) if step is None else step).item()


def real_weight(coded: Coded) -> Double:
    """The real weight [out, in] in float64: integers times step, without a rounding."""
    return (coded.integers(torch.float64) * coded.step.double()).numpy()


def folded_bias(bias: torch.Tensor | None, weight: Coded, after: torch.Tensor | None) -> Double:
    """float64 [out]: a layer's bias plus what the shift after its input contributes, W @ after."""
    constant = np.zeros(weight.codes.shape[0]) if bias is None else double(bias)
    return constant if after is None else constant + real_weight(weight) @ double(after)
