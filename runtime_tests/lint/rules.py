"""What keeps a model from exact and fast integer arithmetic, node by node.

Most rules look at the graph that the runtime executes after its optimizer: one wrong dtype or one shared constant
in the file is enough to bring a product back to float there.
"""

from collections.abc import Iterator
from itertools import filterfalse
from math import frexp, prod
from typing import TYPE_CHECKING

from ofq_deploy.errors import UnsupportedByTarget
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.runtime_tests.lint import tensorrt_attention, tensorrt_products, tensorrt_rules
from ofq_deploy.runtime_tests.lint.findings import Finding, Model, Rule
from ofq_deploy.runtime_tests.runners import openvino
from ofq_deploy.runtime_tests.runners.executed import (
    FLOAT_PRODUCTS,
    INTEGER_PRODUCTS,
    has_small_role,
    is_fused,
    operands,
)
from ofq_deploy.targets import TARGETS

if TYPE_CHECKING:
    import onnx

    Node = onnx.NodeProto

# Operators beside FLOAT_PRODUCTS that multiply activations in float.
FLOAT_BLOCKS = {"Attention", "MultiHeadAttention", "GroupQueryAttention", "QAttention", "Einsum", "ConvTranspose"}
FLOAT_BLOCKS |= {"LSTM", "GRU", "RNN"}
# int32 sums that join others before they are rescaled: row sums, and the half sums of 9-bit integers.
SUM_ROLES = (".row_sum.total", ".half_total")
SLOW = {
    "BiasGelu": ("it is slower than Add and Gelu", "write the bias as [1, 1, n], or into the product"),
    "SkipLayerNormalization": ("it is slower than Add and LayerNormalization", "let a second node read the sum"),
    "ConvInteger": ("it is slower than the float Conv", "cut patches by Reshape and Transpose, and multiply them"),
}
DYNAMIC = ("its step depends on the other values", "use QuantizeLinear with the trained step")
INEXACT = {
    "FastGelu": ("it approximates erf", "write Gelu with approximate='none'"),
    "QuickGelu": ("it approximates erf", "write Gelu with approximate='none'"),
    "QLinearSoftmax": ("it is an 8-bit approximation", "give Softmax floats that were not dequantized just before"),
    "DynamicQuantizeLinear": DYNAMIC,
    "DynamicQuantizeMatMul": DYNAMIC,
}


def lint(file: OnnxFile, target: str) -> list[Finding]:
    """All in the model that `target` would refuse, or compute in float, slowly or inexactly; empty for a clean model.

    Raises OnnxFileError for a file that is not ONNX or does not load, UnsupportedByTarget for a target without
    rules, BackendMissing when the target's runtime is not installed.
    """
    if target not in TARGETS or not TARGETS[target].rules:
        known = [target.name for target in TARGETS.values() if target.rules]
        raise UnsupportedByTarget(f"there are no rules for target {target!r}; there are for {', '.join(known)}")
    model = Model(file)
    return [finding for rule in TARGETS[target].load_rules() for finding in rule(model)]


def float_product(model: Model) -> Iterator[Finding]:
    for node in filterfalse(is_fused, model.executed.of_kind(*FLOAT_PRODUCTS, *FLOAT_BLOCKS)):
        cure = "quantize both operands, to uint8 on the left and int8 on the right, for MatMulIntegerToFloat"
        if node.name.endswith("/MatMulAddFusion"):
            cure = "write the bias as [1, 1, n]: as [n] it made MatMul and Add one float Gemm"
        if not has_small_role(node):
            yield model.finding("float-product", node, "it multiplies in float", cure)


def unfused_product(model: Model) -> Iterator[Finding]:
    for node in model.executed.of_kind("MatMulInteger"):
        if not node.output[0].endswith(SUM_ROLES):
            cure = _what_would_fuse(model, node)
            yield model.finding("unfused-product", node, "its sums are rescaled by operators of their own", cure)


def dequantize(model: Model) -> Iterator[Finding]:
    for node in model.executed.of_kind("DequantizeLinear"):
        cure = "decode weights by Cast and integer arithmetic, and give products the codes"
        if not has_small_role(node):
            yield model.finding("dequantize", node, "it makes floats of codes for every image", cure)


def runtime_decoding(model: Model) -> Iterator[Finding]:
    graph = model.executed
    for node in graph.of_kind(*INTEGER_PRODUCTS):
        weight = operands(node)[1]
        if weight in graph.static and weight not in graph.constants:
            cure = "list no part of it as a graph input, and decode it by Cast and integer arithmetic"
            yield model.finding("runtime-decoding", node, "its weight is decoded again for every image", cure)


def operand_types(model: Model) -> Iterator[Finding]:
    for node in model.executed.of_kind("MatMulIntegerToFloat", "MatMulInteger", "QLinearMatMul", "QGemm"):
        if model.type(node.input[0]) == "int8":
            cure = "keep signed codes as uint8 with zero point 2**(bits - 1)"
            yield model.finding("int8-left", node, "its left operand is int8, which has no fast kernel", cure)
        if model.type(operands(node)[1]) == "uint8":
            cure = "keep its right operand as int8 with zero point 0"
            yield model.finding("uint8-right", node, "its right operand is uint8, which has a slower kernel", cure)


def scales(model: Model) -> Iterator[Finding]:
    for node in model.executed.of_kind("MatMulIntegerToFloat"):
        _, right, left_scale, right_scale, *rest = node.input
        if model.is_vector(left_scale) and len(rest) == 3 and rest[2]:
            cause = "it multiplies its bias by the vector of left scales, which is wrong"
            yield model.finding("scaled-bias", node, cause, "add the bias by an Add of its own", "wrong")
        if model.rank(right) > 2 and model.is_vector(right_scale) and not _is_power_of_two(model, left_scale):
            cause = "a vector of scales for a batched operand: the batch size decides the order of roundings"
            cure = "make the left scale 1 and put it into the right one, or into a Mul if it is a vector"
            yield model.finding("batch-dependent", node, cause, cure, "wrong")


def slow_operator(model: Model) -> Iterator[Finding]:
    norms = list(model.executed.of_kind("LayerNormalization", "SkipLayerNormalization"))
    for node in model.executed.of_kind(*SLOW):
        if node not in norms[-1:]:  # the one in front of the head handles one or two tokens
            yield model.finding("slow-operator", node, *SLOW[node.op_type])


def last_axis_steps(model: Model) -> Iterator[Finding]:
    for node in model.executed.of_kind("QuantizeLinear"):
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        rank = model.rank(node.input[0])
        if model.is_vector(node.input[1]) and rank > 1 and axis % rank == rank - 1:
            cure = "divide scale and bias of the product before it by the steps, and quantize with step 1"
            yield model.finding("last-axis-steps", node, "steps along the last axis have no fast kernel", cure)


def inexact_operator(model: Model) -> Iterator[Finding]:
    for node in model.executed.of_kind("Gelu", *INEXACT):
        if node.op_type != "Gelu" or any(attribute.s == b"tanh" for attribute in node.attribute):
            cause, cure = INEXACT.get(node.op_type, INEXACT["FastGelu"])
            yield model.finding("inexact-operator", node, cause, cure, "wrong")


def int32_bias(model: Model) -> Iterator[Finding]:
    for node in model.executed.of_kind("QGemm", "QLinearConv"):
        bias = {"QGemm": 6, "QLinearConv": 8}[node.op_type]
        if len(node.input) > bias and node.input[bias]:
            cure = "leave the product float, and add a float bias of shape [1, 1, n]"
            yield model.finding("int32-bias", node, "its bias is rounded to units of the sums", cure, "wrong")


def not_fused(model: Model) -> Iterator[Finding]:
    """Each part of the graph, nodes that read one another, that ordinary operators compute."""
    graph, parts = model.file, dict[str, "list[Node]"]()  # by output, the part that a node belongs to
    for node in graph.nodes:
        if not is_fused(node) and not graph.static.issuperset(node.output):
            before = {id(part): part for name in node.input if (part := parts.get(name)) is not None}
            whole = [inner for part in before.values() for inner in part] + [node]
            parts |= dict.fromkeys((name for inner in whole for name in inner.output), whole)
    for part in {id(part): part for part in parts.values()}.values():
        kinds = ", ".join(dict.fromkeys(node.op_type for node in part))
        cause = f"no fused operator computes this part: it takes {len(part)} ordinary ones ({kinds})"
        yield model.finding("not-fused", part[0], cause, "build it from the patterns of docs/kernels.md")


def custom_operator(model: Model) -> Iterator[Finding]:
    for node in model.file.nodes:
        if node.domain not in ("", "ai.onnx"):
            cause = f"{node.domain} is no standard domain, and other runtimes may not know it"
            yield model.finding("custom-operator", node, cause, "export for target portable", "hard")


def float_product_in_openvino(model: Model) -> Iterator[Finding]:
    for node in openvino.executed_nodes(model.source):
        if node.products and not node.integer and not openvino.is_small(node):
            cure = "clip in float, quantize to 8 bits with one step, dequantize; weights int8 behind DequantizeLinear"
            yield Finding("float-product", node.origin[0], node.kind, "OpenVINO multiplies it in float", cure)


ORT_CPU: tuple[Rule, ...] = (
    *(float_product, unfused_product, dequantize, runtime_decoding, operand_types, scales),
    *(slow_operator, last_axis_steps, inexact_operator, int32_bias),
)
ORT_OFQ: tuple[Rule, ...] = (not_fused, *ORT_CPU)
PORTABLE: tuple[Rule, ...] = (custom_operator, *ORT_CPU)
OPENVINO: tuple[Rule, ...] = (float_product_in_openvino,)
TENSORRT: tuple[Rule, ...] = (*tensorrt_rules.RULES, *tensorrt_products.RULES, *tensorrt_attention.RULES)


def _is_power_of_two(model: Model, name: str) -> bool:
    import onnx

    tensor = model.executed.constants.get(name)
    return tensor is not None and prod(tensor.dims) == 1 and frexp(onnx.numpy_helper.to_array(tensor).item())[0] == 0.5


def _what_would_fuse(model: Model, node: "Node") -> str:
    """Which part of Mul(Cast(sums), Mul(one, scale)), with an overridable `one`, the optimizer did not find."""
    graph, read, made = model.executed, "", node.output[0]
    for kind in ("Cast", "Mul"):
        readers = graph.readers.get(made, [])
        if len(readers) > 1:
            return f"let nothing but its {kind} read {made}"
        if not readers or readers[0] is None or readers[0].op_type != kind:
            return "rescale it by Mul(Cast(sums), Mul(one, scale)), `one` being 1.0 and a graph input too"
        read, made = made, readers[0].output[0]
    factor = next((name for name in graph.producers[made].input if name != read), "")
    if len(graph.readers.get(factor, [])) > 1:
        return f"give it a scale of its own, a vector: {factor} is shared, as equal scalars are"
    written = model.file.producers.get(factor)
    if written and written.op_type == "Mul" and not model.file.inputs.intersection(written.input):
        return f"list {written.input[0]} as a graph input too: without, {factor} is folded and nothing is left to fuse"
    return "multiply its scale by an initializer of 1.0 that is a graph input too: that Mul is what is fused"
