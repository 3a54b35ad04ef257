"""A timm vision transformer in its quantized form."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ofq_deploy.errors import ModelError
from ofq_deploy.recipe import Quantization
from ofq_deploy.train.layers import (
    EDGE_BITS,
    QkAttention,
    QkrAttention,
    QuantLinear,
    QuantPatchEmbedding,
    weight_quantizer,
)
from ofq_deploy.train.quantizers import LsqQuantizer, LsqWeight, StatsQ


@dataclass(frozen=True, slots=True)
class Replacement:
    """One module that changed: its path, and the classes before and after."""

    path: str
    was: str
    now: str


def convert(model: Any, config: Quantization, reference_batch: int = 1) -> tuple[nn.Module, list[Replacement]]:
    """A quantized copy of a timm VisionTransformer (distilled or not), and what was replaced in it.

    Pretrained weights, biases and tokens are carried over, the query bias under QKR as the scores' key term.
    Activation steps wait for `calibrate`. `reference_batch` is the constant batch of LSQ's gradient scale.
    Raises ModelError, naming the part, for an architecture that has no quantized form here.
    """
    check_supported(model)
    model = copy.deepcopy(model)
    before = {path: type(module).__name__ for path, module in model.named_modules()}
    tokens = model.pos_embed.shape[1]
    patches = model.patch_embed
    patches.proj = QuantPatchEmbedding(patches.proj, patches.img_size, config, reference_batch)
    attention = QkrAttention if config.attention == "qkr" else QkAttention
    for block in model.blocks:
        block.attn = attention(block.attn, tokens, config, reference_batch)
        mlp = block.mlp
        dim, hidden = mlp.fc1.in_features, mlp.fc1.out_features
        fc1 = block.attn.per_token((tokens, 1), dim, shifts=((dim,), (dim,)))
        fc2 = block.attn.per_token((tokens, 1), hidden, grid="unsigned", shifts=((hidden,), (hidden,)))
        mlp.fc1 = QuantLinear(mlp.fc1, weight_quantizer(config, mlp.fc1.weight), fc1)
        mlp.fc2 = QuantLinear(mlp.fc2, weight_quantizer(config, mlp.fc2.weight), fc2)
    for name in head_names(model):
        head = getattr(model, name)
        shift = (head.in_features,) if config.shifts else None
        quantizer = LsqQuantizer(
            EDGE_BITS,
            "signed",
            (1,),
            head.in_features,
            before=shift,
            after=shift,
            reference_batch=reference_batch,
        )
        setattr(model, name, QuantLinear(head, LsqWeight(EDGE_BITS, head.weight), quantizer))
    after = {path: type(module).__name__ for path, module in model.named_modules()}
    replaced = [Replacement(path, was, after[path]) for path, was in before.items() if after.get(path, was) != was]
    return model, replaced


def head_names(model: Any) -> tuple[str, ...]:
    """The classifiers: one, or class and distillation head; their mean is the output."""
    return ("head", "head_dist") if hasattr(model, "head_dist") else ("head",)


def check_supported(model: Any) -> None:
    """Raise ModelError unless the network is exactly the pre-norm ViT that the quantized form computes."""
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(model, VisionTransformer):
        raise ModelError(f"{type(model).__name__} is no timm VisionTransformer; only ViT and DeiT can be converted")
    patches = model.patch_embed
    wrong = [
        text
        for text, is_wrong in {
            f"images of {patches.img_size}, which are not square": len(set(patches.img_size)) != 1,
            f"patches of {patches.patch_size}, which are not square": len(set(patches.patch_size)) != 1,
            "patch dropout": not isinstance(model.patch_drop, nn.Identity),
            "dropout": model.pos_drop.p > 0 or model.head_drop.p > 0,
            f"pooling {model.global_pool!r}": model.global_pool != "token",
            "no class token": model.cls_token is None,
            "register tokens": model.reg_token is not None,
            "no learned position embedding": model.pos_embed is None,
            "position embedding without the class token": model.no_embed_class,
            "dynamic image size": model.dynamic_img_size,
            "attention pooling": model.attn_pool is not None,
            "a norm before the blocks": not isinstance(model.norm_pre, nn.Identity),
            "a norm after pooling": not isinstance(model.fc_norm, nn.Identity),
            "a norm in the patch embedding": not isinstance(patches.norm, nn.Identity),
            "no final LayerNorm": not isinstance(model.norm, nn.LayerNorm),
            "no classifier": not isinstance(model.head, nn.Linear),
            **{f"blocks.{i}: {text}": True for i, block in enumerate(model.blocks) for text in _block_faults(block)},
        }.items()
        if is_wrong
    ]
    if wrong:
        raise ModelError(f"this {type(model).__name__} cannot be converted: it has {'; '.join(wrong[:4])}")


def _block_faults(block: Any) -> Iterator[str]:
    if type(block).__name__ != "Block":
        yield f"a {type(block).__name__}"
        return
    attention, mlp = block.attn, block.mlp
    if not hasattr(attention, "qkv") or type(mlp).__name__ != "Mlp":
        yield f"attention {type(attention).__name__} with {type(mlp).__name__}"
        return
    dropped = [attention.attn_drop.p, attention.proj_drop.p, mlp.drop1.p, mlp.drop2.p]
    for part in ("ls1", "ls2", "drop_path1", "drop_path2"):
        if not isinstance(getattr(block, part), nn.Identity):
            yield part
    for part in ("q_norm", "k_norm", "norm"):
        if not isinstance(getattr(attention, part, nn.Identity()), nn.Identity):
            yield f"attn.{part}"
    if getattr(attention, "gate", None) is not None:
        yield "gated attention"
    if not isinstance(mlp.act, nn.GELU) or mlp.act.approximate != "none":
        yield f"activation {mlp.act}"
    if not isinstance(getattr(mlp, "norm", nn.Identity()), nn.Identity):
        yield "mlp.norm"
    if not all(isinstance(getattr(block, norm), nn.LayerNorm) for norm in ("norm1", "norm2")):
        yield "norms other than LayerNorm"
    if any(dropped):
        yield "dropout"


def activation_quantizers(model: Any) -> dict[str, LsqQuantizer]:
    """Every activation quantizer by its path, in the order of the modules."""
    return {path: module for path, module in model.named_modules() if isinstance(module, LsqQuantizer)}


@contextmanager
def quantizers_off(model: Any) -> Iterator[None]:
    """Within the block the converted model computes in float, shifts included."""
    modules = [module for module in model.modules() if isinstance(module, (LsqQuantizer, LsqWeight, StatsQ))]
    try:
        for module in modules:
            module.enabled = False
        yield
    finally:
        for module in modules:
            module.enabled = True


@torch.no_grad()
def calibrate(model: Any, images: Tensor) -> None:
    """Set every activation step from one pass over `images` [batch, channels, height, width], front to back.

    Each quantizer sees inputs that the quantizers before it have already quantized. Which images these are is
    the caller's choice and should be seeded; the same images give the same steps.
    """
    quantizers, training = activation_quantizers(model).values(), model.training
    model.eval()
    for quantizer in quantizers:
        quantizer.calibrating = True
    try:
        model(images)
    finally:
        for quantizer in quantizers:
            quantizer.calibrating = False
        model.train(training)
