"""Which images a step sees: everything random comes from a seed that is given."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ofq_deploy.data.datasets import Split
from ofq_deploy.recipe import Augmentation
from ofq_deploy.train.loop.augment import augment

CHOICE_SEED = 7919


def epoch_batches(
    split: Split, batch: int, augmentation: Augmentation, seed: int, device: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass in random order: augmented images float32 [batch, channels, height, width], classes int64 [batch].

    What does not fill a batch is left out.
    """
    generator = torch.Generator().manual_seed(seed)
    whole = len(split) // batch
    order = torch.randperm(len(split), generator=generator)[: whole * batch].view(whole, batch)
    for chosen in order.numpy():
        images = torch.from_numpy(split.images(chosen)).to(device)
        classes = torch.from_numpy(split.classes[chosen]).to(device)
        yield augment(images, augmentation, generator), classes


def fixed_choice(split: Split, count: int) -> NDArray[np.int64]:
    """Indices of at most `count` images, always the same ones."""
    return torch.randperm(len(split), generator=torch.Generator().manual_seed(CHOICE_SEED))[:count].numpy()


def fixed_part(split: Split, count: int) -> Split:
    """At most `count` images of a split, always the same ones."""
    if len(split) <= count:
        return split
    chosen = fixed_choice(split, count)
    return Split(split.classes[chosen], lambda index: split.load(int(chosen[index])))
