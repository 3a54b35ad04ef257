"""Writing files so that a reader never sees half of one."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ofq_deploy.errors import OutputError


@contextmanager
def replacing(path: Path, force: bool) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block succeeds.

    The block writes a file or makes a folder there. On any error the temporary path is removed and an
    existing `path` stays as it was.

    Raises OutputError when `path` exists and `force` is false, or when it cannot be written.
    """
    refuse_existing(path, force)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.is_dir() and path.exists():
            _remove(path)  # a folder cannot be renamed over a filled one
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write {path}: {reason}; choose another place with -o") from error
    finally:
        _remove(temporary)


def refuse_existing(path: Path, force: bool) -> None:
    """Raise OutputError when `path` exists and may not be replaced: before the long work, not after it."""
    if path.exists() and not force:
        raise OutputError(f"{path} exists already; pass --force to replace it or -o for another place")


def write_text(path: Path, text: str, force: bool) -> None:
    with replacing(path, force) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
