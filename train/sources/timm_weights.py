"""Weights of a timm ViT or DeiT as the float model that a student starts from."""

import math
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ofq_deploy.errors import ModelError
from ofq_deploy.recipe import Model
from ofq_deploy.train.sources.models import build_model
from ofq_deploy.train.sources.unpickle import read_checkpoint

AXES = {"cls_token": 3, "pos_embed": 3, "patch_embed.proj.weight": 4}
BLOCK = re.compile(r"blocks\.(\d+)\.")
HEAD_DIM = 64  # of every published ViT and DeiT up to L; shapes do not tell it
Weights = dict[str, Tensor]


def read_weights(path: Path) -> Weights:
    """The tensors of a .safetensors file, or of a .pth checkpoint read in a process of its own.

    Raises ModelError when the file is missing, cut, or would run code.
    """
    if path.suffix != ".safetensors":
        return read_checkpoint(path).tensors
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise ModelError(f"no weights {path}; pass a .safetensors or .pth file with --init") from error
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a whole safetensors file ({error})") from error


def model_of(weights: Weights, distilled: bool, heads: int | None = None) -> Model:
    """The sizes that the tensors tell; heads are 64 wide unless their number is given.

    A student is distilled if the file is, or if `distilled` asks for it. Raises ModelError for weights of anything
    but a ViT with a class token.
    """
    for name, axes in AXES.items():
        if name not in weights or weights[name].ndim != axes or not weights[name].numel():
            fault = f"its shape is {tuple(weights[name].shape)}" if name in weights else "it is missing"
            raise ModelError(f"the weights are of no timm ViT or DeiT: {name} should have {axes} axes, {fault}")
    if "head.weight" in weights and weights["head.weight"].ndim != 2:
        raise ModelError(f"head.weight has the shape {tuple(weights['head.weight'].shape)}, expected [classes, width]")
    has_distillation = "dist_token" in weights
    position, patch = weights["pos_embed"], weights["patch_embed.proj.weight"].shape[-1]
    registers = weights["reg_token"].shape[1] if "reg_token" in weights else 0
    rows, dim = position.shape[1], position.shape[-1]
    patches = max(0, rows - 1 - has_distillation - registers)
    apart = not has_distillation and rows > 1 and _is_square(rows)  # as many positions as a square has patches
    class_position = _is_square(patches) or not apart
    patches = patches if class_position else rows
    if not _is_square(patches):
        raise ModelError(f"the weights have positions for {patches} patches, which is no square image")
    side = math.isqrt(patches)
    blocks = {int(match[1]) for match in map(BLOCK.match, weights) if match}
    if not blocks or len(blocks) <= max(blocks):
        raise ModelError(f"the weights have {len(blocks)} blocks that are not numbered from 0 on")
    heads = heads or dim // HEAD_DIM
    if not heads or dim % heads:
        raise ModelError(f"the width {dim} does not divide into heads of {HEAD_DIM}; pass model.dim and model.heads")
    scaling = weights.get("blocks.0.ls1.gamma")
    layer_scale = 0.0 if scaling is None else float(scaling.abs().mean()) or 1.0
    sizes = (side * patch, patch, dim, len(blocks), heads)
    return Model("deit", has_distillation or distilled, *sizes, layer_scale, registers, class_position)


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count


def channels_of(weights: Weights) -> int:
    return weights["patch_embed.proj.weight"].shape[1]


def classes_of(weights: Weights) -> int:
    """0 when there is no class head."""
    return len(weights["head.weight"]) if "head.weight" in weights else 0


def load_pretrained(weights: Weights, config: Model, classes: int) -> tuple[nn.Module, list[str]]:
    """The float model with these weights, and one sentence for everything that the file did not hold.

    config: as `model_of` told it. A distilled model starts from a plain file with the class token, its position
    and the head copied. A head for another number of classes starts anew.
    Raises ModelError naming keys that are missing, unknown or of another shape, and values that are not finite.
    """
    state, notes = dict(weights), []
    model = build_model(config, channels_of(weights), classes)
    expected = model.state_dict()
    if config.distilled and "dist_token" not in state:
        state["dist_token"] = state["cls_token"].clone()
        position = state["pos_embed"]
        state["pos_embed"] = torch.cat([position[:, :1], position[:, :1], position[:, 1:]], 1)
        state |= {f"head_dist.{part}": state[f"head.{part}"] for part in ("weight", "bias") if f"head.{part}" in state}
        notes.append("the file is not distilled: class token, its position and head are copied for the distillation")
    if classes_of(weights) != classes:
        anew = {name: value for name, value in expected.items() if name.startswith("head")}
        state = {name: value for name, value in state.items() if name not in anew} | anew
        notes.append(f"the file has a head for {classes_of(weights)} classes, the data has {classes}: it starts anew")
    wrong = sorted(set(expected) ^ set(state)) or [
        name for name, value in sorted(expected.items()) if value.shape != state[name].shape
    ]
    if wrong:
        raise ModelError(
            f"the weights do not fit a plain ViT: {', '.join(wrong[:3])} missing, unknown or of another shape"
        )
    broken = [name for name, value in state.items() if not torch.isfinite(value).all()]
    if broken:
        raise ModelError(f"{broken[0]} holds values that are not finite; the file is damaged")
    model.load_state_dict(state)
    return model.eval(), notes
