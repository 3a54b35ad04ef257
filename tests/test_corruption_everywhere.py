"""Each way in which a model file can be wrong, at three random layers of the digits model and of one with 12 blocks: the
right command catches it and names the place.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ofq_deploy import api
from ofq_deploy.commands import validate as validation
from ofq_deploy.errors import OnnxFileError
from ofq_deploy.export.network import build
from ofq_deploy.export.write import write_checked
from ofq_deploy.model.file import read_model
from ofq_deploy.model.frozen import load_frozen, save_frozen
from ofq_deploy.targets import TARGETS
from tests.support.models import sizes

IMAGES = 2
SHORT = {"teacher.epochs": 1, "train.epochs": 1, "cga.enabled": False}
FORM = {"quantization.attention": "qk", "quantization.act_step": "tensor"}  # what every target can hold
SEEDS = range(3)

# The first value that a layer's constants decide.
BEHIND = {"attn.q": "attn.q", "attn.k": "attn.k", "attn.v": "attn.v", "attn.proj": "middle"}
BEHIND |= {"mlp.fc1": "mlp.fc2.input", "mlp.fc2": "output"}
SHIFTS = {"mlp.fc2.input.before": "mlp.fc2.input", "attn.scores.key_shift": "attn.softmax"}
SHIFTS |= {"attn.context.bias": "attn.proj.input", "attn.context.row_sum": "attn.proj.input"}
SQUARE = ("attn.q", "attn.k", "attn.v", "attn.proj")


@pytest.fixture(scope="module", params=[None, 12], ids=["digits", "12 blocks"])
def frozen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The frozen file of the digits recipe, with its own depth or with 12 blocks.

    One epoch leaves attention flat, and shifts of the queries that move no code of few images; here they are larger.
    """
    depth = {} if request.param is None else {"model.depth": request.param}
    run = api.train(output=tmp_path_factory.mktemp("runs") / "run", overrides=SHORT | FORM | depth, device="cpu")
    trained = load_frozen(run / "frozen.safetensors")
    large = {name: 100 * array for name, array in trained.arrays.items() if name.endswith("key_shift")}
    path = tmp_path_factory.mktemp("frozen") / "frozen.safetensors"
    save_frozen(replace(trained, arrays=trained.arrays | large), path)
    return path


@pytest.fixture(scope="module")
def exported(frozen: Path) -> Any:
    """A function from a target to a fresh copy of the model made for it."""

    def model(target: str) -> onnx.ModelProto:
        path = frozen.with_name(f"{target}.onnx")
        if not path.exists():
            write_checked(build(load_frozen(frozen), TARGETS[target]), path)
        return read_model(path)

    return model


@pytest.fixture
def place(frozen: Path, request: pytest.FixtureRequest) -> Any:
    """Draws a layer of a random block; the same in every run of this test."""
    depth = sizes(load_frozen(frozen)).depth
    random = np.random.default_rng([request.param, depth])

    def draw(layers: tuple[str, ...]) -> tuple[str, str]:
        block, layer = f"blocks.{random.integers(depth)}", layers[random.integers(len(layers))]
        return f"{block}.{layer}", f"{block}.{(BEHIND | SHIFTS).get(layer, layer)}"

    return draw


everywhere = pytest.mark.parametrize("place", SEEDS, indirect=True)


@pytest.fixture
def validate(frozen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a model and proves it on few images against the frozen file."""
    monkeypatch.setattr(validation, "FREE_RUN_BUDGET", 0.0)

    def prove(model: onnx.ModelProto, backend: str = "ort-cpu") -> dict[str, Any]:
        onnx.save(model, tmp_path / "changed.onnx")
        return api.validate(tmp_path / "changed.onnx", run=frozen, data="digits", backend=backend, images=IMAGES)

    return prove


def change(model: onnx.ModelProto, name: str, how: Any) -> None:
    """Replace an initializer by `how` of its array."""
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    array = np.array(onnx.numpy_helper.to_array(tensor))
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(how(array)).astype(array.dtype), name))


def codes_name(model: onnx.ModelProto, layer: str) -> str:
    names = {tensor.name for tensor in model.graph.initializer}
    return next(name for name in (f"{layer}.weight.codes", f"{layer}.weight") if name in names)


def producer(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if name in node.output)


def operators(result: dict[str, Any]) -> list[str]:
    """Those whose codes differ, or floats, when every operator is fed the right codes."""
    row = result["parity"][0]
    named = [entry["operator"] for entry in row["operators"] if entry["differing"] > entry["ties"]]
    return named + [entry["operator"] for entry in row["floats"] if entry["error"] > 1e-5]


@everywhere
def test_one_flipped_weight_code(exported: Any, place: Any, validate: Any) -> None:
    layer, _ = place(tuple(BEHIND))
    model = exported("portable")

    def flip(codes: Any) -> Any:
        wide = codes.astype(np.int8)
        flat = wide.reshape(-1)
        flat[flat.size // 3] = -8 if flat[flat.size // 3] != -8 else 7
        return wide

    change(model, codes_name(model, layer), flip)
    result = validate(model)

    assert f"{layer}.weight: stored codes differ from the frozen ones" in result["faults"]
    assert [fault for fault in result["faults"] if "stored codes" in fault] == result["faults"][:1]
    assert result["weights"]["codes_differing"] == 1


@everywhere
def test_one_doubled_scale(exported: Any, place: Any, validate: Any) -> None:
    layer, behind = place(tuple(BEHIND))
    model = exported("portable")
    change(model, f"{layer}.scale", lambda scale: 2 * scale)
    result = validate(model)

    assert result["constants"]["differing"] == [f"{layer}.scale"]
    assert operators(result) == [behind]
    # The values behind proj and fc2 are floats, which first_divergence does not name.
    assert result["parity"][0]["first_divergence"] == (None if behind.endswith(("middle", "output")) else behind)
    assert any(behind in fault for fault in result["faults"])


@everywhere
def test_a_transposed_weight(exported: Any, place: Any, validate: Any) -> None:
    layer, behind = place(SQUARE)
    model = exported("portable")
    change(model, codes_name(model, layer), np.transpose)
    result = validate(model)

    assert f"{layer}.weight: stored codes differ from the frozen ones" in result["faults"]
    assert operators(result) == [behind]


@everywhere
def test_a_dropped_shift(exported: Any, place: Any, validate: Any) -> None:
    """Shifts that freezing left as arrays of their own; the others are parts of biases and LayerNorms."""
    shift, behind = place(tuple(SHIFTS))
    model = exported("portable")
    change(model, shift, np.zeros_like)
    result = validate(model)

    assert result["constants"]["differing"] == [shift]
    assert f"{shift}: the stored constant is not the frozen file's" in result["faults"]
    assert operators(result) == [behind]


@everywhere
def test_a_wrong_axis(exported: Any, place: Any, validate: Any) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    layer, behind = place(SQUARE)
    model = exported("openvino")
    axis = next(a for a in producer(model, f"{layer}.weight.real").attribute if a.name == "axis")
    assert axis.i == 1
    axis.i = 0
    result = validate(model, "openvino")

    assert not result["passed"]
    assert operators(result) == [behind]


@everywhere
def test_a_removed_pair(exported: Any, place: Any, tmp_path: Path, frozen: Path) -> None:
    quantizer, _ = place(("attn.input", "mlp.fc1.input", "mlp.fc2.input"))
    model = exported("tensorrt")
    pair = producer(model, f"{quantizer}.codes.real")
    rounded = producer(model, pair.input[0])
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == pair.output[0]:
                node.input[index] = rounded.input[0]
    model.graph.node.remove(pair)
    model.graph.node.remove(rounded)
    path = tmp_path / "changed.onnx"
    onnx.save(model, path)
    readers = {node.name for node in model.graph.node if rounded.input[0] in node.input and node.op_type == "MatMul"}
    found = api.lint(path, target="tensorrt")

    assert {row["node"] for row in found if row["rule"] == "Q12"} >= readers
    with pytest.raises(OnnxFileError, match=rf"does not compute the codes of {quantizer}; export it again"):
        api.validate(path, run=frozen, data="digits")


@everywhere
def test_a_uint8_zero_point_for_tensorrt(exported: Any, place: Any, tmp_path: Path) -> None:
    quantizer, _ = place(("attn.input", "attn.q", "attn.softmax", "mlp.fc2.input"))
    model = exported("tensorrt")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0, dtype=np.uint8), "unsigned"))
    pair = producer(model, f"{quantizer}.codes.real")
    rounded = producer(model, pair.input[0])
    rounded.input[2] = pair.input[2] = "unsigned"
    onnx.save(model, tmp_path / "changed.onnx")
    found = [row for row in api.lint(tmp_path / "changed.onnx", target="tensorrt") if row["rule"] == "Q2"]

    assert [row["node"] for row in found] == [rounded.name]  # one finding for the pair


@pytest.mark.parametrize("field", ["mean", "resize", "interpolation"])
def test_wrong_preprocessing(exported: Any, validate: Any, field: str) -> None:
    model = exported("portable")
    entry = next(entry for entry in model.metadata_props if entry.key == "ofq_deploy.preprocessing")
    how = json.loads(entry.value)
    how[field] = {"mean": [0.5], "resize": 18, "interpolation": "bicubic"}[field]
    entry.value = json.dumps(how, sort_keys=True)
    result = validate(model)

    assert "preprocessing: the model's metadata says otherwise than the frozen file" in result["faults"]
