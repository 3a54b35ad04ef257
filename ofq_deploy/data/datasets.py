"""Data sets: the embedded digits, folders of images, tables of files and labels, parquet files, hub data sets."""

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ofq_deploy.data.classes import UNKNOWN, Classes
from ofq_deploy.data.images import Preprocessing, load_image, preprocess
from ofq_deploy.data.rows import HUB, Rows, parquet_files, read_hub, read_parquet
from ofq_deploy.errors import DataError

DIGITS_SPLIT = Path(__file__).parent / "digits_split.json"
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
FIRST_BATCH = 32
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Split:
    """Some images with their classes.

    classes: int64 [images], UNKNOWN where there are no labels
    load:    one image by its index, float32 [channels, size, size]
    """

    classes: NDArray[np.int64]
    load: Callable[[int], NDArray[np.float32]]

    @property
    def labelled(self) -> bool:
        return bool((self.classes != UNKNOWN).all())

    def __len__(self) -> int:
        return len(self.classes)

    def images(self, indices: NDArray[np.int64] | range) -> NDArray[np.float32]:
        """float32 [len(indices), channels, size, size]."""
        return np.stack([self.load(int(index)) for index in indices])

    def spread(self, count: int) -> NDArray[np.float32]:
        """At most `count` images, evenly spread: folders keep one class after the other."""
        return self.images(range(0, len(self), max(1, len(self) // count))[:count])

    def batches(self, size: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Images and classes in order, `size` at a time."""
        for start in range(0, len(self), size):
            chosen = range(start, min(start + size, len(self)))
            yield self.images(chosen), self.classes[chosen.start : chosen.stop]

    def first_batch_sha256(self) -> str:
        """Of the first 32 images as they enter a model, little-endian float32: two ways to preprocess differ in it."""
        return hashlib.sha256(self.images(range(min(FIRST_BATCH, len(self)))).astype("<f4").tobytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class Dataset:
    """Train, validation and test split. Training is decided without the test split where there is a separate one.

    fingerprint: changes when the images do
    """

    name: str
    fingerprint: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    train: Split
    validation: Split
    test: Split


def _no_image(index: int) -> NDArray[np.float32]:
    raise IndexError(f"an empty split has no image {index}")


_NOTHING = Split(np.zeros(0, dtype=np.int64), _no_image)


def load_dataset(
    name: str, size: int, preprocessing: Preprocessing | None = None, labels: tuple[str, ...] | Classes | None = None
) -> Dataset:
    """The data set of that name, or the folder or file at that path, as square images of side `size`.

    A folder holds train/ and val/ (and test/, else val/ serves as both), or the class folders themselves, which are
    then validation and test split; each of these holds one folder of images per class. A folder of nothing but
    images has no labels. A .csv file has the columns `file` (relative to it) and `label`. A .parquet file, or a
    folder of them, and a data set `hf:NAME[:SPLIT]` of the `datasets` library have the columns `image` and `label`.
    A model brings its own `preprocessing` and `labels`: its classes are then found by name or index, ImageNet's also
    by their WordNet ids.
    Raises DataError for a path that is no such folder, is empty or holds no images, or classes that the model
    does not know; BackendMissing without the package that reads it.
    """
    known = Classes.of(labels) if isinstance(labels, tuple) else labels
    if name == "digits":
        return _digits(preprocessing or digits_preprocessing(size), known)
    how, path = preprocessing or folder_preprocessing(size), Path(name)
    if name.startswith(HUB):
        return _rows(name, read_hub(name), how, known)
    if name.endswith(".csv"):
        return _table(path, how, known)
    if name.endswith(".parquet"):
        return _rows(path.name, {"test": read_parquet([path], path)}, how, known)
    if files := parquet_files(path) if path.is_dir() else {}:
        return _rows(path.name, {split: read_parquet(own, path) for split, own in files.items()}, how, known)
    return _folder(path, how, known)


def digits_preprocessing(size: int) -> Preprocessing:
    return Preprocessing(size, size, "bilinear", (0.3,), (0.35,))


def folder_preprocessing(size: int) -> Preprocessing:
    """DeiT's: shorter side to size / 0.9, bicubic, ImageNet's mean and deviation."""
    return Preprocessing(size, int(size / 0.9), "bicubic", IMAGENET_MEAN, IMAGENET_STD)


def _digits(how: Preprocessing, known: Classes | None) -> Dataset:
    """scikit-learn's 1,797 scanned digits, 8 x 8; the split is committed beside this file."""
    from PIL import Image
    from sklearn.datasets import load_digits

    raw, classes = load_digits(return_X_y=True)
    bytes_ = np.rint(raw.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    images = np.stack([preprocess(Image.fromarray(pixels), how) for pixels in bytes_])
    indices = json.loads(DIGITS_SPLIT.read_text())
    labels = tuple("0123456789")
    if known is not None:
        if not known.indices.keys() >= set(labels):
            raise DataError("the model does not know the classes of digits; pass its own data with --data")
        classes, labels = np.asarray([known.indices[label] for label in labels])[classes], known.labels

    def split(name: str) -> Split:
        chosen = np.asarray(indices[name])
        own = images[chosen]
        return Split(classes[chosen].astype(np.int64), lambda index: own[index])

    fingerprint = hashlib.sha256(images.tobytes() + DIGITS_SPLIT.read_bytes()).hexdigest()
    return Dataset("digits", fingerprint, labels, how, split("train"), split("validation"), split("test"))


def _folder(root: Path, how: Preprocessing, known: Classes | None) -> Dataset:
    if not root.is_dir():
        raise DataError(
            f"no data set {str(root)!r}: it is neither 'digits', nor a folder of images, nor a .csv or .parquet file, "
            "nor hf:NAME"
        )
    layered = (root / "val").is_dir()
    validation = root / "val" if layered else root
    test = root / "test" if (root / "test").is_dir() and layered else None
    train = root / "train" if (root / "train").is_dir() and layered else None
    files = sorted(path for path in root.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if files and not layered and not any(path.is_dir() for path in root.iterdir()):
        return _test_only(root, known.labels if known else ("unknown",), how, [(path, UNKNOWN) for path in files])
    folders = tuple(sorted(folder.name for folder in (train or validation).iterdir() if folder.is_dir()))
    known = known or Classes.of(folders)
    classes = known.find(folders, train or validation)
    splits = [_folder_split(part, classes, how) if part else _NOTHING for part in (train, validation)]
    splits.append(_folder_split(test, classes, how) if test else splits[1])
    fingerprint = _fingerprint(root, [path for path in sorted(root.rglob("*")) if path.is_file()], how)
    return Dataset(root.name, fingerprint, known.labels, how, *splits)


def _table(path: Path, how: Preprocessing, known: Classes | None) -> Dataset:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except FileNotFoundError as error:
        raise DataError(f"no data set {path}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no readable table ({error})") from error
    if not rows or not {"file", "label"} <= set(rows[0]) or not all(row["file"] and row["label"] for row in rows):
        raise DataError(f"{path} has no rows with the columns file and label")
    names = tuple(sorted({row["label"] for row in rows}))
    known = known or Classes.of(names)
    are_indices = all(name.isdecimal() and int(name) < len(known.labels) for name in names)
    if are_indices and not known.indices.keys() >= set(names):  # a label may be a number, and not its own index
        indices = {name: int(name) for name in names}
    else:
        indices = known.find(names, path)
    files = [(path.parent / row["file"], indices[row["label"]]) for row in rows]
    missing = [file for file, _ in files if not file.is_file()]
    if missing:
        raise DataError(f"{path} names {len(missing)} files that do not exist, as {missing[0]}")
    return _test_only(path, known.labels, how, files)


def _test_only(source: Path, labels: tuple[str, ...], how: Preprocessing, files: list[tuple[Path, int]]) -> Dataset:
    split = _split(files, how)
    fingerprint = _fingerprint(source.parent, [path for path, _ in files], how)
    return Dataset(source.name, fingerprint, labels, how, _NOTHING, split, split)


def _fingerprint(root: Path, files: list[Path], how: Preprocessing) -> str:
    listing = [(os.path.relpath(path, root), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([listing, asdict(how)]).encode()).hexdigest()


def _rows(name: str, splits: dict[str, Rows], how: Preprocessing, known: Classes | None) -> Dataset:
    known = known or _own_classes(list(splits.values()))
    loaded = {split: _rows_split(rows, how, known) for split, rows in splits.items()}
    validation = loaded.get("validation", loaded.get("test"))
    if validation is None:
        raise DataError(f"{name} has nothing but training rows; name the file itself, or the split: hf:NAME:train")
    listing = [[(split, rows.fingerprint) for split, rows in splits.items()], asdict(how)]
    fingerprint = hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    train, test = loaded.get("train", _NOTHING), loaded.get("test", validation)
    return Dataset(name, fingerprint, known.labels, how, train, validation, test)


def _own_classes(splits: list[Rows]) -> Classes:
    """As the data set names them; else the names that occur, or as many numbers as are needed."""
    labels = [label for rows in splits for label in rows.labels]
    names = {str(label) for label in labels if isinstance(label, str)}
    numbers = max((label for label in labels if isinstance(label, int)), default=0)
    named = next((rows.names for rows in splits if rows.names), tuple(sorted(names)))
    return Classes.of(named or tuple(map(str, range(numbers + 1))))


def _rows_split(rows: Rows, how: Preprocessing, known: Classes) -> Split:
    """Indices mean what the data set calls them where the model knows these names; else they are the model's own,
    if none of these names means another class there.
    """
    labels: Iterable[int | str] = rows.labels
    moved = any(known.indices.get(name, index) != index for index, name in enumerate(rows.names))
    if rows.names and (moved or len(rows.names) != len(known.labels) or known.indices.keys() >= set(rows.names)):
        Classes.of(rows.names).check((label for label in rows.labels if isinstance(label, int)), rows.source)
        labels = [label if label == UNKNOWN else rows.names[int(label)] for label in rows.labels]
    known.check((label for label in labels if isinstance(label, int)), rows.source)
    indices = known.find((label for label in labels if isinstance(label, str)), rows.source)
    classes = [label if isinstance(label, int) else indices[label] for label in labels]

    def load(row: int) -> NDArray[np.float32]:
        return load_image(rows.image(row), how, f"row {row} of {rows.source}")

    return Split(np.asarray(classes, dtype=np.int64), load)


def _folder_split(folder: Path, indices: dict[str, int], how: Preprocessing) -> Split:
    strangers = {item.name for item in folder.iterdir() if item.is_dir()} - set(indices)
    if strangers:
        raise DataError(f"{folder} has class folders that the training data lacks: {', '.join(sorted(strangers)[:5])}")
    files = [
        (path, index)
        for label, index in indices.items()
        for path in sorted((folder / label).glob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not files:
        raise DataError(f"{folder} holds no images; expected one folder of images per class")
    return _split(files, how)


def _split(files: list[tuple[Path, int]], how: Preprocessing) -> Split:
    classes = np.asarray([index for _, index in files], dtype=np.int64)
    return Split(classes, lambda index: load_image(files[index][0], how))
