"""Any two runners compute the same codes; whoever does not is named, with the operator and the size of the difference."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ofq_deploy import api
from ofq_deploy.data.datasets import load_dataset
from ofq_deploy.errors import BackendMissing, OfqError, OnnxFileError, RunError, UnsupportedByTarget
from ofq_deploy.model.file import OnnxFile, read_model
from ofq_deploy.model.frozen import load_frozen
from ofq_deploy.progress import Reporter
from ofq_deploy.results.verdicts import parity_verdict
from ofq_deploy.runner import FORCED, Runner, logits
from ofq_deploy.runs.folder import load_run
from ofq_deploy.runtime_tests.proof import parity
from ofq_deploy.runtime_tests.proof.compare import forced_inputs
from ofq_deploy.runtime_tests.proof.oracle import Oracle
from ofq_deploy.runtime_tests.proof.proof import prove_free_run
from ofq_deploy.runtime_tests.proof.tapped import open_tapped
from ofq_deploy.runtime_tests.runners import ort
from ofq_deploy.runtime_tests.runners.elsewhere import ElsewhereRunner
from ofq_deploy.runtime_tests.runners.ort import OrtRunner
from ofq_deploy.runtime_tests.runners.registry import open_runner
from ofq_deploy.train.reference import load_student
from ofq_deploy.train.witness import TorchRunner

PAIRS = [
    ("torch", "ort-cpu"),
    ("torch:float64", "torch"),
    ("ort-cpu", "torch"),
    ("oracle", "openvino"),
    ("openvino", "ort-cpu"),
    ("ort-cpu", "ort-cpu:plain"),
    ("ort-cpu:plain", "oracle"),
    ("ort-cpu", f"ort-cpu@{sys.executable}"),
]


@pytest.fixture(scope="module")
def images() -> Any:
    return load_dataset("digits", 16).test.images(range(3))


@pytest.mark.parametrize(("leader", "follower"), PAIRS)
def test_any_two_runners_agree(portable_model: Path, leader: str, follower: str) -> None:
    result = api.parity(portable_model, leader=leader, follower=follower, images=4)

    assert result["passed"], result["faults"]
    names = [(row["leader"], row["reference"], row["follower"]) for row in result["parity"]]
    assert names[0] == (leader, "oracle", follower)
    assert names[1:] == ([] if leader == "oracle" else [(leader, "oracle", leader), (leader, leader, follower)])
    assert all(row["codes_compared"] > 50_000 for row in result["parity"])
    assert all(row["codes_differing"] == row["ties"] for row in result["parity"])


@pytest.mark.parametrize("name", ["torch", "oracle", "portable", "openvino"])
def test_a_forced_runner_reads_what_it_is_given(tiny_run: Path, portable_model: Path, images: Any, name: str) -> None:
    """Codes and floats from elsewhere: whatever follows must be computed from them, by everyone alike."""
    frozen, random = load_frozen(tiny_run / "frozen.safetensors"), np.random.default_rng(0)
    oracle = Oracle(frozen)
    given = oracle.infer({"image": images})
    for tap, value in given.items():
        is_float = value.dtype != np.int16
        given[tap] = (
            random.normal(size=value.shape).astype(np.float32)
            if is_float
            else random.integers(*frozen.quantizer(tap).range, value.shape, np.int16, endpoint=True)
        )
    inputs = forced_inputs(images, given)
    expected = oracle.infer(inputs)
    runner: Runner = {
        "oracle": lambda: oracle,
        "torch": lambda: TorchRunner(load_student(load_run(tiny_run), frozen)),
        "portable": lambda: open_tapped("ort-cpu", OnnxFile(portable_model), frozen),
        "openvino": lambda: open_tapped("openvino", OnnxFile(portable_model), frozen),
    }[name]()
    with runner:
        made = runner.infer(inputs)
        again = runner.infer({"image": images})

    assert made.keys() == expected.keys() == again.keys() == set(runner.metadata.outputs)
    assert set(inputs) == set(runner.metadata.inputs) - {"logits" + FORCED}
    for tap, value in expected.items():
        near = np.abs(made[tap].astype(np.float64) - value) <= (
            1 if value.dtype == np.int16 else 1e-4 * np.abs(value).max()
        )
        assert near.all(), tap
        assert (made[tap] == value).mean() > 0.99 or value.dtype != np.int16, tap
    assert any((again[tap] != made[tap]).any() for tap in made)  # the forcing left nothing behind


def test_a_changed_scale_is_located_with_the_size_of_the_difference(
    tiny_run: Path, portable_model: Path, tmp_path: Path
) -> None:
    model = read_model(portable_model)
    tensor = next(t for t in model.graph.initializer if t.name == "blocks.1.mlp.fc1.scale")
    tensor.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, tmp_path / "changed.onnx")
    result = api.parity(tmp_path / "changed.onnx", run=tiny_run, images=4)
    runtime, in_torch, both = result["parity"]

    assert not result["passed"]
    assert runtime["first_divergence"] == both["first_divergence"] == "blocks.1.mlp.fc2.input"
    assert [row["operator"] for row in runtime["operators"] if row["differing"]] == ["blocks.1.mlp.fc2.input"]
    assert in_torch["passed"]
    assert sum(runtime["histogram"].values()) == runtime["codes_differing"] > runtime["ties"]
    assert max(map(int, runtime["histogram"])) > 1
    assert result["free_run"]["divergences"][0]["operator"] == "blocks.1.mlp.fc2.input"


def test_the_histogram_counts_differences_by_size() -> None:
    units = np.array([0.5, 1.2, -3.0, 4.0])
    result = parity.compare_codes("x", np.array([1, 1, -1, 4]), np.array([0, 1, -3, 5]), units, 1e-4)

    assert result.histogram == {-1: 1, 1: 1, 2: 1}
    assert (result.compared, result.differing, result.ties, result.worst) == (4, 3, 1, np.inf)


@pytest.mark.parametrize(("ties", "faults"), [(2, []), (3, ["3 ties among 10000 codes are more than 0.02%"])])
def test_many_ties_are_no_rounding(ties: int, faults: list[str]) -> None:
    codes = parity.CodeParity("x", 10_000, ties, ties, 1e-5, {1: ties})
    result = parity.Parity("a", "oracle", "b", 1, (codes,), (parity.FloatParity("y", 0.0),))

    assert (result.passed, result.faults()) == (not faults, faults)


def test_values_of_another_shape_are_refused() -> None:
    one, two = np.zeros((1, 4), dtype=np.int16), np.zeros((2, 4), dtype=np.int16)

    with pytest.raises(OnnxFileError, match=r"^x has the shape \[1, 4\], expected \[2, 4\]$"):
        parity.compare_codes("x", one, two, np.zeros((2, 4)), 1e-4)
    with pytest.raises(OnnxFileError, match=r"^x has the shape \[1, 4\], expected \[2, 4\]$"):
        parity.compare_floats("x", one.astype(float), two.astype(float))


def test_the_proof_holds_in_openvino_too(portable_model: Path) -> None:
    result = api.validate(portable_model, backend="openvino", images=4)

    assert result["passed"], result["faults"]
    assert result["backend"] == "openvino"
    assert [row["follower"] for row in result["parity"]] == ["openvino", "torch"]


def test_another_interpreters_runtime_gives_the_same_logits(portable_model: Path, images: Any) -> None:
    with (
        open_runner("ort-cpu", OnnxFile(portable_model)) as here,
        open_runner(f"ort-cpu@{sys.executable}", OnnxFile(portable_model)) as there,
    ):
        np.testing.assert_array_equal(logits(here, images), logits(there, images))
        assert there.metadata.runtime == here.metadata.runtime
        assert there.metadata.settings["python"] == sys.executable


def failing(portable_model: Path, folder: Path) -> Path:
    """The model with a shape that no image fits, which shows when it runs."""
    model = read_model(portable_model)
    tensor = next(t for t in model.graph.initializer if t.name == "shape.0x1x4x4x4x4")
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.array([0, 1, 4, 4, 4, 5]), tensor.name))
    onnx.save(model, folder / "failing.onnx")
    return folder / "failing.onnx"


@pytest.mark.parametrize("backend", ["ort-cpu", "ort-cpu:plain", f"ort-cpu@{sys.executable}"])
def test_a_model_that_fails_when_it_runs_is_told(
    portable_model: Path, tmp_path: Path, images: Any, capfd: Any, backend: str
) -> None:
    with (
        open_runner(backend, OnnxFile(failing(portable_model, tmp_path))) as runner,
        pytest.raises(OnnxFileError, match=r"the model fails in .*: .*patch_embed.grid"),
    ):
        logits(runner, images)
    assert capfd.readouterr().err == ""


def test_a_process_that_has_ended_is_told(portable_model: Path, images: Any) -> None:
    with open_runner(f"ort-cpu@{sys.executable}", OnnxFile(portable_model)) as runner:
        assert isinstance(runner, ElsewhereRunner)
        runner._process.kill()
        runner._process.wait()
        with pytest.raises(OnnxFileError, match=f"of {sys.executable}: it has ended"):
            logits(runner, np.repeat(images, 99, axis=0))


def test_no_runtime_stays_open_behind_an_error(
    portable_model: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Runner] = []

    class Failing(OrtRunner):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            opened.append(self)

        def infer(self, inputs: Any) -> Any:
            if len(inputs["image"]) > 1 or self.metadata.backend.endswith("plain"):
                raise OnnxFileError("it fails")
            return super().infer(inputs)

    monkeypatch.setattr(ort, "OrtRunner", Failing)
    frozen = load_frozen(tiny_run / "frozen.safetensors")
    for backend in ("ort-cpu", "ort-cpu:plain"):
        with pytest.raises(OnnxFileError, match="it fails"):
            prove_free_run(
                OnnxFile(portable_model), frozen, np.zeros((2, 1, 16, 16), np.float32), Reporter(quiet=True), backend
            )

    assert len(opened) == 3
    assert all(runner._session is None for runner in opened)  # type: ignore[attr-defined]


def test_an_interpreter_without_the_runtime_is_named(tmp_path: Path, portable_model: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {shutil.which("python3") or sys.executable} -S "$@"\n')
    bare.chmod(0o755)

    with pytest.raises(BackendMissing, match=r"lacks a package .*install onnxruntime and numpy there"):
        open_runner(f"ort-cpu@{bare}", OnnxFile(portable_model))
    with pytest.raises(BackendMissing, match="is no Python interpreter"):
        open_runner(f"ort-cpu@{tmp_path / 'none'}", OnnxFile(portable_model))
    for other in (shutil.which("true"), shutil.which("echo"), ""):
        with pytest.raises(BackendMissing, match="is no Python interpreter"):
            open_runner(f"ort-cpu@{other}", OnnxFile(portable_model))
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(OnnxFileError, match="does not load"):
        open_runner(f"ort-cpu@{sys.executable}", OnnxFile(tmp_path / "broken.onnx"))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"follower": "gpu"}, UnsupportedByTarget, "no backend 'gpu'; there are ort-cpu, openvino"),
        ({"leader": "ort-cpu"}, UnsupportedByTarget, "ort-cpu cannot be compared with itself; pass another"),
        ({"leader": "torch:bf16"}, UnsupportedByTarget, "no runner 'torch:bf16'"),
        ({"leader": "torch:cuda"}, BackendMissing, "needs a CUDA device"),
    ],
)
def test_bad_names_are_told(portable_model: Path, options: dict[str, str], error: type[OfqError], text: str) -> None:
    import torch

    if "torch:cuda" in options.values() and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(error, match=text):
        api.parity(portable_model, **options)  # type: ignore[arg-type]


def test_torch_needs_the_run(portable_model: Path, tmp_path: Path, tiny_run: Path) -> None:
    model = shutil.copyfile(portable_model, tmp_path / "alone.onnx")
    frozen = shutil.copyfile(tiny_run / "frozen.safetensors", tmp_path / "other.safetensors")

    with pytest.raises(RunError, match=r"torch needs the run folder .*--leader oracle"):
        api.parity(model, run=frozen, data="digits")
    assert api.parity(model, run=frozen, data="digits", leader="oracle", images=2)["passed"]


def test_the_command_prints_and_exits_by_the_verdict(portable_model: Path, tiny_run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ofq_deploy", "parity", str(portable_model), "--images", "2", "--quiet"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True)
    result = json.loads(done.stdout)

    assert done.returncode == 0, done.stderr
    assert set(result) >= {"model", "leader", "follower", "runners", "parity", "free_run", "passed", "faults"}
    text = subprocess.run(command, capture_output=True, text=True).stdout
    assert text.splitlines()[-1].startswith("Equal: ort-cpu against torch, all codes")
    bad = subprocess.run([*command, "--follower", "tvm"], capture_output=True, text=True)
    assert bad.returncode == 2
    assert bad.stderr == "ofq-deploy: no backend 'tvm'; there are ort-cpu, openvino, tensorrt, torch, oracle\n"


def test_ties_are_those_of_the_two(portable_model: Path) -> None:
    """Not those of either with the oracle as well."""
    result = api.parity(portable_model, images=2)
    for row, ties in zip(result["parity"], (3, 4, 5), strict=True):
        row["ties"] = ties

    assert parity_verdict(result) == "Equal: ort-cpu against torch, all codes but for 5 rounding ties."
