"""The one description of a quantized network: a list of nodes.

Whatever has to know a network walks this list: the oracle, every export, the int8 block in torch, the checks of the
frozen file, taps, multiply-accumulates. Each has one function per kind of node, or none where the kind does not matter.
"""

from collections.abc import Mapping
from functools import cached_property
from math import prod
from typing import Any

import msgspec

from ofq_deploy.model.layout import expect, layout_steps
from ofq_deploy.model.nodes import (
    Add,
    AnyNode,
    Concat,
    Constant,
    Gelu,
    Image,
    LayerNorm,
    Layout,
    Linear,
    PerChannel,
    PerToken,
    PerTokenHead,
    Pool,
    Product,
    Quantize,
    Rows,
    Shape,
    Softmax,
    Token,
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
            self._check_kinds(node)
            try:
                self.shapes[node.output] = output_shape(node, self.shapes)
            except (ValueError, IndexError, KeyError) as error:
                raise ValueError(f"{node.name}: {error}") from error
            self.makers[node.output] = node
        unread = [value for value, readers in self.readers.items() if not readers and value != nodes[-1].output]
        if unread or nodes[-1].output != "logits" or len(self.shapes["logits"]) != 1:
            raise ValueError(f"nothing reads {unread[0]}" if unread else "a network ends with the vector logits")

    def _check_kinds(self, node: AnyNode) -> None:
        """Codes are multiplied and laid out, floats are what all else takes; ValueError otherwise."""
        if isinstance(node, (Layout, Rows)) or not self.quantizers:
            return
        for name in node.inputs:
            if self.holds_codes(name) != isinstance(node, (Linear, Product)):
                raise ValueError(
                    f"{node.name} reads {name}, which holds {'codes' if self.holds_codes(name) else 'floats'}"
                )

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

    def holds_codes(self, value: str) -> bool:
        return isinstance(self._source(value), Quantize)

    def quantizer_of(self, codes: str) -> Quantize:
        """The quantizer that made codes, seen through changes of layout; ValueError where the value is no codes."""
        node = self._source(codes)
        if not isinstance(node, Quantize):
            raise ValueError(f"{codes} holds no codes")
        return node

    def _source(self, value: str) -> AnyNode:
        """What made a value, seen through changes of layout."""
        node = self.makers[value]
        while isinstance(node, (Rows, Layout)):
            node = self.makers[node.x]
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
            expect(shapes[0][-1] == node.inputs_width, f"it takes {node.inputs_width} columns, not {shapes[0]}")
            expect(node.inputs_width % (node.parts or 1) == 0, f"{node.parts} parts do not divide its columns")
            return (*shapes[0][:-1], node.width)
        case Product():
            left, right = shapes[:2]
            expect(len(left) == len(right) == 3 and left[2] == right[1], f"{left} @ {right}")
            expect(left[0] in (1, right[0]), f"{left[0]} and {right[0]} heads")
            expect(not (node.key_shift and node.row_sum), "shifts behind both operands, whose product has no place")
            return (right[0], left[1], right[2])
        case Add():
            expect(len(set(shapes)) == 1, f"the sum of {shapes}")
            return shapes[0]
        case Concat():
            expect(len({shape[1:] for shape in shapes}) == 1, f"{shapes} below one another")
            return (sum(shape[0] for shape in shapes), *shapes[0][1:])
        case Rows():
            expect(node.count <= shapes[0][0], f"{node.count} rows of {shapes[0]}")
            return (node.count, *shapes[0][1:])
        case Token():
            expect(node.index < shapes[0][0], f"row {node.index} of {shapes[0]}")
            return shapes[0][1:]
        case Pool():
            expect(node.start < shapes[0][0], f"rows from {node.start} on of {shapes[0]}")
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
            expect(len(shape) > 1 and shape[-2] <= tokens, f"{tokens} token steps for {shape}")
        case PerTokenHead(tokens=tokens, heads=heads):
            expect(
                len(shape) == 2 and shape[0] <= tokens and shape[1] % heads == 0,
                f"{tokens} x {heads} steps for {shape}",
            )
        case PerChannel(axis=axis, channels=channels):
            expect(shape[axis] == channels, f"{channels} channel steps for {shape}")
    trailing = shape[len(shape) - len(node.before) :]
    expect(node.before == trailing, f"a shift of shape {node.before} for {shape}")
