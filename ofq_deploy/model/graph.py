"""The one description of a quantized network: a list of nodes, each of about a dozen kinds.

Whatever has to know a network walks this list: the oracle, every export, the int8 block in torch, the checks of the
frozen file, taps, multiply-accumulates. Each has one function per kind of node, or none where the kind does not matter.

Shapes are those of one image; a batch axis comes first in every value. A value is called after the node that makes it
(`Node.output`); arrays are found in the frozen file under the node's name.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from math import prod
from typing import Annotated, Any, Literal

import msgspec

from ofq_deploy.model.grids import MAX_BITS, MIN_BITS

Shape = tuple[int, ...]
Bits = Annotated[int, msgspec.Meta(ge=MIN_BITS, le=MAX_BITS)]
Size = Annotated[int, msgspec.Meta(ge=1)]


# Granularity: which elements of a value share a step.


class PerTensor(msgspec.Struct, frozen=True, tag=True, tag_field="kind"):
    """One step for all: step [1]."""

    @property
    def shape(self) -> Shape:
        return (1,)


class PerToken(msgspec.Struct, frozen=True, tag=True, tag_field="kind"):
    """One step per token, the last axis but one: value [..., tokens, width] -> step [tokens].

    A value that holds only the first rows of all tokens takes the first steps.
    """

    tokens: Size

    @property
    def shape(self) -> Shape:
        return (self.tokens,)


class PerTokenHead(msgspec.Struct, frozen=True, tag=True, tag_field="kind"):
    """One step per token and head: value [tokens, heads * width] -> step [tokens, heads]."""

    tokens: Size
    heads: Size

    @property
    def shape(self) -> Shape:
        return (self.tokens, self.heads)


class PerChannel(msgspec.Struct, frozen=True, tag=True, tag_field="kind"):
    """One step per channel: value [tokens, channels] or an image [channels, height, width] -> step [channels].

    axis: of the channels in the value without its batch axis: 0 in images, 1 behind them
    """

    axis: Literal[0, 1]
    channels: Size

    @property
    def shape(self) -> Shape:
        return (self.channels,)


Granularity = PerTensor | PerToken | PerTokenHead | PerChannel


# Nodes.


class Node(msgspec.Struct, frozen=True, tag=True, tag_field="kind"):
    """One operation; `inputs` are values of nodes before it, `output` is the value that it makes."""

    name: str

    @property
    def output(self) -> str:
        return self.name

    @property
    def inputs(self) -> tuple[str, ...]:
        return ()


class _Unary(Node, frozen=True):
    x: str

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.x,)


class Image(Node, frozen=True):
    """The input: float [channels, size, size]."""

    channels: Size
    size: Size


class Constant(Node, frozen=True):
    """Array `<name>`, float32 of `shape`: positions, class tokens."""

    shape: tuple[Size, ...]


class Quantize(_Unary, frozen=True):
    """Float to codes of the same shape: code = clip(round((x + before) / step)); a tap.

    Arrays: `<name>.step`, shaped by the granularity; `<name>.before`, of shape `before`, where it is not empty.
    folded: the Linear in front already divides by the step: code = clip(round(x))
    """

    grid: Literal["signed", "unsigned"]
    bits: Bits
    granularity: Granularity
    before: tuple[Size, ...] = ()
    folded: bool = False

    @property
    def output(self) -> str:
        return f"{self.name}.codes"


class Linear(_Unary, frozen=True):
    """Codes [..., in] to float [..., out]: (codes @ integers.T) * scale [* token step of the codes] [+ bias].

    Arrays: `<name>.weight.codes` int8 [out, in], `<name>.weight.step` [out], `<name>.scale` [out], `<name>.bias` [out].
    grid:  of the weights; integers are 2 codes + 1 on "half", else the codes
    parts: above 0 the columns are cut into so many equal parts, each with its own scale: scale [parts, out]

    In a float network x is float, `<name>.weight` [out, in] are the weights, and there is no scale.
    """

    inputs_width: Size
    width: Size
    grid: Literal["half", "signed"]
    bits: Bits
    bias: bool = True
    parts: int = 0

    @property
    def output(self) -> str:
        return f"{self.name}.out"


class Product(Node, frozen=True):
    """Codes left [heads or 1, m, k] @ codes right [heads, k, n] to float [heads, m, n], scaled to what they stand for.

    out = (left @ right) * scale [* token step of left]
          + key_shift @ right [* token step of right]      the shift that follows the left quantizer
          + key_bias @ bias_of^T [* token step of bias_of]  the query bias under reparameterization, one row for all m
          + sum(left) * row_sum [* token step of left]     the shift that follows the right quantizer
          + bias

    Arrays: `<name>.scale`, shaped by the granularity of the right quantizer; where they exist `<name>.key_shift` [heads of
    left, k], `<name>.key_bias` [heads, width of bias_of], `<name>.row_sum` and `<name>.bias` [heads * n].
    bias_of: codes [n, width] that `key_bias` meets, empty without one

    In a float network both are float and only the product is left.
    """

    left: str
    right: str
    key_shift: bool = False
    bias_of: str = ""
    row_sum: bool = False
    bias: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.left, self.right, *([self.bias_of] if self.bias_of else []))


class LayerNorm(_Unary, frozen=True):
    """Over the last axis; arrays `<name>.weight` and `<name>.bias` [width]."""

    epsilon: Annotated[float, msgspec.Meta(gt=0)]


class Softmax(_Unary, frozen=True):
    """Over the last axis."""


class Gelu(_Unary, frozen=True):
    """x * Phi(x), the exact form."""


class Add(Node, frozen=True):
    """The sum of values of one shape; of one value, that value.

    tap: the proof watches it (residual stream and logits)
    """

    terms: tuple[str, ...]
    tap: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.terms


class Concat(Node, frozen=True):
    """Values [tokens, width] below one another."""

    terms: tuple[str, ...]
    tap: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.terms


class Rows(_Unary, frozen=True):
    """The first `count` tokens: [tokens, width] -> [count, width]."""

    count: Size


class Token(_Unary, frozen=True):
    """One token: [tokens, width] -> [width]."""

    index: Annotated[int, msgspec.Meta(ge=0)]


class Layout(_Unary, frozen=True):
    """The same numbers in another order, as in "n (h d) -> h n d" with sizes {"h": 3}; 1 stands for a new axis."""

    pattern: str
    sizes: dict[str, Size]


AnyNode = (
    Image | Constant | Quantize | Linear | Product | LayerNorm | Softmax | Gelu | Add | Concat | Rows | Token | Layout
)


class Graph:
    """The nodes of a network in an order in which they can be computed; the first is an Image, the last gives logits.

    Raises ValueError, naming the node, for a value that is read before it is made or made twice, and for shapes that do
    not fit together.
    """

    def __init__(self, nodes: tuple[AnyNode, ...]) -> None:
        self.nodes = nodes
        self.shapes: dict[str, Shape] = {}
        self.makers: dict[str, AnyNode] = {}
        if not nodes or not isinstance(nodes[0], Image):
            raise ValueError("a network begins with an Image")
        for node in nodes:
            unknown = [name for name in node.inputs if name not in self.makers]
            if unknown or node.output in self.makers:
                raise ValueError(
                    f"{node.name} reads {unknown[0]}, which nothing before it makes"
                    if unknown
                    else f"{node.output} is made twice"
                )
            try:
                self.shapes[node.output] = output_shape(node, self.shapes)
            except (ValueError, IndexError, KeyError) as error:
                raise ValueError(f"{node.name}: {error}") from error
            self.makers[node.output] = node
        unread = [value for value, readers in self.readers.items() if not readers and value != nodes[-1].output]
        if unread or nodes[-1].output != "logits" or len(self.shapes["logits"]) != 1:
            raise ValueError(f"nothing reads {unread[0]}" if unread else "a network ends with the vector logits")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Graph) and self.nodes == other.nodes

    @property
    def image(self) -> Shape:
        """[channels, height, width]"""
        return self.shapes[self.nodes[0].output]

    @property
    def classes(self) -> int:
        return self.shapes["logits"][0]

    @cached_property
    def quantizers(self) -> dict[str, Quantize]:
        return {node.name: node for node in self.nodes if isinstance(node, Quantize)}

    @cached_property
    def linears(self) -> dict[str, Linear]:
        return {node.name: node for node in self.nodes if isinstance(node, Linear)}

    @cached_property
    def taps(self) -> dict[str, AnyNode]:
        """What the proof watches, in the order of the network: codes by the quantizer's name, floats by their own."""
        return {node.name: node for node in self.nodes if isinstance(node, Quantize) or is_float_tap(node)}

    @cached_property
    def readers(self) -> dict[str, list[AnyNode]]:
        """By value, the nodes that read it."""
        found: dict[str, list[AnyNode]] = {value: [] for value in self.makers}
        for node in self.nodes:
            for name in node.inputs:
                found[name].append(node)
        return found

    def quantizer_of(self, codes: str) -> Quantize:
        """The quantizer that made codes, seen through changes of layout; ValueError where the value is no codes."""
        node = self.makers[codes]
        while isinstance(node, (Rows, Layout)):
            node = self.makers[node.x]
        if not isinstance(node, Quantize):
            raise ValueError(f"{codes} holds no codes")
        return node

    def is_right(self, quantizer: Quantize) -> bool:
        """Whether its codes are the right operand of a product."""
        values = [quantizer.output]
        for value in values:
            for node in self.readers[value]:
                if isinstance(node, Product) and node.right == value:
                    return True
                if isinstance(node, (Rows, Layout)):
                    values.append(node.output)
        return False

    def part(self, name: str) -> tuple[AnyNode, ...]:
        """The nodes below a name, as those of one block."""
        return tuple(node for node in self.nodes if node.name.startswith(f"{name}."))

    def between(self, start: str, stop: str) -> tuple[AnyNode, ...]:
        """The nodes behind the one called `start`, up to and with the one called `stop`."""
        names = [node.output for node in self.nodes]
        return self.nodes[names.index(start) + 1 : names.index(stop) + 1]

    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        return sum(node_macs(node, self) for node in self.nodes)


def is_float_tap(node: AnyNode) -> bool:
    return isinstance(node, (Add, Concat)) and node.tap


def output_shape(node: AnyNode, values: Mapping[str, Shape]) -> Shape:
    """The shape of a node's value from those that it reads; ValueError where they do not fit."""
    shapes = [values[name] for name in node.inputs]
    match node:
        case Image():
            return (node.channels, node.size, node.size)
        case Constant():
            return node.shape
        case Linear():
            _expect(shapes[0][-1] == node.inputs_width, f"it takes {node.inputs_width} columns, not {shapes[0]}")
            _expect(node.inputs_width % (node.parts or 1) == 0, f"{node.parts} parts do not divide its columns")
            return (*shapes[0][:-1], node.width)
        case Product():
            left, right = shapes[:2]
            _expect(len(left) == len(right) == 3 and left[2] == right[1], f"{left} @ {right}")
            _expect(left[0] in (1, right[0]), f"{left[0]} and {right[0]} heads")
            _expect(not (node.key_shift and node.row_sum), "shifts behind both operands, whose product has no place")
            return (right[0], left[1], right[2])
        case Add():
            _expect(len(set(shapes)) == 1, f"the sum of {shapes}")
            return shapes[0]
        case Concat():
            _expect(len({shape[1:] for shape in shapes}) == 1, f"{shapes} below one another")
            return (sum(shape[0] for shape in shapes), *shapes[0][1:])
        case Rows():
            _expect(node.count <= shapes[0][0], f"{node.count} rows of {shapes[0]}")
            return (node.count, *shapes[0][1:])
        case Token():
            _expect(node.index < shapes[0][0], f"row {node.index} of {shapes[0]}")
            return shapes[0][1:]
        case Layout():
            return layout_steps(node, shapes[0]).merged
        case Quantize():
            _check_granularity(node, shapes[0])
            return shapes[0]
        case LayerNorm() | Softmax() | Gelu():
            return shapes[0]


def array_shapes(node: AnyNode, graph: Graph) -> dict[str, Shape]:
    """The arrays that a node reads in a quantized network, and their shapes."""
    name = node.name
    match node:
        case Constant():
            return {name: node.shape}
        case Quantize():
            before = {f"{name}.before": node.before} if node.before else {}
            return {f"{name}.step": node.granularity.shape, **before}
        case Linear():
            scale = (node.parts, node.width) if node.parts else (node.width,)
            bias = {f"{name}.bias": (node.width,)} if node.bias else {}
            weight = {f"{name}.weight.codes": (node.width, node.inputs_width), f"{name}.weight.step": (node.width,)}
            return {**weight, f"{name}.scale": scale, **bias}
        case Product():
            left, right = graph.shapes[node.left], graph.shapes[node.right]
            columns = right[0] * right[2]
            found = {f"{name}.scale": graph.quantizer_of(node.right).granularity.shape}
            found |= {f"{name}.key_shift": (left[0], left[2])} if node.key_shift else {}
            found |= {f"{name}.key_bias": (right[0], graph.shapes[node.bias_of][-1])} if node.bias_of else {}
            found |= {f"{name}.row_sum": (columns,)} if node.row_sum else {}
            return found | ({f"{name}.bias": (columns,)} if node.bias else {})
        case LayerNorm():
            width = graph.shapes[node.x][-1:]
            return {f"{name}.weight": width, f"{name}.bias": width}
        case _:
            return {}


def node_macs(node: AnyNode, graph: Graph) -> int:
    """Multiply-accumulates of one image: those of Linear and Product, the others are few."""
    match node:
        case Linear():
            return prod(graph.shapes[node.x]) * node.width
        case Product():
            return prod(graph.shapes[node.output]) * graph.shapes[node.left][2]
        case _:
            return 0


class LayoutSteps(msgspec.Struct, frozen=True):
    """A layout as reshape to `split`, transpose by `order`, reshape to `merged`.

    parts: for each axis of the input, its places in `split`
    """

    split: Shape
    order: tuple[int, ...]
    merged: Shape
    parts: tuple[tuple[int, ...], ...]

    @property
    def whole_axes(self) -> tuple[int, ...] | None:
        """The order of the input's axes that gives `order`; None where one of them comes apart."""
        turned = sorted(range(len(self.parts)), key=lambda axis: self.order.index(self.parts[axis][0]))
        places = tuple(place for axis in turned for place in self.parts[axis])
        return tuple(turned) if places == self.order else None


def layout_steps(layout: Layout, shape: Shape) -> LayoutSteps:
    """What a layout does to a value of some shape; ValueError when the pattern does not fit the shape."""
    before, after = (_axes(side) for side in layout.pattern.split(" -> "))
    _expect(len(before) == len(shape), f"{layout.pattern} does not fit {shape}")
    sizes: dict[str, int] = dict(layout.sizes)
    for axes, size in zip(before, shape, strict=True):
        open_axes = [axis for axis in axes if axis not in sizes]
        known = prod(sizes[axis] for axis in axes if axis in sizes)
        _expect(len(open_axes) <= 1 and size % known == 0, f"{layout.pattern} with {layout.sizes} does not fit {shape}")
        sizes |= dict.fromkeys(open_axes, size // known)
        _expect(
            prod(sizes[axis] for axis in axes) == size, f"{layout.pattern} with {layout.sizes} does not fit {shape}"
        )
    flat = [axis for axes in before for axis in axes]
    order = [axis for axes in after for axis in axes if axis != "1"]
    _expect(sorted(flat) == sorted(order), f"{layout.pattern} has other axes on its two sides")
    return LayoutSteps(
        split=tuple(sizes[axis] for axis in flat),
        order=tuple(flat.index(axis) for axis in order),
        merged=tuple(prod(sizes[axis] for axis in axes if axis != "1") for axes in after),
        parts=tuple(tuple(flat.index(axis) for axis in axes) for axes in before),
    )


def encode_graph(graph: Graph) -> list[dict[str, Any]]:
    """As JSON."""
    encoded: list[dict[str, Any]] = msgspec.to_builtins(list(graph.nodes))
    return encoded


def decode_graph(nodes: Any) -> Graph:
    """From JSON; ValueError for a node of an unknown kind, a wrong field, or a list that is no network."""
    try:
        return Graph(tuple(msgspec.convert(nodes, list[AnyNode])))
    except msgspec.ValidationError as error:
        raise ValueError(f"a node cannot be read: {error}") from error


def _check_granularity(node: Quantize, shape: Shape) -> None:
    match node.granularity:
        case PerToken(tokens=tokens):
            _expect(len(shape) > 1 and shape[-2] <= tokens, f"{tokens} token steps for {shape}")
        case PerTokenHead(tokens=tokens, heads=heads):
            _expect(
                len(shape) == 2 and shape[0] <= tokens and shape[1] % heads == 0,
                f"{tokens} x {heads} steps for {shape}",
            )
        case PerChannel(axis=axis, channels=channels):
            _expect(shape[axis] == channels, f"{channels} channel steps for {shape}")
    trailing = shape[len(shape) - len(node.before) :]
    _expect(node.before == trailing, f"a shift of shape {node.before} for {shape}")


def _axes(side: str) -> list[list[str]]:
    """Of "n (h d)" they are [["n"], ["h", "d"]]."""
    groups: Iterator[list[str]] = (group.split() for group in side.replace("(", "|").replace(")", "|").split("|"))
    return [
        axes
        for place, group in enumerate(groups)
        for axes in ([group] if place % 2 else [[axis] for axis in group])
        if axes
    ]


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
