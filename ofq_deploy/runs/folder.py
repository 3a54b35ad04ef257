"""Run folders: what `train` leaves behind, and how it is found and checked again.

recipe.toml          the resolved recipe
metrics.jsonl        one line per epoch
weights.safetensors  the student's latent weights, steps and shifts
teacher.safetensors  the float model that it started from
frozen.safetensors   codes and constants
manifest.json        format version, time, sha256 of each file, results, environment
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from ofq_deploy.environment import environment
from ofq_deploy.errors import RunError
from ofq_deploy.files import sha256
from ofq_deploy.model.frozen import Frozen, load_frozen
from ofq_deploy.recipe import Recipe, load_recipe

FORMAT = 1
RUNS = Path("runs")
FLOAT_MODEL = "the run's float model"  # what results call it, as it has no file of its own
FILES = ("recipe.toml", "metrics.jsonl", "weights.safetensors", "teacher.safetensors", "frozen.safetensors")


@dataclass(frozen=True)
class Run:
    """A run folder whose files have been checked against its manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def recipe(self) -> Recipe:
        return load_recipe(self.path / "recipe.toml")

    @cached_property
    def frozen(self) -> Frozen:
        """The frozen file, read once."""
        return load_frozen(self.file("frozen.safetensors"))

    def file(self, name: str) -> Path:
        return self.path / name


def write_manifest(folder: Path, name: str, results: dict[str, Any]) -> None:
    """Close a run folder; every file of `FILES` must be there."""
    manifest = {
        "format": FORMAT,
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        "files": {file: sha256(folder / file) for file in FILES},
        "results": results,
        "environment": environment(),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def load_run(path: Path) -> Run:
    """Open a run folder.

    Raises RunError when it is no run folder, a file is missing, or a file is not the one the manifest names.
    """
    manifest = _read_manifest(path)
    for name, digest in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise RunError(f"{path} lacks {name}; train again or restore the file")
        if sha256(file) != digest:
            raise RunError(
                f"{file} is not the file that manifest.json names (sha256 differs); train again or restore it"
            )
    return Run(path, manifest)


def is_run(path: Path) -> bool:
    """Whether a folder looks like a run; nothing is checked."""
    return all((path / name).is_file() for name in ("manifest.json", "recipe.toml"))


def newest_run(root: Path = RUNS) -> Run:
    """The run right below `root` whose manifest was created last; hidden folders and damaged manifests are passed over."""
    created = {}
    for file in root.glob("[!.]*/manifest.json"):
        with suppress(RunError):  # a damaged run hides no other; naming it shows what is wrong with it
            created[file.parent] = str(_read_manifest(file.parent)["created"])
    if not created:
        raise RunError(f"no run under {root}/; make one with: ofq-deploy train")
    return load_run(max(created, key=lambda folder: created[folder]))


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    if not file.is_file():
        raise RunError(f"{path} is no run folder: it has no manifest.json; make one with: ofq-deploy train -o {path}")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise RunError(f"{file} has format {manifest['format']}, this version reads {FORMAT}; train again")
        unsafe = [name for name in dict(manifest["files"]) if name not in FILES]
        if unsafe or not isinstance(manifest["created"], str) or not isinstance(manifest["files"], dict):
            raise KeyError(unsafe or "created")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{file} is no valid manifest ({error!r}); train again or restore it") from error
    missing = [name for name in FILES if name not in manifest["files"]]
    if missing:
        raise RunError(f"{file} does not name {missing[0]}; train again or restore it")
    return dict(manifest)
