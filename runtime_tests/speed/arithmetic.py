"""How much a network multiplies, and how fast this CPU could multiply at best."""

import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ofq_deploy.errors import OnnxFileError
from ofq_deploy.model.file import ModelFile, OnnxFile, static_values, with_outputs
from ofq_deploy.runtime_tests.runners.executed import FLOAT_PRODUCTS, INTEGER_PRODUCTS, is_fused, operands
from ofq_deploy.runtime_tests.runners.ort import open_session, run_all

if TYPE_CHECKING:
    import onnx
    import onnxruntime

PRODUCTS = INTEGER_PRODUCTS | FLOAT_PRODUCTS | {"ConvTranspose", "Attention", "MultiHeadAttention", "QAttention"}
UNCOUNTED = {"Einsum", "GroupQueryAttention", "LSTM", "GRU", "RNN", "If", "Loop", "Scan"}
LAYOUT = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Expand", "Identity", "Cast"}
TO_FLOAT = ("Cast", "DequantizeLinear")
ROW_SUMS = ".row_sum.total"  # written as products with ones
WIDEST_CODES = 8

ROWS, SIDE = 256, 768  # both operands and the result stay in the cache, and a call is too short to be interrupted
PEAK_S = 0.25
PEAK_KERNELS = {
    "int8": f"ONNX Runtime MatMulInteger, uint8 [{ROWS}, {SIDE}] x int8 [{SIDE}, {SIDE}]",
    "float32": f"ONNX Runtime MatMul, float32 [{ROWS}, {SIDE}] x [{SIDE}, {SIDE}]",
}


@dataclass(frozen=True, slots=True)
class Work:
    """Multiply-accumulates (MACs) per image.

    integer_macs, float_macs: of products of two integers of 8 bits or less, and of all others
    bit_operations:           MACs x bits of the one operand x bits of the other, summed
    uncounted:                operators in the file that multiply too, or may
    """

    integer_macs: int
    float_macs: int
    bit_operations: int
    uncounted: tuple[str, ...]

    @property
    def macs(self) -> int:
        return self.integer_macs + self.float_macs

    def floor_ms(self, peak: dict[str, float]) -> float:
        """Milliseconds per image if every product ran at the rate `peak`, in MACs/s, and nothing else took time."""
        return 1000 * (self.integer_macs / peak["int8"] + self.float_macs / peak["float32"])


def work(file: OnnxFile, shape: tuple[int, ...]) -> Work:
    """The products of an ONNX file; those of constants alone are computed once, and do not count.

    shape: of images that the model takes, [batch, channels, height, width]

    Bits are those that our metadata says were trained (8 in the patch embedding and the heads), in other files those
    of the operands' types, before DequantizeLinear. Raises OnnxFileError when ONNX Runtime does not load the file.
    """
    from onnx.inliner import inline_local_functions

    model = file.proto
    trained: ModelFile | None = None
    with suppress(OnnxFileError):  # from elsewhere
        if file.described.quantization:  # a float model of ours that others quantized names no bits
            trained = file.described
    if model.functions:
        model = inline_local_functions(model)
    producers = {name: node for node in model.graph.node for name in node.output}
    static = static_values(model.graph.node, (tensor.name for tensor in model.graph.initializer))
    products = [made for node in model.graph.node if is_fused(node) for made in _fused_products(node, producers)]
    nodes = [node for node in model.graph.node if node.op_type in PRODUCTS and not is_fused(node)]
    nodes = [node for node in nodes if node.output[0] not in static]
    nodes = [node for node in nodes if not node.output[0].endswith(ROW_SUMS)]
    values = {name for node in nodes for name in (*operands(node), node.output[0])}
    origins = {name: _codes_of(name, producers) for name in values}
    shapes, types = _inferred(model, values, set(origins.values()), shape, file.path)

    def bits(name: str) -> int:
        width = types[origins[name]]
        if trained is None or width > WIDEST_CODES:
            return width
        if name in static:
            return trained.weight_bits(_named(name, producers, ".weight"))
        return trained.act_bits(_named(name, producers, ".codes"))

    macs = integer_macs = sum(count for count, _ in products)
    bit_operations = sum(count * bits_of_both for count, bits_of_both in products)
    for node in nodes:
        left, right = operands(node)
        count = _macs(node, shapes[left], shapes[right], shapes[node.output[0]]) // shape[0]
        macs += count
        bit_operations += count * bits(left) * bits(right)
        if max(types[origins[left]], types[origins[right]]) <= WIDEST_CODES:
            integer_macs += count
    uncounted = sorted({node.op_type for node in model.graph.node} & UNCOUNTED)
    return Work(integer_macs, macs - integer_macs, bit_operations, tuple(uncounted))


def peak_macs_per_s(threads: int) -> dict[str, float]:
    """MACs/s that ONNX Runtime's best kernels reach on this CPU, "int8" and "float32", in one well-shaped product.

    Measured, no theoretical peak: the fastest of the calls of a quarter second each.
    """
    codes = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 128
    reals = codes.astype(np.float32)
    return {
        "int8": _rate(codes[:ROWS].astype(np.uint8), codes.astype(np.int8), threads),
        "float32": _rate(reals[:ROWS], reals, threads),
    }


def _rate(left: NDArray[Any], right: NDArray[Any], threads: int) -> float:
    """MACs/s of the fastest call that multiplies `left` by the constant `right`."""
    return left.size * right.shape[1] / min(_call_times(open_session(_product(left, right), threads), left))


def _product(left: NDArray[Any], right: NDArray[Any]) -> "onnx.ModelProto":
    """A model that multiplies its input by a constant."""
    from onnx import helper, numpy_helper

    is_integer = left.dtype == np.uint8
    dtypes = left.dtype, np.dtype(np.int32 if is_integer else np.float32)
    taken, given = map(helper.np_dtype_to_tensor_dtype, dtypes)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger" if is_integer else "MatMul", ["left", "right"], ["product"])],
        "product",
        [helper.make_tensor_value_info("left", taken, left.shape)],
        [helper.make_tensor_value_info("product", given, [len(left), right.shape[1]])],
        [numpy_helper.from_array(right, "right")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def _call_times(session: "onnxruntime.InferenceSession", left: NDArray[Any]) -> Iterator[float]:
    """Seconds of each call, for a quarter second and at least three calls."""
    end, calls = time.perf_counter() + PEAK_S, 0
    while calls < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        session.run(None, {"left": left})
        yield time.perf_counter() - start
        calls += 1


def _macs(node: "onnx.NodeProto", left: tuple[int, ...], right: tuple[int, ...], out: tuple[int, ...]) -> int:
    """Of one call, from the shapes of the operands and of the result."""
    kind = node.op_type
    if kind == "ConvTranspose":
        return prod(left) * prod(right[1:])
    if "Conv" in kind:
        return prod(out) * prod(right[1:])
    if kind == "QAttention" or (kind == "Attention" and node.domain):  # with the projection of q, k and v
        return prod(left) * right[1] + 2 * prod(out) * left[1]
    if kind in ("Attention", "MultiHeadAttention"):  # scores and context
        return (prod(left) + prod(out)) * right[-2]
    is_transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return prod(out) * left[-2 if is_transposed else -1]


def _fused_products(node: "onnx.NodeProto", producers: dict[str, "onnx.NodeProto"]) -> list[tuple[int, int]]:
    """MACs per image of a fused operator's products, and the product of the bits of what each multiplies (docs/kernels.md)."""
    a = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "Attention":
        scores = a["heads"] * a["rows"] * a["tokens"]
        return [
            (scores * a["width"], a["q_bits"] * a["k_bits"]),
            (scores * a["value_width"], a["p_bits"] * a["v_bits"]),
        ]
    if "weight_bits" not in a:
        return []
    rows = a.get("tokens", 1)
    made_by = producers.get(node.input[0])
    if made_by is not None and made_by.op_type == "Patches":  # tokens that are no patches are not multiplied
        rows -= next(attribute.i for attribute in made_by.attribute if attribute.name == "first")
    return [(rows * a["inputs"] * a.get("parts", 1) * a["width"], a["in_bits"] * a["weight_bits"])]


def _codes_of(name: str, producers: dict[str, "onnx.NodeProto"]) -> str:
    """What an operand was before it was dequantized, cast or laid out for its product."""
    *_, name = _history(name, producers)
    return name


def _named(name: str, producers: dict[str, "onnx.NodeProto"], ending: str) -> str:
    """The layer or quantizer whose weights or codes an operand holds, by the ending of their name in our files.

    Codes that were made float for one product are named after that product, and their quantizer before that.
    """
    named = [value for value in _history(name, producers) if value.endswith(ending)]
    coded = [value for value in named if value not in producers or producers[value].op_type not in TO_FLOAT]
    found = next(iter(coded or named), name)
    return re.sub(r"\.\d+$", "", found.removesuffix(ending))  # weights cut by columns are numbered


def _history(name: str, producers: dict[str, "onnx.NodeProto"]) -> Iterator[str]:
    """An operand, and what it was before, back to its codes."""
    yield name
    while name in producers and producers[name].op_type in LAYOUT:
        name = producers[name].input[0]
        yield name
    if name in producers and producers[name].op_type == "DequantizeLinear":
        yield producers[name].input[0]


def _width(dtype: str) -> int:
    """Bits of a type as ONNX Runtime writes it: `tensor(float)`, `tensor(uint8)`."""
    stated = re.search(r"\d+", dtype)
    return int(stated[0]) if stated else {"tensor(double)": 64}.get(dtype, 32)


def _inferred(
    file: "onnx.ModelProto", names: set[str], origins: set[str], shape: tuple[int, ...], where: Path
) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Shapes of values, and the bits of the types of their origins.

    One call tells, by a `Shape` node beside each value: shape inference stops at operators of other domains, and at
    what is computed from the batch size. Origins are only asked for their types: packed weights have no `Shape`, nor a
    form in numpy.
    """
    import onnx

    model = with_outputs(file, sorted(names | origins))
    for name in sorted(names):
        model.graph.node.append(onnx.helper.make_node("Shape", [name], [f"{name}/shape"]))
        model.graph.output.append(onnx.ValueInfoProto(name=f"{name}/shape"))
    session = open_session(model, threads=1, optimize=False, where=where)
    types = {value.name: _width(value.type) for value in session.get_outputs()}
    images = {session.get_inputs()[0].name: np.zeros(shape, dtype=np.float32)}
    found = run_all(session, images, [f"{name}/shape" for name in sorted(names)])
    return {name: tuple(map(int, found[f"{name}/shape"])) for name in names}, types
