"""The TensorRT target: proven in ONNX Runtime, and compiled by TensorRT-RTX, which needs no GPU for that."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from ofq_deploy import api
from ofq_deploy.errors import BackendMissing, OnnxFileError, UnsupportedByTarget
from ofq_deploy.export.network import build
from ofq_deploy.export.write import to_proto, write_checked
from ofq_deploy.model.file import OnnxFile, read_model
from ofq_deploy.model.frozen import Frozen
from ofq_deploy.progress import Reporter
from ofq_deploy.recipe import Quantization
from ofq_deploy.runtime_tests.lint.rules import lint
from ofq_deploy.runtime_tests.lint.tensorrt_check import Check, check
from ofq_deploy.runtime_tests.proof.proof import Proof, prove_constants, prove_free_run, prove_operators, prove_weights
from ofq_deploy.runtime_tests.runners import tensorrt_build
from ofq_deploy.targets import TARGETS
from tests.support.models import frozen_model, sizes
from tests.support.schemas import check as check_schema

compiles = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX, which builds engines without a GPU, is not installed"
)
WIDTHS = [(2, 2), (3, 3), (4, 4), (8, 8), (2, 4)]
FORMS: list[dict[str, Any]] = [
    *({"weight_bits": w, "act_bits": a} for w, a in WIDTHS),
    {"weight_bits": 7, "act_bits": 8},
    {"weight_bits": 8, "act_bits": 8, "weights": "lsq"},
    {"shifts": False},
    {"key_bias": False},
]
BLOCKS = 2
# Products of a block: v, scores, context, proj, fc1, fc2, and z or q and k. The compiler merges those of one input;
# the last block's q reads fewer tokens than its k and v.
PRODUCTS = {"qkr": 7 * BLOCKS, "qk": 8 * BLOCKS}
MERGED = {"qkr": 6 * BLOCKS, "qk": 6 * BLOCKS + 1}
EDGES = {"token": 3 + 2, "tensor": 1 + 1}  # one patch embedding per step of the image, and the heads


def export(frozen: Frozen, path: Path) -> Path:
    write_checked(build(frozen, TARGETS["tensorrt"]), path)
    return path


def prove(path: Path, frozen: Frozen) -> list[str]:
    a, report = sizes(frozen), Reporter(quiet=True)
    images = np.random.default_rng(0).standard_normal((40, a.channels, 16, 16), dtype=np.float32)
    operators = prove_operators(OnnxFile(path), frozen, images[:8], None, report)
    weights, free = prove_weights(OnnxFile(path), frozen), prove_free_run(OnnxFile(path), frozen, images, report)
    constants = prove_constants(OnnxFile(path), to_proto(build(frozen, TARGETS["tensorrt"])))
    return Proof(8, weights, constants, tuple(operators), free).faults()


@compiles
@pytest.mark.parametrize("attention", ["qkr", "qk"])
@pytest.mark.parametrize("act_step", ["token", "tensor"])
@pytest.mark.parametrize("changes", FORMS, ids=lambda changes: "-".join(map(str, changes.values())))
def test_every_quantized_product_is_int8_and_every_code_is_proven(
    tmp_path: Path, changes: dict[str, Any], act_step: Any, attention: Any
) -> None:
    frozen = frozen_model(Quantization(**{"attention": attention, "act_step": act_step, **changes}))
    path = export(frozen, tmp_path / "model.onnx")

    result = check(OnnxFile(path))

    assert (result.faults, result.warnings, result.in_float) == ((), (), ())
    assert result.expected == result.int8 == PRODUCTS[attention] + EDGES[act_step]
    assert result.int8_gemms == MERGED[attention] + EDGES[act_step]
    small = {f"blocks.{block}.attn.scores.{role}" for block in range(BLOCKS) for role in small_products(frozen)}
    assert set(result.small) == small
    assert (result.float_gemms, result.dequantizing_gemms) == (len(small), 0)
    assert lint(OnnxFile(path), "tensorrt") == []
    assert prove(path, frozen) == []


def small_products(frozen: Frozen) -> list[str]:
    roles = {"key_shift": "key_shift.row", "key_bias": "key_bias.product"}
    return [role for name, role in roles.items() if frozen.get(f"blocks.0.attn.scores.{name}") is not None]


@pytest.mark.parametrize("bits", [2, 8])
def test_the_proof_needs_no_tensorrt(tmp_path: Path, bits: int) -> None:
    frozen = frozen_model(Quantization(bits, bits))

    assert prove(export(frozen, tmp_path / "model.onnx"), frozen) == []


def test_operands_are_int8_pairs_without_offset(tmp_path: Path) -> None:
    model = read_model(export(frozen_model(Quantization(2, 8)), tmp_path / "model.onnx"))
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]

    assert model.opset_import[0].version == 20
    assert {(tensors[node.input[1]].item(), tensors[node.input[2]].dtype.name) for node in pairs} == {(1.0, "int8")}
    assert {tensors[node.input[2]].item() for node in pairs} == {0}
    assert set(np.unique(tensors["blocks.0.mlp.fc1.weight"])) == {-3, -1, 1, 3}


@pytest.mark.parametrize("grid", ["signed", "unsigned"])
@pytest.mark.parametrize("bits", [2, 4, 7, 8])
def test_quantizers_saturate_and_round_as_the_definition_does(tmp_path: Path, bits: int, grid: Any) -> None:
    import onnx_ir as ir

    from ofq_deploy.export.builder import Builder
    from ofq_deploy.export.targets import Steps
    from ofq_deploy.model.grids import code_range
    from ofq_deploy.runtime_tests.runners.ort import open_session, run_all

    random, target = np.random.default_rng(bits), TARGETS["tensorrt"].load_operators()
    step = random.uniform(0.01, 1, 50).astype(np.float32)
    low, high = code_range(grid, bits)
    halves = random.integers(2 * low - 4, 2 * high + 5, (50, 400)) / 2  # every second value is on a threshold
    x = (halves * step[:, None].astype(np.float64)).astype(np.float32)[None]
    b = Builder()
    image = ir.Value(name="x", shape=ir.Shape([1, 50, 400]), type=ir.TensorType(ir.DataType.FLOAT))
    made = target.quantize(b, image, "codes", Steps(step, 1, 3), (low, high), left=True)
    made.shape, made.type = image.shape, image.type
    write_checked(b.model(image, made, 20, [], {}), tmp_path / "model.onnx")

    for optimize in (True, False):
        codes = run_all(open_session(tmp_path / "model.onnx", optimize=optimize), {"x": x})[made.name or ""]
        wanted = np.clip(np.rint(x / step[:, None]), low, high)
        np.testing.assert_array_equal(codes - target.left_zero((low, high)), wanted)


# A trained run, by the functions and by the command line.


@pytest.fixture(scope="module")
def model(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return api.export(tiny_run, target="tensorrt", output=tmp_path_factory.mktemp("tensorrt") / "model.tensorrt.onnx")


def test_a_trained_model_is_proven(model: Path, tiny_run: Path) -> None:
    result = api.validate(model, run=tiny_run)

    assert result["passed"], result["faults"]
    assert result["target"] == "tensorrt"
    assert result["codes_compared"] > 350_000


def test_inspect_says_that_weights_are_stored_as_bytes(model: Path) -> None:
    result = api.inspect(model)
    layers = result["layers"]

    assert "packed codes" not in result["bytes_by_kind"]
    assert {layer["bits_stored"] for layer in layers} == {8.0}
    assert {layer["bits_trained"] for layer in layers} == {4, 8}


def test_a_higher_opset_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedByTarget, match="tensorrt reads opsets up to 20"):
        api.export(tiny_run, target="tensorrt", opset=21, output=tmp_path / "model.onnx")


@compiles
def test_check_on_the_command_line(model: Path, tmp_path: Path) -> None:
    done = run("check", str(model), "--target", "tensorrt", "--json", "-o", str(tmp_path / "check.json"))
    result = json.loads(done.stdout)

    assert done.returncode == 0, done.stderr
    assert (result["schema"], result["target"], result["package"]) == ("ofq-deploy/check/1", "tensorrt", "tensorrt_rtx")
    assert result["verdict"] == "all 17 quantized products are computed in int8"
    assert json.loads((tmp_path / "check.json").read_text()) == result
    check_schema(result)


@compiles
def test_check_names_the_node_and_exits_with_3(model: Path, tmp_path: Path) -> None:
    done = run("check", str(broken(model, tmp_path, scaled_between)))

    assert done.returncode == 3
    assert "FAULT MatMul blocks.0.mlp.fc1.total: Mul inserted between a DequantizeLinear and the product" in done.stdout
    assert done.stdout.endswith("FAILED: 1 of the products that the file quantizes are not computed in int8\n")


def test_check_of_a_run_without_a_file_for_tensorrt(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("*.onnx"))

    with pytest.raises(OnnxFileError, match=r"holds no model for it; make one with: ofq-deploy export .* --target"):
        api.check(tmp_path / "run")


def test_check_of_a_file_for_another_target(portable_model: Path) -> None:
    with pytest.raises(UnsupportedByTarget, match="exported for portable; export the run with --target tensorrt"):
        api.check(portable_model)


def test_check_for_another_target(model: Path) -> None:
    with pytest.raises(UnsupportedByTarget, match="no check for target 'openvino'; there is one for tensorrt"):
        api.check(model, target="openvino")


def test_without_tensorrt_the_message_says_what_to_install(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_build, "PACKAGES", ("no_such_package",))

    with pytest.raises(BackendMissing, match=r"pip install 'ofq-deploy\[tensorrt-rtx\]'"):
        check(OnnxFile(model))


@compiles
def test_full_tensorrt_without_a_gpu_is_told_apart(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    tensorrt_build.logger()
    monkeypatch.setattr(tensorrt_build, "load", lambda: SimpleNamespace(__name__="tensorrt", Builder=refuse))

    with pytest.raises(BackendMissing, match="tensorrt builds on a GPU only, and finds none"):
        check(OnnxFile(model))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ofq_deploy", *arguments], capture_output=True, text=True, timeout=300)


# One rule broken at a time, in the first block's fc1.


def broken(path: Path, folder: Path, change: Callable[[onnx.GraphProto], None]) -> Path:
    model = read_model(path)
    change(model.graph)
    onnx.save(model, folder / "broken.onnx")
    return folder / "broken.onnx"


def node(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    return next(node for node in graph.node if node.name == name)


def add_constant(graph: onnx.GraphProto, name: str, value: Any) -> str:
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def replace_zero(graph: onnx.GraphProto, value: Any) -> None:
    tensor = next(tensor for tensor in graph.initializer if tensor.name == "zero_int8_0")
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(value), tensor.name))


def scaled_between(graph: onnx.GraphProto) -> None:
    product = node(graph, "blocks.0.mlp.fc1.total")
    tokens = next(tensor.dims[1] for tensor in graph.initializer if tensor.name == "blocks.0.mlp.fc1.row_step")
    factor = add_constant(graph, "factor", np.linspace(0.5, 1, tokens, dtype=np.float32)[:, None])
    inserted = helper.make_node("Mul", [product.input[0], factor], ["inserted"], name="inserted")
    product.input[0] = "inserted"
    graph.node.insert(list(graph.node).index(product), inserted)


def scales_by_input(graph: onnx.GraphProto) -> None:
    weight = node(graph, "blocks.0.mlp.fc1.weight.real")
    width = next(tensor.dims[0] for tensor in graph.initializer if tensor.name == weight.input[0])
    weight.input[1] = add_constant(graph, "scales", np.linspace(0.5, 1, width, dtype=np.float32))
    weight.input[2] = add_constant(graph, "zeros", np.zeros(width, dtype=np.int8))
    weight.attribute.append(helper.make_attribute("axis", 0))


def left_not_quantized(graph: onnx.GraphProto) -> None:
    node(graph, "blocks.0.mlp.fc1.total").input[0] = "blocks.0.mlp.fc1.input.codes.clipped"


def nothing_quantized(graph: onnx.GraphProto) -> None:
    left_not_quantized(graph)
    codes = next(tensor for tensor in graph.initializer if tensor.name == "blocks.0.mlp.fc1.weight")
    floats = add_constant(graph, "floats", numpy_helper.to_array(codes).astype(np.float32))
    node(graph, "blocks.0.mlp.fc1.total").input[1] = floats


@compiles
@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (scaled_between, "Mul inserted between a DequantizeLinear and the product"),
        (scales_by_input, "both operands are quantized, in a form that has no int8 product"),
        (left_not_quantized, "only its right operand is quantized"),
        (nothing_quantized, "neither operand is quantized"),
    ],
)
def test_a_product_that_lost_int8_is_named(
    model: Path, tmp_path: Path, change: Callable[[onnx.GraphProto], None], cause: str
) -> None:
    whole, result = check(OnnxFile(model)), check(OnnxFile(broken(model, tmp_path, change)))

    assert [(fault.node, fault.cause[: len(cause)]) for fault in result.faults] == [("blocks.0.mlp.fc1.total", cause)]
    assert not result.passed
    assert result.int8_gemms == whole.int8_gemms - 1
    assert result.float_gemms + result.dequantizing_gemms == whole.float_gemms + 1


@compiles
def test_uint8_is_refused_which_tensorrt_only_warns_about(model: Path, tmp_path: Path) -> None:
    def change(graph: onnx.GraphProto) -> None:
        for name in ("blocks.0.mlp.fc1.input.codes", "blocks.0.mlp.fc1.input.codes.real"):
            node(graph, name).input[2] = "zero_uint8"
        add_constant(graph, "zero_uint8", np.uint8(0))

    with pytest.raises(
        UnsupportedByTarget, match=r"to uint8 at blocks\.0\.mlp\.fc1\.input\.codes .* silently replaces"
    ):
        check(OnnxFile(broken(model, tmp_path, change)))


@compiles
def test_an_offset_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        OnnxFileError, match=r"cannot be read by tensorrt_rtx: QuantizeLinear patch_embed\.input\.codes"
    ):
        check(OnnxFile(broken(model, tmp_path, lambda graph: replace_zero(graph, np.int8(3)))))


@compiles
def test_a_missing_driver_is_no_part_of_a_refusal(tmp_path: Path) -> None:
    """The parser puts it behind what is wrong with the file: an int32 bias, as other quantizers write it."""
    nodes = [
        helper.make_node("DequantizeLinear", ["bias", "one"], ["b"], name="bias_pair"),
        helper.make_node("Add", ["x", "b"], ["y"], name="sum"),
    ]
    constants = [
        numpy_helper.from_array(np.array([1, 2], np.int32), "bias"),
        numpy_helper.from_array(np.array(1, np.float32), "one"),
    ]
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy")
    graph = helper.make_graph(nodes, "graph", [x], [y], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "m.onnx")

    with pytest.raises(OnnxFileError, match=r"DequantizeLinear bias_pair: [\s\S]* type Int32") as error:
        check(OnnxFile(tmp_path / "m.onnx"))
    assert "Cuda" not in str(error.value)


@compiles
def test_operators_that_the_parser_does_not_know_are_named(ort_model: Path) -> None:
    with pytest.raises(OnnxFileError, match=r"cannot be read by tensorrt_rtx: \w+ patch_embed"):
        tensorrt_build.build(OnnxFile(ort_model), profile=(1, 2, 4))


@compiles
def test_a_free_batch_needs_a_profile(model: Path) -> None:
    with pytest.raises(UnsupportedByTarget, match="leaves its batch size open; say which ones the engine is for"):
        tensorrt_build.build(OnnxFile(model))


@compiles
def test_a_float_model_quantizes_nothing(tiny_run: Path, tmp_path: Path) -> None:
    result = check(OnnxFile(api.export(tiny_run, target="fp32", output=tmp_path / "fp32.onnx")))

    assert (result.expected, result.int8_gemms, result.dequantizing_gemms) == (0, 0, 0)
    assert len(result.in_float) == result.float_gemms
    assert result.verdict == "the file quantizes no product"
    assert not result.passed


def names_shared(graph: onnx.GraphProto) -> None:
    """Of a product that stays int8 and one that does not."""
    left_not_quantized(graph)
    node(graph, "blocks.0.mlp.fc1.total").name = "blocks.0.mlp.fc2.total"


@compiles
def test_a_float_product_cannot_hide_behind_the_name_of_an_int8_one(model: Path, tmp_path: Path) -> None:
    result = check(OnnxFile(broken(model, tmp_path, names_shared)))

    assert not result.passed
    assert {fault.node for fault in result.faults} == {"blocks.0.mlp.fc2.total"}
    assert all("give every node its own" in fault.cause for fault in result.faults)


def repeated(graph: onnx.GraphProto) -> None:
    product = node(graph, "blocks.0.mlp.fc1.total")
    again = helper.make_node("MatMul", product.input, ["again"], name="again")
    graph.node.insert(list(graph.node).index(product), again)


@compiles
def test_a_product_that_the_compiler_left_out_is_told_from_a_float_one(model: Path, tmp_path: Path) -> None:
    result = check(OnnxFile(broken(model, tmp_path, repeated)))

    assert [fault.cause[:20] for fault in result.faults] == ["no layer computes it"]
    assert result.float_gemms == check(OnnxFile(model)).float_gemms


@compiles
def test_a_refusal_is_one_line(model: Path, tmp_path: Path) -> None:
    def change(graph: onnx.GraphProto) -> None:
        bias = add_constant(graph, "bias", np.zeros(4, dtype=np.int32))
        graph.node.insert(0, helper.make_node("DequantizeLinear", [bias, "one"], ["bias_real"], name="bias"))

    with pytest.raises(OnnxFileError, match="cannot be read by tensorrt_rtx: DequantizeLinear bias: ") as caught:
        check(OnnxFile(broken(model, tmp_path, change)))

    assert "\n" not in str(caught.value)


@compiles
def test_a_builder_that_lists_no_layers_is_told_apart(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_build, "parse_layers", lambda record: ())

    with pytest.raises(UnsupportedByTarget, match=r"tensorrt_rtx 1.* does not list the layers that it builds"):
        check(OnnxFile(model))


def test_layers_are_read_from_the_record() -> None:
    record = """Layers:
Name: mm_myl0_2, LayerType: gemm, Inputs: [ { Name: a, Dimensions: [-1,64], Datatype: Int8, Format: (Linear) Row }], \
Constants: [ { Name: w, Dimensions: [64,32], Datatype: Int8, Format: x }, { Name: c, Datatype: Float }], \
Outputs: [ { Name: y, Dimensions: [-1,32], Datatype: Float }], TacticName: stub, StreamId: 0, \
Metadata: [ONNX Layer: blocks.0.q.total]\x1f[ONNX Layer: x[1]]
Name: shape, LayerType: shape_call, Inputs: [], Outputs: [], TacticName: , StreamId: 0, Metadata: 

I/O Tensors:
 Name: x, IOMode: Input, DataType: Float"""
    product, shape = tensorrt_build.parse_layers(record)

    assert (product.kind, product.inputs, product.constants) == ("gemm", ("Int8",), ("Int8", "Float"))
    assert (product.outputs, product.origin, product.tactic) == (("Float",), ("blocks.0.q.total", "x[1]"), "stub")
    assert (shape.kind, shape.inputs, shape.constants, shape.origin) == ("shape_call", (), (), ())


# Twelve blocks of DeiT-T's size.


@compiles
@pytest.mark.parametrize(("attention", "int8_gemms", "small"), [("qkr", 12 * 6 + 4, 24), ("qk", 12 * 6 + 1 + 4, 12)])
def test_a_whole_deit_tiny(tmp_path: Path, attention: Any, int8_gemms: int, small: int) -> None:
    result = check(OnnxFile(export(deit_tiny(attention), tmp_path / "model.onnx")))

    assert counts(result) == (int8_gemms, small, 0, small, 0)


def counts(result: Check) -> tuple[int, int, int, int, int]:
    floats = result.float_gemms, result.dequantizing_gemms
    return result.int8_gemms, *floats, len(result.small), len(result.in_float)


def deit_tiny(attention: Any) -> Frozen:
    """Random, calibrated, one step per token."""
    import timm
    import torch

    from ofq_deploy.data.datasets import folder_preprocessing
    from ofq_deploy.train.convert import calibrate, convert
    from ofq_deploy.train.freeze import freeze

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: Any = timm.create_model("deit_tiny_patch16_224").eval()
        student, _ = convert(network, Quantization(4, 4, attention=attention))
        calibrate(student, torch.randn(2, 3, 224, 224))
    return freeze(student, Quantization(4, 4, attention=attention), folder_preprocessing(224), ("class",) * 1000)
