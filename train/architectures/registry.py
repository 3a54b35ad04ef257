"""Which adapter serves which network."""

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ofq_deploy.errors import ModelError
from ofq_deploy.train.architectures import vit
from ofq_deploy.train.architectures.protocols import Adapter

ADAPTERS: dict[type[nn.Module], Adapter] = {VisionTransformer: vit}  # subclasses are served, too


def adapter_of(model: nn.Module) -> Adapter:
    """The adapter of the model's class or its nearest base. Raises ModelError where there is none."""
    for kind in type(model).__mro__:
        if kind in ADAPTERS:
            return ADAPTERS[kind]
    known = " and ".join(kind.__name__ for kind in ADAPTERS)
    raise ModelError(f"{type(model).__name__} cannot be converted; there are adapters for timm's {known} only")


def check_supported(model: nn.Module) -> None:
    """Raise ModelError, naming the parts, unless the network is exactly what its quantized form computes."""
    faults = adapter_of(model).faults(model)
    if faults:
        raise ModelError(f"this {type(model).__name__} cannot be converted: it has {'; '.join(faults[:4])}")
