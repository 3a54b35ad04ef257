"""How a phase of training treats the model: the hooks that the loop calls."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Method:
    """Ordinary training. A method overrides what it changes, and may keep state between the steps of its phase."""

    def start(self, model: nn.Module) -> None:
        """Called once, before the first step of the phase; the optimizer's state is that of the phase before."""

    def loss(self, model: nn.Module, loss: Tensor) -> Tensor:
        """The loss of a step, from that of the phase: a method may add a term."""
        return loss

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Mapping[str, float]:
        """Apply the gradients of a step; returns numbers whose means over an epoch go to the metrics."""
        optimizer.step()
        return {}
