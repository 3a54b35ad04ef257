"""Train, freeze, export and prove: every width, step form, attention form and target."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ofq_deploy import api
from ofq_deploy.export.packing import packed_bytes
from ofq_deploy.model.file import OnnxFile, read_model
from ofq_deploy.model.frozen import Frozen, load_frozen
from ofq_deploy.recipe import Recipe, load_recipe, override
from ofq_deploy.runtime_tests.runners.executed import executed_operators
from ofq_deploy.runtime_tests.runners.ort import open_session, run_logits
from tests.support.models import sizes

WIDTHS = [(2, 2), (3, 3), (4, 4), (8, 8), (2, 4)]
FORMS = [*product(WIDTHS, ["token", "tensor"], ["qkr", "qk"])]
FORMS += [((5, 5), "token", "qkr"), ((6, 6), "tensor", "qk"), ((7, 7), "token", "qk")]  # stored alike, in a byte
SHORT = {"teacher.epochs": 2, "train.epochs": 1, "cga.epochs": 1, "model.depth": 2}


def short(**quantization: Any) -> Recipe:
    recipe = override(load_recipe("digits-w4a4"), SHORT)
    return replace(recipe, quantization=replace(recipe.quantization, **quantization))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all runs of this module: they share the cached teacher."""
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize(("bits", "act_step", "attention"), FORMS)
def test_everything_is_proven(runs: Path, bits: tuple[int, int], act_step: str, attention: str) -> None:
    weight_bits, act_bits = bits
    recipe = short(weight_bits=weight_bits, act_bits=act_bits, act_step=act_step, attention=attention)
    run = api.train(recipe, output=runs / f"w{weight_bits}a{act_bits}-{act_step}-{attention}", device="cpu")
    frozen = load_frozen(run / "frozen.safetensors")
    small = (1 if attention == "qk" else 2) * recipe.model.depth

    for target in ("portable", "ort-cpu"):
        model = api.export(run, target=target)
        result = api.validate(model)  # batches of 1 and 3

        assert result["passed"], result["faults"]
        assert result["codes_compared"] > 350_000
        assert result["ties"] == result["codes_differing"]
        assert result["runtime_agrees_with_float64"] >= result["float32_agrees_with_float64"] - 1
        executed = executed_operators(OnnxFile(model))
        assert (0, small, 0) == (executed.float, executed.small, executed.leftover_dequantize)
        _check_packed_bytes(read_model(model), frozen)


def _check_packed_bytes(model: onnx.ModelProto, frozen: Frozen) -> None:
    """Bytes in the file are the true width of each tensor."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in frozen.linears:
        stored = tensors.get(f"{name}.weight.codes", tensors.get(f"{name}.weight"))
        linear = frozen.linear(name)
        assert stored is not None
        assert packed_bytes(linear.bits, linear.codes.size) == len(stored.raw_data), name


@pytest.mark.parametrize("changes", [{"weights": "lsq"}, {"shifts": False}, {"weights": "lsq", "shifts": False}])
@pytest.mark.parametrize("attention", ["qkr", "qk"])
def test_other_forms_are_proven(runs: Path, attention: str, changes: dict[str, Any]) -> None:
    name = "-".join([attention, *map(str, changes.values())])
    run = api.train(short(attention=attention, weight_bits=3, act_bits=3, **changes), output=runs / name, device="cpu")

    for target in ("portable", "ort-cpu"):
        result = api.validate(api.export(run, target=target))

        assert result["passed"], result["faults"]


@pytest.mark.parametrize("distilled", [True, False])
def test_model_without_distillation_head(runs: Path, distilled: bool) -> None:
    recipe = override(load_recipe("digits-w4a4"), {**SHORT, "model.distilled": distilled})
    run = api.train(recipe, output=runs / f"distilled-{distilled}", device="cpu")
    result = api.validate(api.export(run))

    assert result["passed"], result["faults"]
    assert (2 if distilled else 1) == sizes(load_frozen(run / "frozen.safetensors")).prefix


def test_training_is_deterministic(tmp_path: Path) -> None:
    first, second = (api.train(short(), output=tmp_path / name / "run", device="cpu") for name in "ab")
    other = api.train(override(short(), {"seed": 1}), output=tmp_path / "c" / "run", device="cpu")

    weights = [(run / "weights.safetensors").read_bytes() for run in (first, second, other)]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]
    assert (first / "frozen.safetensors").read_bytes() == (second / "frozen.safetensors").read_bytes()


@pytest.mark.parametrize("target", ["portable", "ort-cpu", "fp32"])
def test_export_is_byte_identical_on_repeat(tiny_run: Path, tmp_path: Path, target: str) -> None:
    first, second = (api.export(tiny_run, target=target, output=tmp_path / name) for name in ("a.onnx", "b.onnx"))

    assert first.read_bytes() == second.read_bytes()


def test_lower_opset_changes_the_packing_and_not_the_result(tiny_run: Path, tmp_path: Path) -> None:
    default = api.export(tiny_run, output=tmp_path / "default.onnx")
    lower = api.export(tiny_run, opset=20, output=tmp_path / "lower.onnx")
    images = np.random.default_rng(0).standard_normal((3, 1, 16, 16)).astype(np.float32)

    assert [onnx.load(path).opset_import[0].version for path in (default, lower)] == [21, 20]
    one, other = (run_logits(open_session(path), images) for path in (default, lower))
    np.testing.assert_array_equal(one, other)


def test_float_baseline_computes_the_teacher(tiny_run: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    from ofq_deploy.train.sources.models import build_model

    recipe = load_recipe(tiny_run / "recipe.toml")
    teacher = build_model(recipe.model, 1, 10).eval()
    teacher.load_state_dict(load_file(tiny_run / "teacher.safetensors"))
    images = np.random.default_rng(0).standard_normal((3, 1, 16, 16)).astype(np.float32)
    path = api.export(tiny_run, target="fp32", output=tmp_path / "fp32.onnx")

    with torch.no_grad():
        expected = teacher(torch.from_numpy(images)).numpy()

    np.testing.assert_allclose(run_logits(open_session(path), images), expected, atol=1e-5)


def test_portable_models_use_standard_operators_only(portable_model: Path) -> None:
    model = onnx.load(portable_model)

    assert {""} == {node.domain for node in model.graph.node}
    assert [value.name for value in open_session(portable_model).get_inputs()] == ["image"]
    assert open_session(portable_model).get_inputs()[0].shape == ["batch", 1, 16, 16]
