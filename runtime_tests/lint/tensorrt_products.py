"""Which products TensorRT computes in float, and which pairs around one it does not take.

A product is one of integers when both operands come from DequantizeLinear with nothing in between but layout changes,
multiplications by a constant number, and what maps codes to codes. Measured: docs/lint-tensorrt.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ofq_deploy.runtime_tests.lint.findings import UNKNOWN, Finding, Model, Rule
from ofq_deploy.runtime_tests.lint.tensorrt_rules import FLOATS, LAYOUT, integer, operand, size
from ofq_deploy.runtime_tests.runners.executed import has_small_role

if TYPE_CHECKING:
    import onnx

    Node = onnx.NodeProto

PRODUCTS = ("MatMul", "Gemm", "Conv", "Einsum")
# No pair of operands makes these one of integers.
FLOAT_ONLY = {"Attention", "ConvTranspose", "GroupQueryAttention", "GRU", "LSTM", "MultiHeadAttention", "RNN"}
KEEPS_AXES = {"Abs", "Dropout", "Expand", "Identity", "MaxPool", "Neg", "Slice", "Split", "Tile"}
TRANSPARENT = KEEPS_AXES | LAYOUT | {"Flatten", "Gather"}
ELEMENTWISE = {"Add", "Cast", "Clip", "Div", "Max", "Min", "Mul", "Pad", "Relu", "Sub"}
LARGEST_HALF = 65504


@dataclass(frozen=True, slots=True)
class Operand:
    """Where an operand of a product comes from.

    codes:   the DequantizeLinear, if there is one
    between: what stands behind it and may not
    rounded: Round or Floor, where there is no DequantizeLinear
    axis:    the axis of the codes that the product sums over, where it is known
    """

    codes: "Node | None" = None
    between: "Node | None" = None
    rounded: "Node | None" = None
    axis: int | None = None

    @property
    def is_codes(self) -> bool:
        return self.codes is not None and self.between is None


def trace(model: Model, name: str, axis: int | None = None) -> Operand:
    """Follow an operand back to its codes. `axis` is the one that the product sums over."""
    graph = model.file
    node = graph.producers.get(name)
    if node is None:
        return Operand()
    if node.op_type == "DequantizeLinear":
        return Operand(codes=node, axis=axis)
    if node.op_type in ("Round", "Floor"):
        return Operand(rounded=node)
    if node.op_type == "Concat":
        parts = [trace(model, part, axis) for part in node.input]
        return _joined(model, node, parts) if all(part.codes for part in parts) else Operand()
    if node.op_type in TRANSPARENT:
        return trace(model, operand(node, 0), _axis_before(node, axis))
    sources = [part for part in node.input if part and part not in graph.constants]
    if len(sources) != 1 or node.op_type not in ELEMENTWISE:
        return Operand()
    if is_constant_factor(model, node):
        return trace(model, sources[0], axis)
    found = trace(model, sources[0])
    return replace(found, between=found.between or node) if found.codes else found


def is_constant_factor(model: Model, node: "Node") -> bool:
    """Mul or Div by one constant number: it joins the scale of the product."""
    factors = node.input[1:] if node.op_type == "Div" else node.input
    known = [name for name in factors if name in model.file.static and size(model, name) == 1]
    return node.op_type in ("Mul", "Div") and len(known) == 1


def products(model: Model) -> Iterator[tuple["Node", Operand, Operand]]:
    """Products of floats that are not constant, with their operands; not the small ones of our own graphs."""
    for node in model.file.of_kind(*PRODUCTS):
        types = {model.inferred(name).type for name in node.input[:2]}
        if len(node.input) < 2 or all(name in model.file.static for name in node.input[:2]) or has_small_role(node):
            continue
        if types <= FLOATS.keys() | {UNKNOWN}:
            left, right = _summed_axes(node)
            yield node, trace(model, operand(node, 0), left), trace(model, node.input[1], right)


def float_product(model: Model) -> Iterator[Finding]:
    both = "give both operands int8 codes behind DequantizeLinear"
    reported = set()
    for node, *operands in products(model):
        at_fault = [o.between or o.rounded for o in operands if o.between or o.rounded]
        for fault in at_fault:
            if fault is None or id(fault) in reported:
                continue
            reported.add(id(fault))
            if fault.op_type in ("Round", "Floor"):
                cause = "codes are rounded by operators of their own, and the product is one in float"
                yield model.finding("Q13", fault, cause, "write QuantizeLinear and DequantizeLinear")
            else:
                cause = f"it stands between DequantizeLinear and {node.op_type} {node.name}, now one in float"
                yield model.finding("Q11", fault, cause, "move it behind the product, or before QuantizeLinear")
        quantized = sum(o.codes is not None for o in operands)
        if not at_fault and quantized == 1:
            yield model.finding("Q12", node, "only one of its operands is quantized: it multiplies in float", both)
        if not at_fault and quantized == 0:
            yield model.finding("float-product", node, "it multiplies in float", both)
    for node in model.file.of_kind(*FLOAT_ONLY):
        cure = "write it as MatMul, Softmax and MatMul with pairs" if "Attention" in node.op_type else both
        yield model.finding("float-product", node, "it multiplies in float", cure)


def scale_axes(model: Model) -> Iterator[Finding]:
    graph, reported = model.file, set()
    for node, *operands in products(model):
        for index, source in enumerate(operands):
            codes = source.codes
            if (
                codes is None
                or source.between is not None
                or id(codes) in reported
                or size(model, operand(codes, 1)) < 2
            ):
                continue
            rank, axis = len(model.inferred(operand(codes, 0)).shape or ()), integer(codes, "axis", 1)
            if not rank or integer(codes, "block_size", 0):
                continue
            summed = source.axis is not None and axis % rank == source.axis % rank
            if node.op_type == "Conv":
                summed = index == 0 or axis % rank != 0
            reported.add(id(codes))
            if operand(codes, 0) in graph.static:
                if summed:
                    cause = "its scales lie along the axis that is summed over: the product is one in float"
                    yield model.finding("Q7", codes, cause, "give weights one scale per output channel")
            elif summed:
                cause = "a step per input channel: the product is one in float"
                yield model.finding("Q8", codes, cause, "use one step, or divide by the steps before QuantizeLinear")
            else:
                cause = "a step per token: TensorRT-RTX takes it, TensorRT documents one per tensor"
                cure = "quantize with step 1 behind a Div, and multiply the product by the steps"
                yield model.finding("Q9", codes, cause, cure, "hint")


def code_types(model: Model) -> Iterator[Finding]:
    for node, *operands in products(model):
        pairs = [source.codes for source in operands if source.codes is not None and not source.between]
        types = [model.inferred(operand(codes, 0)).type for codes in pairs]
        if len(pairs) < 2:
            continue
        if types.count("FLOAT8E4M3FN") == 1:
            cause = "one operand has float8 codes, the other integers"
            yield model.finding("Q22", node, cause, "use int8 on both sides", "hard")
        for codes, kind in zip(pairs, types, strict=True):
            if operand(codes, 0) not in model.file.static:
                continue
            shape, block = model.inferred(operand(codes, 0)).shape, integer(codes, "block_size", 0)
            if block and shape and block < shape[integer(codes, "axis", 1) % len(shape)]:
                cause = "a scale per block of weights beside quantized activations crashes the compiler"
                yield model.finding("Q20", codes, cause, "give weights one scale per output channel", "hard")
            elif kind == "INT4" and (node.op_type == "Conv" or size(model, operand(codes, 1)) == 1):
                cause = "4-bit weights of Conv, or with a single scale, beside int8 activations crash the compiler"
                yield model.finding("Q20", codes, cause, "store them as int8 in the file for TensorRT", "hard")
            elif kind == "INT4":
                cause = "4-bit weights beside int8 activations are widened again for every image"
                yield model.finding("Q20", codes, cause, "store them as int8 in the file for TensorRT")


def rounded_before_bias(model: Model) -> Iterator[Finding]:
    graph = model.file
    for node in graph.of_kind("Add"):
        first, second = operand(node, 0), operand(node, 1)
        for name, other in ((first, second), (second, first)):
            pair = graph.producers.get(name)
            codes = graph.producers.get(operand(pair, 0)) if pair and pair.op_type == "DequantizeLinear" else None
            made = graph.producers.get(operand(codes, 0)) if codes and codes.op_type == "QuantizeLinear" else None
            if codes and made and made.op_type in PRODUCTS and other in graph.static:
                cause = "it rounds the product before the bias is added"
                yield model.finding("Q14", codes, cause, "quantize the inputs of products only", "hint")


def half_sums(model: Model) -> Iterator[Finding]:
    """Scales per channel are applied by a kernel of their own, behind the sums, whatever the other scale is."""
    for node, left, right in products(model):
        if left.codes is None or right.codes is None or model.inferred(node.output[0]).type != "FLOAT16":
            continue
        weight = model.file.array(operand(right.codes, 0))
        if weight is None or weight.ndim != 2 or right.axis is None or size(model, operand(right.codes, 1)) < 2:
            continue
        largest = int(np.abs(weight.astype(np.int64)).sum(right.axis).max()) * _largest_code(model, left.codes)
        if largest > LARGEST_HALF:
            cause = f"its sums reach {largest:,} and are written as float16, which ends at {LARGEST_HALF:,}"
            cure = "dequantize with float32 scales, and cast to float16 behind the scales"
            yield model.finding("T4", node, cause, cure, "wrong")


RULES: tuple[Rule, ...] = (float_product, scale_axes, code_types, rounded_before_bias, half_sums)


def _joined(model: Model, node: "Node", parts: list[Operand]) -> Operand:
    """Codes side by side stay codes where they have one scale. (Another one along an axis that is not summed over is
    taken, too, but only at a fixed batch size.)
    """
    between = next((part.between for part in parts if part.between), None)
    steps = [model.file.array(operand(part.codes, 1)) for part in parts if part.codes]
    values = {None if step is None else step.tobytes() for step in steps}
    return replace(parts[0], between=between or (None if len(values) == 1 and None not in values else node))


def _axis_before(node: "Node", axis: int | None) -> int | None:
    """`axis` of the output as one of the first input, where it is known."""
    if node.op_type == "Transpose" and axis is not None:
        order = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), [])
        return order[axis] if len(order) > 1 else -1 - axis
    return axis if node.op_type in KEEPS_AXES else None


def _summed_axes(node: "Node") -> tuple[int | None, int | None]:
    """Axes of both operands that the product sums over, where they are known."""
    if node.op_type == "Gemm":
        return -2 if integer(node, "transA", 0) else -1, -1 if integer(node, "transB", 0) else -2
    return (-1, -2) if node.op_type == "MatMul" else (None, None)


def _largest_code(model: Model, pair: "Node") -> int:
    """By the Clip in front of QuantizeLinear, if there is one."""
    graph = model.file
    codes = graph.producers.get(operand(pair, 0))
    clip = graph.producers.get(operand(codes, 0)) if codes and codes.op_type == "QuantizeLinear" else None
    step = graph.array(operand(codes, 1)) if codes and size(model, operand(codes, 1)) == 1 else None
    if clip is None or clip.op_type != "Clip" or step is None or not step.all():
        return 128
    limits = [graph.array(operand(clip, side)) for side in (1, 2)]
    return min(128, *(round(float(abs(limit).max() / step.max())) if limit is not None else 128 for limit in limits))
