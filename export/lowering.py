"""From a list of nodes to an ONNX graph: what networks on codes and on floats have in common, a method for each kind of node.

The batch axis is symbolic. Values are named after the nodes that make them, so that whoever reads a file finds the taps.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import assert_never

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ofq_deploy.errors import UnsupportedByTarget
from ofq_deploy.export.builder import Builder
from ofq_deploy.export.targets import HIGHEST_OPSET
from ofq_deploy.model import nodes
from ofq_deploy.model.graph import Graph
from ofq_deploy.model.layout import layout_steps

LOWEST_OPSET = 20  # Gelu
Floats = NDArray[np.float32]


def check_opset(opset: int) -> int:
    """The opset, or UnsupportedByTarget when no graph of ours can be written in it."""
    if not LOWEST_OPSET <= opset <= HIGHEST_OPSET:
        raise UnsupportedByTarget(f"opset {opset} cannot hold the graph; use {LOWEST_OPSET} to {HIGHEST_OPSET}")
    return opset


class Lowering(ABC):
    """Emits the nodes of a network one after the other; subclasses add Quantize, Linear and Product.

    arrays: float32, by the names that the nodes give them
    values: what has been emitted, by the names of the network's values; constants and some layouts are only emitted where
            they are read
    """

    def __init__(self, network: Graph, arrays: Mapping[str, Floats]) -> None:
        self.network, self.arrays, self.b = network, arrays, Builder()
        channels, height, width = network.image
        shape = ir.Shape(["batch", channels, height, width])
        self.image = ir.Value(name="image", shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
        self.values: dict[str, ir.Value] = {"image": self.image}

    def lower(self) -> ir.Value:
        """Emit everything and return the logits, float32 [batch, classes]."""
        for node in self.network.nodes:
            self.emit(node)
        logits = self.values["logits"]
        logits.shape, logits.type = ir.Shape(["batch", self.network.classes]), ir.TensorType(ir.DataType.FLOAT)
        return logits

    def emit(self, node: nodes.AnyNode) -> None:
        match node:
            case nodes.Image() | nodes.Constant():
                return
            case nodes.Quantize():
                value = self.quantize(node)
            case nodes.Linear():
                value = self.linear(node)
            case nodes.Product():
                value = self.product(node)
            case nodes.LayerNorm():
                value = self.layer_norm(node)
            case nodes.Softmax():
                value = self.b.op("Softmax", [self.values[node.x]], node.name, {"axis": -1})
            case nodes.Gelu():
                value = self.b.op("Gelu", [self.values[node.x]], node.name)
            case nodes.Add():
                value = self.add(node)
            case nodes.Concat():
                terms = [self.broadcast(name) for name in node.terms]
                value = self.b.op("Concat", terms, node.name, {"axis": 1})
            case nodes.Rows():
                value = self.rows(node)
            case nodes.Token():
                index = self.b.constant(f"token.{node.index}", np.int64(node.index))
                value = self.b.op("Gather", [self.values[node.x], index], node.name, {"axis": 1})
            case nodes.Pool():
                value = self.pool(node)
            case nodes.Layout():
                if self.is_deferred(node):
                    return
                value = self.layout(node, self.values[node.x], node.name.rpartition(".")[0], node.name)
            case _:
                assert_never(node)
        self.values[node.output] = value

    @abstractmethod
    def quantize(self, node: nodes.Quantize) -> ir.Value: ...

    @abstractmethod
    def linear(self, node: nodes.Linear) -> ir.Value: ...

    @abstractmethod
    def product(self, node: nodes.Product) -> ir.Value: ...

    @abstractmethod
    def is_deferred(self, layout: nodes.Layout) -> bool:
        """Whether the node that reads a layout emits it."""

    def layer_norm(self, node: nodes.LayerNorm) -> ir.Value:
        weights = [
            self.b.float(f"{node.name}.{part}", self.arrays[f"{node.name}.{part}"]) for part in ("weight", "bias")
        ]
        attributes = {"axis": -1, "epsilon": node.epsilon}
        return self.b.op("LayerNormalization", [self.values[node.x], *weights], node.name, attributes)

    def add(self, node: nodes.Add) -> ir.Value:
        terms = [self.operand(name) for name in node.terms]
        return self.b.op({1: "Identity", 2: "Add"}.get(len(terms), "Sum"), terms, node.name)

    def rows(self, node: nodes.Rows) -> ir.Value:
        return self.cut(self.values[node.x], 0, node.count, node.name)

    def pool(self, node: nodes.Pool) -> ir.Value:
        """The axis goes by an operator of its own: OpenVINO 2026.4 adds a shift wrongly to a mean that has lost it."""
        rows, x = self.network.shapes[node.x][0], self.values[node.x]
        x = self.cut(x, node.start, rows, f"{node.name}.rows") if node.start else x
        axis = self.b.constant("slice.1.axis", np.asarray([1]))
        mean = self.b.op("ReduceMean", [x, axis], f"{node.name}.mean", {"keepdims": 1})
        return self.b.op("Squeeze", [mean, axis], node.name)

    def cut(self, x: ir.Value, start: int, end: int, name: str) -> ir.Value:
        """Tokens from `start` to before `end`."""
        bounds = [
            self.b.constant(f"slice.{place}.{what}", np.asarray([place]))
            for what, place in (("from", start), ("to", end), ("axis", 1))
        ]
        return self.b.op("Slice", [x, *bounds], name)

    def operand(self, name: str) -> ir.Value:
        """A value, or a constant with a batch axis of 1."""
        if name in self.values:
            return self.values[name]
        return self.b.float(name, self.arrays[name][None])

    def broadcast(self, name: str) -> ir.Value:
        """A value, or a constant repeated for every image."""
        if name in self.values:
            return self.values[name]
        b, array = self.b, self.arrays[name]
        batch = b.op("Shape", [self.image], "batch", {"start": 0, "end": 1})
        ones = b.constant(f"ones.{array.ndim}", np.ones(array.ndim, dtype=np.int64))
        shape = b.op("Concat", [batch, ones], f"{name}.shape", {"axis": 0})
        return b.op("Expand", [b.float(f"{name}.row", array[None]), shape], name)

    def layout(self, node: nodes.Layout, x: ir.Value, base: str, name: str) -> ir.Value:
        """x in the layout's order, in as few operators as it takes; `base` begins the names of those before the last."""
        before = self.network.shapes[node.x]
        steps = layout_steps(node, before)
        order, shape = steps.whole_axes, before
        if order is None:
            order, shape = steps.order, steps.split
            x = self.b.reshape(x, [0, *shape], f"{base}.split") if shape != before else x
        turned = tuple(shape[axis] for axis in order)
        if order != tuple(range(len(shape))):
            x = self.b.transpose(x, (0, *(axis + 1 for axis in order)), name if turned == steps.merged else f"{base}.t")
        return self.b.reshape(x, [0, *steps.merged], name) if turned != steps.merged else x
