"""The float models that recipes name, and their weights on disk."""

from pathlib import Path

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ofq_deploy.errors import ModelError
from ofq_deploy.recipe import Model


def build_model(config: Model, channels: int, classes: int) -> nn.Module:
    """The float model of a recipe, randomly initialised from torch's global seed.

    Raises ModelError for a name that timm does not know or sizes that do not fit together.
    """
    try:
        if config.name in ("deit_nano", "deit"):
            kind = VisionTransformerDistilled if config.distilled else VisionTransformer
            return kind(
                img_size=config.image_size,
                patch_size=config.patch_size,
                in_chans=channels,
                num_classes=classes,
                embed_dim=config.dim,
                depth=config.depth,
                num_heads=config.heads,
                init_values=config.layer_scale or None,
                reg_tokens=config.registers,
                no_embed_class=not config.class_position,
                global_pool=config.pool,
                class_token=config.pool == "token",
            )
        return timm.create_model(
            config.name, pretrained=False, img_size=config.image_size, in_chans=channels, num_classes=classes
        )
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise ModelError(f"model {config.name!r} cannot be built: {error}") from error


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file whose tensors are exactly the model's; nothing is unpickled.

    Raises ModelError for a file that is cut, or naming keys that are missing, unknown or of another shape.
    """
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a whole safetensors file ({error})") from error
    expected = model.state_dict()
    wrong = sorted(set(expected) ^ set(state)) or [
        name for name, value in sorted(expected.items()) if value.shape != state[name].shape
    ]
    if wrong:
        raise ModelError(f"{path} does not fit the model: {', '.join(wrong[:3])} missing, unknown or of another shape")
    model.load_state_dict(state)
