"""Files and folders appear whole or not at all, and what was there before survives any error."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ofq_deploy import files
from ofq_deploy.errors import OutputError
from ofq_deploy.files import refuse_existing, replacing, sha256, write_text


def _listing(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def _raise(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _fill_folder(path: Path) -> None:
    path.mkdir()
    (path / "new").write_text("new")


def test_a_file_gets_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "folder" / "file"
    with replacing(target, force=False) as temporary:
        temporary.write_text("half")
        seen_early = target.exists()
        temporary.write_text("whole")

    assert not seen_early
    assert _listing(tmp_path) == {"deep": None, "deep/folder": None, "deep/folder/file": b"whole"}


def test_a_folder_gets_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    with replacing(tmp_path / "run", force=False) as temporary:
        _fill_folder(temporary)
        seen_early = (tmp_path / "run").exists()

    assert not seen_early
    assert _listing(tmp_path) == {"run": None, "run/new": b"new"}


def _fail_after(make: Callable[[Path], Any], target: Path, error: BaseException) -> None:
    with replacing(target, force=True) as temporary:
        make(temporary)
        raise error


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt(), OutputError("own"), OSError(5, "I/O")])
@pytest.mark.parametrize("make", [lambda path: path.write_text("half"), _fill_folder], ids=["file", "folder"])
def test_an_error_leaves_nothing_behind_and_keeps_the_old_file(
    error: BaseException, make: Callable[[Path], Any], tmp_path: Path
) -> None:
    target = tmp_path / "out"
    target.write_text("old")
    with pytest.raises(type(error) if type(error) is not OSError else OutputError) as caught:
        _fail_after(make, target, error)

    assert _listing(tmp_path) == {"out": b"old"}
    if type(error) is OSError:
        assert f"cannot write {target}: I/O; choose another place with -o" == str(caught.value)
    else:
        assert error is caught.value


def test_an_existing_output_is_refused_without_force(tmp_path: Path) -> None:
    target, ran = tmp_path / "out", False
    target.write_text("old")
    expected = f"{target} exists already; pass --force to replace it or -o for another place"
    with pytest.raises(OutputError) as before_work:
        refuse_existing(target, force=False)
    with pytest.raises(OutputError) as error, replacing(target, force=False):
        ran = True

    assert expected == str(before_work.value)
    assert expected == str(error.value)
    assert not ran
    assert _listing(tmp_path) == {"out": b"old"}


def test_an_empty_folder_counts_as_existing(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        refuse_existing(tmp_path / "out", force=False)

    assert _listing(tmp_path) == {"out": None}


def test_force_replaces_a_file(tmp_path: Path) -> None:
    write_text(tmp_path / "out", "old", force=False)
    write_text(tmp_path / "out", "nouveau é", force=True)

    assert {"out": "nouveau é".encode()} == _listing(tmp_path)


def test_force_replaces_a_folder_whole(tmp_path: Path) -> None:
    target = tmp_path / "run"
    target.mkdir()
    (target / "manifest.json").write_text("stale")
    with replacing(target, force=True) as temporary:
        _fill_folder(temporary)

    assert _listing(tmp_path) == {"run": None, "run/new": b"new"}


def test_a_file_never_replaces_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "run"
    target.mkdir()
    (target / "manifest.json").write_text("kept")
    with pytest.raises(OutputError) as error:
        write_text(target, "text", force=True)

    assert str(error.value).startswith(f"cannot write {target}: ")
    assert _listing(tmp_path) == {"run": None, "run/manifest.json": b"kept"}


def test_a_full_disk_while_renaming_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    target.write_text("old")
    monkeypatch.setattr(os, "replace", _raise)
    with pytest.raises(OutputError) as error:
        write_text(target, "new", force=True)

    assert f"cannot write {target}: No space left on device; choose another place with -o" == str(error.value)
    assert _listing(tmp_path) == {"out": b"old"}


def test_a_full_disk_while_renaming_keeps_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "run"
    target.mkdir()
    (target / "manifest.json").write_text("kept")
    monkeypatch.setattr(os, "replace", _raise)
    monkeypatch.setattr(os, "rename", _raise)
    with pytest.raises(OutputError, match="No space left on device"), replacing(target, force=True) as temporary:
        _fill_folder(temporary)

    assert _listing(tmp_path) == {"run": None, "run/manifest.json": b"kept"}


def test_a_full_disk_while_writing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_text", _raise)
    with pytest.raises(OutputError) as error:
        write_text(tmp_path / "out", "new", force=False)

    assert f"cannot write {tmp_path / 'out'}: No space left on device; choose another place with -o" == str(error.value)
    assert _listing(tmp_path) == {}


def test_a_place_below_a_regular_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for place in (tmp_path / "file" / "out", tmp_path / "file" / "deeper" / "out"):
        with pytest.raises(OutputError) as error:
            write_text(place, "new", force=False)

        assert str(error.value).startswith(f"cannot write {place}: ")
        assert "\n" not in str(error.value)
    assert _listing(tmp_path) == {"file": b"kept"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match=r"cannot write .*: Permission denied; choose another place with -o"):
            write_text(tmp_path / "out", "new", force=False)
    finally:
        tmp_path.chmod(0o700)

    assert _listing(tmp_path) == {}


@pytest.mark.parametrize("place", [".", "..", "/"])
def test_a_folder_without_a_name_of_its_own_is_never_replaced(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`train -o .. --force` must not delete the parent folder. (Nothing is really removed here.)"""
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    removed: list[Path] = []
    monkeypatch.setattr(files, "_remove", removed.append)
    monkeypatch.setattr(os, "replace", _raise)
    with pytest.raises(OutputError) as error, replacing(Path(place), force=True) as temporary:
        temporary.mkdir()

    assert "\n" not in str(error.value)
    assert Path(place) not in removed


def test_sha256_is_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "abc").write_bytes(b"abc")

    assert sha256(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_folder_made_elsewhere_is_never_replaced(tmp_path: Path) -> None:
    target = tmp_path / "photos"
    target.mkdir()
    (target / "cat.jpg").write_text("cat")
    with pytest.raises(OutputError, match="is a folder that ofq-deploy did not make"), replacing(target, force=True):
        pass

    assert _listing(tmp_path) == {"photos": None, "photos/cat.jpg": b"cat"}


def test_an_empty_folder_may_be_filled_with_force(tmp_path: Path) -> None:
    target = tmp_path / "run"
    target.mkdir()
    with replacing(target, force=True) as temporary:
        _fill_folder(temporary)

    assert _listing(tmp_path) == {"run": None, "run/new": b"new"}
