"""Training: the float teacher, the quantized student, and the student's annealing, in one loop."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofq_deploy.data.datasets import Dataset, Split
from ofq_deploy.progress import Reporter
from ofq_deploy.recipe import Recipe
from ofq_deploy.train.augment import augment, learning_rate
from ofq_deploy.train.cga import annealed_step, start_annealing
from ofq_deploy.train.convert import calibrate, convert

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
CALIBRATION_SEED = 7919
WATCHED_IMAGES = 400  # of the validation split, after every epoch


@dataclass(frozen=True, slots=True)
class Phase:
    """One stretch of training with one loss and one learning-rate curve."""

    name: str
    epochs: int
    rate: Callable[[int, int], float]  # (step, steps) -> learning rate
    loss: Loss
    boundary_range: float | None = None  # anneal: only weights this near to a threshold move


def train_teacher(model: Any, recipe: Recipe, data: Dataset, metrics: Path, device: str, report: Reporter) -> None:
    """Train the float model in place: cross-entropy with label smoothing, averaged over its heads."""
    config = recipe.teacher

    def loss(model: Any, images: Tensor, classes: Tensor) -> Tensor:
        heads = head_logits(model, images)
        losses = [F.cross_entropy(logits, classes, label_smoothing=config.label_smoothing) for logits in heads]
        return torch.stack(losses).mean()

    def rate(step: int, steps: int) -> float:
        return learning_rate(step, steps, config.lr, recipe.train.warmup, recipe.train.final_lr)

    _train(model, recipe, data, [Phase("teacher", config.epochs, rate, loss)], metrics, device, report)


def train_student(
    teacher: Any, recipe: Recipe, data: Dataset, metrics: Path, device: str, report: Reporter
) -> nn.Module:
    """The quantized student: converted from the teacher, calibrated, trained, then annealed by confidence.

    Loss (OFQ section 5): cross-entropy of the class head with the label, plus soft cross-entropy of the
    distillation head with the class head of the frozen teacher. Without a distillation head both act on the
    one head there is.
    """
    student, _ = convert(teacher, recipe.quantization, reference_batch=recipe.train.batch_size)
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(CALIBRATION_SEED))
    images = torch.from_numpy(data.train.images(chosen[: recipe.train.calibration_images].numpy()))
    calibrate(student.to(device), images.to(device))
    teacher = teacher.to(device).eval()

    def loss(model: Any, images: Tensor, classes: Tensor) -> Tensor:
        with torch.no_grad():
            target = head_logits(teacher, images)[0].softmax(-1)
        heads = head_logits(model, images)
        return F.cross_entropy(heads[0], classes) + F.cross_entropy(heads[-1], target)

    def rate(step: int, steps: int) -> float:
        return learning_rate(step, steps, recipe.train.lr, recipe.train.warmup, recipe.train.final_lr)

    phases = [Phase("quantized", recipe.train.epochs, rate, loss)]
    if recipe.cga.enabled:
        phases.append(Phase("annealing", recipe.cga.epochs, lambda *_: recipe.cga.lr, loss, recipe.cga.boundary_range))
    _train(student, recipe, data, phases, metrics, device, report)
    return student


def head_logits(model: Any, images: Tensor) -> list[Tensor]:
    """Logits [batch, classes] of the class head and, where there is one, of the distillation head."""
    tokens = model.forward_features(images)
    heads = [model.head, *([model.head_dist] if hasattr(model, "head_dist") else [])]
    return [head(tokens[:, index]) for index, head in enumerate(heads)]


@torch.no_grad()
def top1(model: Any, split: Split, device: str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """Share of the images whose highest logit is their class, in percent."""
    model.eval()
    hits = 0
    for images, classes in split.batches(64):
        predicted = model(torch.from_numpy(images).to(device, dtype)).argmax(-1)
        hits += int((predicted.cpu().numpy() == classes).sum())
    return 100 * hits / len(split)


def parameter_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Weight matrices decay; biases, norms, tokens, positions, steps and shifts do not."""
    decayed: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim > 1 and name.rsplit(".", 1)[-1] in ("weight", "query", "key")
        (decayed if is_matrix else rest).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def _train(
    model: Any,
    recipe: Recipe,
    data: Dataset,
    phases: list[Phase],
    metrics: Path,
    device: str,
    report: Reporter,
) -> None:
    """Run the phases one after the other on one optimizer; everything random comes from the recipe's seed."""
    model.to(device)
    batch = min(recipe.train.batch_size, len(data.train))
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe.train.weight_decay), fused=True)
    per_epoch, start = len(data.train) // batch, time.monotonic()
    watched = _sample(data.validation, WATCHED_IMAGES)
    epoch_index = 0
    for phase in phases:
        if phase.boundary_range is not None:
            start_annealing(model, recipe.cga)
        steps = phase.epochs * per_epoch
        with report.task(phase.name, steps) as advance:
            for epoch in range(phase.epochs):
                model.train()
                generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch_index)
                order = torch.randperm(len(data.train), generator=generator)[: per_epoch * batch].view(per_epoch, batch)
                losses, shares = [], []
                for index, chosen in enumerate(order):
                    rate = phase.rate(epoch * per_epoch + index, steps)
                    for group in optimizer.param_groups:
                        group["lr"] = rate
                    images = torch.from_numpy(data.train.images(chosen.numpy())).to(device)
                    images = augment(images, recipe.augmentation, generator)
                    classes = torch.from_numpy(data.train.classes[chosen.numpy()]).to(device)
                    optimizer.zero_grad(set_to_none=True)
                    loss = phase.loss(model, images, classes)
                    loss.backward()
                    if phase.boundary_range is None:
                        optimizer.step()
                    else:
                        shares.append(annealed_step(model, optimizer, phase.boundary_range))
                    losses.append(loss.detach())
                    advance()
                row = {
                    "phase": phase.name,
                    "epoch": epoch,
                    "loss": round(torch.stack(losses).mean().item(), 6),
                    "learning_rate": rate,
                    "validation_top1": round(top1(model, watched, device), 3),
                    "seconds": round(time.monotonic() - start, 2),
                }
                if shares:
                    row["trainable_share"] = sum(shares) / len(shares)
                with metrics.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                epoch_index += 1
    model.eval().to("cpu")


def _sample(split: Split, count: int) -> Split:
    """At most `count` images of a split, always the same ones."""
    if len(split) <= count:
        return split
    chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(CALIBRATION_SEED))[:count].numpy()
    return Split(split.classes[chosen], lambda index: split.load(int(chosen[index])))
