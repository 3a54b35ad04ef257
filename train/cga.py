"""Confidence-guided annealing (OFQ section 4.3): fine-tuning in which only undecided weights move.

A weight is undecided while it lies within `boundary_range` codes of a threshold; the mask is made anew in every
step. All other weights keep their latent value exactly: neither momentum nor weight decay moves them.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ofq_deploy.recipe import Annealing
from ofq_deploy.train.layers import QkrAttention, QuantLinear
from ofq_deploy.train.quantizers import LsqWeight, StatsQ


def annealed_layers(model: Any) -> Iterator[QuantLinear]:
    """fc1, fc2, proj, and v (QKR) or qkv of every block; the 8-bit layers train on."""
    for block in model.blocks:
        attention = block.attn
        yield from (attention.value if isinstance(attention, QkrAttention) else attention.qkv, attention.proj)
        yield from (block.mlp.fc1, block.mlp.fc2)


def start_annealing(model: Any, config: Annealing) -> None:
    """Set what the phase changes inside the model: with qk="mask", QKR's product passes gradients only where it
    is undecided (the official code leaves Wq and Wk free).
    """
    for module in model.modules():
        if isinstance(module, QkrAttention) and isinstance(module.product_quant, StatsQ):
            module.product_quant.boundary_range = config.boundary_range if config.qk == "mask" else None


@torch.no_grad()
def annealed_step(model: Any, optimizer: torch.optim.Optimizer, boundary_range: float) -> float:
    """One optimizer step after backward; returns the share of the annealed weights that could move."""
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    for layer in annealed_layers(model):
        weight, quantizer = layer.weight, layer.weight_quant
        assert isinstance(quantizer, (StatsQ, LsqWeight))
        trainable = quantizer.trainable(weight, boundary_range)
        if weight.grad is not None:
            weight.grad.mul_(trainable)
        kept.append((weight, trainable, weight.detach().clone()))
    optimizer.step()
    for weight, trainable, old in kept:
        weight.copy_(torch.where(trainable, weight, old))
    moved = sum(int(trainable.sum()) for _, trainable, _ in kept)
    return moved / sum(old.numel() for _, _, old in kept)
