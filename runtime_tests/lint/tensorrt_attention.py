"""Attention that TensorRT would compute in one kernel, if it were written a little otherwise.

Attention that no rewriting could fuse is left alone: the rules look for everything else that the kernel wants, which
is quantized queries, keys, probabilities, values and outputs, each with one step. Ours has a step per channel for the
values, and QKR has wide heads.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ofq_deploy.runtime_tests.lint.findings import Finding, Model, Rule
from ofq_deploy.runtime_tests.lint.tensorrt_products import TRANSPARENT, is_constant_factor, trace
from ofq_deploy.runtime_tests.lint.tensorrt_rules import operand

if TYPE_CHECKING:
    import onnx

    Node = onnx.NodeProto

WIDTHS, LONGEST = (16, 32, 64), 512  # of a head and of a sequence, in the integer kernel
CRASHES_AT = 64
PAIR = {"QuantizeLinear", "DequantizeLinear"}
PASSED = TRANSPARENT | PAIR | {"Add", "Cast", "Clip", "Div", "Max", "Min", "Mul", "Sub"}


@dataclass(frozen=True, slots=True)
class Attention:
    """Two MatMul around a Softmax.

    width:     of a head, length: of the sequence; 0 or -1 where they are not known
    quantized: how many of queries, keys, probabilities and values are
    weighing:  what stands between Softmax and the second MatMul, but pairs, layout and constant factors
    closing:   the same between the second MatMul and the first node that is none of these
    reader:    that node, as QuantizeLinear; None for the caller, and where several nodes read the value
    """

    softmax: "Node"
    values_product: "Node"
    element: str
    width: int
    length: int
    quantized: int
    weighing: tuple["Node", ...]
    closing: tuple["Node", ...]
    reader: "Node | None"

    @property
    def is_closed(self) -> bool:
        return self.reader is not None and self.reader.op_type == "QuantizeLinear"

    @property
    def fits(self) -> bool:
        return self.width in WIDTHS and 0 < self.length <= LONGEST

    @property
    def is_too_large(self) -> bool:
        return (self.width > 0 and self.width not in WIDTHS) or self.length > LONGEST


def attentions(model: Model) -> Iterator[Attention]:
    graph = model.file
    for softmax in graph.of_kind("Softmax"):
        scores = graph.producers.get(operand(softmax, 0))
        while scores is not None and scores.op_type in PASSED:
            scores = next((graph.producers[name] for name in scores.input if name in graph.producers), None)
        weighing, second = _walk(model, softmax, PASSED)
        if scores is None or second is None or scores.op_type != "MatMul" or second.op_type != "MatMul":
            continue
        closing, reader = _walk(model, second, PASSED - PAIR)
        queries, probabilities = model.inferred(operand(scores, 0)), model.inferred(softmax.output[0])
        yield Attention(
            softmax,
            second,
            probabilities.type,
            queries.shape[-1] if queries.shape else 0,
            probabilities.shape[-1] if probabilities.shape else 0,
            sum(trace(model, name).is_codes for name in (*scores.input, *second.input)),
            tuple(node for node in weighing if node.op_type not in PAIR),
            closing,
            reader,
        )


def unfused(model: Model) -> Iterator[Finding]:
    for node in model.file.of_kind("Attention"):
        if node.domain in ("", "ai.onnx") and model.inferred(operand(node, 0)).type == "FLOAT":
            cause = "the compiler has no kernel for it in float32"
            yield model.finding("A1", node, cause, "cast queries, keys and values to float16", "hard")
    for found in attentions(model):
        quantized = found.quantized == 4 and found.fits
        if found.quantized == 0 and found.element == "FLOAT":
            cause = "attention in float32 is three kernels, in float16 one"
            yield model.finding("A1", found.softmax, cause, "cast to float16 around attention, or quantize all of it")
        elif quantized and not found.closing and not found.is_closed and not found.weighing:
            cause = "all but the output of this attention is quantized: it falls apart"
            yield model.finding("A2", found.values_product, cause, "put a pair with one step behind it")
        elif found.quantized == 4 and found.is_closed and not found.closing and found.is_too_large:
            cause = f"heads of {found.width} and {found.length} tokens: it falls apart"
            yield model.finding("A3", found.softmax, cause, "the kernel takes heads of 16, 32 or 64, up to 512 tokens")
        elif quantized and found.is_closed and not found.weighing and found.closing:
            if all(_has_one_step(model, node) for node in found.closing):
                cause = "it stands between attention and its output codes: it falls apart"
                cure = "quantize first, dequantize, then this, and quantize again with the same step"
                yield model.finding("A4", found.closing[0], cause, cure)
        elif quantized and found.is_closed and found.weighing:
            yield from _weighing(model, found)


def _weighing(model: Model, found: Attention) -> Iterator[Finding]:
    per_token = [node for node in (*found.weighing, *found.closing) if not _has_one_step(model, node)]
    if not per_token and not found.closing:
        crashes = found.width == CRASHES_AT and found.element == "FLOAT16"
        if crashes or found.width != CRASHES_AT:
            cause = "between Softmax and the product: " + ("the compiler crashes" if crashes else "it falls apart")
            cure = "compute attention in float32" if crashes else "use all 8 bits, which QuantizeLinear clamps to"
            yield model.finding("A5", found.weighing[0], cause, cure, "hard" if crashes else "slow")
    elif per_token and all(_is_per_token(model, node) for node in per_token):
        cause = "a step per token for the probabilities: attention falls apart"
        yield model.finding("A7", per_token[0], cause, "give the softmax one step")


RULES: tuple[Rule, ...] = (unfused,)


def _walk(model: Model, node: "Node", passed: set[str]) -> tuple[tuple["Node", ...], "Node | None"]:
    """Nodes on the way to the first that is not in `passed`, and that one; no layout and no constant factors.

    The way ends where several nodes read a value.
    """
    way: list[Node] = []
    while True:
        readers = model.file.readers.get(node.output[0], [])
        if len(readers) != 1 or readers[0] is None or readers[0].op_type not in passed:
            return tuple(way), readers[0] if len(readers) == 1 else None
        node = readers[0]
        if node.op_type not in TRANSPARENT and not is_constant_factor(model, node):
            way.append(node)


def _factors(model: Model, node: "Node") -> list[tuple[int, ...] | None]:
    return [model.inferred(name).shape for name in node.input if name in model.file.static]


def _has_one_step(model: Model, node: "Node") -> bool:
    return all(shape is not None and set(shape) <= {1} for shape in _factors(model, node))


def _is_per_token(model: Model, node: "Node") -> bool:
    return all(shape is not None and (not shape or shape[-1] == 1) for shape in _factors(model, node))
