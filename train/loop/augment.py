"""Random affine maps of a batch of images."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ofq_deploy.recipe import Augmentation


def augment(images: Tensor, config: Augmentation, generator: torch.Generator) -> Tensor:
    """Rotate, scale, shift, mirror and crop each image [batch, channels, height, width] by its own draw."""
    count = len(images)

    def draw(limit: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * limit

    angle, scale = draw(config.rotation), 1 + draw(config.scale)
    shift_x, shift_y = draw(2 * config.shift), draw(2 * config.shift)  # grid coordinates span 2
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0) if config.flip else torch.ones(count)
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    width, height = torch.ones(count), torch.ones(count)
    if config.crop < 1:
        area = 1 - torch.rand(count, generator=generator) * (1 - config.crop)
        aspect = torch.exp(draw(math.log(4 / 3)))
        width, height = (area * aspect).sqrt().clamp_max(1), (area / aspect).sqrt().clamp_max(1)
        shift_x, shift_y = shift_x + (1 - width) * draw(1.0), shift_y + (1 - height) * draw(1.0)
    left = torch.stack([mirror * cosine * width, -sine * height, shift_x], dim=1)
    rows = torch.cat([left, torch.stack([mirror * sine * width, cosine * height, shift_y], dim=1)], dim=1)
    grid = F.affine_grid(rows.view(count, 2, 3).to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
