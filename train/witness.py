"""What torch computes at every tap of the frozen file: the first of the three witnesses.

The layouts are those of the oracle's Trace; the last block holds the class tokens' rows only.
"""

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ofq_deploy.runner import FORCED, RUNTIME_TIE, TORCH_TIE, Arrays, Metadata, Runner, runtime_name
from ofq_deploy.train.convert import activation_quantizers
from ofq_deploy.train.quantizers import LsqQuantizer

TIES = {torch.float32: TORCH_TIE, torch.float64: RUNTIME_TIE}


class TorchRunner(Runner):
    """A converted model in evaluation mode; takes and gives what ofq_deploy.runtime_tests.proof.tapped.TappedModel does.

    dtype: float32 as trained, or float64 (weight codes stay those of float32) to see the model's own noise
    """

    def __init__(self, model: Any, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        self._model = copy.deepcopy(model).to(dtype).to(device).eval()
        self._dtype, self._device = dtype, device
        depth, prefix = len(self._model.blocks), 2 if hasattr(self._model, "head_dist") else 1
        self._last, self._prefix = f"blocks.{depth - 1}.", prefix
        self._quantizers = {
            path.replace("patch_embed.proj.", "patch_embed."): module
            for path, module in activation_quantizers(self._model).items()
        }
        for index, block in enumerate(self._model.blocks):
            block.forward = partial(self._block, f"blocks.{index}", block)
        for name, quantizer in self._quantizers.items():
            quantizer.register_forward_hook(partial(self._quantize, name))
        self._made: dict[str, Tensor] = {}
        self._forced: dict[str, Tensor] = {}
        blocks = (f"blocks.{index}.{end}" for index in range(depth) for end in ("middle", "output"))
        names = (*self._quantizers, "embedding", *blocks, "logits")
        name = str(dtype).removeprefix("torch.")
        self._metadata = Metadata(
            backend="torch" if dtype == torch.float32 else f"torch:{name}",
            runtime=runtime_name("torch"),
            device=torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
            settings={"dtype": name},
            inputs=("image", *(name + FORCED for name in names if name != "logits")),
            outputs=names,
            tie=TIES[dtype],
        )

    @property
    def metadata(self) -> Metadata:
        return self._metadata

    @torch.no_grad()
    def infer(self, inputs: Arrays) -> Arrays:
        forced = {name.removesuffix(FORCED): value for name, value in inputs.items() if name.endswith(FORCED)}
        self._forced = {name: torch.from_numpy(value).to(self._device) for name, value in forced.items()}
        self._made = {}
        image = torch.from_numpy(inputs["image"]).to(self._device, self._dtype)
        logits = self._model(image)
        return {name: value.cpu().numpy() for name, value in {**self._made, "logits": logits}.items()}

    def close(self) -> None:
        del self._model

    def _quantize(self, name: str, quantizer: LsqQuantizer, args: tuple[Tensor, ...], _: Tensor) -> Tensor | None:
        """Keeps the codes; a forced tap's value takes the place of the quantizer's own."""
        coded = quantizer.coded(args[0])
        made = _tap_layout(name, coded.codes.to(torch.int16))
        self._made[name] = self._rows(name, made).clone()
        if name not in self._forced:
            return None
        self._rows(name, made).copy_(self._forced[name])
        return replace(coded, codes=_module_layout(name, made, coded.codes.shape)).dequantize()

    def _block(self, name: str, block: Any, x: Tensor, attn_mask: None = None, is_causal: bool = False) -> Tensor:
        """timm's Block in evaluation mode, with taps on the residual stream."""
        if name == "blocks.0":
            x = self._tap("embedding", x)
        x = self._tap(f"{name}.middle", x + block.ls1(block.attn(block.norm1(x))))
        return self._tap(f"{name}.output", x + block.ls2(block.mlp(block.norm2(x))))

    def _tap(self, name: str, value: Tensor) -> Tensor:
        self._made[name] = self._rows(name, value).clone()
        if name in self._forced:
            value = value.clone()
            self._rows(name, value).copy_(self._forced[name])
        return value

    def _rows(self, name: str, value: Tensor) -> Tensor:
        cut = name.startswith(self._last) and not name.endswith(_ALL_TOKENS)
        return value[..., : self._prefix, :] if cut else value


def _tap_layout(name: str, codes: Tensor) -> Tensor:
    """q, k: [batch, heads, tokens, head_dim] and z: [batch, tokens, heads, dim] -> [batch, tokens, width]"""
    part = name.rsplit(".", 1)[-1]
    if part in ("q", "k"):
        codes = codes.transpose(1, 2)
    return codes.flatten(2) if part in ("q", "k", "z") else codes


def _module_layout(name: str, codes: Tensor, shape: torch.Size) -> Tensor:
    """What `_tap_layout` undid: codes in the `shape` that the quantizer works in."""
    if name.endswith((".q", ".k")):
        return codes.unflatten(2, (shape[1], shape[3])).transpose(1, 2)
    return codes.view(shape)


# In the last block these see every token; the other taps there are cut to the rows that the heads read.
_ALL_TOKENS = ("attn.input", "attn.v", "attn.k", "attn.z")
