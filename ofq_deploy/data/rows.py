"""Tables of encoded images and labels: parquet files, and data sets of the `datasets` library."""

import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from ofq_deploy.errors import BackendMissing, DataError

HUB = "hf:"
SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}
IMAGE, LABEL = "image", "label"
INSTALL = "install it with: pip install 'ofq-deploy[data]'"


@dataclass(frozen=True, slots=True)
class Rows:
    """One split as it is stored.

    source:      what messages call it
    fingerprint: changes when the rows do
    labels:      per row an index, -1 for none, or a name
    names:       what the data set calls its indices; empty where it does not say
    image:       an encoded image, or the path of one, by its row
    """

    source: str
    fingerprint: str
    labels: list[int] | list[str]
    names: tuple[str, ...]
    image: Callable[[int], BytesIO | Path]


def parquet_files(folder: Path) -> dict[str, list[Path]]:
    """The parquet files of a folder, or of data/ in it, by split: train-*.parquet and so on, as the Hugging Face hub
    names them; all are `test` where no name begins with one.
    """
    files = sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")])
    splits: dict[str, list[Path]] = {}
    for file in files:
        split = SPLITS.get(re.split(r"\W|_", file.stem)[0])
        if split:
            splits.setdefault(split, []).append(file)
    return splits or ({"test": files} if files else {})


def read_parquet(files: list[Path], source: Path) -> Rows:
    """The columns `image` (bytes, or a struct with bytes) and `label` of parquet files with one schema.

    Raises DataError for files that are damaged or lack these columns, BackendMissing without pyarrow.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise BackendMissing(f"pyarrow, which reads parquet files, is not installed; {INSTALL}") from error
    try:
        present = parquet.read_schema(files[0]).names
        _check_columns(present, source)
        table = parquet.read_table(files, columns=[IMAGE, LABEL], memory_map=True)
    except FileNotFoundError as error:
        raise DataError(f"no data set {source}") from error
    except (ArrowException, OSError) as error:
        raise DataError(f"{source} is no readable parquet file ({str(error).splitlines()[0]})") from error
    images = table.column(IMAGE)
    return Rows(
        str(source),
        str([(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]),
        _labels(table.column(LABEL).to_pylist(), str(source)),
        _names(table.schema.metadata or {}, source),
        lambda row: _encoded(images[row].as_py(), f"row {row} of {source}"),
    )


def _names(metadata: dict[bytes, bytes], source: Path) -> tuple[str, ...]:
    """What the indices in a file of the `datasets` library are called; empty where it does not say."""
    try:
        label = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {}).get(LABEL, {})
        return tuple(map(str, label.get("names") or ()))
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{source} describes its features in another way than the datasets library does") from error


def read_hub(name: str) -> dict[str, Rows]:
    """The splits of `hf:NAME[:SPLIT]`: a data set of the Hugging Face hub or its cache, or a folder that the
    `datasets` library knows. No code of the data set is run.

    Raises DataError when it cannot be loaded, BackendMissing without the library.
    """
    try:
        import datasets
    except ImportError as error:
        raise BackendMissing(f"datasets, which loads {name}, is not installed; {INSTALL}") from error
    path, _, wanted = name.removeprefix(HUB).partition(":")
    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a line for each try; the error says it once
    try:
        saved = any((Path(path) / file).is_file() for file in ("dataset_dict.json", "state.json"))
        loaded = datasets.load_from_disk(path) if saved else datasets.load_dataset(path)
    except Exception as error:  # the library raises those of its many dependencies
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{HUB}{path} cannot be loaded ({reason}); expected HUB/NAME or a folder; without a network it must be "
            "in the cache of the datasets library"
        ) from error
    splits = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"test": loaded}
    if wanted and wanted not in splits:
        raise DataError(f"{HUB}{path} has no split {wanted!r}; it has {', '.join(splits)}")
    if wanted:
        splits = {"test": splits[wanted]}
    named = {SPLITS[split]: part for split, part in splits.items() if split in SPLITS}
    if not named:
        raise DataError(f"{HUB}{path} has the splits {', '.join(splits)}; choose one: {HUB}{path}:{next(iter(splits))}")
    return {split: _hub_rows(part, name) for split, part in named.items()}


def _hub_rows(part: Any, name: str) -> Rows:
    import datasets

    _check_columns(part.column_names, name)
    if isinstance(part.features[IMAGE], datasets.Image):
        part = part.cast_column(IMAGE, datasets.Image(decode=False))
    label = part.features[LABEL]
    return Rows(
        name,
        part._fingerprint,
        _labels(list(part[LABEL]), name),
        tuple(label.names) if isinstance(label, datasets.ClassLabel) else (),
        lambda row: _encoded(part[row][IMAGE], f"row {row} of {name}"),
    )


def _check_columns(present: Sequence[str], source: Path | str) -> None:
    missing = [column for column in (IMAGE, LABEL) if column not in present]
    if missing:
        raise DataError(f"{source} lacks the column {' and '.join(missing)}; it has {', '.join(present)}")


def _labels(values: list[Any], source: str) -> list[int] | list[str]:
    """Of one kind, a missing one being -1."""
    if not values:
        raise DataError(f"{source} holds no rows")
    kind = str if isinstance(values[0], str) else int
    labels = [-1 if value is None and kind is int else value for value in values]
    for row, label in enumerate(labels):
        if type(label) is not kind:
            raise DataError(f"row {row} of {source} has the label {label!r}; expected whole numbers, or names")
    return labels


def _encoded(value: Any, where: str) -> BytesIO | Path:
    if isinstance(value, dict):
        path, value = value.get("path"), value.get("bytes")
        if value is None and path:
            return Path(path)
    if not isinstance(value, bytes):
        raise DataError(f"{where} holds no image bytes; expected the column image to be bytes, or a struct with bytes")
    return BytesIO(value)
