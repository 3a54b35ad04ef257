"""Engines kept on disk, since building one takes minutes and it fits one GPU, driver and version only.

An engine is code: nothing is read from a folder that others can write to, and a plan that is not what was written is
built again. A cache that cannot be written keeps nothing.
"""

import hashlib
import json
import os
import platform
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ofq_deploy.errors import OutputError
from ofq_deploy.files import replacing


@dataclass(frozen=True, slots=True)
class Ingredients:
    """Everything that decides what is in an engine.

    model, builder: sha256 of the ONNX bytes and of the code that configures the build
    profile:        smallest, usual and largest batch size
    """

    model: str
    builder: str
    package: str
    version: str
    gpu: str
    capability: str
    driver: str
    profile: tuple[int, int, int]
    optimization_level: int | None
    machine: str = field(default_factory=lambda: f"{platform.system()} {platform.machine()}")

    @property
    def key(self) -> str:
        """Hex digest that names the engine. That of the plan cannot: its bytes differ from build to build."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def folder() -> Path:
    """`engines` in $OFQ_CACHE, or else in ofq-deploy's folder below $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("OFQ_CACHE")
    if own:
        return Path(own) / "engines"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ofq-deploy" / "engines"


def load(ingredients: Ingredients) -> bytes | None:
    """The plan that was stored for these ingredients, if it is whole."""
    plan, note = _files(ingredients)
    if not _is_own():
        return None
    try:
        content, written = plan.read_bytes(), json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(written, dict) and written.get("plan_sha256") == hashlib.sha256(content).hexdigest()
    return content if whole else None


def store(ingredients: Ingredients, plan: bytes) -> None:
    """Keep a plan, and beside it what it was made from."""
    path, note = _files(ingredients)
    written: dict[str, Any] = {**asdict(ingredients), "plan_sha256": hashlib.sha256(plan).hexdigest()}
    _write(path, plan)
    _write(note, json.dumps(written, indent=2, sort_keys=True).encode())


def load_timings(ingredients: Ingredients) -> bytes | None:
    """What earlier builds of the same version measured on the same GPU."""
    try:
        return _timings(ingredients).read_bytes() if _is_own() else None
    except OSError:
        return None


def store_timings(ingredients: Ingredients, timings: bytes) -> None:
    _write(_timings(ingredients), timings)


def _files(ingredients: Ingredients) -> tuple[Path, Path]:
    return folder() / f"{ingredients.key}.plan", folder() / f"{ingredients.key}.json"


def _timings(ingredients: Ingredients) -> Path:
    i = ingredients
    parts = (i.package, i.version, i.gpu, i.capability, i.driver)
    return folder() / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()}.timings"


def _is_own() -> bool:
    """Whether nobody but this user can have written what lies in the folder."""
    try:
        found = folder().stat()
    except OSError:
        return False
    return os.name != "posix" or (found.st_uid == os.getuid() and not found.st_mode & 0o022)


def _write(path: Path, content: bytes) -> None:
    with suppress(OSError, OutputError):  # the engine runs all the same
        folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(path, force=True) as temporary:
            temporary.write_bytes(content)
