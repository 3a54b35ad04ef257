"""What torch computes at every tap of the frozen file: the first of the three witnesses."""

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ofq_deploy.train.convert import activation_quantizers
from ofq_deploy.train.quantizers import LsqQuantizer


@torch.no_grad()
def witness(
    model: Any, images: NDArray[np.float32], dtype: torch.dtype = torch.float32
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Codes and residual floats of a converted model in evaluation mode, by tap name.

    images: float32 [batch, channels, size, size]
    dtype:  float32 as trained, or float64 (weight codes stay those of float32) to see the model's own noise

    Layouts are those of the oracle's Trace; the last block holds the class tokens' rows only.
    """
    model = copy.deepcopy(model).to(dtype).eval()
    codes: dict[str, NDArray[Any]] = {}
    floats: dict[str, NDArray[Any]] = {}
    depth, prefix = len(model.blocks), 2 if hasattr(model, "head_dist") else 1
    last = f"blocks.{depth - 1}."
    handles = []

    def keep_codes(path: str) -> Any:
        name = path.replace("patch_embed.proj.", "patch_embed.")

        def hook(module: LsqQuantizer, args: tuple[Tensor, ...]) -> None:
            made = _tap_layout(name, module.coded(args[0]).codes.to(torch.int16))
            codes[name] = _rows(name, made, last, prefix).numpy()

        return hook

    def keep_float(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor | None = None) -> None:
            value = args[0] if output is None else output
            floats[name] = _rows(name, value, last, prefix).numpy()

        return hook

    for path, quantizer in activation_quantizers(model).items():
        handles.append(quantizer.register_forward_pre_hook(keep_codes(path)))
    handles.append(model.blocks[0].register_forward_pre_hook(keep_float("embedding")))
    for index, block in enumerate(model.blocks):
        handles.append(block.norm2.register_forward_pre_hook(keep_float(f"blocks.{index}.middle")))
        handles.append(block.register_forward_hook(keep_float(f"blocks.{index}.output")))
    floats["logits"] = model(torch.from_numpy(images).to(dtype)).numpy()
    for handle in handles:
        handle.remove()
    return codes, floats


def _tap_layout(name: str, codes: Tensor) -> Tensor:
    """q, k: [batch, heads, tokens, head_dim] and z: [batch, tokens, heads, dim] -> [batch, tokens, width]"""
    part = name.rsplit(".", 1)[-1]
    if part in ("q", "k"):
        codes = codes.transpose(1, 2)
    return codes.flatten(2) if part in ("q", "k", "z") else codes


# In the last block these see every token; the other taps there are cut to the rows that the heads read.
_ALL_TOKENS = ("attn.input", "attn.v", "attn.k", "attn.z")


def _rows(name: str, value: Tensor, last: str, prefix: int) -> Tensor:
    return value[..., :prefix, :] if name.startswith(last) and not name.endswith(_ALL_TOKENS) else value
