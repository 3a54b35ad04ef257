"""The converted ViT: how it is made, and what the rest of training reaches in it."""

from collections.abc import Iterator, MutableSequence
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from ofq_deploy.train.architectures.protocols import Layer, Product, Tap
from ofq_deploy.train.architectures.vit.attention import QkAttention, QkrAttention
from ofq_deploy.train.architectures.vit.block import QuantBlock
from ofq_deploy.train.architectures.vit.timm_parts import FloatVit
from ofq_deploy.train.layers import QuantLinear, QuantPatchEmbedding, quant_head
from ofq_deploy.train.quantizers import LsqQuantizer, Quantizers


class QuantPatches(Protocol):
    num_patches: int
    img_size: tuple[int, int]
    patch_size: tuple[int, int]
    proj: QuantPatchEmbedding


class QuantVit(Protocol):
    """timm's network after `convert`: its own stem and end, our layers.

    cls_token, dist_token: float [1, 1, dim], the first or None, the second with distillation only
    reg_token: float [1, registers, dim], or None
    norm, fc_norm: one of them is a LayerNorm, the other nn.Identity
    pos_embed: float [1, tokens, dim], or [1, patches, dim] where the tokens before the patches have no position
    """

    embed_dim: int
    cls_token: Tensor | None
    dist_token: Tensor
    reg_token: Tensor | None
    pos_embed: Tensor
    patch_embed: QuantPatches
    norm_pre: nn.Identity
    blocks: MutableSequence[QuantBlock]
    norm: nn.Module
    fc_norm: nn.Module
    global_pool: str


def convert(model: nn.Module, quantizers: Quantizers) -> None:
    """Quantize patch embedding, blocks and heads in place; tokens, positions and norms stay."""
    source, vit = cast(FloatVit, model), cast(QuantVit, model)
    patches = source.patch_embed
    vit.patch_embed.proj = QuantPatchEmbedding(patches.proj, patches.img_size, quantizers, "patch_embed")
    tokens = source.num_prefix_tokens + patches.num_patches
    for index, block in enumerate(source.blocks):
        vit.blocks[index] = QuantBlock(block, tokens, quantizers, f"blocks.{index}")
    for name in head_names(model):
        setattr(model, name, quant_head(getattr(model, name), quantizers, name))


def head_names(model: nn.Module) -> tuple[str, ...]:
    """The classifiers: one, or class and distillation head, each with a token of its own; their mean is the output."""
    return ("head", "head_dist") if hasattr(model, "head_dist") else ("head",)


def heads(model: nn.Module) -> dict[str, QuantLinear]:
    return {name: getattr(model, name) for name in head_names(model)}


def logits(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Logits [batch, classes] of the class head and, where there is one, of the distillation head."""
    tokens: Tensor = model.forward_features(images)  # type: ignore[operator]  # timm's
    if model.global_pool == "avg":
        return [model.forward_head(tokens)]  # type: ignore[operator]
    return [getattr(model, name)(tokens[:, index]) for index, name in enumerate(head_names(model))]


def layers(model: nn.Module) -> Iterator[Layer]:
    """Patch embedding, the linears of every block but QKR's product, heads."""
    vit = cast(QuantVit, model)
    stem = vit.patch_embed.proj
    yield Layer(("patch_embed",), stem.weight, stem.weight_quant, edge=True)
    for index, block in enumerate(vit.blocks):
        name, attn = f"blocks.{index}", block.attn
        if isinstance(attn, QkrAttention):
            yield _layer(attn.value, f"{name}.attn.v")
        elif isinstance(attn, QkAttention):
            yield _layer(attn.qkv, *(f"{name}.attn.{part}" for part in "qkv"))
        yield _layer(attn.proj, f"{name}.attn.proj")
        yield _layer(block.mlp.fc1, f"{name}.mlp.fc1")
        yield _layer(block.mlp.fc2, f"{name}.mlp.fc2")
    for name, head in heads(model).items():
        yield Layer((name,), head.weight, head.weight_quant, edge=True)


def _layer(linear: QuantLinear, *names: str) -> Layer:
    return Layer(names, linear.weight, linear.weight_quant)


def products(model: nn.Module) -> Iterator[Product]:
    """QKR's product of query and key, per block."""
    for index, block in enumerate(cast(QuantVit, model).blocks):
        attn = block.attn
        if isinstance(attn, QkrAttention):
            yield Product(f"blocks.{index}.attn.z", (attn.query, attn.key), attn.product_quant, attn.product)


# In the last block these see every token; the other taps there are cut to the rows that the heads read.
_ALL_TOKENS = ("attn.input", "attn.v", "attn.k", "attn.z")


def taps(model: nn.Module) -> dict[str, Tap]:
    """Every activation quantizer, the embedding, middle and output of every block."""
    vit = cast(QuantVit, model)
    last, read = f"blocks.{len(vit.blocks) - 1}.", len(head_names(model)) if vit.global_pool == "token" else None

    def tap(name: str, module: nn.Module) -> Tap:
        rows = read if name.startswith(last) and not name.endswith(_ALL_TOKENS) else None
        attn = vit.blocks[0].attn
        if name.endswith((".attn.q", ".attn.k")):  # [batch, heads, tokens, head_dim]
            return Tap(module, rows, _join_heads, attn.split_heads)
        if name.endswith(".attn.z"):  # [batch, tokens, heads, dim]
            return Tap(module, rows, partial(torch.flatten, start_dim=2), partial(_split_width, width=attn.dim))
        return Tap(module, rows)

    found = {
        path.replace("patch_embed.proj.", "patch_embed."): module
        for path, module in model.named_modules()
        if isinstance(module, LsqQuantizer)
    }
    stream: dict[str, nn.Module] = {"embedding": vit.norm_pre}
    for index, block in enumerate(vit.blocks):
        stream |= {f"blocks.{index}.middle": block.middle, f"blocks.{index}.output": block.output}
    return {name: tap(name, module) for name, module in (*found.items(), *stream.items())}


def _join_heads(x: Tensor) -> Tensor:
    """[batch, heads, tokens, head_dim] -> [batch, tokens, dim]"""
    return x.transpose(1, 2).flatten(2)


def _split_width(x: Tensor, width: int) -> Tensor:
    """[batch, tokens, heads * width] -> [batch, tokens, heads, width]"""
    return x.unflatten(2, (-1, width))
