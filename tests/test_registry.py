"""A target and a runtime that the project does not know: a record each, and every command takes them."""

import shutil
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import onnx
import pytest

from ofq_deploy import api
from ofq_deploy.commands.doctor import examine
from ofq_deploy.errors import BackendMissing, OnnxFileError, UnsupportedByTarget
from ofq_deploy.export.targets.portable import Portable
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.runner import Metadata, Opening
from ofq_deploy.runtime_tests.lint.findings import Finding, Model
from ofq_deploy.runtime_tests.runners.ort import OrtRunner
from ofq_deploy.runtime_tests.runners.registry import BACKENDS, Backend, find_opening, levels, proves
from ofq_deploy.targets import TARGETS, Target


class ToyOperators(Portable):
    name = "toy"


def no_softmax(model: Model) -> Any:
    for node in model.file.of_kind("Softmax"):
        yield Finding("no-softmax", node.name, node.op_type, "a toy has none", "leave it out")


TOY_RULES = (no_softmax,)
TOY_TARGET = Target(
    "toy",
    operators="tests.test_registry:ToyOperators",
    rules="tests.test_registry:TOY_RULES",
    on_cpu=True,
    triton=("onnxruntime",),
)
ENTRY_POINTS = (
    "operators",
    "lowering",
    "reading",
    "rules",
    "check",
    "opens",
    "executed",
    "profile",
    "available",
    "bench_models",
    "bench_layers",
)


class ToyRunner(OrtRunner):
    """ONNX Runtime without its optimizer, under another name."""

    def __init__(self, model: "Path | onnx.ModelProto", how: Opening) -> None:
        super().__init__(model, how.threads, optimize=False)
        self._told = replace(super().metadata, backend=how.name)

    @property
    def metadata(self) -> Metadata:
        return self._told


def open_toy(model: "OnnxFile | onnx.ModelProto", how: Opening) -> ToyRunner:
    return ToyRunner(model.path if isinstance(model, OnnxFile) else model, how)


TOY_BACKEND = Backend(
    "toy-runtime",
    title="Toy",
    package="onnxruntime",
    install="pip install toy",
    opens="tests.test_registry:open_toy",
    executed="ofq_deploy.runtime_tests.runners.executed:executed_operators",
    rules_of="ort-cpu",
)


@pytest.fixture
def toy_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "toy", TOY_TARGET)


@pytest.fixture
def toy_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "toy-runtime", TOY_BACKEND)


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("model.*", "*.html"))
    return tmp_path / "run"


@pytest.fixture
def toy_model(run: Path, toy_target: None) -> Path:
    return api.export(run, target="toy")


@pytest.mark.parametrize("record", [*TARGETS.values(), *BACKENDS.values()], ids=lambda record: record.name)
def test_what_a_record_names_is_there(record: Target | Backend) -> None:
    places = [place for name in ENTRY_POINTS if (place := getattr(record, name, ""))]

    assert all(resolve_name(place) is not None for place in places)
    if isinstance(record, Target) and not record.is_float:
        assert record.load_operators().name == record.name
        assert record.load_operators().packs_weights == record.packs_weights
        assert record.only_on in {"", *BACKENDS}
    if isinstance(record, Backend):
        assert record.rules_of in {"", *TARGETS}


def test_a_new_target_is_exported_and_described(toy_model: Path) -> None:
    card = toy_model.with_suffix(".md").read_text()
    contents = api.inspect(toy_model)

    assert toy_model.name == "model.toy.onnx"
    assert OnnxFile(toy_model).described.target == contents["target"] == "toy"
    assert "for the target `toy`" in card
    assert f"ofq-deploy validate {toy_model.name} --run RUN_FOLDER\n" in card


def test_a_new_target_is_linted_by_its_own_rules(toy_model: Path) -> None:
    findings = api.lint(toy_model)

    assert {finding["rule"] for finding in findings} == {"no-softmax"}
    assert len(findings) == 2  # one in each block


def test_a_new_target_is_proven_and_measured(toy_model: Path) -> None:
    proof = api.validate(toy_model.parent, images=2)
    speed = api.bench(toy_model, seconds=0.0)

    assert proof["passed"], proof["faults"]
    assert proof["target"] == "toy"
    assert speed["model"]["path"] == str(toy_model)
    assert speed["speedup"]


def test_a_new_target_is_served(toy_model: Path, tmp_path: Path) -> None:
    for kind in ("ort", "triton"):
        manifest = api.package(toy_model, kind=kind, output=tmp_path / kind)
        assert manifest["model"]["target"] == "toy"


def test_a_target_is_refused_where_its_record_lacks_something(
    toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TARGETS, "toy", replace(TOY_TARGET, rules="", on_cpu=False, triton=(), only_on="openvino"))

    with pytest.raises(UnsupportedByTarget, match="no rules for target 'toy'"):
        api.lint(toy_model)
    with pytest.raises(UnsupportedByTarget, match="no check for target 'toy'; there is one for tensorrt"):
        api.check(toy_model, target="toy")
    for kind in ("ort", "triton"):
        with pytest.raises(UnsupportedByTarget, match="was made for toy"):
            api.package(toy_model, kind=kind, output=tmp_path / kind)
    with pytest.raises(UnsupportedByTarget, match="is made for OpenVINO; prove it there with --backend openvino"):
        api.validate(toy_model)


def test_a_target_that_nobody_knows_is_refused(toy_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(TARGETS, "toy")

    with pytest.raises(UnsupportedByTarget, match="no target 'toy'; there are portable, ort-cpu"):
        api.export(toy_model.parent, target="toy", force=True)
    with pytest.raises(OnnxFileError, match="names the target 'toy'; export it again"):
        api.inspect(toy_model)


def test_a_new_runtime_proves_and_measures(portable_model: Path, toy_backend: None) -> None:
    proof = api.validate(portable_model, images=2, backend="toy-runtime")
    parity = api.parity(portable_model, follower="toy-runtime", images=2)
    speed = api.bench(portable_model, seconds=0.0, backend="toy-runtime")

    assert proof["passed"], proof["faults"]
    assert proof["witnesses"][0] == "toy-runtime"
    assert parity["runners"]["follower"]["backend"] == "toy-runtime"
    assert speed["backend"] == "toy-runtime"
    assert speed["model"]["load_ms"] > 0  # measured in a process that has never heard of it


def test_doctor_tells_of_a_new_runtime(toy_backend: None, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = examine().backends["toy-runtime"]
    monkeypatch.setitem(BACKENDS, "toy-runtime", replace(TOY_BACKEND, package="no_such_package"))
    missing = examine().backends["toy-runtime"]

    assert ready.ready
    assert (missing.ready, missing.why, missing.install) == (
        False,
        "package no_such_package is not installed",
        "pip install toy",
    )


def test_a_runtime_is_refused_where_its_record_lacks_something(portable_model: Path, toy_backend: None) -> None:
    with pytest.raises(UnsupportedByTarget, match="no profile on backend 'toy-runtime'; there is one on ort-cpu"):
        api.bench(portable_model, backend="toy-runtime", profile=True)
    for variant in ("toy-runtime:plain", "toy-runtime@python", "toy-runtime:other"):
        with pytest.raises(UnsupportedByTarget, match=f"no backend {variant!r}"):
            find_opening(variant)


def test_a_gpu_runtime_says_what_it_lacks(portable_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = replace(TOY_BACKEND, without_gpu="buy one", available="tests.test_registry:refuse", bench_models="x:y")
    monkeypatch.setitem(BACKENDS, "toy-runtime", record)

    with pytest.raises(BackendMissing, match="no toy is plugged in"):
        api.bench(portable_model, backend="toy-runtime")
    with pytest.raises(UnsupportedByTarget, match="are for CPUs; leave them out on toy-runtime"):
        api.bench(portable_model, backend="toy-runtime", threads=2)


def refuse() -> None:
    raise BackendMissing("no toy is plugged in")


def test_names_with_variants_are_one_backend() -> None:
    backend, how = find_opening("ort-cpu:plain@venv/bin/python")

    assert backend.name == "ort-cpu"
    assert (how.optimize, how.python) == (False, Path("venv/bin/python"))
    assert levels("ort-cpu@python") == ("ort-cpu@python", "ort-cpu:plain@python")
    assert levels("ort-cpu:plain") == ("ort-cpu:plain",)
    assert levels("openvino") == ("openvino",)


@pytest.mark.parametrize("target", TARGETS)
def test_a_form_is_proven_where_it_computes_what_it_says(target: str) -> None:
    provers = {name for name, backend in BACKENDS.items() if backend.opens and proves(name, TARGETS[target])}

    expected = {"portable": 3, "ort-cpu": 3, "ort-ofq": 1, "tensorrt": 3, "openvino": 1, "fp32": 0}
    assert len(provers) == expected[target]
