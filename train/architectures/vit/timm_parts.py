"""What is read of timm's VisionTransformer, plain or distilled: its attributes, as types (timm itself has none)."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn


class FloatAttention(Protocol):
    num_heads: int
    head_dim: int
    scale: float
    qkv: nn.Linear
    proj: nn.Linear
    attn_drop: nn.Dropout
    proj_drop: nn.Dropout


class FloatMlp(Protocol):
    fc1: nn.Linear
    act: nn.GELU
    fc2: nn.Linear
    drop1: nn.Dropout
    drop2: nn.Dropout


class FloatBlock(Protocol):
    """ls1, ls2: LayerScale, or nn.Identity"""

    norm1: nn.LayerNorm
    attn: FloatAttention
    ls1: nn.Module
    norm2: nn.LayerNorm
    mlp: FloatMlp
    ls2: nn.Module


class FloatPatchEmbedding(Protocol):
    num_patches: int
    img_size: tuple[int, int]
    patch_size: tuple[int, int]
    proj: nn.Conv2d
    norm: nn.Module


class FloatVit(Protocol):
    """cls_token: float [1, 1, dim]; pos_embed: float [1, tokens, dim]; `None` where the network has none"""

    patch_embed: FloatPatchEmbedding
    cls_token: Tensor | None
    reg_token: Tensor | None
    pos_embed: Tensor | None
    num_prefix_tokens: int
    dynamic_img_size: bool
    patch_drop: nn.Module
    pos_drop: nn.Dropout
    norm_pre: nn.Module
    blocks: Sequence[FloatBlock]
    norm: nn.Module
    global_pool: str
    attn_pool: nn.Module | None
    fc_norm: nn.Module
    head_drop: nn.Dropout
    head: nn.Module
