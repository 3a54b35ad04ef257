"""Quantized models from elsewhere beside their float reference: faults are found where they are, bad input is refused."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from msgspec import convert
from numpy.typing import NDArray
from onnx import numpy_helper

from ofq_deploy import api
from ofq_deploy.cli import texts
from ofq_deploy.commands.foreign import TOLERANCE
from ofq_deploy.data.datasets import folder_preprocessing, load_dataset
from ofq_deploy.data.images import read_preprocessing
from ofq_deploy.errors import DataError, OfqError, OnnxFileError
from ofq_deploy.model.file import parse_model, read_model
from ofq_deploy.pages.report import render
from ofq_deploy.progress import Reporter
from ofq_deploy.results.foreign import ForeignResult
from ofq_deploy.runtime_tests.proof.tensors import compare_tensors, half_quantized
from tests.support.schemas import check

Proto = onnx.ModelProto
QUIET = Reporter(quiet=True)
FORMATS = ("qdq", "operator", "dynamic")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_settings: dict[str, Any]) -> Path:
    """float.onnx, and what ONNX Runtime's quantizers make of it; none says where it comes from."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )

    folder = tmp_path_factory.mktemp("foreign")
    run = api.train(output=folder / "runs" / "r", overrides={**tiny_settings, "teacher.epochs": 6}, device="cpu")
    ours = api.export(run, target="fp32", output=folder / "ours.onnx")
    proto = read_model(ours)
    del proto.metadata_props[:]
    onnx.save(proto, folder / "float.onnx")
    images = load_dataset("digits", 16).validation.spread(32)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds = iter([{"image": image[None]} for image in images])

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(self.feeds, None)

    weights: dict[str, Any] = {"weight_type": QuantType.QInt8, "per_channel": True}
    for name, source, form in (
        ("qdq", "float", QuantFormat.QDQ),
        ("operator", "float", QuantFormat.QOperator),
        ("ours-qdq", "ours", QuantFormat.QDQ),
        ("ours-operator", "ours", QuantFormat.QOperator),
    ):
        options = {"quant_format": form, "activation_type": QuantType.QUInt8, **weights}
        quantize_static(folder / f"{source}.onnx", folder / f"{name}.onnx", Reader(), **options)
    quantize_dynamic(folder / "float.onnx", folder / "dynamic.onnx", **weights)
    quantize_dynamic(folder / "ours.onnx", folder / "ours-dynamic.onnx", **weights)
    return folder


def images(count: int = 4) -> NDArray[np.float32]:
    return load_dataset("digits", 16).test.spread(count)


def errors(model: Proto, folder: Path) -> dict[str, float]:
    return {row.name: row.error for row in compare_tensors(model, parse_model(folder / "float.onnx"), images(), QUIET)}


def beyond(model: Proto, folder: Path, tolerance: float = TOLERANCE) -> list[str]:
    found = compare_tensors(model, parse_model(folder / "float.onnx"), images(), QUIET)
    return [row.name for row in found if row.exceeds(tolerance)]


def constants(model: Proto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def change(tensor: onnx.TensorProto, value: NDArray[Any]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))


def products(model: Proto, square: bool = False) -> list[onnx.NodeProto]:
    """MatMuls with a constant, dequantized weight."""
    stored, made = constants(model), {name: node for node in model.graph.node for name in node.output}
    found = []
    for node in model.graph.node:
        weight = made.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is not None and weight.input[0] in stored:
            shape = stored[weight.input[0]].dims
            found += [node] if not square or shape[0] == shape[1] else []
    return found


def weight_of(node: onnx.NodeProto, model: Proto) -> onnx.NodeProto:
    return next(other for other in model.graph.node if node.input[1] in other.output)


@pytest.mark.parametrize("form", FORMATS)
def test_healthy_models_stay_far_below_the_tolerance(form: str, folder: Path) -> None:
    model = parse_model(folder / f"{form}.onnx")
    found = errors(model, folder)

    assert beyond(model, folder) == []
    made = {name for node in parse_model(folder / "float.onnx").graph.node for name in node.output}
    assert set(found) <= made
    assert len(found) > 0.6 * len(made)
    assert 0 < max(found.values()) < TOLERANCE / 2


def test_the_float_model_is_its_own_reference(folder: Path) -> None:
    assert set(errors(parse_model(folder / "float.onnx"), folder).values()) == {0.0}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_doubled_weight_scale_is_found_where_it_is(seed: int, folder: Path) -> None:
    model = parse_model(folder / "qdq.onnx")
    node = np.random.default_rng(seed).choice(np.array(products(model), dtype=object))
    scale = constants(model)[weight_of(node, model).input[1]]
    change(scale, 2 * numpy_helper.to_array(scale))

    assert beyond(model, folder) == [node.output[0]]
    assert errors(model, folder)[node.output[0]] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_doubled_scale_of_one_channel_is_found_where_it_is(seed: int, folder: Path) -> None:
    model, generator = parse_model(folder / "qdq.onnx"), np.random.default_rng(seed)
    node = generator.choice(np.array(products(model), dtype=object))
    scale = constants(model)[weight_of(node, model).input[1]]
    steps = numpy_helper.to_array(scale).copy()
    steps[np.argmax(steps)] *= 2
    change(scale, steps)

    assert beyond(model, folder) == [node.output[0]]


@pytest.mark.parametrize(("layer", "made"), [("Conv", "patches"), ("Gemm", "logits")])
def test_a_doubled_scale_of_one_channel_is_found_in_other_layouts(layer: str, made: str, tmp_path: Path) -> None:
    """The faintest of 64 planes of a convolution, whose channels come second; one of 500 classes, in 16 values of each."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        feeds = iter([{"x": images(16)}])

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(self.feeds, None)

    onnx.save(network(), tmp_path / "float.onnx")
    options = {"quant_format": QuantFormat.QDQ, "activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(tmp_path / "float.onnx", tmp_path / "qdq.onnx", Reader(), per_channel=True, **options)
    model, reference = (parse_model(tmp_path / f"{name}.onnx") for name in ("qdq", "float"))
    healthy = compare_tensors(model, reference, images(16), QUIET)
    node = next(node for node in model.graph.node if node.op_type == layer)
    scale = constants(model)[weight_of(node, model).input[1]]
    steps = numpy_helper.to_array(scale).copy()
    steps[np.argmin(steps)] *= 2
    change(scale, steps)
    found = compare_tensors(model, reference, images(16), QUIET)

    assert not any(row.exceeds(TOLERANCE / 2) for row in healthy)
    assert [row.name for row in found if row.exceeds(TOLERANCE)] == [made]
    assert next(row.error for row in found if row.name == made) < TOLERANCE  # in which it is lost


def network() -> Proto:
    """Digits to 500 classes, by a convolution of 64 planes and a product."""
    from onnx import TensorProto, helper

    random, float32 = np.random.default_rng(0), TensorProto.FLOAT
    arrays = {"planes": (64, 1, 4, 4), "classes": (1024, 500), "bias": (500,)}
    values = {name: random.normal(size=shape).astype(np.float32) for name, shape in arrays.items()}
    values["planes"] *= np.geomspace(0.2, 1, 64, dtype=np.float32)[:, None, None, None]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "planes"], ["patches"], strides=[4, 4], name="patches"),
            helper.make_node("Flatten", ["patches"], ["row"], name="row"),
            helper.make_node("Gemm", ["row", "classes", "bias"], ["logits"], name="logits"),
        ],
        "network",
        [helper.make_tensor_value_info("x", float32, ["n", 1, 16, 16])],
        [helper.make_tensor_value_info("logits", float32, ["n", 500])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_transposed_square_weight_is_found_where_it_is(seed: int, folder: Path) -> None:
    model = parse_model(folder / "qdq.onnx")
    square = products(model, square=True)
    node = square[seed % len(square)]
    weight = constants(model)[weight_of(node, model).input[0]]
    change(weight, numpy_helper.to_array(weight).T)

    assert beyond(model, folder) == [node.output[0]]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_removed_pair_is_found_where_it_was(seed: int, folder: Path) -> None:
    """It makes no error: the product is computed in float instead."""
    model = parse_model(folder / "qdq.onnx")
    assert half_quantized(model) == []
    node = np.random.default_rng(seed).choice(np.array(products(model), dtype=object))
    source = node.input[0].removesuffix("_DequantizeLinear_Output")
    node.input[0] = source

    assert [(entry.node, entry.tensor) for entry in half_quantized(model)] == [(node.name, source)]
    assert beyond(model, folder) == []


def test_a_wrong_scale_of_codes_is_found_in_the_operator_format(folder: Path) -> None:
    model = parse_model(folder / "operator.onnx")
    node = [node for node in model.graph.node if node.op_type == "QLinearMatMul" and node.input[4] in constants(model)][
        -1
    ]
    scale = constants(model)[node.input[4]]
    change(scale, 2 * numpy_helper.to_array(scale))

    assert beyond(model, folder) == [node.output[0].removesuffix("_quantized")]


def test_outputs_are_compared_under_any_name(folder: Path) -> None:
    model = parse_model(folder / "qdq.onnx")
    for node in model.graph.node:
        node.output[:] = ["scores" if name == "logits" else name for name in node.output]
    model.graph.output[0].name = "scores"

    assert errors(model, folder).keys() == errors(parse_model(folder / "qdq.onnx"), folder).keys()


def test_values_that_are_no_numbers_are_beyond_every_tolerance(folder: Path) -> None:
    model = parse_model(folder / "qdq.onnx")
    node = products(model)[0]
    scale = constants(model)[weight_of(node, model).input[1]]
    change(scale, np.full_like(numpy_helper.to_array(scale), np.nan))

    assert beyond(model, folder, 1e6) == [node.output[0]]


def validate(model: Path, **options: Any) -> dict[str, Any]:
    return api.validate(model, **{"reference": model.parent / "float.onnx", "data": "digits", "images": 4, **options})


def test_a_healthy_model_passes_with_all_its_evidence(folder: Path) -> None:
    result = validate(folder / "qdq.onnx", max_drop=5)

    assert result["passed"]
    assert result["faults"] == []
    assert json.loads(json.dumps(result, allow_nan=False)) == json.loads(json.dumps(result))
    assert result["first_beyond_tolerance"] is None
    assert result["worst_tensor"] == max(result["tensors"], key=lambda row: max(row["error"], row["gain_error"]))
    assert result["accuracy"]["images"] == result["test_images"] == 360
    low, high = result["accuracy"]["top1_interval"]
    assert low < result["top1_runtime"] < high
    assert result["top1_runtime"] > 30
    assert result["drop_points"] == pytest.approx(result["top1_float"] - result["top1_runtime"])
    assert {"agreement", "mcnemar_p"} <= set(result["against_float"])
    assert [row["label"] for row in result["by_class"]] == list("0123456789")
    assert {"top1", "top1_reference", "images"} <= set(result["by_class"][0])
    assert result["executed"]["integer"] > 0
    assert result["lint"]["findings"] == len(api.lint(folder / "qdq.onnx", target="ort-cpu"))
    assert result["preprocessing_from"] == "default for digits"
    assert result["preprocessing"]["mean"] == [0.3]
    assert texts.validation_text(convert(result, ForeignResult)).endswith(
        "\nPassed: " + result["verdict"].removeprefix("Passed: ")
    )
    assert result["first_batch_sha256"][:16] in texts.validation_text(convert(result, ForeignResult))


def test_a_damaged_model_fails_and_names_the_tensor(folder: Path, tmp_path: Path) -> None:
    model = parse_model(folder / "qdq.onnx")
    node = products(model)[1]
    scale = constants(model)[weight_of(node, model).input[1]]
    change(scale, 2 * numpy_helper.to_array(scale))
    onnx.save(model, tmp_path / "damaged.onnx")
    done = run(tmp_path / "damaged.onnx", "--reference", folder / "float.onnx", "--data", "digits", "--images", 2)

    assert done.returncode == 3, done.stderr
    assert f"FAULT {node.output[0]} is the first tensor off by more than 0.25: " in done.stdout
    assert done.stdout.splitlines()[-1].startswith(f"Failed: {node.output[0]} is the first tensor off")
    assert validate(tmp_path / "damaged.onnx", reference=folder / "float.onnx", tolerance=2)["passed"]


def test_a_lost_point_more_than_allowed_fails(folder: Path) -> None:
    """The quantized model as the reference: the float one, or it, has lost against the other."""
    gained = validate(folder / "qdq.onnx")["drop_points"]
    model, reference = ("qdq", "float") if gained > 0 else ("float", "qdq")
    result = validate(folder / f"{model}.onnx", reference=folder / f"{reference}.onnx", max_drop=0)
    check(result)
    assert result["tensors"][0]["name"] in render("title", [result])

    if gained:
        assert result["faults"] == [f"top-1 drops by {abs(gained):.2f} points, allowed are 0"]
    assert result["passed"] == (not gained)


def test_wrong_preprocessing_shows_in_the_hash_and_in_the_accuracy(folder: Path, tmp_path: Path) -> None:
    right = {"size": 16, "resize": 16, "interpolation": "bilinear", "mean": [0.3], "std": [0.35]}
    results = []
    for name, how in (("right", right), ("wrong", right | {"mean": [0.9], "resize": 24})):
        (tmp_path / f"{name}.json").write_text(json.dumps(how))
        results.append(validate(folder / "qdq.onnx", preprocessing=tmp_path / f"{name}.json"))
    same, wrong = results

    assert same["first_batch_sha256"] == validate(folder / "qdq.onnx")["first_batch_sha256"]
    assert wrong["first_batch_sha256"] != same["first_batch_sha256"]
    assert wrong["top1_runtime"] < same["top1_runtime"] - 20
    assert wrong["preprocessing_from"] == str(tmp_path / "wrong.json")
    assert wrong["preprocessing"]["resize"] == 24


@pytest.mark.parametrize("form", FORMATS)
def test_our_own_float_model_quantized_elsewhere_keeps_its_names(form: str, folder: Path) -> None:
    """Its file has short names, which quantizers append to, and metadata, which they lose."""
    result = validate(folder / f"ours-{form}.onnx", reference=folder / "ours.onnx")

    assert result["passed"]
    assert {"embedding", "blocks.1.middle", "blocks.1.mlp.fc1.out"} <= {row["name"] for row in result["tensors"]}
    assert result["preprocessing_from"] == "the model's metadata"


@pytest.mark.parametrize("form", FORMATS)
def test_our_own_float_model_quantized_elsewhere_is_measured(form: str, folder: Path) -> None:
    result = api.bench(folder / f"ours-{form}.onnx", baseline=folder / "ours.onnx", seconds=0.0)

    check(result)
    own, floats = result["arithmetic"], result["arithmetic"]["baseline"]
    assert own["macs"] == floats["macs"]
    assert own["bit_operations"] < floats["bit_operations"] / 2  # by the types in the file: it names no trained bits


def test_accuracy_is_measured_in_openvino(folder: Path) -> None:
    pytest.importorskip("openvino")
    result = validate(folder / "qdq.onnx", backend="openvino")

    assert result["passed"]
    assert (result["backend"], result["lint"]["target"]) == ("openvino", "openvino")
    assert "FullyConnected" in result["executed"]["operators"]
    assert abs(result["top1_runtime"] - validate(folder / "qdq.onnx")["top1_runtime"]) < 3


def test_a_fixed_batch_size_is_kept(folder: Path, tmp_path: Path) -> None:
    for name in ("qdq", "float"):
        model = parse_model(folder / f"{name}.onnx")
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 5
        onnx.save(model, tmp_path / f"{name}.onnx")
    fixed, free = validate(tmp_path / "qdq.onnx", images=3), validate(folder / "qdq.onnx", images=3)

    assert fixed["top1_runtime"] == free["top1_runtime"]
    assert len(fixed["tensors"]) == len(free["tensors"])


def test_a_class_file_names_the_rows_by_class(folder: Path, tmp_path: Path) -> None:
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    (tmp_path / "classes.txt").write_text("\n".join(names) + "\n")
    result = validate(folder / "qdq.onnx", classes=tmp_path / "classes.txt")

    assert [row["label"] for row in result["by_class"]] == names


# Refusals.


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ofq_deploy", "validate", *map(str, arguments), "--quiet"]
    return subprocess.run(command, env={**os.environ, "NO_COLOR": "1"}, capture_output=True, text=True)


def test_a_foreign_model_needs_its_reference(folder: Path) -> None:
    done = run(folder / "qdq.onnx", "--data", "digits")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"ofq-deploy: {folder / 'qdq.onnx'} was not written by ofq-deploy export (it does not say where it comes from); "
        "to compare it with the float model that it was quantized from, pass that with --reference\n"
    )


def refusal(expected: type[OfqError], model: Path, **options: Any) -> str:
    with pytest.raises(expected) as caught:
        validate(model, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_options_that_do_not_fit_are_refused(folder: Path, portable_model: Path, tmp_path: Path) -> None:
    model = folder / "qdq.onnx"

    assert (
        refusal(DataError, model, data=None) == "a model from elsewhere does not name its data; pass --data NAME|PATH"
    )
    assert refusal(DataError, model, tolerance=float("nan")) == "--tolerance is nan; expected a number from 0"
    assert refusal(DataError, model, max_drop=float("nan")) == "--max-drop is nan; expected a number from 0"
    assert refusal(DataError, model, run=folder).startswith("a model is compared with its --reference or proven by")
    assert refusal(DataError, model, golden=folder).startswith("golden data is compared with the run alone")
    for option in ({"tolerance": 0.1}, {"preprocessing": tmp_path / "a.json"}):
        said = refusal(DataError, portable_model, reference=None, **option)
        assert said == "--preprocessing and --tolerance are for models from elsewhere; pass --reference FP32.onnx too"
    assert refusal(OnnxFileError, model, reference=tmp_path / "no.onnx").startswith(f"no model {tmp_path / 'no.onnx'}")
    assert refusal(OnnxFileError, model, reference=model).startswith(f"{model} is the model itself; pass the float")
    stranger = classifier(tmp_path / "stranger.onnx", ["n", 1, 16, 16])
    said = refusal(OnnxFileError, model, reference=stranger)
    assert said == "the model and the reference name no tensor alike; pass the float model it was made from"


def classifier(path: Path, shape: list[Any], classes: int = 10, outputs: int = 1) -> Path:
    """The mean of the image, through a matrix."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Reshape", ["mean", "column"], ["flat"]),
        *(helper.make_node("MatMul", ["flat", "w"], [f"y{index}"]) for index in range(outputs)),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT, None) for index in range(outputs)],
        [
            numpy_helper.from_array(np.array([-1, 1]), "column"),
            numpy_helper.from_array(np.ones((1, classes), dtype=np.float32), "w"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shape": ["n", 16, 16, 3]}, "the model takes images [16, 16, 3]; expected [channels, side, side]"),
        ({"shape": ["n", 1, 16, 20]}, "the model takes images [1, 16, 20]; expected [channels, side, side]"),
        (
            {"shape": ["n", 256]},
            "the model takes x [0, 256]; expected one float input [batch, channels, height, width]",
        ),
        ({"shape": ["n", 1, 16, 16], "outputs": 2}, "the model gives 2 outputs; expected one output, logits"),
        ({"shape": ["n", 1, 16, 16], "classes": 1}, "the model gives an output [1, 1]; expected one output, logits"),
        (
            {"shape": ["n", 1, 16, 16], "classes": 7},
            "the reference takes images [1, 16, 16] and knows 10 classes, the model takes images [1, 16, 16] and knows 7",
        ),
    ],
)
def test_other_kinds_of_model_are_refused(options: dict[str, Any], said: str, folder: Path, tmp_path: Path) -> None:
    model = classifier(tmp_path / "other.onnx", **options)

    assert refusal(OnnxFileError, model, reference=folder / "float.onnx").startswith(said)


def test_preprocessing_of_another_size_is_refused(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_text(json.dumps({"size": 24, "resize": 24, "interpolation": "bicubic", "mean": [0.5], "std": [0.5]}))
    said = refusal(DataError, folder / "qdq.onnx", preprocessing=file)

    assert said.startswith(f"the preprocessing ({file}) makes images [1, 24, 24], the model takes images [1, 16, 16]")
    (tmp_path / "data").mkdir()
    said = refusal(DataError, folder / "qdq.onnx", data=str(tmp_path / "data"))
    assert said.startswith("the preprocessing (default: DeiT's, as the model does not say) makes images [3, 16, 16]")


def test_the_preprocessing_of_a_package_can_be_passed_on(tmp_path: Path) -> None:
    how = folder_preprocessing(224)
    (tmp_path / "preprocess.json").write_text(json.dumps(asdict(how)))

    assert read_preprocessing(tmp_path / "preprocess.json") == how


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no preprocessing "),
        ("{", "is no readable JSON ("),
        ("[1]", "describes list; expected size, resize, interpolation, mean, std"),
        ('{"size": 16}', "describes size; expected size, resize, interpolation, mean, std"),
        ({"size": 0}, "has the size 0; expected size (a whole number from 1)"),
        ({"resize": 8}, "has the resize 8; expected resize (a whole number from size)"),
        ({"interpolation": "nearest"}, "has the interpolation 'nearest'; expected interpolation (bilinear or bicubic)"),
        ({"mean": [float("inf")]}, "has the mean [inf]; expected mean (a list of 1 or 3 numbers)"),
        ({"mean": 0.5}, "has the mean 0.5; expected mean (a list of 1 or 3 numbers)"),
        ({"std": [0]}, "has the std [0]; expected std (as many numbers above 0)"),
        ({"std": [0.5, 0.5]}, "has the std [0.5, 0.5]; expected std (as many numbers above 0)"),
    ],
)
def test_a_preprocessing_file_that_is_none_is_refused(text: Any, said: str, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    sound = {"size": 16, "resize": 16, "interpolation": "bicubic", "mean": [0.5], "std": [0.5]}
    if text is not None:
        file.write_text(json.dumps(sound | text) if isinstance(text, dict) else text)

    assert said in refusal(DataError, folder / "qdq.onnx", preprocessing=file)
