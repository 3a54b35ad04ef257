"""A command reads a model once: its file is parsed once and hashed once, and nothing is exported to describe it."""

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from ofq_deploy import api, files
from ofq_deploy.errors import OnnxFileError, RunError
from ofq_deploy.export import fp32, network, write
from ofq_deploy.model import file as model_file
from ofq_deploy.model.frozen import load_frozen, save_frozen
from ofq_deploy.results.kinds import decode
from ofq_deploy.results.record import keep
from ofq_deploy.runs.subject import Subject, find
from ofq_deploy.targets import TARGETS

SEVEN = Path(__file__).parent.parent / "docs" / "images" / "seven.png"


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A run with models for two targets and the float model."""
    shutil.copytree(tiny_run, tmp_path / "runs" / "run", ignore=shutil.ignore_patterns("model.*", "*.html", "*.json"))
    folder = tmp_path / "runs" / "run"
    shutil.copy(tiny_run / "manifest.json", folder)
    for target in ("portable", "tensorrt", "fp32"):
        api.export(folder, target=target)
    return folder


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> tuple[Counter[str], Counter[str]]:
    """How often each ONNX file is parsed, by whatever way, and hashed."""
    parsed, hashed, load, sha256 = Counter[str](), Counter[str](), onnx.load, files.sha256

    def counting_load(path: Any, *args: Any, **options: Any) -> onnx.ModelProto:
        parsed[Path(path).name] += 1
        return load(path, *args, **options)

    def counting_sha256(path: Path) -> str:
        hashed[path.name] += path.suffix == ".onnx"
        return sha256(path)

    monkeypatch.setattr(onnx, "load", counting_load)
    monkeypatch.setattr(onnx, "load_model", counting_load)
    for module in (files, model_file):
        monkeypatch.setattr(module, "sha256", counting_sha256)
    return parsed, hashed


COMMANDS: dict[str, Callable[[Path, Path], Any]] = {
    "validate": lambda model, _: api.validate(model, images=2),
    "bench": lambda model, _: api.bench(model, seconds=0.0, profile=True),
    "parity": lambda model, _: api.parity(model, leader="oracle", images=2),
    "inspect": lambda model, _: api.inspect(model),
    "lint": lambda model, _: api.lint(model),
    "predict": lambda model, _: api.predict([SEVEN], model=model),
    "package": lambda model, folder: api.package(model, kind="ort", output=folder / "package"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_parses_and_hashes_its_model_once(
    command: str, run: Path, tmp_path: Path, counted: tuple[Counter[str], Counter[str]]
) -> None:
    model, (parsed, hashed) = run / "model.portable.onnx", counted

    COMMANDS[command](model, tmp_path)

    assert parsed.pop(model.name) == 1
    assert hashed[model.name] <= 1
    temporary = {name: count for name, count in parsed.items() if name != "optimized.onnx"}
    assert temporary == ({"float.onnx": 1} if command == "bench" else {})


def test_a_report_parses_and_hashes_every_model_once(run: Path, counted: tuple[Counter[str], Counter[str]]) -> None:
    parsed, hashed = counted
    for target in ("portable", "tensorrt"):
        keep(decode(api.validate(run / f"model.{target}.onnx", images=1)))
    parsed.clear()
    hashed.clear()

    told = api.report(run)

    assert told["results"] == 2 + 2  # and what inspect says of each
    assert set(parsed.values()) == {1}
    assert {name for name in parsed if "fp32" not in name} == {"model.portable.onnx", "model.tensorrt.onnx"}
    assert max(hashed.values()) == 1


def test_choosing_the_newest_model_parses_no_file_twice(run: Path, counted: tuple[Counter[str], Counter[str]]) -> None:
    parsed, _ = counted

    result = api.validate(run, images=1)

    assert result["model"].endswith("model.tensorrt.onnx")
    assert parsed.pop("model.tensorrt.onnx") == 1
    assert max(parsed.values(), default=1) == 1


def test_a_run_is_described_without_writing_a_model(
    run: Path, counted: tuple[Counter[str], Counter[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = api.inspect(run / "model.portable.onnx")
    for model in run.glob("model.*"):
        model.unlink()
    counted[0].clear()
    monkeypatch.setattr(write, "write_checked", lambda *_: pytest.fail("a model was written"))

    described = api.inspect(run)

    assert not counted[0]
    assert described["model"] == f"{run} (not exported yet: as portable)"
    for key in ("layers", "bytes_by_kind", "file_bytes", "quantization", "target"):
        assert described[key] == exported[key]


@pytest.mark.parametrize("command", ["validate", "bench"])
def test_the_float_model_is_built_once(command: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built, build, build_fp32 = Counter[str](), network.build, fp32.build_fp32

    def counting_build(*given: Any) -> Any:
        built["integer"] += 1
        return build(*given)

    def counting_build_fp32(*given: Any) -> Any:
        built["float"] += 1
        return build_fp32(*given)

    monkeypatch.setattr(network, "build", counting_build)
    monkeypatch.setattr(fp32, "build_fp32", counting_build_fp32)

    COMMANDS[command](run / "model.portable.onnx", run)

    assert built == ({"float": 1, "integer": 1} if command == "validate" else {"float": 1})


def test_parts_of_a_subject_are_found_when_asked_for(run: Path, tmp_path: Path) -> None:
    subject = find(run / "model.portable.onnx")

    assert subject.frozen is subject.frozen
    assert subject.run is subject.run
    assert subject.run is not None
    assert subject.run.path == run
    assert Subject(find(run, wanted=lambda target: target.is_float).file).frozen is None
    missing = find(tmp_path / "none.onnx")
    with pytest.raises(OnnxFileError, match="no model"):
        _ = missing.model


def test_a_subject_refuses_another_frozen_file(run: Path, tmp_path: Path) -> None:
    frozen, other = load_frozen(run / "frozen.safetensors"), tmp_path / "other.safetensors"
    save_frozen(replace(frozen, labels=tuple(f"another {label}" for label in frozen.labels)), other)

    with pytest.raises(RunError, match=r"was not exported from .*other.safetensors .*; pass the right --run"):
        _ = find(run / "model.portable.onnx", other).frozen


def test_the_newest_model_that_is_wanted_is_chosen(run: Path) -> None:
    assert find(run).path.name == "model.tensorrt.onnx"
    assert find(run, wanted=lambda target: target == TARGETS["portable"]).path.name == "model.portable.onnx"
    with pytest.raises(OnnxFileError, match="holds no exported model; make one with: ofq-deploy export"):
        find(run, wanted=lambda target: False)
