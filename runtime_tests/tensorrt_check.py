"""Which products of a model TensorRT computes in int8, by an engine that is built and thrown away."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ofq_deploy.errors import UnsupportedByTarget
from ofq_deploy.runtime_tests.executed import has_small_role
from ofq_deploy.runtime_tests.model_file import read_model
from ofq_deploy.runtime_tests.tensorrt_build import Layer, build

if TYPE_CHECKING:
    import onnx

    Node = onnx.NodeProto

TARGET = "ofq_deploy.target"
BATCHES = (1, 8, 64)  # smallest, usual and largest that the engine is built for
PRODUCTS = {"MatMul", "Gemm", "Conv", "ConvTranspose"}
LIBRARY = {"gemm", "correlation"}
GENERATED = "runtime_fusion"  # a float product, whatever its operands are stored as
FUSED_ATTENTION = "_gemm_mha"  # both products and the softmax between them, in one kernel
LAYOUT = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Slice", "Split", "Gather", "Identity"}
ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Neg", "Clip", "Cast"}


@dataclass(frozen=True, slots=True)
class Fault:
    """A product that should be computed in int8 and is not."""

    node: str
    operator: str
    cause: str


@dataclass(frozen=True, slots=True)
class Check:
    """What became of a model's products.

    expected:     products of the file whose operands are both dequantized
    int8:         those of them that an int8 product computes
    small:        float products that shifts need, one matrix-vector product for all keys of a head
    in_float:     names of all other products that are computed in float
    int8_gemms, float_gemms, dequantizing_gemms: layers, the last of them float products that read int8; the compiler
                  merges products of one input into one layer
    """

    package: str
    version: str
    batches: tuple[int, int, int]
    expected: int
    int8: int
    small: tuple[str, ...]
    in_float: tuple[str, ...]
    int8_gemms: int
    float_gemms: int
    dequantizing_gemms: int
    layers: int
    plan_bytes: int
    build_seconds: float
    warnings: tuple[str, ...]
    faults: tuple[Fault, ...]

    @property
    def passed(self) -> bool:
        return not self.faults

    @property
    def verdict(self) -> str:
        if self.faults:
            return f"{len(self.faults)} of the products that the file quantizes are not computed in int8"
        if not self.expected:
            return "the file quantizes no product"
        return f"all {self.expected} quantized products are computed in int8"


def check(path: Path) -> Check:
    """Build an engine of an ONNX model and read which of its products are int8.

    A fault is a product that reads quantized values and is not int8; in a file that was exported for TensorRT, every
    float product but the small ones.

    Raises OnnxFileError and UnsupportedByTarget for a model that is refused, BackendMissing.
    """
    model = read_model(path)
    graph = _Graph(model)
    if graph.made_for not in ("", "tensorrt", "fp32"):
        raise UnsupportedByTarget(f"{path} was exported for {graph.made_for}; export the run with --target tensorrt")
    start = time.perf_counter()
    engine = build(path, profile=BATCHES)
    seconds = time.perf_counter() - start
    gemms = [layer for layer in engine.layers if _multiplies(layer)]
    in_int8 = {name for layer in gemms if _is_int8(layer) for name in layer.origin}
    products = [node for node in graph.nodes if node.op_type in PRODUCTS]
    expected = [node for node in products if all(graph.is_dequantized(name) for name in node.input[:2])]
    floats = [node for node in products if node.name not in in_int8]
    small = {node.name for node in floats if has_small_role(node)}
    large = [node for node in floats if node.name not in small]
    return Check(
        package=engine.package,
        version=engine.version,
        batches=BATCHES,
        expected=len(expected),
        int8=sum(node.name in in_int8 for node in expected),
        small=tuple(sorted(small)),
        in_float=tuple(node.name for node in large),
        int8_gemms=sum(map(_is_int8, gemms)),
        float_gemms=sum(not _is_int8(layer) and not _dequantizes(layer) for layer in gemms),
        dequantizing_gemms=sum(map(_dequantizes, gemms)),
        layers=len(engine.layers),
        plan_bytes=len(engine.plan),
        build_seconds=round(seconds, 3),
        warnings=tuple(text for severity, text in engine.messages if severity == "WARNING"),
        faults=tuple(_faults(graph, large)),
    )


def _multiplies(layer: Layer) -> bool:
    return layer.kind in LIBRARY | {GENERATED} or layer.tactic.startswith(FUSED_ATTENTION)


def _is_int8(layer: Layer) -> bool:
    return layer.kind != GENERATED and (layer.inputs + layer.constants).count("Int8") >= 2


def _dequantizes(layer: Layer) -> bool:
    return layer.kind == GENERATED and "Int8" in layer.inputs + layer.constants


def _faults(graph: "_Graph", floats: "list[Node]") -> Iterator[Fault]:
    for node in floats:
        between = [name for operand in node.input[:2] for name in graph.between(operand)]
        quantized = [graph.is_dequantized(name) for name in node.input[:2]]
        if between:
            cause = f"{' and '.join(between)} between a DequantizeLinear and the product"
        elif all(quantized):
            cause = "both operands are quantized, in a form that has no int8 product (weights per input channel?)"
        elif any(quantized):
            cause = f"only its {'left' if quantized[0] else 'right'} operand is quantized"
        elif graph.made_for == "tensorrt":
            cause = "neither operand is quantized"
        else:
            continue
        yield Fault(node.name, node.op_type, cause)


class _Graph:
    """What stands between the products of a file and its quantize-dequantize pairs."""

    def __init__(self, model: "onnx.ModelProto") -> None:
        self.nodes: list[Node] = list(model.graph.node)
        self.made_for = next((entry.value for entry in model.metadata_props if entry.key == TARGET), "")
        self._makers = {name: node for node in self.nodes for name in node.output}
        self._constants = {tensor.name for tensor in model.graph.initializer}
        self._constants |= {name for node in self.nodes if node.op_type == "Constant" for name in node.output}

    def is_dequantized(self, name: str) -> bool:
        """Whether only changes of layout separate the value from a DequantizeLinear."""
        made = self._made(name)
        return made is not None and made.op_type == "DequantizeLinear"

    def between(self, name: str) -> list[str]:
        """Elementwise operators that separate the value from a DequantizeLinear, if one is behind them."""
        found: list[str] = []
        made = self._made(name)
        while made is not None and made.op_type in ELEMENTWISE:
            found.append(f"{made.op_type} {made.name}")
            data = [operand for operand in made.input if operand not in self._constants]
            made = self._made(data[0]) if data else None
        return found if made is not None and made.op_type == "DequantizeLinear" else []

    def _made(self, name: str) -> "Node | None":
        """The node that makes the value, past changes of layout."""
        made = self._makers.get(name)
        while made is not None and made.op_type in LAYOUT:
            made = self._makers.get(made.input[0])
        return made
