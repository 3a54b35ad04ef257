"""The trained model of a run folder, and what torch predicts with it."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ofq_deploy.datasets import Split
from ofq_deploy.frozen import Frozen
from ofq_deploy.progress import Reporter
from ofq_deploy.runs import Run
from ofq_deploy.train.convert import convert
from ofq_deploy.train.models import build_model, load_weights


def load_student(run: Run, frozen: Frozen) -> nn.Module:
    """The converted model with the run's weights, in evaluation mode."""
    recipe = run.recipe
    model = build_model(recipe.model, frozen.architecture.channels, frozen.architecture.classes)
    student, _ = convert(model, recipe.quantization, reference_batch=recipe.train.batch_size)
    load_weights(student, run.file("weights.safetensors"))
    return student.eval()


@torch.no_grad()
def predict_classes(
    model: Any, split: Split, dtype: torch.dtype, report: Reporter, batch: int = 32
) -> NDArray[np.int64]:
    """int64 [images]: the class of the highest logit, computed in float32 or float64."""
    model = model.to(dtype).eval()
    found = []
    with report.task(f"torch {str(dtype).removeprefix('torch.')}", -(-len(split) // batch)) as advance:
        for images, _ in split.batches(batch):
            found.append(model(torch.from_numpy(images).to(dtype)).argmax(-1).numpy())
            advance()
    return np.concatenate(found)
