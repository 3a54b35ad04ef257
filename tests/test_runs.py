"""Run folders are opened only when every file is the one that the manifest names."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ofq_deploy import api
from ofq_deploy.errors import FrozenFileError, ModelError, RunError
from ofq_deploy.files import sha256
from ofq_deploy.runs.folder import FILES, FORMAT, load_run, newest_run, write_manifest


def _make_run(path: Path, created: str | None = None) -> Path:
    """A run folder of small text files."""
    path.mkdir(parents=True)
    for name in FILES:
        (path / name).write_text(f"{path.name} {name}\n")
    write_manifest(path, path.name, {"test_top1": 50.0})
    if created:
        _edit(path, created=created)
    return path


def _edit(path: Path, **changes: Any) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))


def _refuse(path: Path) -> str:
    with pytest.raises(RunError) as error:
        load_run(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_trained_run_opens_with_its_recipe_and_results(tiny_run: Path, tiny_settings: dict[str, Any]) -> None:
    run = load_run(tiny_run)

    assert set(FILES) == set(run.manifest["files"])
    assert {name: sha256(tiny_run / name) for name in FILES} == run.manifest["files"]
    assert run.recipe.name == "digits-w4a4"
    assert tiny_settings["model.depth"] == run.recipe.model.depth
    assert {"teacher_test_top1", "validation_top1", "test_top1"} == set(run.manifest["results"])
    assert run.manifest["format"] == FORMAT
    assert "torch" in run.manifest["environment"]["packages"]


def test_metrics_have_one_line_per_epoch_of_every_phase(tiny_run: Path) -> None:
    rows = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]

    assert [row["phase"] for row in rows] == ["teacher", "quantized", "annealing"]
    assert all(0 <= row["validation_top1"] <= 100 for row in rows)
    assert [key for key in rows[2] if key not in rows[1]] == ["trainable_share"]


def test_the_same_seed_gives_the_same_run(tiny_run: Path, tiny_settings: dict[str, Any], tmp_path: Path) -> None:
    again = load_run(api.train(output=tmp_path / "again", overrides=tiny_settings, device="cpu"))
    expected, found = load_run(tiny_run).manifest["files"], again.manifest["files"]

    for name in ("recipe.toml", "weights.safetensors", "teacher.safetensors", "frozen.safetensors"):
        assert expected[name] == found[name], name


def test_a_folder_without_a_manifest_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "absent", tmp_path / "file"):
        expected = f"{path} is no run folder: it has no manifest.json; make one with: ofq-deploy train -o {path}"

        assert expected == _refuse(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b'{"format": 1',
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b"3",
        b"{}",
        b'{"format": 1}',
        b'{"format": 1, "files": {}}',
        b'{"format": 1, "files": null, "created": "x"}',
        b'{"format": 1, "files": 3, "created": "x"}',
    ],
)
def test_a_manifest_that_cannot_be_understood_is_refused(content: bytes, tmp_path: Path) -> None:
    run = _make_run(tmp_path / "run")
    (run / "manifest.json").write_bytes(content)

    assert _refuse(run).startswith(f"{run / 'manifest.json'} is no valid manifest (")


def test_a_manifest_whose_files_are_a_list_is_refused(tmp_path: Path) -> None:
    run = _make_run(tmp_path / "run")
    _edit(run, files=list(FILES))

    assert _refuse(run).startswith(f"{run / 'manifest.json'} is no valid manifest (")


def test_a_manifest_without_a_creation_time_is_refused(tmp_path: Path) -> None:
    run = _make_run(tmp_path / "run")
    _edit(run, created=17)

    assert f"{run / 'manifest.json'} is no valid manifest (KeyError('created')); train again or restore it" == (
        _refuse(run)
    )


def test_another_format_is_refused(tmp_path: Path) -> None:
    run = _make_run(tmp_path / "run")
    _edit(run, format=FORMAT + 1)

    assert f"{run / 'manifest.json'} has format 2, this version reads 1; train again" == _refuse(run)


@pytest.mark.parametrize("name", ["../x", "../../etc/passwd", "/etc/passwd", "sub/../../x", "extra.txt", ""])
def test_a_manifest_that_lists_another_file_is_refused(name: str, tmp_path: Path) -> None:
    run = _make_run(tmp_path / "run")
    outside = tmp_path / "x"
    outside.write_text("outside")
    files = json.loads((run / "manifest.json").read_text())["files"]
    _edit(run, files=files | {name: sha256(outside)})

    assert f"{run / 'manifest.json'} is no valid manifest (KeyError([{name!r}])); train again or restore it" == (
        _refuse(run)
    )


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_the_manifest_does_not_list_is_refused(name: str, tmp_path: Path) -> None:
    run = _make_run(tmp_path / "run")
    files = json.loads((run / "manifest.json").read_text())["files"]
    del files[name]
    _edit(run, files=files)

    assert f"{run / 'manifest.json'} does not name {name}; train again or restore it" == _refuse(run)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    run = _make_run(tmp_path / "run")
    (run / name).unlink()

    assert f"{run} lacks {name}; train again or restore the file" == _refuse(run)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_named(name: str, tmp_path: Path) -> None:
    run = _make_run(tmp_path / "run")
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[:-2] + b"!\n")

    assert f"{run / name} is not the file that manifest.json names (sha256 differs); train again or restore it" == (
        _refuse(run)
    )


def test_a_truncated_frozen_file_is_refused_by_its_hash(tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    frozen = run / "frozen.safetensors"
    frozen.write_bytes(frozen.read_bytes()[: frozen.stat().st_size // 2])

    assert _refuse(run).startswith(f"{frozen} is not the file that manifest.json names (sha256 differs)")


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_a_truncated_frozen_file_with_a_matching_hash_is_refused_too(
    share: float, tiny_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    frozen = run / "frozen.safetensors"
    frozen.write_bytes(frozen.read_bytes()[: int(share * frozen.stat().st_size)])
    files = json.loads((run / "manifest.json").read_text())["files"]
    _edit(run, files=files | {frozen.name: sha256(frozen)})
    with pytest.raises(FrozenFileError) as error:
        api.export(run, output=tmp_path / "model.onnx")

    assert str(error.value).startswith(f"{frozen} is not a whole safetensors file (")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "model.onnx").exists()


def test_a_truncated_teacher_with_a_matching_hash_is_refused_by_the_float_export(
    tiny_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    teacher = run / "teacher.safetensors"
    teacher.write_bytes(teacher.read_bytes()[: teacher.stat().st_size // 2])
    files = json.loads((run / "manifest.json").read_text())["files"]
    _edit(run, files=files | {teacher.name: sha256(teacher)})
    with pytest.raises(ModelError) as error:
        api.export(run, target="fp32", output=tmp_path / "model.onnx")

    assert str(error.value).startswith(f"{teacher} is not a whole safetensors file (")
    assert not (tmp_path / "model.onnx").exists()


def test_the_newest_run_is_the_one_created_last_not_touched_last(tmp_path: Path) -> None:
    made = {
        "a": _make_run(tmp_path / "a", "2024-03-01T10:00:00.000000+00:00"),
        "z": _make_run(tmp_path / "z", "2024-02-28T23:59:59.999999+00:00"),
        "m": _make_run(tmp_path / "m", "2023-12-31T00:00:00.000000+00:00"),
    }
    for age, name in enumerate(["a", "z", "m"]):  # the oldest manifest has the latest mtime
        for path in (made[name], *made[name].iterdir()):
            os.utime(path, (1_800_000_000 + age, 1_800_000_000 + age))

    assert made["a"] == newest_run(tmp_path).path


def test_runs_made_one_after_the_other_are_in_order(tmp_path: Path) -> None:
    names = ["c", "a", "b"]
    found = []
    for name in names:
        _make_run(tmp_path / name)
        found.append(newest_run(tmp_path).path.name)

    assert names == found


def test_folders_that_are_no_runs_are_passed_over(tmp_path: Path) -> None:
    run = _make_run(tmp_path / "run")
    (tmp_path / "notes").mkdir()
    (tmp_path / ".teachers").mkdir()
    (tmp_path / "file").touch()

    assert run == newest_run(tmp_path).path


@pytest.mark.parametrize("root", ["empty", "absent"])
def test_without_a_run_the_message_says_how_to_make_one(root: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError) as error:
        newest_run(tmp_path / root)

    assert f"no run under {tmp_path / root}/; make one with: ofq-deploy train" == str(error.value)


def test_a_damaged_newest_run_is_an_error_not_an_older_run(tmp_path: Path) -> None:
    _make_run(tmp_path / "old", "2020-01-01T00:00:00.000000+00:00")
    newest = _make_run(tmp_path / "new")
    (newest / "frozen.safetensors").unlink()
    with pytest.raises(RunError) as error:
        newest_run(tmp_path)

    assert f"{newest} lacks frozen.safetensors; train again or restore the file" == str(error.value)
