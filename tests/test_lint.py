"""Exported models are clean; every rule finds the one fault that a small model was given."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ofq_deploy.errors import OnnxFileError, UnsupportedByTarget
from ofq_deploy.export.network import build
from ofq_deploy.export.write import write_checked
from ofq_deploy.model.file import OnnxFile, read_model
from ofq_deploy.recipe import Quantization
from ofq_deploy.runtime_tests.lint.findings import Finding
from ofq_deploy.runtime_tests.lint.rules import lint
from ofq_deploy.targets import TARGETS
from tests.support.graphs import CONTRIB, DEQUANTIZED, OUT, PRODUCT, QUANTIZE, TOKENS, WIDTH, codes, floats, node, write
from tests.support.models import frozen_model

WIDTHS = [(2, 2), (3, 3), (4, 4), (8, 8), (2, 4), (8, 4), (4, 8)]
OTHER_FORMS: list[dict[str, Any]] = [{"weights": "lsq", "weight_bits": 8}, {"shifts": False}, {"key_bias": False}]


def found(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.rule, finding.node) for finding in findings]


@pytest.mark.parametrize("attention", ["qkr", "qk"])
@pytest.mark.parametrize("act_step", ["token", "tensor"])
@pytest.mark.parametrize(
    "changes",
    [*({"weight_bits": w, "act_bits": a} for w, a in WIDTHS), *OTHER_FORMS],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_exported_models_are_clean(tmp_path: Path, changes: dict[str, Any], act_step: Any, attention: Any) -> None:
    frozen = frozen_model(Quantization(**{"attention": attention, "act_step": act_step, **changes}))
    for name in ("portable", "ort-cpu"):
        write_checked(build(frozen, TARGETS[name]), tmp_path / "model.onnx")

        assert lint(OnnxFile(tmp_path / "model.onnx"), name) == []


@pytest.mark.parametrize("attention", ["qkr", "qk"])
@pytest.mark.parametrize(
    "changes",
    [
        *({"weight_bits": w, "act_bits": a} for w, a in WIDTHS if w < 8),
        {"weight_bits": 8, "act_bits": 8, "weights": "lsq"},
        {"shifts": False},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_models_for_openvino_are_clean(tmp_path: Path, changes: dict[str, Any], attention: Any) -> None:
    frozen = frozen_model(Quantization(**{"attention": attention, "act_step": "tensor", **changes}))
    write_checked(build(frozen, TARGETS["openvino"]), tmp_path / "model.onnx")

    assert lint(OnnxFile(tmp_path / "model.onnx"), "openvino") == []


def test_trained_models_are_clean(portable_model: Path, ort_model: Path) -> None:
    assert lint(OnnxFile(portable_model), "portable") == []
    assert lint(OnnxFile(ort_model), "ort-cpu") == []


def test_contrib_operators_are_found_in_what_should_be_portable(ort_model: Path) -> None:
    findings = lint(OnnxFile(ort_model), "portable")

    assert {"custom-operator"} == {finding.rule for finding in findings}
    assert {"MatMulIntegerToFloat"} == {finding.operator for finding in findings}


def test_a_portable_model_without_its_overridable_input_loses_every_fusion(
    portable_model: Path, tmp_path: Path
) -> None:
    model = read_model(portable_model)
    products = sum(made.op_type == "MatMulInteger" and "row_sum" not in made.output[0] for made in model.graph.node)
    del model.graph.input[1]
    onnx.save(model, tmp_path / "model.onnx")
    findings = lint(OnnxFile(tmp_path / "model.onnx"), "portable")

    assert {"unfused-product"} == {finding.rule for finding in findings}
    assert products == len({finding.node for finding in findings})
    assert all("list one as a graph input too" in finding.cure for finding in findings)


RESCALE = [node("Cast", "sums", "real", to=TensorProto.FLOAT), node("Mul", "one scale", "factor")]
SUMS = node("MatMulInteger", "codes weight zero", "sums")
SCALED = node("Mul", "real factor", "scaled")
SECOND = [
    node("MatMulInteger", "codes other zero", "sums2"),
    node("Cast", "sums2", "real2", to=TensorProto.FLOAT),
    node("Mul", "one scale2", "factor2"),
    node("Mul", "real2 factor2", "scaled2"),
    node("Concat", "scaled scaled2", "both", axis=-1),
]
OTHER = {"other": codes(WIDTH, OUT)}
EQUAL = {"scale": np.float32(0.3), "scale2": np.float32(0.3), **OTHER}


@pytest.mark.parametrize(
    ("nodes", "overridable", "constants", "faults"),
    [
        ([SUMS, *RESCALE, SCALED], "one", {}, []),
        ([SUMS, *RESCALE, SCALED], "", {}, [("sums", "list one as a graph input too")]),
        ([SUMS, RESCALE[0], node("Mul", "real scale", "scaled")], "", {}, [("sums", "by an initializer of 1.0")]),
        ([SUMS, *RESCALE, SCALED, *SECOND], "one", {"scale2": floats(OUT), **OTHER}, []),
        ([SUMS, *RESCALE, SCALED, *SECOND], "one", EQUAL, [("sums", "is shared"), ("sums2", "is shared")]),
        ([SUMS, *RESCALE, SCALED, node("Add", "scaled real", "y")], "one", {}, [("sums", "nothing but its Mul")]),
        ([SUMS, node("Cast", "sums", "real", to=TensorProto.FLOAT)], "", {}, [("sums", "rescale it by Mul(Cast")]),
    ],
    ids=["fused", "one is constant", "no one", "two scales", "equal scalars", "read twice", "no scale"],
)
def test_a_lost_fusion_says_what_broke_it(
    tmp_path: Path, nodes: Any, overridable: str, constants: Any, faults: list[tuple[str, str]]
) -> None:
    path = write(tmp_path / "model.onnx", [QUANTIZE, *nodes], overridable=overridable, **constants)
    findings = sorted(lint(OnnxFile(path), "portable"), key=lambda finding: finding.node)

    assert found(findings) == [("unfused-product", name) for name, _ in faults]
    for finding, (_, cure) in zip(findings, faults, strict=True):
        assert cure in finding.cure


FOUR_BITS = helper.make_tensor("packed", TensorProto.INT4, (WIDTH, OUT), codes(WIDTH, OUT).ravel().tolist())
DECODE = [
    QUANTIZE,
    node("Cast", "packed", "wide", to=TensorProto.INT8),
    node("Mul", "wide two", "even"),
    node("Add", "even one_int8", "weight"),
    PRODUCT,
]
DECODER = {"packed": FOUR_BITS, "two": np.int8(2), "one_int8": np.int8(1)}
NORM = {"gamma": floats(OUT), "beta": floats(OUT), "gamma2": floats(OUT), "beta2": floats(OUT), "residual": floats(OUT)}
SKIP = [
    QUANTIZE,
    PRODUCT,
    node("MatMulIntegerToFloat", "codes other one scale zero", "product2", CONTRIB),
    node("Add", "product product2", "sum"),
    node("LayerNormalization", "sum gamma beta", "norm"),
]
BATCHED = {"keys": codes(1, 2, WIDTH, OUT), "row": floats(TOKENS, 1), "column": floats(1, 2, 1, OUT)}
HEADS = ("x", TensorProto.FLOAT, ["batch", 2, TOKENS, WIDTH])
PICTURE = ("x", TensorProto.FLOAT, ["batch", 3, TOKENS, TOKENS])


def of(kind: str, inputs: str, **attributes: Any) -> list[onnx.NodeProto]:
    return [node(kind, inputs, "y", "" if kind in STANDARD else CONTRIB, **attributes)]


STANDARD = {"MatMul", "Gelu", "QuantizeLinear"}
BROKEN: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], list[tuple[str, str]]]] = {
    "float MatMul": (of("MatMul", "x real"), {"real": floats(WIDTH, OUT)}, [("float-product", "y")]),
    "4-bit weights, float activations": (
        [node("DequantizeLinear", "packed steps", "right", axis=0, block_size=16), *of("MatMul", "x right")],
        {
            "image": ("x", TensorProto.FLOAT, ["batch", 16]),
            "packed": helper.make_tensor("packed", TensorProto.INT4, (16, OUT), [1] * 16 * OUT),
            "steps": floats(1, OUT),
        },
        [("float-product", "y")],
    ),
    "flat bias, fixed batch": (
        [*DEQUANTIZED, node("Add", "product bias", "y")],
        {"image": ("x", TensorProto.FLOAT, [TOKENS, WIDTH])},
        [("dequantize", "left"), ("dequantize", "right"), ("float-product", "product")],
    ),
    "flat bias, rounded": (
        [*DEQUANTIZED, node("Add", "product bias", "sum"), node("QuantizeLinear", "sum step zero", "y")],
        {"image": ("x", TensorProto.FLOAT, [TOKENS, WIDTH])},
        [("int32-bias", "product")],
    ),
    "dequantized codes": (
        [QUANTIZE, node("DequantizeLinear", "codes step zero", "y")],
        {},
        [("dequantize", "y")],
    ),
    "packed weight is an input": (DECODE, {"overridable": "packed", **DECODER}, [("runtime-decoding", "product")]),
    "int8 left": (
        [node("QuantizeLinear", "x step zero_int8", "codes"), *of("MatMulIntegerToFloat", "codes weight one scale")],
        {},
        [("int8-left", "y")],
    ),
    "uint8 right": (
        [QUANTIZE, *of("MatMulIntegerToFloat", "codes weight one scale zero")],
        {"weight": codes(WIDTH, OUT, dtype=np.uint8)},
        [("uint8-right", "y")],
    ),
    "row scales and bias": (
        [QUANTIZE, *of("MatMulIntegerToFloat", "codes weight row scale zero - bias")],
        BATCHED,
        [("scaled-bias", "y")],
    ),
    "batched, scalar left": (
        [QUANTIZE, *of("MatMulIntegerToFloat", "codes keys third column zero")],
        {"image": HEADS, **BATCHED},
        [("batch-dependent", "y")],
    ),
    "batched, rows left": (
        [QUANTIZE, *of("MatMulIntegerToFloat", "codes keys row column zero")],
        {"image": HEADS, **BATCHED},
        [("batch-dependent", "y")],
    ),
    "flat bias, Gelu": (
        [QUANTIZE, PRODUCT, node("Add", "product bias", "sum"), *of("Gelu", "sum")],
        {},
        [("slow-operator", "y")],
    ),
    "sum in front of a norm": (
        [*SKIP, node("LayerNormalization", "norm gamma2 beta2", "norm2")],
        {**NORM, **OTHER},
        [("slow-operator", "norm")],
    ),
    "steps of the last axis": (
        of("QuantizeLinear", "x steps zeros", axis=-1),
        {"steps": floats(WIDTH), "zeros": codes(WIDTH, dtype=np.uint8)},
        [("last-axis-steps", "y")],
    ),
    "Gelu by tanh": (of("Gelu", "x", approximate="tanh"), {}, [("inexact-operator", "y")]),
    "QuickGelu": (of("QuickGelu", "x"), {}, [("inexact-operator", "y")]),
    "FastGelu": (of("FastGelu", "x"), {}, [("inexact-operator", "y")]),
    "softmax of codes": (
        [QUANTIZE, *of("QLinearSoftmax", "codes step zero step zero", axis=-1, opset=13)],
        {},
        [("inexact-operator", "y")],
    ),
    "dynamic steps": (of("DynamicQuantizeMatMul", "x weight scale"), {}, [("inexact-operator", "y")]),
    "dynamic steps, apart": (
        [helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "y_step", "y_zero"], name="y")],
        {},
        [("inexact-operator", "y")],
    ),
    "integer convolution": (
        [QUANTIZE, node("ConvInteger", "codes kernel zero", "y")],
        {"image": PICTURE, "kernel": codes(4, 3, 2, 2, dtype=np.uint8)},
        [("slow-operator", "y")],
    ),
    "convolution with an int32 bias": (
        [QUANTIZE, node("QLinearConv", "codes step zero kernel scale zeros step zero sums", "y")],
        {"image": PICTURE, "kernel": codes(OUT, 3, 2, 2), "sums": np.arange(OUT, dtype=np.int32)},
        [("int32-bias", "y")],
    ),
}
CLEAN: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "product": ([QUANTIZE, PRODUCT], {}),
    "decoded at load": (DECODE, DECODER),
    "three-dimensional bias": ([*DEQUANTIZED, node("Add", "product wide_bias", "y")], {}),
    "three-dimensional bias, Gelu": (
        [QUANTIZE, PRODUCT, node("Add", "product wide_bias", "sum"), *of("Gelu", "sum")],
        {},
    ),
    "row scales": ([QUANTIZE, *of("MatMulIntegerToFloat", "codes weight row scale zero")], BATCHED),
    "batched": ([QUANTIZE, *of("MatMulIntegerToFloat", "codes keys one column zero")], {"image": HEADS, **BATCHED}),
    "sum in front of the last norm": (SKIP, {**NORM, **OTHER}),
    "steps of the tokens": (
        of("QuantizeLinear", "x steps zeros", axis=1),
        {"steps": floats(TOKENS), "zeros": codes(TOKENS, dtype=np.uint8)},
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_rule_finds_its_fault(tmp_path: Path, name: str) -> None:
    nodes, constants, faults = BROKEN[name]
    findings = lint(OnnxFile(write(tmp_path / "model.onnx", nodes, **constants)), "ort-cpu")

    assert faults == sorted(found(findings))
    assert all(finding.cause and finding.cure for finding in findings)


@pytest.mark.parametrize("name", CLEAN)
def test_the_cures_work(tmp_path: Path, name: str) -> None:
    nodes, constants = CLEAN[name]

    assert lint(OnnxFile(write(tmp_path / "model.onnx", nodes, **constants)), "ort-cpu") == []


def test_nodes_without_names_are_called_by_their_outputs(tmp_path: Path) -> None:
    nodes, constants, _ = BROKEN["flat bias, Gelu"]
    unnamed = [onnx.NodeProto.FromString(made.SerializeToString()) for made in nodes]
    for made in unnamed:
        made.name = ""

    findings = lint(OnnxFile(write(tmp_path / "model.onnx", unnamed, **constants)), "ort-cpu")

    assert found(findings) == [("slow-operator", "y")]


def test_subgraphs_are_read(tmp_path: Path) -> None:
    weight = onnx.numpy_helper.from_array(floats(WIDTH, OUT), "real")
    output = [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)]
    branch = helper.make_graph([node("MatMul", "x real", "inner")], "branch", [], output, [weight])
    flag = [node("ReduceSum", "x", "sum", keepdims=0), node("Cast", "sum", "flag", to=TensorProto.BOOL)]
    nodes = [*flag, node("If", "flag", "y", then_branch=branch, else_branch=branch)]

    assert {("float-product", "inner")} == set(found(lint(OnnxFile(write(tmp_path / "model.onnx", nodes)), "ort-cpu")))


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no protobuf")
    with pytest.raises(OnnxFileError, match="no ONNX file"):
        lint(OnnxFile(path), "ort-cpu")
    with pytest.raises(OnnxFileError, match="no model"):
        lint(OnnxFile(tmp_path / "missing.onnx"), "portable")
    unloadable = write(tmp_path / "model.onnx", [node("MatMul", "x absent", "y")])
    with pytest.raises(OnnxFileError, match="does not load"):
        lint(OnnxFile(unloadable), "ort-cpu")
    with pytest.raises(UnsupportedByTarget, match="no rules for target 'abacus'; there are for portable, ort-cpu"):
        lint(OnnxFile(path), "abacus")
