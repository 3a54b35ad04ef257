"""What a ViT may not have, because its quantized form does not compute it."""

from collections.abc import Iterator
from typing import cast

from timm.layers.patch_embed import PatchEmbed
from torch import nn

from ofq_deploy.train.architectures.vit.timm_parts import FloatBlock, FloatVit


def faults(model: nn.Module) -> list[str]:
    """Everything that sets the network apart from the pre-norm ViT that the quantized form computes."""
    vit = cast(FloatVit, model)
    wrong = {
        "patch dropout": not isinstance(vit.patch_drop, nn.Identity),
        "dropout": vit.pos_drop.p > 0 or vit.head_drop.p > 0,
        f"pooling {vit.global_pool!r}": vit.global_pool not in ("token", "avg"),
        "no class token to pool by": vit.global_pool == "token" and vit.cls_token is None,
        "no learned position embedding": vit.pos_embed is None,
        "dynamic image size": vit.dynamic_img_size,
        "attention pooling": vit.attn_pool is not None,
        "a norm before the blocks": not isinstance(vit.norm_pre, nn.Identity),
        "pooling over the class token too": getattr(vit, "pool_include_prefix", False),
        "a norm after pooling by the class token": vit.global_pool == "token"
        and not isinstance(vit.fc_norm, nn.Identity),
        "register tokens beside a distillation token": hasattr(vit, "dist_token") and vit.reg_token is not None,
        "not one final LayerNorm": [isinstance(norm, nn.LayerNorm) for norm in (vit.norm, vit.fc_norm)].count(True)
        != 1,
        "no classifier": not isinstance(vit.head, nn.Linear),
    }
    in_blocks = [f"blocks.{i}: {text}" for i, block in enumerate(vit.blocks) for text in _block_faults(block)]
    return [*_stem_faults(vit), *(text for text, is_wrong in wrong.items() if is_wrong), *in_blocks]


def _stem_faults(vit: FloatVit) -> Iterator[str]:
    patches = vit.patch_embed
    if not isinstance(patches, PatchEmbed):
        yield "a convolutional stem" if hasattr(patches, "backbone") else f"a {type(patches).__name__} as its stem"
        return
    if len(set(patches.img_size)) != 1:
        yield f"images of {patches.img_size}, which are not square"
    if len(set(patches.patch_size)) != 1:
        yield f"patches of {patches.patch_size}, which are not square"
    if not isinstance(patches.norm, nn.Identity):
        yield "a norm in the patch embedding"


def _block_faults(block: FloatBlock) -> Iterator[str]:
    if type(block).__name__ != "Block":
        yield f"a {type(block).__name__}"
        return
    attention, mlp = block.attn, block.mlp
    if type(attention).__name__ != "Attention" or type(mlp).__name__ != "Mlp":
        yield f"attention {type(attention).__name__} with {type(mlp).__name__}"
        return
    for part in ("drop_path1", "drop_path2"):
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
    if not all(isinstance(norm, nn.LayerNorm) for norm in (block.norm1, block.norm2)):
        yield "norms other than LayerNorm"
    elif block.norm1.bias is None or block.norm2.bias is None:
        yield "norms without a bias"
    if any(drop.p for drop in (attention.attn_drop, attention.proj_drop, mlp.drop1, mlp.drop2)):
        yield "dropout"


def _is_layer_norm(norm: nn.Module) -> bool:
    return isinstance(norm, nn.LayerNorm) and norm.bias is not None
