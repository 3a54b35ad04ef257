"""OpenVINO on the CPU, in float32 where it does not multiply integers.

Its own choice would be bfloat16 on CPUs that have it, which rounds between the integer products.
"""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ofq_deploy.errors import BackendMissing, OnnxFileError
from ofq_deploy.model.file import OnnxFile, static_values
from ofq_deploy.runner import Arrays, Metadata, Opening, Runner, runtime_name
from ofq_deploy.runtime_tests.runners.executed import Executed, is_small_role

if TYPE_CHECKING:
    import onnx
    import openvino

PRODUCTS = {"FullyConnected", "MatMul", "Convolution"}
INTEGERS = {"i8", "u8"}
ORIGIN = "originalLayersNames"
PREAMBLE = ("Exception from", "Check", "FrontEnd API failed", "Model wasn't fully converted")  # lines of its messages


def compile_model(
    model: "OnnxFile | onnx.ModelProto", threads: int = 0, batch: int | None = None, where: Path | None = None
) -> "openvino.CompiledModel":
    """A compiled model with one stream.

    threads: 0 for one per core
    batch:   a fixed batch size, which it runs faster than a symbolic one
    where:   the file that a model in memory comes from, for the message

    Raises BackendMissing without openvino, OnnxFileError when the model does not load.
    """
    try:
        import openvino
    except ImportError as error:
        raise BackendMissing(
            "openvino is not installed; install it with: pip install 'ofq-deploy[openvino]'"
        ) from error
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}
    # Else it quantizes floats anew that meet stored integers, by its own steps, as in a proof that feeds codes.
    settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
    try:
        core = openvino.Core()
        network = core.read_model(model.path if isinstance(model, OnnxFile) else model.SerializeToString())
        if batch is not None:
            network.reshape({value: _fixed(value.partial_shape, batch) for value in network.inputs})
        return core.compile_model(network, "CPU", settings)
    except Exception as error:  # openvino raises RuntimeError and children of it, and its own classes
        if isinstance(model, OnnxFile):
            compile_model(model.proto, threads, batch, model.path)  # fails again, with the long names of the nodes
        named = model.path if isinstance(model, OnnxFile) else where or "the model"
        raise OnnxFileError(f"{named} does not load in OpenVINO: {_told(error)}") from error


def _told(error: Exception) -> str:
    """What its message says, without the places in its source."""
    lines = [line for line in str(error).splitlines() if line and not line.startswith(PREAMBLE)]
    return " ".join(lines)[:300]


def _fixed(shape: Any, batch: int) -> list[int]:
    return [axis.get_length() if axis.is_static else batch for axis in shape]


def open_in_openvino(model: "OnnxFile | onnx.ModelProto", how: Opening) -> Runner:
    """A file is read by the runtime itself, as in a deployment."""
    return OpenVinoRunner(model, how.threads, how.batch)


class OpenVinoRunner(Runner):
    """OpenVINO on the CPU."""

    def __init__(self, model: "OnnxFile | onnx.ModelProto", threads: int = 0, batch: int | None = None) -> None:
        compiled = compile_model(model, threads, batch)
        self._request = compiled.create_infer_request()
        settings = {"threads": threads or "one per core", "batch": batch or "any", "precision": "f32"}
        inputs = tuple(value.get_any_name() for value in compiled.inputs)
        outputs = tuple(map(_output_name, compiled.outputs))
        self._metadata = Metadata("openvino", runtime_name("openvino"), "cpu", settings, inputs, outputs)

    @property
    def metadata(self) -> Metadata:
        return self._metadata

    def infer(self, inputs: Arrays) -> Arrays:
        try:
            results = self._request.infer(inputs, share_inputs=True, share_outputs=True)
        except RuntimeError as error:
            raise OnnxFileError(f"the model fails in OpenVINO: {_told(error)}") from error
        return {name: np.array(results[index]) for index, name in enumerate(self._metadata.outputs)}

    def close(self) -> None:
        del self._request


def _output_name(value: Any) -> str:
    """The file's name of an output, of the several that it may have: those of values that an Identity copies to it, too."""
    name = str(value.get_node().get_friendly_name()).removesuffix("/sink_port_0")
    return name if name in value.get_names() else str(value.get_any_name())


@dataclass(frozen=True, slots=True)
class Node:
    """One executed node.

    origin:   names of the file's nodes that it computes
    products: how many matrix products it computes; attention lies inside fused subgraphs
    integer:  whether it computes in integers
    """

    kind: str
    origin: tuple[str, ...]
    products: int
    integer: bool


def executed_nodes(file: OnnxFile) -> list[Node]:
    """What the compiled model executes; constants are prepared once and left out."""
    found = []
    for node in compile_model(file.proto, 1, 1, file.path).get_runtime_model().get_ops():
        info = node.get_rt_info()
        kind, precision, origin = (info[key].astype(str) for key in ("layerType", "runtimePrecision", ORIGIN))
        if kind not in ("Const", "Input", "Output"):
            found.append(Node(kind, tuple(origin.split(",")), int(kind in PRODUCTS), precision in INTEGERS))
    own = {_role(name) for node in found if node.products for name in node.origin}
    fused = _batched_products(file.proto) - own
    return [
        replace(node, products=len(fused.intersection(map(_role, node.origin)))) if node.kind == "Subgraph" else node
        for node in found
    ]


def _role(name: str) -> str:
    """The name of a product, whether its sums, its rescaled value or what a pass derived from them is meant."""
    return name.split("/")[0].removesuffix(".total").removesuffix(".scaled")


def executed_operators(file: OnnxFile) -> Executed:
    """The operators of the compiled model, classified as those of ONNX Runtime are."""
    nodes = executed_nodes(file)
    counts = Counter(node.kind for node in nodes)
    floats = [node for node in nodes if node.products and not node.integer]
    small = sum(is_small(node) for node in floats)
    integer = sum(node.products for node in nodes if node.integer)
    return Executed(
        integer,
        sum(node.products for node in floats) - small,
        small,
        counts["DequantizeLinear"],
        dict(sorted(counts.items())),
        tuple(node.origin[0] for node in floats if not is_small(node)),
    )


def is_small(node: Node) -> bool:
    """One of the small products that shifts need."""
    return node.kind in PRODUCTS and is_small_role(node.origin)


def _batched_products(model: "onnx.ModelProto") -> set[str]:
    """Roles of the file's products of two activations."""
    graph = model.graph
    static = static_values(graph.node, (tensor.name for tensor in graph.initializer))
    kinds = ("MatMul", "MatMulInteger", "MatMulIntegerToFloat")
    products = (node for node in graph.node if node.op_type in kinds and not static.intersection(node.input[:2]))
    return {_role(node.name) for node in products}
