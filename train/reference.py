"""The trained model of a run folder, and what torch predicts with it."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ofq_deploy.data.datasets import Split
from ofq_deploy.model.frozen import Frozen
from ofq_deploy.progress import Reporter
from ofq_deploy.runs.folder import Run
from ofq_deploy.train.convert import convert, head_names
from ofq_deploy.train.layers import QkrAttention
from ofq_deploy.train.models import build_model, load_weights
from ofq_deploy.train.quantizers import STEP_FLOOR, LsqWeight, StatsQ


def load_student(run: Run, frozen: Frozen) -> Any:
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


@torch.no_grad()
def weight_units(model: Any) -> dict[str, NDArray[np.float64]]:
    """Where every latent weight lies on its code axis, in float64: [out, in] by the frozen file's linear names."""
    found: dict[str, NDArray[np.float64]] = {}
    found["patch_embed"] = _units(model.patch_embed.proj.weight.flatten(1), model.patch_embed.proj.weight_quant)
    for name in head_names(model):
        head = getattr(model, name)
        found[name] = _units(head.weight, head.weight_quant)
    for index, block in enumerate(model.blocks):
        name, attn = f"blocks.{index}", block.attn
        if isinstance(attn, QkrAttention):
            query, key = (w.double().view(attn.heads, attn.head_dim, -1) for w in (attn.query, attn.key))
            found[f"{name}.attn.z"] = _units(torch.bmm(query.mT, key).flatten(0, 1), attn.product_quant)
            found[f"{name}.attn.v"] = _units(attn.value.weight, attn.value.weight_quant)
        else:
            units = _units(attn.qkv.weight, attn.qkv.weight_quant)
            found |= {f"{name}.attn.{part}": rows for part, rows in zip("qkv", np.split(units, 3), strict=True)}
        layers = {"attn.proj": attn.proj, "mlp.fc1": block.mlp.fc1, "mlp.fc2": block.mlp.fc2}
        found |= {f"{name}.{path}": _units(layer.weight, layer.weight_quant) for path, layer in layers.items()}
    return found


def _units(weight: Tensor, quantizer: StatsQ | LsqWeight) -> NDArray[np.float64]:
    weight = weight.detach().double()
    if isinstance(quantizer, LsqWeight):
        return (weight / quantizer.step.detach().double().clamp_min(STEP_FLOOR)).numpy()
    half = 2 ** (quantizer.bits - 1)
    row_scale = 2 * weight.abs().mean(-1, keepdim=True)
    return ((weight / row_scale).clamp(-1, 1 - 1e-6) * half - 0.5).numpy()
