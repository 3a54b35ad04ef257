"""One loop for teacher, student and annealing: phases, one after the other, on one optimizer."""

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ofq_deploy.data.datasets import Dataset
from ofq_deploy.progress import Reporter
from ofq_deploy.recipe import Recipe
from ofq_deploy.train.architectures.registry import adapter_of
from ofq_deploy.train.evaluation import top1
from ofq_deploy.train.loop.batches import epoch_batches, fixed_part
from ofq_deploy.train.loop.losses import Loss
from ofq_deploy.train.loop.schedule import Schedule
from ofq_deploy.train.methods.method import Method

WATCHED_IMAGES = 400  # of the validation split, after every epoch


@dataclass(frozen=True, slots=True)
class Phase:
    """One stretch of training with one loss, one learning-rate curve and one method."""

    name: str
    epochs: int
    rate: Schedule
    loss: Loss
    method: Method = field(default_factory=Method)


def run_phases(
    model: nn.Module, phases: list[Phase], recipe: Recipe, data: Dataset, metrics: Path, device: str, report: Reporter
) -> None:
    """Train in place; everything random comes from the recipe's seed, and `metrics` gets a line of JSON per epoch.

    Leaves the model in evaluation mode on the CPU.
    """
    model.to(device)
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe.train.weight_decay), fused=True)
    batch = min(recipe.train.batch_size, len(data.train))
    watched, start, epochs_before = fixed_part(data.validation, WATCHED_IMAGES), time.monotonic(), 0
    for phase in phases:
        phase.method.start(model)
        per_epoch = len(data.train) // batch
        steps = phase.epochs * per_epoch
        with report.task(phase.name, steps) as advance:
            for epoch in range(phase.epochs):
                seed = recipe.seed * 1_000_003 + epochs_before + epoch
                batches = epoch_batches(data.train, batch, recipe.augmentation, seed, device)
                rates = [phase.rate(step, steps) for step in range(epoch * per_epoch, (epoch + 1) * per_epoch)]
                loss, means = _run_epoch(model, phase, optimizer, zip(rates, batches, strict=True), advance)
                row = {
                    "phase": phase.name,
                    "epoch": epoch,
                    "loss": round(loss, 6),
                    "learning_rate": rates[-1],
                    "validation_top1": round(top1(model, watched, device), 3),
                    "seconds": round(time.monotonic() - start, 2),
                    **means,
                }
                with metrics.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
        epochs_before += phase.epochs
    model.eval().to("cpu")


def _run_epoch(
    model: nn.Module,
    phase: Phase,
    optimizer: torch.optim.Optimizer,
    steps: Iterable[tuple[float, tuple[Tensor, Tensor]]],
    advance: Callable[[], None],
) -> tuple[float, dict[str, float]]:
    """Every step with its learning rate, images and classes; returns the mean loss and the method's mean numbers."""
    model.train()
    losses: list[Tensor] = []
    numbers: dict[str, list[float]] = {}
    for rate, (images, classes) in steps:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss = phase.method.loss(model, phase.loss(model, images, classes))
        loss.backward()
        for name, number in phase.method.step(model, optimizer).items():
            numbers.setdefault(name, []).append(number)
        losses.append(loss.detach())
        advance()
    return torch.stack(losses).mean().item(), {name: sum(values) / len(values) for name, values in numbers.items()}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight matrices decay; biases, norms, tokens, positions, steps and shifts do not.

    timm's grouping goes by the number of axes alone, and would decay tokens, positions, steps and shifts.
    """
    factors = {id(factor) for product in adapter_of(model).products(model) for factor in product.factors}
    decayed: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = (parameter.ndim > 1 and name.endswith(".weight")) or id(parameter) in factors
        (decayed if is_matrix else rest).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
