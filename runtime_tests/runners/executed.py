"""What the runtime executes after its optimizer: products in integers, products in float, leftovers."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ofq_deploy.kernels import DOMAIN
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.runtime_tests.runners.ort import optimized_graph

if TYPE_CHECKING:
    import onnx

INTEGER_PRODUCTS = {
    "MatMulIntegerToFloat",
    "MatMulInteger",
    "QLinearMatMul",
    "QGemm",
    "DynamicQuantizeMatMul",
    "QLinearConv",
    "ConvInteger",
}
# Products of the fused operators; what a LinearAdd sums over its parts are products of their own.
FUSED_PRODUCTS = {"Linear": 1, "LinearAdd": 1, "LinearHead": 1, "Attention": 2}
FLOAT_PRODUCTS = {"MatMul", "FusedMatMul", "Gemm", "FusedGemm", "MatMulNBits", "Conv", "FusedConv"}
# One small matrix-vector product per key that the shifts and the query bias need; never an activation product.
SMALL_ROLES = (".scores.key_shift.", ".scores.key_bias.")


@dataclass(frozen=True, slots=True)
class Executed:
    """Operators of the optimized graph.

    small:               float products of `SMALL_ROLES`
    leftover_dequantize: those that feed no small product; an integer model has none, it does have QuantizeLinear
    operators:           how often each operator occurs
    float_nodes:         names of the products that `float` counts
    """

    integer: int
    float: int
    small: int
    leftover_dequantize: int
    operators: dict[str, int]
    float_nodes: tuple[str, ...] = ()


def executed_operators(file: OnnxFile) -> Executed:
    """Open the model in ONNX Runtime and classify the nodes that it will execute."""
    nodes = optimized_graph(file).graph.node
    counts = Counter(node.op_type for node in nodes)
    products = [node for node in nodes if node.op_type in FLOAT_PRODUCTS and not is_fused(node)]
    floats = tuple(node.name or node.output[0] for node in products if not has_small_role(node))
    fused = Counter(node.op_type for node in nodes if is_fused(node))
    integer = sum((counts - fused)[kind] for kind in INTEGER_PRODUCTS)
    integer += sum(count * fused[kind] for kind, count in FUSED_PRODUCTS.items())
    pairs = [node for node in nodes if node.op_type == "DequantizeLinear" and not has_small_role(node)]
    small = len(products) - len(floats)
    return Executed(integer, len(floats), small, len(pairs), dict(sorted(counts.items())), floats)


def is_fused(node: "onnx.NodeProto") -> bool:
    """One of the operators of docs/kernels.md, whose names other domains have too."""
    return node.domain == DOMAIN


def operands(node: "onnx.NodeProto") -> tuple[str, str]:
    """The two values that a product multiplies, left and right."""
    return node.input[0], node.input[3 if node.op_type in ("QLinearMatMul", "QLinearConv", "QGemm") else 1]


def has_small_role(node: "onnx.NodeProto") -> bool:
    """One of the small products, or what feeds it."""
    return is_small_role(node.output)


def is_small_role(names: Iterable[str]) -> bool:
    """Whether one of the names, of values or nodes, belongs to a small product."""
    return any(role in f"{name}." for name in names for role in SMALL_ROLES)
