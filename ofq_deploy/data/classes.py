"""The classes of a model, and by which names the data may call them."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ofq_deploy.data import imagenet
from ofq_deploy.errors import DataError

UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Classes:
    """labels: one per output of the model; indices: every name that means a class."""

    labels: tuple[str, ...]
    indices: dict[str, int]

    @classmethod
    def of(cls, labels: tuple[str, ...]) -> "Classes":
        """Classes found by their label and, when there are 1000, by ImageNet's WordNet ids."""
        ids = imagenet.wnids() if len(labels) == imagenet.CLASSES else ()
        return cls(labels, _unambiguous(enumerate(ids)) | _unambiguous(enumerate(labels)))

    @classmethod
    def unnamed(cls, count: int) -> "Classes":
        """ImageNet's when there are 1000, else the indices themselves."""
        known = count == imagenet.CLASSES == len(imagenet.names())
        return cls.of(imagenet.names() if known else tuple(map(str, range(count))))

    def find(self, names: Iterable[str], source: Path | str) -> dict[str, int]:
        """The class of each name; DataError for names that the model does not know."""
        wanted = sorted(set(names))
        strangers = [name for name in wanted if name not in self.indices]
        if strangers:
            raise DataError(
                f"{source} has classes that the model does not know: {', '.join(strangers[:5])}; name them with --classes"
            )
        return {name: self.indices[name] for name in wanted}

    def check(self, indices: Iterable[int], source: Path | str) -> None:
        """DataError for a number that is no class; -1 stands for an image without label."""
        outside = sorted({index for index in indices if not UNKNOWN <= index < len(self.labels)})
        if outside:
            count, shown = len(self.labels), ", ".join(map(str, outside[:5]))
            raise DataError(f"{source} has labels outside the model's {count} classes (0 to {count - 1}): {shown}")


def read_classes(path: Path, classes: Classes) -> Classes:
    """The model's classes with the names that a file gives them.

    A .csv has a header and a row per name: the column `index` is the class, every other column a name of it (label,
    WordNet id, folder ...); where there is no such column, one of the names must be known already. Any other file
    is text, the name of one class per line in the order of the model's outputs. The column `name`, else
    the first one, becomes the label.
    Raises DataError for a file that is no such table, or that names other classes than the model has.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            if path.suffix.lower() == ".csv":
                return _from_table(list(csv.DictReader(stream)), path, classes)
            return _from_lines(stream.read().splitlines(), path, classes)
    except FileNotFoundError as error:
        raise DataError(f"no file {path} of class names") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no readable file of class names ({error})") from error


def _from_lines(lines: list[str], path: Path, classes: Classes) -> Classes:
    names = [line.strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    if len(names) != len(classes.labels) or not all(names):
        raise DataError(
            f"{path} names {len(list(filter(None, names)))} classes on {len(names)} lines, the model has "
            f"{len(classes.labels)}; expected the name of one class per line, or a .csv with the column index"
        )
    return Classes(tuple(names), classes.indices | _unambiguous(enumerate(names)))


def _from_table(rows: list[dict[str | None, str | None]], path: Path, classes: Classes) -> Classes:
    if not rows:
        raise DataError(f"{path} has no rows; expected the column index and columns of names")
    own: list[tuple[int, str]] = []
    labels: dict[int, str] = {}
    for line, row in enumerate(rows, 2):
        names = [value.strip() for key, value in row.items() if key not in (None, "index") and value and value.strip()]
        index = _index(row, names, f"{path}, line {line}", classes)
        labels.setdefault(index, row.get("name") or names[0])
        own += [(index, name) for name in names]
    return Classes(
        tuple(labels.get(index, label) for index, label in enumerate(classes.labels)),
        classes.indices | _unambiguous(own),
    )


def _index(row: dict[str | None, str | None], names: list[str], where: str, classes: Classes) -> int:
    count = len(classes.labels)
    if not names:
        raise DataError(f"{where} holds no name; expected the column index and columns of names")
    if "index" in row:
        text = (row["index"] or "").strip()
        if not text.isdecimal() or int(text) >= count:
            raise DataError(f"{where} has the index {text!r}; expected 0 to {count - 1}")
        return int(text)
    known = {classes.indices[name] for name in names if name in classes.indices}
    if len(known) != 1:
        raise DataError(f"{where} has no column index and {len(known)} classes that the model knows; expected one")
    return known.pop()


def _unambiguous(pairs: Iterable[tuple[int, str]]) -> dict[str, int]:
    """Names that mean one class; ImageNet has two cranes."""
    meant: dict[str, set[int]] = {}
    for index, name in pairs:
        meant.setdefault(name, set()).add(index)
    return {name: min(indices) for name, indices in meant.items() if len(indices) == 1}
