"""Parts of a network that a fused operator computes (docs/kernels.md), found by kinds of nodes and by who reads whom.

A pattern ends with the node whose value the operator makes. Whatever lies inside is read by nothing else, but for a LayerNorm,
which every quantizer behind it computes anew.
"""

from dataclasses import dataclass

from ofq_deploy.model import nodes
from ofq_deploy.model.graph import Graph
from ofq_deploy.model.grids import MAX_BITS
from ofq_deploy.model.layout import layout_steps
from ofq_deploy.model.nodes import AnyNode, PerChannel, PerTensor, PerToken, PerTokenHead
from ofq_deploy.model.tiles import QUAD

# Reshape to, transpose by, merge to: the orders of axes that the operators take.
SPLIT_HEADS, SPLIT_KEYS, JOINED_HEADS, PATCHES = (1, 0, 2), (1, 2, 0), (1, 0, 2), (1, 3, 0, 2, 4)


@dataclass(frozen=True, slots=True)
class PatchEmbedding:
    """Image quantizer, layout, linear, position; before them, where there are any, rows that are the same for all images."""

    quantizer: nodes.Quantize
    patch: int
    linear: nodes.Linear
    position: nodes.Constant
    prefix: tuple[nodes.Constant, ...]
    reads: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NormCodes:
    """LayerNorm and its quantizer.

    tokens: that are computed, the last of which `token` asks for where it is not None
    """

    norm: nodes.LayerNorm
    quantizer: nodes.Quantize
    tokens: int
    token: int | None
    reads: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LinearCodes:
    """Linear and quantizer, with or without GELU between them."""

    linear: nodes.Linear
    gelu: bool
    quantizer: nodes.Quantize
    reads: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LinearSum:
    """Linear, and its sum with the residual stream, the last of `reads`."""

    linear: nodes.Linear
    reads: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Heads:
    """The sum of linear layers, each on the codes of one token."""

    linears: tuple[nodes.Linear, ...]
    tokens: tuple[int, ...]
    reads: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Attention:
    """From the codes of queries, keys and values, the first of `reads`, to those of the context.

    shared: all heads read the same queries
    """

    scores: nodes.Product
    softmax: nodes.Quantize
    context: nodes.Product
    quantizer: nodes.Quantize
    shared: bool
    reads: tuple[str, ...]


Pattern = PatchEmbedding | NormCodes | LinearCodes | LinearSum | Heads | Attention


def root(graph: Graph, value: str) -> str:
    """The value that its first rows are cut from: readers of tiles take the first ones."""
    while isinstance(node := graph.makers[value], nodes.Rows):
        value = node.x
    return value


def find_pattern(graph: Graph, end: AnyNode) -> Pattern | None:
    """The pattern that ends with a node, if there is one."""
    match end:
        case nodes.Quantize():
            return _codes(graph, end)
        case nodes.Concat():
            return _patches(graph, end)
        case nodes.Add() if len(graph.shapes[end.output]) == 1:
            return _heads(graph, end)
        case nodes.Add():
            return _patches(graph, end) or _sum(graph, end)
        case _:
            return None


def _codes(graph: Graph, end: nodes.Quantize) -> Pattern | None:
    shape = graph.shapes[end.output]
    by_row = isinstance(end.granularity, PerChannel) and end.granularity.axis == 0
    if end.before not in ((), shape[-1:]) or by_row:
        return None
    maker = graph.makers[root(graph, end.x)]
    if isinstance(maker, nodes.LayerNorm) and isinstance(end.granularity, (PerTensor, PerToken, PerChannel)):
        return NormCodes(maker, end, shape[0], None, (root(graph, maker.x),)) if len(shape) == 2 else None
    if isinstance(maker, nodes.Token) and isinstance(end.granularity, PerTensor):
        norm = graph.makers[root(graph, maker.x)]
        if isinstance(norm, nodes.LayerNorm):
            return NormCodes(norm, end, maker.index + 1, maker.index, (root(graph, norm.x),))
    inner = _inner(graph, end.x)
    if len(shape) != 2 or not _by_lines(end.granularity, shape[1]):
        return None
    if isinstance(inner, nodes.Linear) and _fits(inner):
        return LinearCodes(inner, False, end, (root(graph, inner.x),))
    if isinstance(inner, nodes.Gelu) and not isinstance(end.granularity, PerChannel):
        linear = _inner(graph, inner.x)
        if isinstance(linear, nodes.Linear) and _fits(linear):
            return LinearCodes(linear, True, end, (root(graph, linear.x),))
    return _attention(graph, end) if isinstance(inner, nodes.Layout) else None


def _sum(graph: Graph, end: nodes.Add) -> LinearSum | None:
    if len(end.terms) != 2:
        return None
    for residual, term in (end.terms, end.terms[::-1]):
        linear = _inner(graph, term)
        if isinstance(linear, nodes.Linear) and _fits(linear):
            return LinearSum(linear, (root(graph, linear.x), root(graph, residual)))
    return None


def _heads(graph: Graph, end: nodes.Add) -> Heads | None:
    linears, tokens = [], []
    for term in end.terms:
        linear = _inner(graph, term)
        if not isinstance(linear, nodes.Linear) or not _fits(linear):
            return None
        pattern = find_pattern(graph, graph.makers[linear.x])
        if not isinstance(pattern, NormCodes) or pattern.token is None:
            return None
        linears.append(linear)
        tokens.append(pattern.token)
    return Heads(tuple(linears), tuple(tokens), tuple(linear.x for linear in linears))


def _patches(graph: Graph, end: nodes.Add | nodes.Concat) -> PatchEmbedding | None:
    prefix = [graph.makers[term] for term in end.terms[:-1]] if isinstance(end, nodes.Concat) else []
    placed = _inner(graph, end.terms[-1]) if isinstance(end, nodes.Concat) else end
    if not isinstance(placed, nodes.Add) or len(placed.terms) != 2 or (placed is not end and placed.tap):
        return None
    terms = placed.terms if isinstance(graph.makers[placed.terms[1]], nodes.Constant) else placed.terms[::-1]
    linear, position = _inner(graph, terms[0]), graph.makers[terms[1]]
    if not isinstance(linear, nodes.Linear) or not _fits(linear, linear.parts):
        return None
    if not isinstance(position, nodes.Constant):
        return None
    layout = _inner(graph, linear.x)
    quantizer = _inner(graph, layout.x) if isinstance(layout, nodes.Layout) else None
    if not isinstance(layout, nodes.Layout) or not isinstance(quantizer, nodes.Quantize):
        return None
    if not isinstance(graph.makers[quantizer.x], nodes.Image):
        return None
    channels, side = graph.shapes[quantizer.x][:2]
    steps = layout_steps(layout, graph.shapes[layout.x])
    patch = steps.split[2] if len(steps.split) == len(PATCHES) else 0
    whole = patch and steps.split == (channels, side // patch, patch, side // patch, patch) and steps.order == PATCHES
    fits = quantizer.before in ((), (side, side)) and not channels % (linear.parts or 1) and not quantizer.folded
    known = isinstance(quantizer.granularity, PerTensor) or quantizer.granularity == PerChannel(0, channels)
    constants = [node for node in prefix if isinstance(node, nodes.Constant)]
    if not whole or not fits or not known or len(constants) < len(prefix):
        return None
    return PatchEmbedding(quantizer, patch, linear, position, tuple(constants))


def _attention(graph: Graph, end: nodes.Quantize) -> Attention | None:
    flat = _inner(graph, end.x)
    context = _inner(graph, flat.x) if isinstance(flat, nodes.Layout) else None
    softmax = _inner(graph, context.left) if isinstance(context, nodes.Product) else None
    power = _inner(graph, softmax.x) if isinstance(softmax, nodes.Quantize) else None
    scores = _inner(graph, power.x) if isinstance(power, nodes.Softmax) else None
    if not isinstance(scores, nodes.Product) or not isinstance(context, nodes.Product):
        return None
    if not isinstance(flat, nodes.Layout) or not isinstance(softmax, nodes.Quantize):
        return None
    heads, rows, width = graph.shapes[context.output]
    flatten = layout_steps(flat, (heads, rows, width))
    steps_fit = isinstance(end.granularity, (PerTensor, PerToken, PerChannel))
    if not steps_fit or (flatten.order, flatten.merged) != (JOINED_HEADS, (rows, heads * width)):
        return None
    if softmax.grid != "unsigned" or softmax.before or softmax.folded:
        return None
    if not isinstance(softmax.granularity, (PerTensor, PerToken)):
        return None
    if context.key_shift or context.bias_of or scores.row_sum or scores.bias:
        return None
    queries = _split(graph, scores.left, SPLIT_HEADS) or _split(graph, scores.left, (0, 1))
    keys, values = _split(graph, scores.right, SPLIT_KEYS), _split(graph, context.right, SPLIT_HEADS)
    if queries is None or keys is None or values is None:
        return None
    allowed = {
        queries: (PerTensor, PerToken),
        keys: (PerTensor, PerToken, PerTokenHead),
        values: (PerTensor, PerChannel),
        **({scores.bias_of: (PerTensor, PerToken)} if scores.bias_of else {}),
    }
    if not all(isinstance(graph.quantizer_of(codes).granularity, kinds) for codes, kinds in allowed.items()):
        return None
    sides = graph.quantizer_of(keys), graph.quantizer_of(values)
    fit_bytes = all(side.grid == "signed" or side.bits < MAX_BITS for side in sides)  # the signed operand of a product
    if not fit_bytes or width % QUAD or graph.shapes[scores.left][2] % QUAD:
        return None
    shared = graph.shapes[scores.left][0] == 1
    other = (root(graph, scores.bias_of),) if scores.bias_of else ()
    return Attention(scores, softmax, context, end, shared, (queries, keys, values, *other))


def _split(graph: Graph, value: str, order: tuple[int, ...]) -> str | None:
    """What a layout of codes [tokens, heads * width] was made from, by that order of axes; seen through cuts."""
    layout = graph.makers[value]
    if not isinstance(layout, nodes.Layout) or len(graph.shapes[layout.x]) != 2:
        return None
    steps = layout_steps(layout, graph.shapes[layout.x])
    turned = tuple(steps.split[axis] for axis in steps.order)
    merged = turned if len(order) == 3 else (1, *turned)
    is_split = steps.order == order and steps.merged == merged and steps.split[0] == graph.shapes[layout.x][0]
    return root(graph, layout.x) if is_split else None


def _fits(linear: nodes.Linear, parts: int = 0) -> bool:
    """Whether the columns come in so many parts, and 9-bit integers, beside which codes are summed by lines, in whole lines."""
    is_wide = linear.grid == "half" and linear.bits == MAX_BITS
    in_lines = linear.inputs_width // (parts or 1) % QUAD == 0
    return linear.parts == parts and (in_lines or not is_wide)


def _by_lines(granularity: nodes.Granularity, width: int) -> bool:
    """Whether heads with steps of their own begin on lines of codes."""
    return not isinstance(granularity, PerTokenHead) or not width // granularity.heads % QUAD


def _inner(graph: Graph, value: str) -> AnyNode | None:
    """What made a value, seen through cuts; None where anything but the node behind it reads it."""
    while len(graph.readers[value]) == 1:
        node = graph.makers[value]
        if not isinstance(node, nodes.Rows):
            return node
        value = node.x
    return None
