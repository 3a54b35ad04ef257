"""ONNX models of a few nodes: a node in a line, constants that nodes read by name."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

TOKENS, WIDTH, OUT = 6, 8, 16
IMAGE = ("x", TensorProto.FLOAT, ["batch", TOKENS, WIDTH])
CONTRIB = "com.microsoft"
random = np.random.default_rng(0)


def node(kind: str, inputs: str, output: str, domain: str = "", **attributes: Any) -> onnx.NodeProto:
    """Inputs apart by blanks, `-` for one that is left out; the output names the node."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(kind, names, [output], name=output, domain=domain, **attributes)


def floats(*shape: int) -> Any:
    return random.random(shape, dtype=np.float32) + np.float32(0.1)


def codes(*shape: int, dtype: Any = np.int8) -> Any:
    return random.integers(0, 7, shape).astype(dtype)


CONSTANTS = {
    "step": np.float32(0.1),
    "zero": np.uint8(8),
    "zero_int8": np.int8(0),
    "one": np.float32(1),
    "third": np.float32(0.3),
    "weight": codes(WIDTH, OUT),
    "scale": floats(OUT),
    "zeros": np.zeros(OUT, dtype=np.int8),
    "bias": floats(OUT),
    "wide_bias": floats(1, 1, OUT),
}
QUANTIZE = node("QuantizeLinear", "x step zero", "codes")
PRODUCT = node("MatMulIntegerToFloat", "codes weight one scale zero", "product", CONTRIB)
DEQUANTIZED = [
    QUANTIZE,
    node("DequantizeLinear", "codes step zero", "left"),
    node("DequantizeLinear", "weight scale zeros", "right", axis=1),
    node("MatMul", "left right", "product"),
]


def write(path: Path, nodes: list[onnx.NodeProto], image: Any = IMAGE, overridable: str = "", **more: Any) -> Path:
    """A model of `nodes` whose output is that of the last one, with the constants that they read."""
    read = {name for made in nodes for name in made.input} - {name for made in nodes for name in made.output}
    constants = {name: value for name, value in {**CONSTANTS, **more}.items() if name in read}
    tensors = [
        value if isinstance(value, TensorProto) else onnx.numpy_helper.from_array(np.asarray(value), name)
        for name, value in constants.items()
    ]
    inputs = [helper.make_tensor_value_info(*image)]
    inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors if t.name == overridable]
    graph = helper.make_graph(nodes, "model", inputs, [onnx.ValueInfoProto(name=nodes[-1].output[0])], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(CONTRIB, 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path
