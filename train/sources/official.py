"""Checkpoints of OFQ's official code (nbasyl/OFQ) as converted models.

The layout is that of its timm saver: latent weights, steps created on the first forward, shifts as flat vectors.
Two shifts there have no effect on any output (after k, after the QKR product): the softmax cancels them, and they
are dropped. The official QKR form has no query bias.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ofq_deploy.errors import ModelError
from ofq_deploy.recipe import Model, Quantization
from ofq_deploy.train.architectures.vit.attention import QkrAttention
from ofq_deploy.train.convert import convert
from ofq_deploy.train.layers import QuantLinear, QuantPatchEmbedding
from ofq_deploy.train.sources.models import build_model
from ofq_deploy.train.sources.unpickle import Checkpoint

HEAD_DIM = 64
QUANTIZED = (QuantLinear, QuantPatchEmbedding)
CLIP = 2.0  # the official StatsQ's clip value, never trained


@dataclass(frozen=True, slots=True)
class Official:
    """model: the converted model in evaluation mode; base: its float sizes; latent: timm-named float weights"""

    model: nn.Module
    base: Model
    quantization: Quantization
    latent: dict[str, Tensor]


def load_official(file: Checkpoint, weight_bits: int | None = None, act_bits: int | None = None) -> Official:
    """Convert an official DeiT checkpoint; bits come from the file's settings or from the caller.

    Raises ModelError for another architecture, keys that are missing or unknown (named), wrong shapes, values
    that are not finite, a weight row of zeros, bits that cannot be told or contradict the file.
    """
    state = file.tensors
    base, attention = _sizes(state)
    _check_settings(file.settings, attention)
    quantization = Quantization(
        weight_bits=_bits(file.settings, "wq_bitw", weight_bits, "--weight-bits"),
        act_bits=_bits(file.settings, "aq_bitw", act_bits, "--act-bits"),
        attention=attention,  # type: ignore[arg-type]
        act_step="token",
        key_bias=False,
    )
    channels, classes = state["patch_embed.proj.weight"].shape[1], len(state["head.bias"])
    model, _ = convert(build_model(base, channels, classes), quantization)
    taken = _Reader(state)
    ours = _translate(taken, base, attention, channels)
    taken.finish()
    expected = {
        name: value for name, value in model.state_dict().items() if not name.endswith(("initialized", "signed"))
    }
    for name, value in ours.items():
        is_flat = name.endswith((".step", ".before", ".after"))  # the file keeps these as flat vectors
        if expected[name].numel() != value.numel() or not (is_flat or expected[name].shape == value.shape):
            raise ModelError(f"{name} has the shape {tuple(value.shape)}, expected {tuple(expected[name].shape)}")
    loaded = {name: ours[name].reshape(expected[name].shape) for name in expected}
    flags = {name: torch.tensor(True) for name in model.state_dict() if name.endswith("initialized")}
    signed = {name: value for name, value in model.state_dict().items() if name.endswith("signed")}
    signed["patch_embed.proj.input.signed"] = taken.signed
    model.load_state_dict(loaded | flags | signed)
    model.eval()
    _check_rows(model)
    return Official(model, base, quantization, _latent(ours, base, attention))


@dataclass(slots=True)
class _Reader:
    """Takes tensors out of a state dict and remembers which are left, so that strangers are named."""

    state: dict[str, Tensor]
    used: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    signed: Tensor = field(default_factory=lambda: torch.tensor(True))

    def take(self, name: str) -> Tensor:
        self.used.add(name)
        if name not in self.state:
            self.missing.append(name)
            return torch.zeros(0)
        value = self.state[name]
        if not torch.isfinite(value).all():
            raise ModelError(f"{name} holds values that are not finite; the checkpoint is damaged or diverged")
        return value

    def clip(self, name: str) -> None:
        value = self.take(f"{name}.clip_val")
        if value.numel() and (value.numel() != 1 or value.item() != CLIP):
            raise ModelError(
                f"{name}.clip_val is {value.flatten().tolist()[:3]}, expected {CLIP:g}: another quantizer trained this file"
            )

    def without_effect(self, name: str, size: int) -> None:
        """A tensor that no output depends on."""
        value = self.take(name)
        if value.numel() not in (0, size):
            raise ModelError(f"{name} has the shape {tuple(value.shape)}, expected {(size,)}")

    def finish(self) -> None:
        if self.missing:
            few = ", ".join(self.missing[:3])
            only_steps = all(name.endswith("_fn.s") for name in self.missing)
            hint = "; it was saved before its steps were set: run one training step first" if only_steps else ""
            raise ModelError(f"the checkpoint lacks {len(self.missing)} tensors: {few}{hint}")
        strangers = sorted(set(self.state) - self.used)
        if strangers:
            raise ModelError(f"the checkpoint has {len(strangers)} unknown tensors: {', '.join(strangers[:3])}")


def _sizes(state: dict[str, Tensor]) -> tuple[Model, str]:
    """The architecture that the shapes tell, and the attention form that the keys tell."""
    axes = {"cls_token": 3, "pos_embed": 3, "patch_embed.proj.weight": 4, "head.bias": 1}
    for name, count in axes.items():
        if name not in state or state[name].ndim != count:
            fault = f"its shape is {tuple(state[name].shape)}" if name in state else "it is missing"
            raise ModelError(
                f"the checkpoint is no DeiT of OFQ's official code: {name} should have {count} axes, {fault}"
            )
    if "blocks.0.mlp.fc1.lsqw_fn.s" in state:
        raise ModelError("the checkpoint has LSQ weights (mlp.fc1.lsqw_fn); only StatsQ checkpoints can be imported")
    if "blocks.0.attn.quant_x_4_qkv.move_b4.bias" in state:
        attention = "qkr"
    elif "blocks.0.attn.qkv.move_b4.bias" in state:
        attention = "qk"
    else:
        raise ModelError(
            "the checkpoint is not quantized by OFQ: blocks.0.attn has neither quant_x_4_qkv nor qkv.move_b4"
        )
    dim, distilled = state["cls_token"].shape[-1], "dist_token" in state
    blocks = {int(match[1]) for match in map(re.compile(r"blocks\.(\d+)\.").match, state) if match}
    depth = len(blocks)
    if depth != 1 + max(blocks):
        raise ModelError(
            f"the checkpoint has {depth} blocks that are not numbered from 0 on: {max(blocks)} is among them"
        )
    patch = state["patch_embed.proj.weight"].shape[-1]
    patches = max(0, state["pos_embed"].shape[1] - (2 if distilled else 1))
    side = math.isqrt(patches)
    if side * side != patches or not patches or dim % HEAD_DIM:
        raise ModelError(
            f"the checkpoint is no DeiT: {patches} patches of width {dim}; expected a square and heads of {HEAD_DIM}"
        )
    base = Model("deit", distilled, side * patch, patch, dim, depth, dim // HEAD_DIM)
    return base, attention


def _check_settings(settings: dict[str, Any], attention: str) -> None:
    stated = settings.get("qk_reparam")
    if isinstance(stated, bool) and stated != (attention == "qkr"):
        raise ModelError(f"the checkpoint's settings say qk_reparam={stated}, its tensors are of the other form")


def _bits(settings: dict[str, Any], key: str, given: int | None, flag: str) -> int:
    stated = settings.get(key)
    if stated is None:
        if given is None:
            raise ModelError(f"the checkpoint does not say its bits ({key}); pass {flag}")
        return given
    if type(stated) is not int:
        raise ModelError(f"the checkpoint says {key}={stated!r}, expected a whole number from 2 to 8")
    if given is not None and stated != given:
        raise ModelError(
            f"the checkpoint says {key}={stated}, {flag} says {given}; leave {flag} out or give the right file"
        )
    return stated


def _translate(taken: _Reader, base: Model, attention: str, channels: int) -> dict[str, Tensor]:
    """Our state dict, apart from flags; shapes are still those of the file."""
    ours: dict[str, Tensor] = {}
    take: Callable[[str], Tensor] = taken.take

    def quantized_linear(name: str, our_name: str) -> None:
        ours[f"{our_name}.weight"], ours[f"{our_name}.bias"] = take(f"{name}.weight"), take(f"{name}.bias")
        activation(name, f"{our_name}.input")

    def activation(name: str, our_name: str) -> None:
        ours[f"{our_name}.step"] = take(f"{name}.input_quant_fn.s")
        ours[f"{our_name}.before"], ours[f"{our_name}.after"] = (
            take(f"{name}.move_b4.bias"),
            take(f"{name}.move_aft.bias"),
        )

    prefix = ["cls_token", "dist_token"][: 2 if base.distilled else 1]
    for name in (*prefix, "pos_embed", "norm.weight", "norm.bias"):
        ours[name] = take(name)
    quantized_linear("patch_embed.proj", "patch_embed.proj")
    ours["patch_embed.proj.weight_quant.step"] = take("patch_embed.proj.lsqw_fn.s")
    signed = take("patch_embed.proj.input_quant_fn.signed")
    if "patch_embed.proj.input_quant_fn.signed" not in taken.missing and signed.numel() != 1:
        raise ModelError(f"patch_embed.proj.input_quant_fn.signed has the shape {tuple(signed.shape)}, expected (1,)")
    taken.signed = signed.any()
    for head in ["head", "head_dist"][: len(prefix)]:
        quantized_linear(head, head)
        ours[f"{head}.weight_quant.step"] = take(f"{head}.lsqw_fn.s")
    for index in range(base.depth):
        block = f"blocks.{index}"
        for norm in ("norm1", "norm2"):
            ours[f"{block}.{norm}.weight"], ours[f"{block}.{norm}.bias"] = (
                take(f"{block}.{norm}.weight"),
                take(f"{block}.{norm}.bias"),
            )
        for layer in ("attn.proj", "mlp.fc1", "mlp.fc2"):
            quantized_linear(f"{block}.{layer}", f"{block}.{layer}")
            taken.clip(f"{block}.{layer}.statsq_fn")
        attn = f"{block}.attn"
        ours[f"{attn}.softmax.step"] = take(f"{attn}.quan_a_softmax_fn.s")
        ours[f"{attn}.v.step"], ours[f"{attn}.v.after"] = take(f"{attn}.quan_a_v_fn.s"), take(f"{attn}.move_v_aft.bias")
        if attention == "qkr":
            activation(f"{attn}.quant_x_4_qkv", f"{attn}.input")
            ours[f"{attn}.query"], ours[f"{attn}.key"] = take(f"{attn}.q.weight"), take(f"{attn}.k.weight")
            ours[f"{attn}.value.weight"], ours[f"{attn}.value.bias"] = take(f"{attn}.v.weight"), take(f"{attn}.v.bias")
            ours[f"{attn}.z.step"], ours[f"{attn}.z.before"] = (
                take(f"{attn}.quan_a_qkx_fn.s"),
                take(f"{attn}.move_qkx_b4.bias"),
            )
            ours[f"{attn}.v.before"] = take(f"{attn}.move_v_b4.bias")
            taken.without_effect(f"{attn}.move_qkx_aft.bias", base.heads * base.dim)
            taken.clip(f"{attn}.qk_quant")
            taken.clip(f"{attn}.v_quant")
        else:
            quantized_linear(f"{attn}.qkv", f"{attn}.qkv")
            for part in ("step", "before", "after"):
                ours[f"{attn}.input.{part}"] = ours.pop(f"{attn}.qkv.input.{part}")
            before = take(f"{attn}.move_qkv_b4.bias").chunk(3)
            for part, shift in zip("qkv", before if len(before) == 3 else [torch.zeros(0)] * 3, strict=True):
                ours[f"{attn}.{part}.before"] = shift
            ours[f"{attn}.q.step"], ours[f"{attn}.k.step"] = (
                take(f"{attn}.quan_a_q_fn.s"),
                take(f"{attn}.quan_a_k_fn.s"),
            )
            ours[f"{attn}.q.after"] = take(f"{attn}.move_q_aft.bias")
            taken.without_effect(f"{attn}.move_k_aft.bias", base.dim)
            taken.clip(f"{attn}.qkv.statsq_fn")
    return ours


def _check_rows(model: nn.Module) -> None:
    """StatsQ has no scale for a row of zeros."""
    weights = {
        f"{name}.weight": module.weight for name, module in model.named_modules() if isinstance(module, QUANTIZED)
    }
    weights |= {
        f"{name}.q.weight^T {name}.k.weight": module.product()
        for name, module in model.named_modules()
        if isinstance(module, QkrAttention)
    }
    for key, weight in weights.items():
        dead = (weight.detach().flatten(1) == 0).all(1).nonzero().flatten().tolist()
        if dead:
            raise ModelError(f"{key} has rows of zeros ({dead[:5]}): StatsQ cannot code them")


def _latent(ours: dict[str, Tensor], base: Model, attention: str) -> dict[str, Tensor]:
    """The latent float weights under timm's names: the float model that the checkpoint holds."""
    plain = ["cls_token", "dist_token", "pos_embed"]
    plain += [f"{name}.{part}" for name in ("norm", "norm1", "norm2") for part in ("weight", "bias")]
    linears = ("patch_embed.proj", "head", "head_dist", "attn.proj", "mlp.fc1", "mlp.fc2", "attn.qkv")
    wanted = [*plain, *(f"{name}.{part}" for name in linears for part in ("weight", "bias"))]
    kept = {
        name: value
        for name, value in ours.items()
        if name.split("blocks.")[-1].split(".", 1)[-1] in wanted or name in wanted
    }
    if attention == "qkr":
        for index in range(base.depth):
            attn = f"blocks.{index}.attn"
            query, key, value = ours[f"{attn}.query"], ours[f"{attn}.key"], ours[f"{attn}.value.weight"]
            kept[f"{attn}.qkv.weight"] = torch.cat([query, key, value])
            none = torch.zeros(2 * len(value))
            kept[f"{attn}.qkv.bias"] = torch.cat([none, ours[f"{attn}.value.bias"]])
    return {name: value.contiguous() for name, value in kept.items()}
