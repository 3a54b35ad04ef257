"""A changed model file is caught, and the proof names the operator that was changed and no other."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ofq_deploy import api
from ofq_deploy.commands import validate as validation
from ofq_deploy.errors import OnnxFileError
from ofq_deploy.model.file import OnnxFile, read_model
from ofq_deploy.model.frozen import load_frozen
from ofq_deploy.runtime_tests.proof.proof import prove_weights

IMAGES = 8
Change = Callable[[NDArray[Any]], NDArray[Any]]

# What a constant of each layer decides: the first value behind it that the proof compares.
OUTPUTS = {
    "patch_embed": "embedding",
    "blocks.0.attn.z": "blocks.0.attn.z",
    "blocks.1.attn.z": "blocks.1.attn.z",
    "blocks.0.attn.v": "blocks.0.attn.v",
    "blocks.1.attn.v": "blocks.1.attn.v",
    "blocks.0.attn.proj": "blocks.0.middle",
    "blocks.1.attn.proj": "blocks.1.middle",
    "blocks.0.mlp.fc1": "blocks.0.mlp.fc2.input",
    "blocks.1.mlp.fc1": "blocks.1.mlp.fc2.input",
    "blocks.0.mlp.fc2": "blocks.0.output",
    "blocks.1.mlp.fc2": "blocks.1.output",
    "head": "logits",
    "head_dist": "logits",
}
BLOCK_LAYERS = [name for name in OUTPUTS if name.startswith("blocks.")]


@pytest.fixture(params=["portable", "ort-cpu"])
def model(request: pytest.FixtureRequest, portable_model: Path, ort_model: Path) -> Path:
    return portable_model if request.param == "portable" else ort_model


@pytest.fixture
def judge(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[onnx.ModelProto], Any]:
    """Writes a model and validates it against the frozen file, with as few free runs as there are."""
    monkeypatch.setattr(validation, "FREE_RUN_BUDGET", 0.0)
    frozen = Path(shutil.copyfile(tiny_run / "frozen.safetensors", tmp_path / "frozen.safetensors"))

    def validate(proto: onnx.ModelProto) -> dict[str, Any]:
        onnx.save(proto, tmp_path / "changed.onnx")
        return api.validate(tmp_path / "changed.onnx", run=frozen, data="digits", images=IMAGES)

    return validate


def _change(path: Path, name: str, change: Change) -> onnx.ModelProto:
    """The model with one constant changed; it must really differ."""
    proto = read_model(path)
    tensor = _constant(proto, name)
    before = onnx.numpy_helper.to_array(tensor)
    after = np.asarray(change(before.copy()), dtype=before.dtype)
    assert after.shape == before.shape
    assert not np.array_equal(before, after), name
    tensor.CopyFrom(onnx.numpy_helper.from_array(after, name))
    return proto


def _constant(proto: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in proto.graph.initializer if tensor.name == name)


def _at_first(operation: Change) -> Change:
    """Change the first element only."""

    def change(values: NDArray[Any]) -> NDArray[Any]:
        flat = values.reshape(-1)
        flat[:1] = operation(flat[:1])
        return flat.reshape(values.shape)

    return change


def _faulty_operators(result: dict[str, Any]) -> set[str]:
    """The operators that teacher forcing names; free runs may name later ones."""
    prefix = "ort-cpu: "
    lines = [fault for fault in result["faults"] if fault.startswith(prefix)]
    return {line.removeprefix(prefix).split(": ")[0] for line in lines}


def _faulty_weights(result: dict[str, Any]) -> set[str]:
    suffix = ".weight: stored codes differ from the frozen ones"
    return {fault.removesuffix(suffix) for fault in result["faults"] if fault.endswith(suffix)}


def _assert_names(result: dict[str, Any], operator: str, weights: str | None = None) -> None:
    assert not result["passed"]
    assert _faulty_weights(result) == ({weights} if weights else set())
    assert _faulty_operators(result) == {operator}, result["faults"]


def test_the_unchanged_model_is_proven(model: Path, judge: Callable[[onnx.ModelProto], Any]) -> None:
    result = judge(read_model(model))

    assert result["faults"] == []
    assert result["passed"]
    assert result["codes_differing"] == result["ties"]


@pytest.mark.parametrize("layer", ["blocks.0.attn.z", "blocks.1.attn.v", "blocks.0.attn.proj", "blocks.1.mlp.fc1"])
def test_one_flipped_weight_code(model: Path, layer: str, judge: Callable[[onnx.ModelProto], Any]) -> None:
    proto = read_model(model)
    tensor = _constant(proto, f"{layer}.weight.codes")
    assert tensor.data_type == onnx.TensorProto.INT4
    raw = bytearray(tensor.raw_data)
    raw[len(raw) // 2] ^= 0x80  # the sign of the upper one of two codes
    tensor.raw_data = bytes(raw)
    result = judge(proto)

    assert result["weights"]["codes_differing"] == 1
    _assert_names(result, OUTPUTS[layer], layer)


@pytest.mark.parametrize("layer", ["patch_embed", "head", "head_dist"])
def test_one_flipped_bit_of_an_8_bit_weight(model: Path, layer: str, judge: Callable[[onnx.ModelProto], Any]) -> None:
    def flip(values: NDArray[Any]) -> NDArray[Any]:
        return values ^ np.int8(1)

    result = judge(_change(model, f"{layer}.weight", _at_first(flip)))

    assert result["weights"]["codes_differing"] == 1
    assert _faulty_weights(result) == {layer}
    assert not result["passed"]


@pytest.mark.parametrize("layer", ["blocks.0.attn.v", "blocks.1.attn.proj"])
def test_a_transposed_square_weight(model: Path, layer: str, judge: Callable[[onnx.ModelProto], Any]) -> None:
    _assert_names(judge(_change(model, f"{layer}.weight.codes", np.transpose)), OUTPUTS[layer], layer)


def test_a_weight_of_another_shape_is_refused(
    model: Path, judge: Callable[[onnx.ModelProto], Any], tmp_path: Path
) -> None:
    proto = read_model(model)
    tensor = _constant(proto, "blocks.0.attn.z.weight.codes")
    tensor.dims[:] = reversed(tensor.dims)

    with pytest.raises(OnnxFileError, match="does not load in ONNX Runtime"):
        judge(proto)
    proof = prove_weights(OnnxFile(tmp_path / "changed.onnx"), load_frozen(tmp_path / "frozen.safetensors"))
    assert proof.layers == ("blocks.0.attn.z",)


def test_a_bias_that_is_no_number(model: Path, judge: Callable[[onnx.ModelProto], Any]) -> None:
    result = judge(_change(model, "blocks.0.mlp.fc2.bias", _at_first(lambda bias: np.full_like(bias, np.nan))))

    _assert_names(result, "blocks.0.output")


@pytest.mark.parametrize("layer", list(OUTPUTS))
def test_one_doubled_scale(model: Path, layer: str, judge: Callable[[onnx.ModelProto], Any]) -> None:
    _assert_names(judge(_change(model, f"{layer}.scale", lambda scale: 2 * scale)), OUTPUTS[layer])


@pytest.mark.parametrize(
    ("name", "operator"),
    [
        ("blocks.0.attn.scores.scale", "blocks.0.attn.softmax"),
        ("blocks.0.attn.scores.query_step", "blocks.0.attn.softmax"),
        ("blocks.0.attn.context.scale", "blocks.0.attn.proj.input"),
        ("blocks.1.attn.context.row_sum", "blocks.1.attn.proj.input"),
        ("blocks.1.attn.context.step", "blocks.1.attn.proj.input"),
        ("blocks.0.norm1.weight", "blocks.0.attn.input"),
        ("blocks.1.norm2.weight", "blocks.1.mlp.fc1.input"),
        ("blocks.0.mlp.fc1.row_step", "blocks.0.mlp.fc2.input"),
        ("blocks.1.mlp.fc2.row_step", "blocks.1.output"),
        ("patch_embed.position", "embedding"),
        ("tokens.row", "embedding"),
    ],
)
def test_one_doubled_constant(model: Path, name: str, operator: str, judge: Callable[[onnx.ModelProto], Any]) -> None:
    _assert_names(judge(_change(model, name, lambda values: 2 * values)), operator)


@pytest.mark.parametrize("layer", [*BLOCK_LAYERS, "head", "head_dist"])
def test_one_changed_bias(model: Path, layer: str, judge: Callable[[onnx.ModelProto], Any]) -> None:
    """One element, by 1: a whole code where the step is folded into the layer."""
    _assert_names(judge(_change(model, f"{layer}.bias", _at_first(lambda bias: bias + 1))), OUTPUTS[layer])


@pytest.mark.parametrize(
    "quantizer",
    [
        "patch_embed.input",
        "blocks.0.attn.input",
        "blocks.1.attn.input",
        "blocks.0.attn.softmax",
        "blocks.0.mlp.fc1.input",
        "blocks.1.mlp.fc2.input",
        "head.input",
        "head_dist.input",
    ],
)
def test_a_step_changed_by_one_percent(model: Path, quantizer: str, judge: Callable[[onnx.ModelProto], Any]) -> None:
    changed = _change(model, f"{quantizer}.codes.step", lambda step: step * np.float32(1.01))

    _assert_names(judge(changed), quantizer)


@pytest.mark.parametrize(
    "quantizer",
    ["patch_embed.input", "blocks.0.mlp.fc2.input", "blocks.1.mlp.fc2.input", "head.input", "head_dist.input"],
)
def test_a_zeroed_shift(model: Path, quantizer: str, judge: Callable[[onnx.ModelProto], Any]) -> None:
    _assert_names(judge(_change(model, f"{quantizer}.before", np.zeros_like)), quantizer)


@pytest.mark.parametrize("block", ["blocks.0", "blocks.1"])
@pytest.mark.parametrize("part", ["key_shift", "key_bias"])
def test_a_changed_term_per_key(block: str, part: str, model: Path, judge: Callable[[onnx.ModelProto], Any]) -> None:
    changed = _change(model, f"{block}.attn.scores.{part}", _at_first(lambda values: values + 100))

    _assert_names(judge(changed), f"{block}.attn.softmax")


@pytest.mark.parametrize(
    ("quantizer", "lower"),
    [
        ("blocks.0.attn.input", 8),
        ("blocks.1.attn.input", 8),
        ("blocks.0.mlp.fc1.input", 8),
        ("blocks.0.mlp.fc2.input", 8),
        ("blocks.0.attn.softmax", 15),  # attention is flat after one epoch
    ],
)
def test_a_changed_clip_limit(model: Path, quantizer: str, lower: int, judge: Callable[[onnx.ModelProto], Any]) -> None:
    """Lowered far enough that codes of this data reach it; the shared constant stays as it is for the others."""
    proto = read_model(model)
    node = next(node for node in proto.graph.node if node.output[0] == f"{quantizer}.codes")
    assert node.op_type == "Min"
    limit = onnx.numpy_helper.to_array(_constant(proto, node.input[1]))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(limit - np.uint8(lower)), "other_limit"))
    node.input[1] = "other_limit"

    _assert_names(judge(proto), quantizer)


@pytest.mark.parametrize("key", ["labels", "preprocessing"])
def test_metadata_that_the_frozen_file_does_not_have(
    model: Path, key: str, judge: Callable[[onnx.ModelProto], Any]
) -> None:
    """`predict` believes both: other labels or another mean are another model."""
    proto = read_model(model)
    entry = next(entry for entry in proto.metadata_props if entry.key == f"ofq_deploy.{key}")
    value = json.loads(entry.value)
    entry.value = json.dumps(value[::-1] if key == "labels" else value | {"mean": [0.9]})
    result = judge(proto)

    assert not result["passed"]
    assert any(key in fault for fault in result["faults"])


@given(data=st.data())
def test_any_flipped_code_of_any_layer_is_found(
    data: st.DataObject, tiny_run: Path, portable_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    frozen, proto = load_frozen(tiny_run / "frozen.safetensors"), read_model(portable_model)
    layer = data.draw(st.sampled_from(BLOCK_LAYERS))
    tensor = _constant(proto, f"{layer}.weight.codes")
    raw = bytearray(tensor.raw_data)
    flips = data.draw(st.dictionaries(st.integers(0, len(raw) - 1), st.integers(1, 255), min_size=1, max_size=5))
    for index, mask in flips.items():
        raw[index] ^= mask
    tensor.raw_data = bytes(raw)
    path = tmp_path_factory.getbasetemp() / "flipped.onnx"
    onnx.save(proto, path)
    proof = prove_weights(OnnxFile(path), frozen)

    assert proof.differing == sum(bool(mask & 15) + bool(mask >> 4) for mask in flips.values())
    assert proof.layers == (layer,)
    assert not proof.passed


@given(data=st.data())
def test_a_model_cut_anywhere_is_refused_in_one_line(
    data: st.DataObject, ort_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = ort_model.read_bytes()
    near_the_end = st.integers(len(content) - 2000, len(content) - 1)  # among the metadata
    size = data.draw(st.integers(0, len(content) - 1) | near_the_end)
    path = tmp_path_factory.getbasetemp() / "cut.onnx"
    path.write_bytes(content[:size])
    with pytest.raises(OnnxFileError) as error:
        _ = OnnxFile(path).described

    assert str(error.value).startswith(f"{path} ")
    assert "\n" not in str(error.value)
