"""How the proof reads a file of fused operators: taps in tiles, softmax codes inside attention, weights as planes of bits."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ofq_deploy.kernels import DOMAIN
from ofq_deploy.model import nodes
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.model.frozen import Frozen
from ofq_deploy.model.planes import unpack_planes
from ofq_deploy.model.tiles import (
    tile_codes,
    tile_floats,
    tile_patches,
    untile_codes,
    untile_floats,
    untile_patches,
)
from ofq_deploy.runner import Arrays
from ofq_deploy.runtime_tests.proof.reading import Integers, Reading

if TYPE_CHECKING:
    import onnx

FORCED_INPUT = 17  # of Attention (docs/kernels.md): codes that stand in for those of its softmax


class FusedReading(Reading):
    """Values of ordinary operators are read as in any file: a graph may have both."""

    def __init__(self, file: OnnxFile, frozen: Frozen) -> None:
        super().__init__(file, frozen)
        fused = [node for node in file.proto.graph.node if node.domain == DOMAIN]
        self._makers = {node.output[0]: _Operator(node) for node in fused}
        constants = {tensor.name: tensor for tensor in file.proto.graph.initializer}
        weights = {name: operator for operator in self._makers.values() for name in operator.inputs[1:2]}
        self._weights = {
            name: (weights[stored], constants[stored])
            for name in frozen.linears
            if (stored := f"{name}.weight.codes") in weights and stored in constants
        }

    def watched(self) -> "onnx.ModelProto":
        """Attention gives its softmax codes as a second output, where it is asked for them."""
        graph = super().watched()
        for node, codes in self._softmax_codes(graph):
            node.output[:] = [node.output[0], codes]
        return graph

    def force(self, graph: "onnx.ModelProto", values: Arrays) -> None:
        for node, codes in self._softmax_codes(graph):
            node.input.extend([""] * (FORCED_INPUT - len(node.input)) + [codes])
        super().force(graph, values)

    def read(self, tap: str, array: NDArray[Any]) -> NDArray[Any]:
        value = self.values[tap]
        operator, shape = self._makers.get(value), self.frozen.graph.shapes[value]
        if operator is None or operator.kind == "LinearHead":
            return super().read(tap, array)
        if operator.kind == "Patches":
            plain = untile_patches(array, (shape[0], shape[1], shape[2]), *operator.of("patch", "first", "parts"))
        elif tap not in self.frozen.quantizers:
            plain = untile_floats(array, *shape)
        elif (token := self._token(tap)) is not None:
            plain = untile_codes(array, token + 1, shape[0])[:, token]
        else:
            plain = untile_codes(array, *shape)
        return super().read(tap, plain)

    def write(self, tap: str, array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        operator, plain = self._makers.get(self.values[tap]), super().write(tap, array, dtype)
        if operator is None or operator.kind == "LinearHead":
            return plain
        if operator.kind == "Patches":
            patch, first, parts = operator.of("patch", "first", "parts")
            return tile_patches(plain, patch, first, parts, self._offset(tap, dtype))
        if tap not in self.frozen.quantizers:
            return tile_floats(plain)
        if (token := self._token(tap)) is not None:
            plain = np.pad(plain[:, None], [(0, 0), (token, 0), (0, 0)])
        return tile_codes(plain)

    def integers(self) -> dict[str, Integers]:
        """Planes are decoded here: the library does so when it makes its operators."""
        ordinary = [name for name in self.frozen.linears if name not in self._weights]
        found = self.decoded(ordinary) if ordinary else {}
        return found | {name: _unpacked(*stored) for name, stored in self._weights.items()}

    def _token(self, tap: str) -> int | None:
        """The one token that a head's codes are of; they lie in a tile with others."""
        maker = self.frozen.graph.makers[self.frozen.quantizers[tap].x]
        return maker.index if isinstance(maker, nodes.Token) else None

    def _softmax_codes(self, graph: "onnx.ModelProto") -> "list[tuple[onnx.NodeProto, str]]":
        """Every attention, and the name of its softmax codes."""
        found = []
        makers = self.frozen.graph.makers
        for node in graph.graph.node:
            if (node.domain, node.op_type) == (DOMAIN, "Attention"):
                maker: nodes.AnyNode | None = makers.get(node.output[0])
                while maker is not None and not isinstance(maker, nodes.Product):
                    maker = makers[maker.inputs[0]] if maker.inputs else None
                found += [(node, maker.left)] if maker is not None else []
        return found


class _Operator:
    """A fused node: its kind, inputs, and integer attributes."""

    def __init__(self, node: "onnx.NodeProto") -> None:
        self.kind, self.inputs = node.op_type, list(node.input)
        self._attributes = {attribute.name: attribute.i for attribute in node.attribute}

    def of(self, *names: str) -> list[int]:
        return [self._attributes.get(name, 0) for name in names]


def _unpacked(operator: _Operator, stored: "onnx.TensorProto") -> Integers:
    """int16 [out, in]; empty where the planes have another size than the node says."""
    import onnx

    packed = onnx.numpy_helper.to_array(stored)
    bits, half, width, inputs, parts = operator.of("weight_bits", "half", "width", "inputs", "parts")
    shape = width, inputs * max(parts, 1)
    if packed.dtype != np.uint8 or packed.size != -(-bits * shape[0] * shape[1] // 8):
        return np.zeros((0, 0), dtype=np.int16)
    codes = unpack_planes(packed, bits, shape).astype(np.int16)
    return 2 * codes + np.int16(1) if half else codes
