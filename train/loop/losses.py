"""What a phase minimises. The terms are torch's; it takes class indices or probabilities as its target."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofq_deploy.train.architectures.registry import adapter_of

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (model, images, classes int64 [batch]) -> loss []


def smoothed(label_smoothing: float) -> Loss:
    """Cross-entropy with label smoothing, averaged over the model's heads."""

    def loss(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
        heads = adapter_of(model).logits(model, images)
        return torch.stack(
            [F.cross_entropy(logits, classes, label_smoothing=label_smoothing) for logits in heads]
        ).mean()

    return loss


def distilled(teacher: nn.Module) -> Loss:
    """Cross-entropy of the class head with the label, plus soft cross-entropy of the distillation head with the
    class head of the frozen teacher (OFQ section 5). Without a distillation head both act on the one head there is.
    """

    def loss(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
        with torch.no_grad():
            target = adapter_of(teacher).logits(teacher, images)[0].softmax(-1)
        heads = adapter_of(model).logits(model, images)
        return F.cross_entropy(heads[0], classes) + F.cross_entropy(heads[-1], target)

    return loss
