"""The frozen form of a converted ViT: which number goes where, and every fold (docs/architecture.md lists the arrays)."""

from typing import cast

import numpy as np
import torch
from torch import nn

from ofq_deploy.model.nodes import PerChannel, PerTensor
from ofq_deploy.model.vit import Vit
from ofq_deploy.train.architectures.vit.attention import QkAttention, QkrAttention, QuantAttention
from ofq_deploy.train.architectures.vit.block import QuantBlock
from ofq_deploy.train.architectures.vit.structure import QuantVit, heads
from ofq_deploy.train.folding import Double, Writer, double, folded_bias, folded_step, optional, real_weight, step_of
from ofq_deploy.train.layers import QuantLinear
from ofq_deploy.train.quantizers import Coded, LsqQuantizer


def freeze(model: nn.Module, writer: Writer) -> Vit:
    """Write every array, linear and quantizer of a converted ViT; returns its sizes."""
    vit, classifiers = cast(QuantVit, model), heads(model)
    prefix = [token for token in (vit.cls_token, getattr(vit, "dist_token", None)) if token is not None]
    _freeze_stem(writer, vit, prefix if vit.reg_token is None else [*prefix, vit.reg_token])
    for index, block in enumerate(vit.blocks):
        _freeze_block(writer, block, f"blocks.{index}")
    norm = "norm" if isinstance(vit.norm, nn.LayerNorm) else "fc_norm"
    last = cast(nn.LayerNorm, getattr(vit, norm))
    _freeze_norm(writer, norm, last, None)
    for name, head in classifiers.items():
        _freeze_linear(writer, head, name, share=1 / len(classifiers))
        writer.put(f"{name}.input.before", optional(_input(head).before))
    patch, first = vit.patch_embed, vit.blocks[0]
    return Vit(
        image_size=patch.img_size[0],
        channels=patch.proj.weight.shape[1],
        patch_size=patch.patch_size[0],
        dim=vit.embed_dim,
        depth=len(vit.blocks),
        heads=first.attn.heads,
        hidden=first.mlp.fc1.weight.shape[0],
        classes=classifiers["head"].weight.shape[0],
        prefix=len(prefix),
        key_bias=isinstance(first.attn, QkrAttention) and first.attn.key_bias is not None,
        epsilon=float(last.eps),
        registers=0 if vit.reg_token is None else vit.reg_token.shape[1],
        pool="avg" if vit.global_pool == "avg" else "token",
        norm="norm" if norm == "norm" else "fc_norm",
    )


def _freeze_stem(writer: Writer, vit: QuantVit, prefix: list[torch.Tensor]) -> None:
    """prefix: the tokens before the patches, float [1, tokens, dim] each"""
    layer, image = vit.patch_embed.proj, vit.patch_embed.proj.input
    coded = layer.weight_quant.coded(layer.weight.flatten(1))
    step = step_of(image).reshape(-1)
    writer.quantizer("patch_embed.input", image, step)
    writer.linear("patch_embed", coded, layer.weight_quant.bits, step[:, None], None)
    constant = np.zeros((1, vit.embed_dim))
    if layer.bias is not None:
        constant = constant + double(layer.bias)
    if image.before is not None:
        writer.put("patch_embed.input.before", double(image.before)[0])
    if image.after is not None:
        kernel = torch.from_numpy(real_weight(coded)).view(layer.weight.shape)
        shift = image.after.detach().double().expand(1, layer.weight.shape[1], -1, -1)
        constant = constant + torch.conv2d(shift, kernel, stride=layer.stride).flatten(2)[0].T.numpy()
    position, patches = double(vit.pos_embed)[0], vit.patch_embed.num_patches
    writer.put("patch_embed.position", position[-patches:] + constant)
    if prefix:
        tokens = np.concatenate([double(token)[0] for token in prefix])
        writer.put("tokens", tokens + position[:-patches] if len(position) > patches else tokens)


def _freeze_norm(writer: Writer, name: str, norm: nn.LayerNorm, before: torch.Tensor | None) -> None:
    """before: the shift of the quantizer that reads the norm's output"""
    writer.put(f"{name}.weight", double(norm.weight))
    writer.put(f"{name}.bias", double(norm.bias) + _shift(before))


def _freeze_block(writer: Writer, block: QuantBlock, name: str) -> None:
    attn, mlp = block.attn, block.mlp
    _freeze_norm(writer, f"{name}.norm1", block.norm1, attn.input.before)
    writer.quantizer(f"{name}.attn.input", attn.input, step_of(attn.input).reshape(-1))
    if isinstance(attn, QkrAttention):
        _freeze_qkr(writer, attn, f"{name}.attn")
    elif isinstance(attn, QkAttention):
        _freeze_qk(writer, attn, f"{name}.attn")
    _freeze_context(writer, attn, f"{name}.attn")
    _freeze_linear(writer, attn.proj, f"{name}.attn.proj", share=_gamma(block.ls1))
    _freeze_norm(writer, f"{name}.norm2", block.norm2, _input(mlp.fc1).before)
    _freeze_linear(writer, mlp.fc1, f"{name}.mlp.fc1")
    _freeze_linear(writer, mlp.fc2, f"{name}.mlp.fc2", share=_gamma(block.ls2))
    writer.put(f"{name}.mlp.fc2.input.before", optional(_input(mlp.fc2).before))


def _shift(shift: torch.Tensor | None) -> Double:
    return np.zeros(1) if shift is None else double(shift)


def _input(layer: QuantLinear) -> LsqQuantizer:
    assert layer.input is not None
    return layer.input


def _gamma(scaling: nn.Module) -> Double | float:
    """float64 [dim]: LayerScale's factors (Touvron et al., ICCV 2021), which train apart and fold into rows."""
    gamma = getattr(scaling, "gamma", None)
    return 1.0 if gamma is None else double(gamma)


def _freeze_linear(writer: Writer, layer: QuantLinear, name: str, share: Double | float = 1.0) -> None:
    """A layer with its own input quantizer, whose output stays float.

    share: what its output is multiplied with, [out] or as 1/2 where the mean of two heads is the model's
    """
    quantizer, coded = _input(layer), layer.weight_quant.coded(layer.weight)
    step = step_of(quantizer).reshape(-1)
    writer.quantizer(f"{name}.input", quantizer, step)
    scale = np.full(coded.codes.shape[0], folded_step(quantizer) * share)
    bias = share * folded_bias(layer.bias, coded, quantizer.after)
    writer.linear(name, coded, layer.weight_quant.bits, scale, bias)


def _freeze_value(
    writer: Writer, name: str, coded: Coded, bits: int, bias: Double, quantizer: LsqQuantizer, x: LsqQuantizer
) -> None:
    """A linear whose output goes straight to a quantizer: the shift before it joins the bias, and a step that is
    constant over the tokens divides scale and bias.
    """
    step = step_of(quantizer)
    divisor = step if isinstance(quantizer.granularity, (PerTensor, PerChannel)) else np.ones(1)
    bias = bias + _shift(quantizer.before).ravel()
    scale = np.full(coded.codes.shape[0], folded_step(x))
    writer.linear(name, coded, bits, scale / divisor, bias / divisor)
    writer.quantizer(name, quantizer, step.reshape(quantizer.granularity.shape))


def _freeze_qkr(writer: Writer, attn: QkrAttention, name: str) -> None:
    shift = attn.input.after
    value = attn.value.weight_quant.coded(attn.value.weight)
    bias = folded_bias(attn.value.bias, value, shift)
    _freeze_value(writer, f"{name}.v", value, attn.value.weight_quant.bits, bias, attn.v, attn.input)
    product = attn.product_quant.coded(attn.product())
    bias = folded_bias(None, product, shift)
    _freeze_value(writer, f"{name}.z", product, attn.product_quant.bits, bias, attn.z, attn.input)
    z_step = writer.arrays[f"{name}.z.step"].astype(np.float64)
    writer.put(f"{name}.scores.scale", attn.scale * folded_step(attn.input) * z_step)
    if shift is not None:
        writer.put(f"{name}.scores.key_shift", attn.scale * folded_step(attn.z, z_step) * double(shift)[None])
    if attn.key_bias is not None:
        writer.put(f"{name}.scores.key_bias", attn.scale * folded_step(attn.input) * double(attn.key_bias))


def _freeze_qk(writer: Writer, attn: QkAttention, name: str) -> None:
    quantizer = attn.qkv.weight_quant
    coded = quantizer.coded(attn.qkv.weight)
    bias = folded_bias(attn.qkv.bias, coded, attn.input.after)
    for index, (part, output) in enumerate({"q": attn.q, "k": attn.k, "v": attn.v}.items()):
        rows = slice(index * attn.dim, (index + 1) * attn.dim)
        _freeze_value(writer, f"{name}.{part}", coded.rows(rows), quantizer.bits, bias[rows], output, attn.input)
    q_step, k_step = (writer.arrays[f"{name}.{part}.step"].astype(np.float64) for part in "qk")
    writer.put(f"{name}.scores.scale", attn.scale * folded_step(attn.q, q_step) * k_step)
    if attn.q.after is not None:
        writer.put(f"{name}.scores.key_shift", attn.scale * folded_step(attn.k, k_step) * double(attn.q.after)[:, 0])


def _freeze_context(writer: Writer, attn: QuantAttention, name: str) -> None:
    p_step = step_of(attn.softmax).reshape(-1)
    writer.quantizer(f"{name}.softmax", attn.softmax, p_step)
    writer.put(f"{name}.context.scale", folded_step(attn.softmax) * step_of(attn.v))
    if attn.v.after is not None:
        writer.put(f"{name}.context.row_sum", folded_step(attn.softmax) * double(attn.v.after))
    writer.put(f"{name}.context.bias", optional(_input(attn.proj).before))
