"""Confidence-guided annealing (OFQ section 4.3): fine-tuning in which only undecided weights move.

A weight is undecided while it lies within `boundary_range` codes of a threshold; the mask is made anew in every
step. All other weights keep their latent value exactly: neither momentum nor weight decay moves them.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ofq_deploy.recipe import Annealing
from ofq_deploy.train.architectures.protocols import Layer
from ofq_deploy.train.architectures.registry import adapter_of
from ofq_deploy.train.methods.method import Method
from ofq_deploy.train.quantizers import StatsQ


class ConfidenceGuided(Method):
    """The phase that anneals: every layer but patch embedding and heads, which train on, as all other parameters do."""

    def __init__(self, config: Annealing) -> None:
        self.config = config

    def start(self, model: nn.Module) -> None:
        """With qk="mask", QKR's product passes gradients only where it is undecided (the official code leaves Wq
        and Wk free).
        """
        for product in adapter_of(model).products(model):
            if isinstance(product.quantizer, StatsQ):
                product.quantizer.boundary_range = self.config.boundary_range if self.config.qk == "mask" else None

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Mapping[str, float]:
        """Also returns the share of the annealed weights that could move."""
        return {"trainable_share": annealed_step(annealed_layers(model), optimizer, self.config.boundary_range)}


def annealed_layers(model: nn.Module) -> list[Layer]:
    """fc1, fc2, proj, and v (QKR) or qkv of every block of a ViT; the 8-bit layers train on."""
    return [layer for layer in adapter_of(model).layers(model) if not layer.edge]


@torch.no_grad()
def annealed_step(layers: list[Layer], optimizer: torch.optim.Optimizer, boundary_range: float) -> float:
    """One optimizer step after backward; returns the share of the layers' weights that could move."""
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    for layer in layers:
        trainable = layer.quantizer.trainable(layer.weight, boundary_range)
        if layer.weight.grad is not None:
            layer.weight.grad.mul_(trainable)
        kept.append((layer.weight, trainable, layer.weight.detach().clone()))
    optimizer.step()
    for weight, trainable, old in kept:
        weight.copy_(torch.where(trainable, weight, old))
    moved = sum(int(trainable.sum()) for _, trainable, _ in kept)
    return moved / sum(old.numel() for _, _, old in kept)
