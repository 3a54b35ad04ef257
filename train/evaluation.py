"""What a model predicts, and how often it is right."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ofq_deploy.data.datasets import Split


@torch.no_grad()
def predictions(
    model: nn.Module, split: Split, batch: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Iterator[NDArray[np.int64]]:
    """int64 [batch] of every batch in order: the class of the highest logit. Leaves the model in evaluation mode.

    dtype, device: of the model
    """
    model.eval()
    for images, _ in split.batches(batch):
        yield model(torch.from_numpy(images).to(device, dtype)).argmax(-1).cpu().numpy()


def top1(model: nn.Module, split: Split, device: str = "cpu") -> float:
    """Share of the images whose highest logit is their class, in percent."""
    predicted = np.concatenate(list(predictions(model, split, 64, device=device)))
    return 100 * int((predicted == split.classes).sum()) / len(split)
