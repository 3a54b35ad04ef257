"""The one way an image file becomes a model's input, told by the model itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ofq_deploy.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Resize the shorter side to `resize`, cut the centre square of `size`, scale to 0..1, normalise.

    mean, std: one value per channel; one channel means greyscale
    """

    size: int
    resize: int
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        return len(self.mean)


def preprocess(image: "Image", how: Preprocessing) -> NDArray[np.float32]:
    """A PIL image as float32 [channels, size, size]; sizes round as torchvision's Resize and CenterCrop do."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # 16-bit greyscale: converting would saturate
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert("L" if how.channels == 1 else "RGB")
    shorter = min(image.size)
    width, height = (int(how.resize * side / shorter) for side in image.size)
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    image = image.resize((width, height), filters[how.interpolation])
    left, top = round((width - how.size) / 2), round((height - how.size) / 2)
    image = image.crop((left, top, left + how.size, top + how.size))
    pixels = np.asarray(image, dtype=np.float32).reshape(how.size, how.size, how.channels).transpose(2, 0, 1)
    mean, std = (np.asarray(values, dtype=np.float32).reshape(-1, 1, 1) for values in (how.mean, how.std))
    return np.ascontiguousarray((pixels / np.float32(255) - mean) / std)


def load_image(path: Path, how: Preprocessing) -> NDArray[np.float32]:
    """An image file as float32 [channels, size, size]; DataError when it cannot be read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return preprocess(image, how)
    except FileNotFoundError as error:
        raise DataError(f"no image {path}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is not a readable image ({error}); remove or replace it") from error
