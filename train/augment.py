"""Random affine maps of a batch of images."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ofq_deploy.recipe import Augmentation


def augment(images: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Rotate, scale, shift and mirror each image [batch, channels, height, width] by its own draw."""
    count = len(images)

    def draw(limit: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * limit

    angle, scale = draw(how.rotation), 1 + draw(how.scale)
    shift_x, shift_y = draw(2 * how.shift), draw(2 * how.shift)  # grid coordinates span 2
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0) if how.flip else torch.ones(count)
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = torch.stack([mirror * cosine, -sine, shift_x, mirror * sine, cosine, shift_y], dim=1)
    grid = F.affine_grid(rows.view(count, 2, 3).to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear from 0 over the first `warmup` share of the steps, then a cosine to 1 % of the peak."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return peak * (step + 1) / rising
    progress = (step - rising) / max(1, steps - rising)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
