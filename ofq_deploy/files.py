"""Writing files so that a reader never sees half of one."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ofq_deploy.errors import OutputError

# A folder that has one of these was made here and may be replaced.
OWN_FOLDER = ("manifest.json", "summary.json")


@contextmanager
def replacing(path: Path, force: bool) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block succeeds.

    The block writes a file or makes a folder there. On any error the temporary path is removed and an
    existing `path` stays as it was.

    Raises OutputError when `path` may not be replaced (see `refuse_existing`) or cannot be written.
    """
    refuse_existing(path, force)
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("part", "old"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _rename_over(temporary, path, old)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write {path}: {reason}; choose another place with -o") from error
    finally:
        _remove(temporary)


def _rename_over(temporary: Path, path: Path, old: Path) -> None:
    """Rename; a folder cannot be renamed over a filled one, so that one steps aside until it is done."""
    if not path.is_dir() or not temporary.is_dir():
        os.replace(temporary, path)
        return
    os.replace(path, old)
    try:
        os.replace(temporary, path)
    except OSError:
        os.replace(old, path)
        raise
    _remove(old)


def refuse_existing(path: Path, force: bool) -> None:
    """Raise OutputError when `path` may not become an output: before the long work, not after it.

    It may not when it exists and `force` is false, when it names no file (`.`, `..`, `/`), or when it is a
    filled folder that was not made here.
    """
    if path.name in ("", ".."):
        raise OutputError(f"{path} names no file or folder to make; choose another place with -o")
    if not path.exists():
        return
    if not force:
        raise OutputError(f"{path} exists already; pass --force to replace it or -o for another place")
    if path.is_dir() and any(path.iterdir()) and not any((path / name).is_file() for name in OWN_FOLDER):
        raise OutputError(f"{path} is a folder that ofq-deploy did not make; choose another place with -o")


def write_text(path: Path, text: str, force: bool) -> None:
    with replacing(path, force) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(path: Path) -> None:
    """Remove a file or folder, as far as that is possible: an error here would hide the one that matters."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
