"""ImageNet-1k's classes, from the tables that timm ships; timm itself is not imported."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

CLASSES = 1000


@cache
def wnids() -> tuple[str, ...]:
    """WordNet ids in the order of the class index; empty where timm does not ship the table."""
    return tuple(_table("imagenet_synsets.txt"))


@cache
def names() -> tuple[str, ...]:
    """The first word of each class's name, in the order of the class index."""
    lemmas = dict(line.split("\t", 1) for line in _table("imagenet_synset_to_lemma.txt"))
    return tuple(lemmas.get(wnid, wnid).split(",")[0] for wnid in wnids())


def _table(file: str) -> list[str]:
    spec = find_spec("timm")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "data" / "_info" / file
        if path.is_file():
            return path.read_text(encoding="utf-8").splitlines()
    return []
