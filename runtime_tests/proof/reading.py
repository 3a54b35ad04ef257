"""How the proof reads a model file: where its taps lie and in which layout, and the integers of its weights.

What is said here holds for graphs of ordinary operators; a target whose files differ names its own class in its record.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ofq_deploy.model.file import OnnxFile, decoder, force, with_outputs
from ofq_deploy.model.frozen import Frozen
from ofq_deploy.runner import Arrays
from ofq_deploy.runtime_tests.runners.ort import open_session, run_all

if TYPE_CHECKING:
    import onnx

Integers = NDArray[np.int16]


class Reading:
    """values: by tap, the name of its value in the graph."""

    def __init__(self, file: OnnxFile, frozen: Frozen) -> None:
        self.file, self.frozen = file, frozen
        self.values = {name: node.output for name, node in frozen.graph.taps.items()}

    def watched(self) -> "onnx.ModelProto":
        """A copy of the graph that gives the values of all taps as outputs."""
        return with_outputs(self.file.proto, self.values.values())

    def force(self, graph: "onnx.ModelProto", values: Arrays) -> None:
        """Let what follows the values, arrays as `write` makes them, read new inputs `<value>/forced` instead."""
        force(graph, values)

    def read(self, tap: str, array: NDArray[Any]) -> NDArray[Any]:
        """A value of the graph as the oracle has it: codes as int16 on their grid, floats as they are."""
        if tap not in self.frozen.quantizers:
            return array
        return array.astype(np.int16) - np.int16(self._offset(tap, array.dtype))

    def write(self, tap: str, array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        """What `read` gives, as the graph has it."""
        return np.ascontiguousarray(array + self._offset(tap, dtype), dtype=dtype)

    def _offset(self, tap: str, dtype: np.dtype[Any]) -> int:
        """What the graph adds to codes: uint8 starts at 0, and unsigned 8-bit codes in int8 at -128."""
        if tap not in self.frozen.quantizers:
            return 0
        low, high = self.frozen.quantizer(tap).range
        return -low if dtype == np.uint8 else -128 if high > 127 else 0

    def integers(self) -> dict[str, Integers]:
        """The weights [out, in] of every linear, as its integers, decoded by the file's own nodes in ONNX Runtime."""
        return self.decoded(list(self.frozen.linears))

    def decoded(self, linears: list[str]) -> dict[str, Integers]:
        """OnnxFileError for a file that holds no weights of one of them."""
        parts = {name: self._parts(name) for name in linears}
        found = run_all(open_session(decoder(self.file.proto, [part for own in parts.values() for part in own])), {})
        found = {name.removesuffix("/decoded"): value for name, value in found.items()}
        return {name: self._whole(name, [found[part] for part in own]) for name, own in parts.items()}

    def _parts(self, name: str) -> list[str]:
        """Columns with scales of their own are kept as a matrix each."""
        parts = self.frozen.linears[name].parts
        return [f"{name}.weight"] if parts < 2 else [f"{name}.{part}.weight" for part in range(parts)]

    def _whole(self, name: str, parts: list[NDArray[Any]]) -> Integers:
        linear = self.frozen.linears[name]
        stored = np.concatenate(parts).T.astype(np.int16)
        is_wide = linear.grid == "half" and linear.bits == 8  # kept as codes: the integers need 9 bits
        return 2 * stored + np.int16(1) if is_wide else stored
