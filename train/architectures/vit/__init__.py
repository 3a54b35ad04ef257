"""The adapter of timm's VisionTransformer: ViT and DeiT, distilled or not; see `protocols.Adapter`."""

from ofq_deploy.train.architectures.vit.freezing import freeze
from ofq_deploy.train.architectures.vit.limits import faults
from ofq_deploy.train.architectures.vit.structure import convert, layers, logits, products, taps

__all__ = ["convert", "faults", "freeze", "layers", "logits", "products", "taps"]
