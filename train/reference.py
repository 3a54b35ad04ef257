"""The trained model of a run folder, and what torch predicts with it."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ofq_deploy.data.datasets import Split
from ofq_deploy.model.bits import LayerBits
from ofq_deploy.model.frozen import Frozen
from ofq_deploy.progress import Reporter
from ofq_deploy.runs.folder import Run
from ofq_deploy.train.architectures.registry import adapter_of
from ofq_deploy.train.convert import convert
from ofq_deploy.train.evaluation import predictions
from ofq_deploy.train.sources.models import build_model, load_weights


def load_student(run: Run, frozen: Frozen) -> nn.Module:
    """The converted model with the run's weights and the frozen file's bits, in evaluation mode."""
    recipe = run.recipe
    model = build_model(recipe.model, frozen.graph.image[0], frozen.graph.classes)
    student, _ = convert(model, recipe.quantization, recipe.train.batch_size, LayerBits.of(frozen))
    load_weights(student, run.file("weights.safetensors"))
    return student.eval()


def predict_classes(
    model: nn.Module, split: Split, dtype: torch.dtype, report: Reporter, batch: int = 32
) -> NDArray[np.int64]:
    """int64 [images]: the class of the highest logit, computed in float32 or float64."""
    predicted = []
    with report.task(f"torch {str(dtype).removeprefix('torch.')}", -(-len(split) // batch)) as advance:
        for classes in predictions(model.to(dtype), split, batch, dtype):
            predicted.append(classes)
            advance()
    return np.concatenate(predicted)


@torch.no_grad()
def weight_units(model: nn.Module) -> dict[str, NDArray[np.float64]]:
    """Where every latent weight lies on its code axis, in float64: [out, in] by the frozen file's linear names."""
    units: dict[str, NDArray[np.float64]] = {}
    for layer in adapter_of(model).layers(model):
        rows = layer.quantizer.units(layer.weight.flatten(1), torch.float64).numpy()
        units |= dict(zip(layer.names, np.split(rows, len(layer.names)), strict=True))
    for product in adapter_of(model).products(model):
        units[product.name] = product.quantizer.units(product.weight(torch.float64), torch.float64).numpy()
    return units
