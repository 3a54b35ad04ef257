"""The OpenVINO target and backend: products in integers, predictions of the portable model, plain refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from ofq_deploy import api
from ofq_deploy.data.datasets import load_dataset
from ofq_deploy.errors import BackendMissing, OnnxFileError, UnsupportedByTarget
from ofq_deploy.export.network import build
from ofq_deploy.export.write import write_checked
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.recipe import Quantization
from ofq_deploy.runner import logits
from ofq_deploy.runtime_tests.lint.rules import lint
from ofq_deploy.runtime_tests.runners import openvino
from ofq_deploy.runtime_tests.runners.ort import open_session, run_logits
from ofq_deploy.targets import TARGETS
from tests.support.models import frozen_model

TENSOR = {"quantization.act_step": "tensor", "quantization.attention": "qk", "teacher.epochs": 4}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_settings: dict[str, Any]) -> Path:
    folder = tmp_path_factory.mktemp("openvino") / "runs" / "tensor"
    return api.train(output=folder, overrides={**tiny_settings, **TENSOR}, device="cpu")


@pytest.fixture(scope="module")
def model(run: Path) -> Path:
    return api.export(run, target="openvino")


def test_every_product_runs_in_integers(model: Path) -> None:
    executed = openvino.executed_operators(OnnxFile(model))

    # patch embedding, two heads, and per block q, k, v, proj, fc1, fc2, scores and context
    assert (executed.integer, executed.float) == (3 + 2 * 8, 0)
    assert lint(OnnxFile(model), "openvino") == []


def test_predictions_are_those_of_the_portable_model(model: Path, run: Path) -> None:
    images = load_dataset("digits", 16).test.images(range(360))
    portable = open_session(api.export(run, target="portable"))
    ours = logits(openvino.OpenVinoRunner(OnnxFile(model), 1, 360), images).argmax(-1)

    # its quantizer multiplies by a reciprocal: a value on a threshold may round the other way
    assert (ours == run_logits(portable, images).argmax(-1)).mean() >= 0.98


def test_a_float_model_has_findings_in_openvino(run: Path, tmp_path: Path) -> None:
    fp32 = api.export(run, target="fp32", output=tmp_path / "fp32.onnx")
    findings = lint(OnnxFile(fp32), "openvino")

    assert {"float-product"} == {finding.rule for finding in findings}
    assert any("blocks.1.mlp.fc1" in finding.node for finding in findings)


@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("attention", ["qkr", "qk"])
def test_narrow_codes_and_shifts_run_in_integers_too(
    bits: int, attention: str, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    changes = {"quantization.act_step": "tensor", "quantization.attention": attention}
    bits_changes = {"quantization.weight_bits": bits, "quantization.act_bits": bits}
    run = api.train(output=tmp_path / "run", overrides={**tiny_settings, **changes, **bits_changes}, device="cpu")

    assert api.lint(api.export(run, target="openvino")) == []


def test_bench_runs_in_openvino(model: Path) -> None:
    result = api.bench(model, backend="openvino", batches=[1, 3], seconds=0.1)

    assert (result["backend"], [row["batch"] for row in result["speedup"]]) == ("openvino", [1, 3])
    assert result["model"]["executed"]["float"] == 0 < result["baseline"]["executed"]["float"]
    assert result["model"]["load_ms"] > 0


def test_steps_per_token_are_refused(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedByTarget, match="export it with --target ort-cpu"):
        api.export(tiny_run, target="openvino", output=tmp_path / "model.onnx")

    assert list(tmp_path.iterdir()) == []


def test_nine_bit_integers_are_refused() -> None:
    frozen = frozen_model(Quantization(8, 8, attention="qk", act_step="tensor"))

    with pytest.raises(UnsupportedByTarget, match="9 bits"):
        TARGETS["openvino"].load_operators().check(frozen)


def test_it_is_proven_in_openvino_only(model: Path) -> None:
    with pytest.raises(UnsupportedByTarget, match="prove it there with --backend openvino"):
        api.validate(model)
    result = api.validate(model, backend="openvino", images=4)

    assert result["passed"], result["faults"]


def test_validate_of_a_run_takes_what_can_be_proven(model: Path, run: Path) -> None:
    portable = api.export(run, target="portable", force=True)
    api.export(run, target="openvino", force=True)

    assert api.validate(run, images=2)["model"] == str(portable)


def test_the_file_advised_for_steps_per_token_runs_at_a_fixed_batch(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_checked(build(frozen_model(Quantization(4, 4, attention="qk")), TARGETS["ort-cpu"]), path)
    images = np.random.default_rng(0).standard_normal((2, 3, 16, 16), dtype=np.float32)

    np.testing.assert_allclose(
        logits(openvino.OpenVinoRunner(OnnxFile(path), 1, 2), images),
        run_logits(open_session(path), images),
        rtol=0,
        atol=0.1,
    )


def test_an_opset_that_openvino_does_not_read_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedByTarget, match="opsets up to 24"):
        api.export(run, target="openvino", opset=25, output=tmp_path / "model.onnx")


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no model")

    with pytest.raises(OnnxFileError, match=r"x\.onnx is no ONNX file"):
        openvino.compile_model(OnnxFile(tmp_path / "x.onnx"))


def test_without_the_package_the_cure_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "openvino", None)

    with pytest.raises(BackendMissing, match=r"pip install 'ofq-deploy\[openvino\]'"):
        openvino.OpenVinoRunner(OnnxFile(model), 1, 1)


def test_a_model_of_one_head_is_proven(tiny_settings: dict[str, Any], tmp_path: Path) -> None:
    """Its logits are a copy of the head's output, whose name OpenVINO knows too."""
    settings = {**tiny_settings, **TENSOR, "teacher.epochs": 1, "model.distilled": False}
    model = api.export(api.train(output=tmp_path / "run", overrides=settings, device="cpu"), target="openvino")

    proof = api.validate(model, images=2, backend="openvino")

    assert proof["codes_compared"] > 0
    assert proof["parity"][0]["first_divergence"] is None
    assert [entry["operator"] for entry in proof["parity"][0]["floats"]][-1] == "logits"


def test_a_copied_output_has_the_name_that_the_file_gives_it(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a.step"]), helper.make_node("Identity", ["a.step"], ["y"])]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 2]) for name in ("x", "y", "a.step")]
    for outputs in (values[1:2], values[1:], values[:0:-1]):
        graph = helper.make_graph(nodes, "copied", values[:1], outputs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)

        with openvino.OpenVinoRunner(model, 1) as runner:
            made = runner.infer({"x": np.array([[-1, 2]], dtype=np.float32)})

        assert runner.metadata.outputs == tuple(value.name for value in outputs)
        assert all(value.tolist() == [[0, 2]] for value in made.values())
