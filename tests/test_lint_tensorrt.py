"""One change to a clean model, one finding; and the builder of TensorRT-RTX, where it is installed, agrees."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ofq_deploy.errors import OnnxFileError
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.runtime_tests.lint import tensorrt_rules
from ofq_deploy.runtime_tests.lint.findings import UNKNOWN, Finding, element_type
from ofq_deploy.runtime_tests.lint.rules import lint
from tests.support.graphs import CONTRIB, node

ROOT = Path(__file__).resolve().parent.parent
TOKENS, WIDTH, OUT = 197, 64, 32
FLOAT, HALF, INT8, UINT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8
INT4, FP8 = TensorProto.INT4, TensorProto.FLOAT8E4M3FN
random = np.random.default_rng(0)

# What the builder does: nothing special ("integer": int8 products only), lose them, refuse, split attention, fuse it.
Verdict = Literal["integer", "float", "refused", "apart", "fused"]


@dataclass(frozen=True)
class Case:
    """Nodes of a model (its output is that of the last), and the findings, as `kind rule node`."""

    nodes: list[onnx.NodeProto]
    findings: list[str]
    verdict: Verdict
    constants: dict[str, Any] = field(default_factory=dict)
    image: tuple[str, int, list[Any]] = ("x", FLOAT, [1, TOKENS, WIDTH])
    inputs: str = ""  # more of them, like the image
    output: int = FLOAT
    opset: int = 20
    metadata: dict[str, str] = field(default_factory=dict)


def floats(*shape: int) -> Any:
    return random.random(shape, dtype=np.float32) + np.float32(0.1)


def codes(*shape: int) -> Any:
    return random.integers(-7, 8, shape).astype(np.int8)


def packed(kind: int, array: Any, name: str = "weight") -> TensorProto:
    return helper.make_tensor(name, kind, array.shape, array.ravel().tolist())


def zeros(*shape: int, dtype: Any = np.int8) -> Any:
    return np.zeros(shape, dtype)


WEIGHT = codes(WIDTH, OUT)
CONSTANTS = {
    "step": np.float32(0.05),
    "zero": np.int8(0),
    "weight": WEIGHT,
    "scale": floats(OUT),
    "zeros": zeros(OUT),
    "bias": floats(OUT),
    "number": np.float32(0.125),
    "low": np.float32(-8),
    "high": np.float32(7),
}
QUANTIZE = node("QuantizeLinear", "x step zero", "codes")
REAL = node("DequantizeLinear", "codes step zero", "real")
WEIGHTS = node("DequantizeLinear", "weight scale zeros", "weights", axis=1)
PRODUCT = node("MatMul", "real weights", "y")
CLEAN = [QUANTIZE, REAL, WEIGHTS, PRODUCT]


def codes_by(inputs: str, **attributes: Any) -> list[onnx.NodeProto]:
    """The clean model with another QuantizeLinear and the DequantizeLinear that repeats it."""
    pair = inputs.split(maxsplit=1)[1]
    made = node("QuantizeLinear", inputs, "codes", **attributes)
    attributes.pop("output_dtype", None)
    return [made, node("DequantizeLinear", f"codes {pair}", "real", **attributes), WEIGHTS, PRODUCT]


def weights_by(inputs: str, **attributes: Any) -> list[onnx.NodeProto]:
    return [QUANTIZE, REAL, node("DequantizeLinear", inputs, "weights", **attributes), PRODUCT]


def between(kind: str, inputs: str, **attributes: Any) -> list[onnx.NodeProto]:
    """The clean model with a node between the activation's pair and the product."""
    made = node(kind, inputs, "between", **attributes)
    return [QUANTIZE, REAL, made, WEIGHTS, node("MatMul", "between weights", "y")]


def behind(kind: str, inputs: str, domain: str = "", **attributes: Any) -> list[onnx.NodeProto]:
    return [*CLEAN, node(kind, inputs, "last", domain, **attributes)]


def named(made: onnx.NodeProto, name: str) -> onnx.NodeProto:
    copy = onnx.NodeProto.FromString(made.SerializeToString())
    copy.name = name
    return copy


def attention(quantized: str = "qkpvo", behind_softmax: str = "", closing: str = "", **shape: Any) -> dict[str, Any]:
    """Attention with pairs at queries, keys, probabilities, values and output, as far as named.

    behind_softmax, closing: before the pair of that place: `clip`, `codes-clip` (behind one more pair), `number`, or
    `steps` (one per token), `channels`
    """
    heads, length, width, kind = 3, shape.get("length", TOKENS), shape.get("width", 64), shape.get("kind", FLOAT)
    dtype = np.float16 if kind == HALF else np.float32
    nodes: list[onnx.NodeProto] = []
    constants = {"low": dtype(0), "high": dtype(0.5), "number": dtype(0.125), "step": dtype(0.05)}
    constants |= {"p_step": dtype(1 / 127), "steps": floats(length, 1).astype(dtype)}
    constants["channels"] = floats(heads, 1, width).astype(dtype)

    def pair(place: str, value: str, step: str = "step") -> str:
        if place not in quantized:
            return value
        nodes.append(node("QuantizeLinear", f"{value} {step} zero", f"{place}.codes"))
        nodes.append(node("DequantizeLinear", f"{place}.codes {step} zero", f"{place}.real"))
        return f"{place}.real"

    def change(how: str, value: str, operator: str) -> str:
        if how == "codes-clip":
            step = "p_step" if value == "softmax" else "step"
            nodes.append(node("QuantizeLinear", f"{value} {step} zero", f"{value}.first"))
            nodes.append(node("DequantizeLinear", f"{value}.first {step} zero", f"{value}.again"))
            nodes.append(node("Clip", f"{value}.again low high", f"{value}.{how}"))
        elif how:
            inputs = f"{value} low high" if how == "clip" else f"{value} {how}"
            nodes.append(node("Clip" if how == "clip" else operator, inputs, f"{value}.{how}"))
        return f"{value}.{how}" if how else value

    queries, keys, values = pair("q", "x"), pair("k", "keys"), pair("v", "values")
    nodes.append(node("Transpose", keys, "keys.t", perm=[0, 1, 3, 2]))
    nodes.append(node("MatMul", f"{queries} keys.t", "scores"))
    nodes.append(node("Mul", "scores number", "scaled"))
    nodes.append(node("Softmax", "scaled", "softmax", axis=-1))
    weighing = pair("p", change(behind_softmax, "softmax", "Div"), "p_step")
    nodes.append(node("MatMul", f"{weighing} {values}", "context"))
    pair("o", change(closing, "context", "Mul"))
    image = ("x", kind, [1, heads, length, width])
    return {"nodes": nodes, "constants": constants, "image": image, "inputs": "keys values", "output": kind}


TYPED = {"step": np.float16(0.05), "scale": CONSTANTS["scale"].astype(np.float16)}
HALF_IMAGE = ("x", HALF, [1, TOKENS, WIDTH])
HALVES: dict[str, Any] = {"image": HALF_IMAGE, "output": HALF}
PICTURE = ("x", FLOAT, [1, 3, 32, 32])
PER_INPUT = {"scales": floats(WIDTH), "offsets": zeros(WIDTH)}
PER_TOKEN = {"scales": floats(TOKENS), "offsets": zeros(TOKENS)}
OWN = {"ofq_deploy.quantization": json.dumps({"act_bits": 4})}
BLOCK_CODES = node("QuantizeLinear", "x step zero", "blocks.0.codes")
BLOCK_PAIR = [node("DequantizeLinear", "blocks.0.codes step zero", "real"), WEIGHTS, PRODUCT]
ROUNDED = [
    node("Div", "x step", "divided"),
    node("Round", "divided", "rounded"),
    node("Clip", "rounded low high", "cut"),
]
CONVOLVE = node("Conv", "real weights", "y", strides=[4, 4])
KERNEL = {"weight": codes(16, 3, 4, 4), "scale": floats(16), "zeros": zeros(16)}

OTHER = [node("QuantizeLinear", "x number zero", "others"), node("DequantizeLinear", "others number zero", "other")]

CASES: dict[str, Case] = {
    "clean": Case(CLEAN, [], "integer"),
    "as we export": Case(
        [
            node("Div", "x steps", "divided"),
            node("Clip", "divided low high", "cut"),
            *codes_by("cut one zero"),
            node("Mul", "y steps", "stepped"),
            node("Add", "stepped bias", "out"),
            node("ReduceSum", "real last_axis", "row_sum"),
            node("Add", "out row_sum", "with_sum"),
            node("MatMul", "real shift", "blocks.0.attn.scores.key_shift.row"),
            node("Add", "with_sum blocks.0.attn.scores.key_shift.row", "last"),
        ],
        [],
        "integer",
        {"steps": floats(1, TOKENS, 1), "one": np.float32(1), "last_axis": np.array([-1]), "shift": floats(WIDTH, 1)},
    ),
    "zero point 3": Case(CLEAN, ["hard Q1 codes"], "refused", {"zero": np.int8(3)}),
    "weights with a zero point": Case(CLEAN, ["hard Q1 weights"], "refused", {"zeros": np.ones(OUT, np.int8)}),
    "uint8": Case(CLEAN, ["wrong Q2 codes"], "integer", {"zero": np.uint8(0)}),
    "uint8, asymmetric": Case(CLEAN, ["hard Q1 codes", "wrong Q2 codes"], "refused", {"zero": np.uint8(128)}),
    "uint8 by type": Case(codes_by("x step", output_dtype=UINT8), ["hard Q2 codes"], "refused", opset=21),
    "uint8 input": Case(
        [node("DequantizeLinear", "x step", "real"), WEIGHTS, PRODUCT],
        ["hard Q2 real"],
        "refused",
        image=("x", UINT8, [1, TOKENS, WIDTH]),
    ),
    "uint8 inside": Case(
        [node("Cast", "x", "bytes", to=UINT8), node("Cast", "bytes", "float", to=FLOAT), *codes_by("float step zero")],
        ["hard Q2 bytes"],
        "refused",
    ),
    "no zero point": Case(codes_by("x step"), ["wrong Q3 codes"], "integer"),
    "no zero point but a type": Case(codes_by("x step", output_dtype=INT8), [], "integer", opset=21),
    "uint8 weights": Case(
        CLEAN, ["hard Q4 weights"], "refused", {"weight": WEIGHT.astype(np.uint8), "zeros": zeros(OUT, dtype=np.uint8)}
    ),
    "int16 weights": Case(
        weights_by("weight scale", axis=1),
        ["hard Q4 weights"],
        "refused",
        {"weight": WEIGHT.astype(np.int16)},
        opset=21,
    ),
    "2-bit weights": Case(
        weights_by("weight scale", axis=1),
        ["hard Q4 weights"],
        "refused",
        {"weight": packed(TensorProto.INT2, WEIGHT % 2)},
        opset=25,
    ),
    "step 0": Case(CLEAN, ["hard Q5 codes"], "refused", {"step": np.float32(0)}),
    "negative scales": Case(CLEAN, ["hard Q5 weights"], "refused", {"scale": -CONSTANTS["scale"]}),
    "too few scales": Case(CLEAN, ["hard Q6 weights"], "refused", {"scale": floats(31), "zeros": zeros(31)}),
    "scales of input channels": Case(
        weights_by("weight scales offsets", axis=0), ["slow Q7 weights"], "float", PER_INPUT
    ),
    "transposed weights": Case(
        [
            *CLEAN[:2],
            node("DequantizeLinear", "weight scale zeros", "stored", axis=0),
            node("Transpose", "stored", "weights", perm=[1, 0]),
            PRODUCT,
        ],
        [],
        "integer",
        {"weight": WEIGHT.T.copy()},
    ),
    "transposed weights, scales of input channels": Case(
        [
            *CLEAN[:2],
            node("DequantizeLinear", "weight scales offsets", "stored", axis=-1),
            node("Transpose", "stored", "weights"),
            PRODUCT,
        ],
        ["slow Q7 stored"],
        "float",
        {"weight": WEIGHT.T.copy(), **PER_INPUT},
    ),
    "Gemm": Case(
        [
            node("Flatten", "x", "flat", axis=2),
            *codes_by("flat step zero")[:2],
            node("DequantizeLinear", "weight scale zeros", "weights", axis=0),
            node("Gemm", "real weights bias", "y", transB=1),
        ],
        [],
        "integer",
        {"weight": WEIGHT.T.copy()},
    ),
    "Gemm, scales of input channels": Case(
        [
            node("Flatten", "x", "flat", axis=2),
            *codes_by("flat step zero")[:2],
            node("DequantizeLinear", "weight scales offsets", "weights", axis=1),
            node("Gemm", "real weights bias", "y", transB=1),
        ],
        ["slow Q7 weights"],
        "float",
        {"weight": WEIGHT.T.copy(), **PER_INPUT},
    ),
    "Conv": Case([*weights_by("weight scale zeros", axis=0)[:3], CONVOLVE], [], "integer", KERNEL, image=PICTURE),
    "Conv, scales of input channels": Case(
        [*weights_by("weight scale zeros", axis=1)[:3], CONVOLVE],
        ["slow Q7 weights"],
        "float",
        KERNEL | {"scale": floats(3), "zeros": zeros(3)},
        image=PICTURE,
    ),
    "steps of input channels": Case(codes_by("x scales offsets", axis=2), ["slow Q8 real"], "float", PER_INPUT),
    "steps of tokens": Case(codes_by("x scales offsets", axis=1), ["hint Q9 real"], "integer", PER_TOKEN),
    "step of the image": Case(
        [node("ReduceMax", "x", "largest", keepdims=0), *codes_by("x largest zero")], ["slow Q10 codes"], "float"
    ),
    "Mul by token": Case(
        between("Mul", "real factors"), ["slow Q11 between"], "float", {"factors": floats(1, TOKENS, 1)}
    ),
    "Add of a shift": Case(between("Add", "real shift"), ["slow Q11 between"], "float", {"shift": floats(WIDTH)}),
    "Clip behind the pair": Case(between("Clip", "real low high"), ["slow Q11 between"], "float"),
    "Relu behind the pair": Case(between("Relu", "real"), ["slow Q11 between"], "float"),
    "shifted weights": Case(
        [*CLEAN[:3], node("Add", "weights number", "shifted"), node("MatMul", "real shifted", "y")],
        ["slow Q11 shifted"],
        "float",
    ),
    "Mul by a number": Case(between("Mul", "real number"), [], "integer"),
    "Div by a number": Case(between("Div", "real number"), [], "integer"),
    "float weights": Case(
        [*CLEAN[:2], node("MatMul", "real matrix", "y")], ["slow Q12 y"], "float", {"matrix": floats(WIDTH, OUT)}
    ),
    "float activations": Case([WEIGHTS, node("MatMul", "x weights", "y")], ["slow Q12 y"], "float"),
    "half of a Concat": Case(between("Concat", "real x", axis=1), ["slow Q12 y"], "float"),
    "float product": Case(
        [node("MatMul", "x matrix", "y")], ["slow float-product y"], "float", {"matrix": floats(WIDTH, OUT)}
    ),
    "rounding by hand": Case(
        [*ROUNDED, node("Mul", "cut step", "real"), WEIGHTS, PRODUCT], ["slow Q13 rounded"], "float"
    ),
    "pair before the bias": Case(
        [
            *CLEAN,
            node("QuantizeLinear", "y step zero", "again"),
            node("DequantizeLinear", "again step zero", "y2"),
            node("Add", "y2 bias", "last"),
        ],
        ["hint Q14 again"],
        "integer",
    ),
    "4 bits without Clip": Case([BLOCK_CODES, *BLOCK_PAIR], ["wrong Q15 blocks.0.codes"], "integer", metadata=OWN),
    "4 bits": Case(
        [node("Clip", "x low high", "cut"), node("QuantizeLinear", "cut step zero", "blocks.0.codes"), *BLOCK_PAIR],
        [],
        "integer",
        metadata=OWN,
    ),
    "weights that are not dequantized": Case(
        [QUANTIZE, node("MatMul", "codes weight", "sums"), node("Cast", "sums", "y", to=FLOAT)],
        ["hard Q16 sums"],
        "refused",
    ),
    "weights that are transposed first": Case(
        [*CLEAN[:2], node("Transpose", "stored", "weight", perm=[1, 0]), WEIGHTS, PRODUCT],
        ["hard Q16 weight"],
        "refused",
        {"stored": WEIGHT.T.copy()},
    ),
    "weights that are decoded": Case(
        [*CLEAN[:2], node("Cast", "stored", "weight", to=INT8), WEIGHTS, PRODUCT],
        ["hard Q16 weight"],
        "refused",
        {"stored": packed(INT4, WEIGHT, "stored")},
        opset=21,
    ),
    "int8 limit in Clip": Case(
        [QUANTIZE, node("Clip", "codes lowest", "cut"), node("DequantizeLinear", "cut step zero", "real"), *CLEAN[2:]],
        [],
        "integer",
        {"lowest": np.int8(-8)},
    ),
    "zero point behind Identity": Case([node("Identity", "zero", "same"), *codes_by("x step same")], [], "integer"),
    "int32 bias": Case(
        [*CLEAN, node("DequantizeLinear", "sums scale", "real_bias", axis=0), node("Add", "y real_bias", "last")],
        ["hard Q17 real_bias"],
        "refused",
        {"sums": np.arange(OUT, dtype=np.int32)},
    ),
    "MatMulInteger": Case(
        [QUANTIZE, node("MatMulInteger", "codes weight", "sums"), node("Cast", "sums", "y", to=FLOAT)],
        ["hard Q18 sums"],
        "refused",
    ),
    "dynamic quantization": Case(
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["made", "made_step", "made_zero"], name="made"),
            node("DequantizeLinear", "made made_step made_zero", "y"),
        ],
        ["hard Q18 made", "hard Q2 y", "slow Q10 y"],
        "refused",
    ),
    "bit operators": Case(
        [
            node("Cast", "x", "whole", to=TensorProto.INT32),
            node("BitwiseAnd", "whole mask", "low_bits"),
            node("Cast", "low_bits", "y", to=FLOAT),
        ],
        ["hard Q18 low_bits"],
        "refused",
        {"mask": np.int32(7)},
    ),
    "codes side by side": Case(between("Concat", "real real", axis=1), [], "integer"),
    "codes of two steps side by side": Case(
        [*OTHER, *between("Concat", "real other", axis=2)],
        ["slow Q11 between"],
        "float",
        {"weight": codes(2 * WIDTH, OUT)},
    ),
    "codes beside constants": Case(
        between("Concat", "real more", axis=1), ["slow Q12 y"], "float", {"more": floats(1, 3, WIDTH)}
    ),
    "largest codes": Case(
        [
            QUANTIZE,
            REAL,
            node("MaxPool", "real", "largest", kernel_shape=[2, 2]),
            weights_by("weight scale zeros", axis=0)[2],
            node("Conv", "largest weights", "y"),
        ],
        [],
        "integer",
        KERNEL,
        PICTURE,
    ),
    "codes without their signs": Case(between("Abs", "real"), [], "integer"),
    "contrib operator": Case(behind("BiasGelu", "y bias", CONTRIB), ["hard Q19 last"], "refused"),
    "contrib operator that is known": Case(behind("Gelu", "y", CONTRIB), [], "integer"),
    "4-bit weights": Case(
        weights_by("weight scale", axis=1), ["slow Q20 weights"], "integer", {"weight": packed(INT4, WEIGHT)}, opset=21
    ),
    "4-bit weights with one scale": Case(
        weights_by("weight step"), ["hard Q20 weights"], "refused", {"weight": packed(INT4, WEIGHT)}, opset=21
    ),
    "4-bit weights of a convolution": Case(
        [QUANTIZE, REAL, node("DequantizeLinear", "weight scale", "weights", axis=0), CONVOLVE],
        ["hard Q20 weights"],
        "refused",
        {"weight": packed(INT4, KERNEL["weight"]), "scale": KERNEL["scale"]},
        PICTURE,
        opset=21,
    ),
    "blocks of weights": Case(
        weights_by("weight scales", axis=0, block_size=16),
        ["hard Q20 weights"],
        "refused",
        {"scales": floats(4, OUT)},
        opset=21,
    ),
    "4-bit activations": Case(
        CLEAN, ["hint Q21 codes"], "integer", {"zero": packed(INT4, np.zeros((), int), "zero")}, opset=21
    ),
    "int8 by float8": Case(
        weights_by("weight scale", axis=1), ["hard Q22 y"], "refused", {"weight": packed(FP8, WEIGHT)}, opset=21
    ),
    "scales without an axis": Case(weights_by("weight scale zeros"), ["hint Q25 weights"], "integer"),
    "one zero point for all": Case(weights_by("weight scale zero", axis=1), ["hard Q26 weights"], "refused"),
    "mixed sum": Case(behind("Add", "y half"), ["hard T1 last"], "refused", {"half": np.float16(1)}),
    "mixed product": Case(CLEAN, ["hard T1 y"], "refused", {"scale": CONSTANTS["scale"].astype(np.float16)}),
    "mixed norm": Case(
        behind("LayerNormalization", "y half half2"),
        ["hard T1 last"],
        "refused",
        {"half": np.ones(OUT, np.float16), "half2": np.ones(OUT, np.float16)},
    ),
    "float32 steps for float16": Case(CLEAN, ["hint T2 codes"], "integer", image=HALF_IMAGE),
    "float16": Case(CLEAN, [], "integer", TYPED, **HALVES),
    "float16 sums": Case(
        CLEAN, ["wrong T4 y"], "integer", TYPED | {"weight": np.full((WIDTH, OUT), 15, np.int8)}, **HALVES
    ),
    "float16 sums, scaled in float32": Case(
        [
            QUANTIZE,
            node("DequantizeLinear", "codes real_step zero", "real"),
            WEIGHTS,
            PRODUCT,
            node("Cast", "y", "last", to=HALF),
        ],
        [],
        "integer",
        {"step": TYPED["step"], "real_step": np.float32(0.05), "weight": np.full((WIDTH, OUT), 15, np.int8)},
        **HALVES,
    ),
    "float16 sums of 2 bits": Case(
        [node("Clip", "x low high", "cut"), *codes_by("cut step zero")],
        [],
        "integer",
        TYPED | {"weight": np.full((WIDTH, OUT), 15, np.int8), "low": np.float16(-0.1), "high": np.float16(0.05)},
        **HALVES,
    ),
    "one name for a sum and a pair": Case(
        [
            named(node("Add", "x number", "sum"), "twice"),
            *codes_by("sum step zero")[:1],
            named(REAL, "twice"),
            *CLEAN[2:],
        ],
        ["hard N1 twice"],
        "refused",
    ),
    "one name for two sums": Case(
        [*behind("Add", "y bias"), named(node("Add", "last bias", "end"), "last")], ["hint N1 last"], "integer"
    ),
    "layout behind the pair": Case(
        between("Unsqueeze", "real axes"), ["hint O2 between"], "integer", {"axes": np.array([1])}, opset=21
    ),
    "layout behind the pair, older": Case(between("Unsqueeze", "real axes"), [], "integer", {"axes": np.array([1])}),
    "attention": Case(**attention(), findings=[], verdict="fused"),
    "attention in float16": Case(**attention(kind=HALF), findings=[], verdict="fused"),
    "attention, constant factor": Case(**attention(closing="number"), findings=[], verdict="fused"),
    "attention as we export": Case(
        **attention(behind_softmax="steps", closing="channels"), findings=[], verdict="apart"
    ),
    "float attention": Case(
        **attention(""),
        findings=["slow A1 softmax", "slow float-product context", "slow float-product scores"],
        verdict="apart",
    ),
    "float16 attention": Case(
        **attention("", kind=HALF),
        findings=["slow float-product context", "slow float-product scores"],
        verdict="fused",
    ),
    "Attention": Case(
        [node("Attention", "x keys values", "y")],
        ["hard A1 y", "slow float-product y"],
        "refused",
        image=("x", FLOAT, [1, 3, TOKENS, 64]),
        inputs="keys values",
        opset=23,
    ),
    "attention without output codes": Case(**attention("qkpv"), findings=["slow A2 context"], verdict="apart"),
    "wide heads": Case(**attention(width=80), findings=["slow A3 softmax"], verdict="apart"),
    "513 tokens": Case(**attention(length=513), findings=["slow A3 softmax"], verdict="apart"),
    "Clip of the output": Case(**attention(closing="clip"), findings=["slow A4 context.clip"], verdict="apart"),
    "Clip of the output between pairs": Case(**attention(closing="codes-clip"), findings=[], verdict="fused"),
    "Clip of probabilities between pairs in float16": Case(
        **attention(behind_softmax="codes-clip", kind=HALF), findings=["hard A5 softmax.codes-clip"], verdict="refused"
    ),
    "Clip of probabilities": Case(**attention(behind_softmax="clip"), findings=[], verdict="fused"),
    "Clip of probabilities, narrow heads": Case(
        **attention(behind_softmax="clip", width=32), findings=["slow A5 softmax.clip"], verdict="apart"
    ),
    "Clip of probabilities in float16": Case(
        **attention(behind_softmax="clip", kind=HALF), findings=["hard A5 softmax.clip"], verdict="refused"
    ),
    "steps of probabilities": Case(
        **attention(behind_softmax="steps", closing="steps"), findings=["slow A7 softmax.steps"], verdict="apart"
    ),
}


def write(case: Case, path: Path) -> Path:
    made = {name for made in case.nodes for name in made.output}
    read = {name for made in case.nodes for name in made.input} - made
    constants = {name: value for name, value in {**CONSTANTS, **case.constants}.items() if name in read}
    tensors = [
        value if isinstance(value, TensorProto) else onnx.numpy_helper.from_array(np.asarray(value), name)
        for name, value in constants.items()
    ]
    _, kind, shape = case.image
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name in ["x", *case.inputs.split()]]
    outputs = [helper.make_tensor_value_info(case.nodes[-1].output[0], case.output, None)]
    graph = helper.make_graph(case.nodes, "model", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", case.opset), helper.make_opsetid(CONTRIB, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    helper.set_model_props(model, case.metadata)
    onnx.save(model, path)
    return path


def described(findings: list[Finding]) -> list[str]:
    return sorted(f"{finding.kind} {finding.rule} {finding.node}" for finding in findings)


@pytest.mark.parametrize("name", CASES)
def test_each_rule_finds_its_fault_and_no_other(tmp_path: Path, name: str) -> None:
    findings = lint(OnnxFile(write(CASES[name], tmp_path / "model.onnx")), "tensorrt")

    assert described(findings) == sorted(CASES[name].findings)
    assert all(finding.cause and finding.cure for finding in findings)


def judged(folder: Path) -> dict[str, Any]:
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx, to compare with what it builds")
    subprocess.run(
        [sys.executable, ROOT / "tests" / "support" / "rtx_judge.py", folder], check=True, capture_output=True
    )
    return dict(json.loads((folder / "verdicts.json").read_text()))


def test_the_builder_agrees(tmp_path: Path) -> None:
    for index, case in enumerate(CASES.values()):
        write(case, tmp_path / f"{index}.onnx")
    result = judged(tmp_path)
    disagreeing = {}
    for index, (name, case) in enumerate(CASES.items()):
        built = result["verdicts"][str(index)]
        verdict = "refused" if built["refused"] else "integer" if built["integer"] else "float"
        if case.verdict in ("apart", "fused") and verdict != "refused":
            verdict = "fused" if built["attention"] else "apart"
        if verdict != case.verdict:
            disagreeing[name] = verdict, built["complaints"]

    assert disagreeing == {}
    uint8 = result["verdicts"][str(list(CASES).index("uint8"))]
    assert any("Defaulting to INT8" in line for line in uint8["complaints"])
    assert result["verdicts"][str(list(CASES).index("no zero point"))]["complaints"] == []
    exotic = re.compile("Sequence|String|Optional|ImageDecoder|RegexFullMatch|TfIdf")
    refused = {name for name in result["unsupported"] if not exotic.search(name)}
    assert refused == tensorrt_rules.INTEGER_OPERATORS | tensorrt_rules.OTHER_OPERATORS


def test_the_rules_name_element_types_as_onnx_does() -> None:
    named = tensorrt_rules.STORABLE | tensorrt_rules.QUANTIZED | tensorrt_rules.FLOATS.keys()

    assert named <= set(TensorProto.DataType.keys())
    assert element_type(TensorProto.FLOAT8E4M3FN) == "FLOAT8E4M3FN"
    assert element_type(1000) == element_type(TensorProto.UNDEFINED) == UNKNOWN


def test_a_hard_finding_is_refused_and_a_slow_one_is_no_integer_product() -> None:
    """The table above says so of every case but those where something else is slow than the product."""
    for name, case in CASES.items():
        kinds = {finding.split()[0] for finding in case.findings}
        assert ("hard" in kinds) == (case.verdict == "refused"), name
        if "slow" in kinds and "hard" not in kinds and name not in ("4-bit weights", "float16 attention"):
            assert case.verdict in ("float", "apart"), name


def test_onnx_runtime_refuses_layout_behind_a_pair_from_opset_21_on(tmp_path: Path) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    ort.InferenceSession(write(CASES["layout behind the pair, older"], tmp_path / "20.onnx"), options)
    with pytest.raises(ort.capi.onnxruntime_pybind11_state.Fail, match="output_dtype INT8 does not match"):
        ort.InferenceSession(write(CASES["layout behind the pair"], tmp_path / "21.onnx"), options)


def test_every_rule_is_documented_and_has_a_case() -> None:
    page = (ROOT / "docs/lint-tensorrt.md").read_text()
    documented = set(re.findall(r"^\| (\S+) \| (\w+)", page, re.M)) - {("rule", "kind")}
    cases = {(finding.split()[1], finding.split()[0]) for case in CASES.values() for finding in case.findings}

    assert cases == documented


def test_a_model_quantized_elsewhere_is_caught(tmp_path: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = [{"x": random.standard_normal((1, TOKENS, WIDTH), np.float32)} for _ in range(4)]

        def get_next(self) -> Any:
            return self.rest.pop() if self.rest else None

    layers = [node("MatMul", "x first", "hidden"), node("Relu", "hidden", "active"), node("MatMul", "active next", "y")]
    float_model = Case(layers, [], "float", {"first": floats(WIDTH, OUT), "next": floats(OUT, OUT)})
    source = write(float_model, tmp_path / "float.onnx")
    model = onnx.load(source)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", FLOAT, [1, TOKENS, OUT]))
    onnx.save(model, source)
    quantize_static(
        source, tmp_path / "0.onnx", Images(), QuantFormat.QDQ,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    findings = lint(OnnxFile(tmp_path / "0.onnx"), "tensorrt")

    assert {"Q1", "Q2"} <= {finding.rule for finding in findings}
    assert "x_QuantizeLinear" in {finding.node for finding in findings if finding.rule == "Q2"}
    os.remove(source)
    assert judged(tmp_path)["verdicts"]["0"]["refused"]


def test_files_for_other_targets_are_named_as_such(portable_model: Path, ort_model: Path) -> None:
    portable, ort_cpu = (
        Counter((finding.kind, finding.rule, finding.operator) for finding in lint(OnnxFile(path), "tensorrt"))
        for path in (portable_model, ort_model)
    )

    assert portable["hard", "Q18", "MatMulInteger"] > 10
    assert ort_cpu["hard", "Q19", "MatMulIntegerToFloat"] > 10
    assert portable["hard", "Q16", "Cast"] > 0  # the decoder of 4-bit weights
    assert portable["wrong", "Q2", "QuantizeLinear"] == ort_cpu["wrong", "Q2", "QuantizeLinear"] > 0


def test_a_node_that_onnx_forbids_does_not_end_lint(tmp_path: Path) -> None:
    forbidden = Case([*CLEAN, node("DynamicQuantizeLinear", "y", "last")], [], "refused")

    assert described(lint(OnnxFile(write(forbidden, tmp_path / "model.onnx")), "tensorrt")) == ["hard Q18 last"]


def test_attention_of_unknown_sizes_is_left_alone(tmp_path: Path) -> None:
    open_sizes = attention() | {"image": ("x", FLOAT, ["batch", 3, "tokens", "width"])}
    case = Case(**open_sizes, findings=[], verdict="fused")

    assert described(lint(OnnxFile(write(case, tmp_path / "model.onnx")), "tensorrt")) == []


@pytest.mark.parametrize("text", ["{", "[4]", '{"act_bits": "four"}'])
def test_metadata_that_says_nothing_is_refused(tmp_path: Path, text: str) -> None:
    case = Case(CLEAN, [], "integer", metadata={"ofq_deploy.quantization": text})

    with pytest.raises(OnnxFileError, match=r"model.onnx has no readable ofq_deploy.quantization .*; export it again"):
        lint(OnnxFile(write(case, tmp_path / "model.onnx")), "tensorrt")


def test_a_cycle_is_refused(tmp_path: Path) -> None:
    cycle = Case([node("Transpose", "y", "between"), node("Relu", "between", "y")], [], "refused")

    with pytest.raises(OnnxFileError, match="y is read before it is computed; sort the nodes"):
        lint(OnnxFile(write(cycle, tmp_path / "model.onnx")), "tensorrt")


def test_the_command_lists_findings_by_kind(tmp_path: Path) -> None:
    path = write(CASES["uint8"], tmp_path / "model.onnx")
    command = [sys.executable, "-m", "ofq_deploy", "lint", str(path), "--target", "tensorrt"]
    run = [subprocess.run(words, capture_output=True, text=True) for words in (command, [*command, "--json"])]

    assert [done.returncode for done in run] == [3, 3]
    assert run[0].stdout.startswith("wrong Q2: QuantizeLinear codes: its codes are uint8, which TensorRT takes for")
    [fault] = json.loads(run[1].stdout)["faults"]
    assert (fault["rule"], fault["kind"], fault["node"]) == ("Q2", "wrong", "codes")
    write(CASES["clean"], path)
    clean = subprocess.run(command, capture_output=True, text=True)
    assert (clean.returncode, clean.stdout) == (0, "clean\n")
