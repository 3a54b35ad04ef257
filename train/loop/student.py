"""The quantized student of a float teacher."""

from pathlib import Path

import torch
from torch import nn

from ofq_deploy.data.datasets import Dataset
from ofq_deploy.progress import Reporter
from ofq_deploy.recipe import Recipe
from ofq_deploy.train.convert import calibrate, convert
from ofq_deploy.train.loop.batches import fixed_choice
from ofq_deploy.train.loop.engine import Phase, run_phases
from ofq_deploy.train.loop.losses import distilled
from ofq_deploy.train.loop.schedule import constant, warmup_cosine
from ofq_deploy.train.methods.annealing import ConfidenceGuided


def train_student(
    teacher: nn.Module, recipe: Recipe, data: Dataset, metrics: Path, device: str, report: Reporter
) -> nn.Module:
    """Converted from the teacher, calibrated, trained, then annealed by confidence.

    The teacher is on `device` afterwards, the student on the CPU.
    """
    student, _ = convert(teacher, recipe.quantization, reference_batch=recipe.train.batch_size)
    images = data.train.images(fixed_choice(data.train, recipe.train.calibration_images))
    calibrate(student.to(device), torch.from_numpy(images).to(device))
    run_phases(student, student_phases(teacher.to(device).eval(), recipe), recipe, data, metrics, device, report)
    return student


def student_phases(teacher: nn.Module, recipe: Recipe) -> list[Phase]:
    """Quantization-aware training, then annealing where the recipe has it; both learn from labels and teacher."""
    loss, rate = distilled(teacher), warmup_cosine(recipe.train.lr, recipe.train.warmup, recipe.train.final_lr)
    phases = [Phase("quantized", recipe.train.epochs, rate, loss)]
    if recipe.cga.enabled:
        annealing = ConfidenceGuided(recipe.cga)
        phases.append(Phase("annealing", recipe.cga.epochs, constant(recipe.cga.lr), loss, annealing))
    return phases
