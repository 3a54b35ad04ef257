"""Small vision transformers that nobody trained, and images for them."""

from typing import Any

import torch
from torch import Tensor

from ofq_deploy.data.images import Preprocessing
from ofq_deploy.model.frozen import Frozen
from ofq_deploy.model.vit import Vit
from ofq_deploy.recipe import Quantization
from ofq_deploy.train.convert import calibrate, convert
from ofq_deploy.train.freeze import freeze


def small_vit(
    distilled: bool = False, channels: int = 1, dim: int = 32, depth: int = 1, heads: int = 2, **changes: Any
) -> Any:
    """A ViT for 16 x 16 images with seeded random values in every parameter, biases included."""
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": 16, "patch_size": 4, "in_chans": channels, "num_classes": 7}
    kind = VisionTransformerDistilled if distilled else VisionTransformer
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = kind(**{**sizes, "embed_dim": dim, "depth": depth, "num_heads": heads, **changes}).eval()
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.15)
    return model


def random_images(count: int = 4, channels: int = 1, seed: int = 0) -> Tensor:
    """float32 [count, channels, 16, 16], normally distributed."""
    return torch.randn(count, channels, 16, 16, generator=torch.Generator().manual_seed(seed))


def sizes(frozen: Frozen) -> Vit:
    """The architecture of a frozen ViT."""
    assert isinstance(frozen.architecture, Vit)
    return frozen.architecture


def frozen_model(config: Quantization) -> Frozen:
    """Not trained, but calibrated, with shifts that are not zero; in colour and distilled with steps per token."""
    channels = 3 if config.act_step == "token" else 1
    model = convert(small_vit(distilled=channels == 3, channels=channels, depth=2), config)[0].eval()
    calibrate(model, random_images(8, channels))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("before", "after")):
                parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).view(parameter.shape))
    how = Preprocessing(16, 16, "bilinear", (0.5,) * channels, (0.25,) * channels)
    return freeze(model, config, how, tuple("abcdefg"))
