"""The one way an image file becomes a model's input, told by the model itself."""

import json
from dataclasses import dataclass, fields
from io import BytesIO
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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


def load_image(source: Path | BytesIO, how: Preprocessing, name: str | None = None) -> NDArray[np.float32]:
    """An image file, or its bytes, as float32 [channels, size, size]; DataError, with its name, if it cannot be read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(source) as image:
            return preprocess(image, how)
    except FileNotFoundError as error:
        raise DataError(f"no image {name or source}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{name or source} is not a readable image ({error}); remove or replace it") from error


def read_preprocessing(path: Path) -> Preprocessing:
    """The preprocessing that a JSON file describes, by the names of the fields of Preprocessing.

    Raises DataError for a file that is no such description.
    """
    expected = ", ".join(field.name for field in fields(Preprocessing))
    try:
        how = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"no preprocessing {path}; expected a JSON file with {expected}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no readable JSON ({error}); expected {expected}") from error
    if not isinstance(how, dict) or set(how) != {field.name for field in fields(Preprocessing)}:
        found = ", ".join(how) if isinstance(how, dict) else type(how).__name__
        raise DataError(f"{path} describes {found or 'nothing'}; expected {expected}")
    size, resize, mean, std = (how[name] for name in ("size", "resize", "mean", "std"))
    sound = {
        "size (a whole number from 1)": type(size) is int and size > 0,
        "resize (a whole number from size)": type(resize) is int and type(size) is int and resize >= size,
        "interpolation (bilinear or bicubic)": how["interpolation"] in ("bilinear", "bicubic"),
        "mean (a list of 1 or 3 numbers)": _are_numbers(mean) and len(mean) in (1, 3),
        "std (as many numbers above 0)": _are_numbers(std) and min(std) > 0 and len(std) == np.size(mean),
    }
    for field, is_sound in sound.items():
        if not is_sound:
            raise DataError(f"{path} has the {field.split()[0]} {how[field.split()[0]]!r}; expected {field}")
    return Preprocessing(size, resize, how["interpolation"], tuple(map(float, mean)), tuple(map(float, std)))


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(v) in (int, float) and isfinite(v) for v in value)
