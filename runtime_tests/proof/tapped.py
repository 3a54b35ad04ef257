"""A model file as a witness: its taps in and out, in the oracle's layout, in any runtime that opens ONNX."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ofq_deploy.errors import OnnxFileError
from ofq_deploy.model.file import is_float_tap, open_model, taps, with_forced_taps, with_taps
from ofq_deploy.model.frozen import Frozen
from ofq_deploy.runner import FORCED, Arrays, Metadata, Runner
from ofq_deploy.runtime_tests.proof.oracle import Oracle
from ofq_deploy.runtime_tests.runners.registry import open_runner

if TYPE_CHECKING:
    import onnx

OpenGraph = Callable[["onnx.ModelProto", int], Runner]  # a graph, and the batch size that it will be run at


class TappedModel(Runner):
    """Takes `image`, and codes or floats under `<tap>/forced` for every tap but the logits, or for none. Gives every
    tap under its own name: codes as int16 on the grid of their quantizer, the residual stream and the logits as floats.

    With forced taps whatever follows a tap reads the forced value: every operator is computed on its own.

    Raises OnnxFileError for a file that lacks a tap, or does not load.
    """

    def __init__(self, path: Path, frozen: Frozen, open_graph: OpenGraph) -> None:
        self._model, _ = open_model(path)
        self._frozen, self._open_graph = frozen, open_graph
        self._runners: dict[tuple[bool, int], Runner] = {}
        names = tuple(_plain(name) for name in taps(self._model))
        missing = [name for name in Oracle(frozen).metadata.outputs if name not in names]
        if missing:
            raise OnnxFileError(f"{path} does not compute the codes of {missing[0]}; export it again")
        try:
            image = np.zeros((1, *_image_shape(frozen)), dtype=np.float32)
            outputs = self._runner({}, 1).infer({"image": image})
        except BaseException:
            self.close()
            raise
        self._dtypes = {name: value.dtype for name, value in outputs.items()}
        own = self._runners[False, 1].metadata
        self._metadata = replace(own, inputs=("image", *(name + FORCED for name in names)), outputs=names)

    @property
    def metadata(self) -> Metadata:
        return self._metadata

    def infer(self, inputs: Arrays) -> Arrays:
        batch = len(inputs["image"])
        forced = {
            _tap(name.removesuffix(FORCED)): self._to_graph(name.removesuffix(FORCED), value)
            for name, value in inputs.items()
            if name.endswith(FORCED)
        }
        feeds = {"image": inputs["image"], **{name + FORCED: value for name, value in forced.items()}}
        outputs = self._runner(forced, batch).infer(feeds)
        return {_plain(name): self._from_graph(name, value) for name, value in outputs.items()}

    def close(self) -> None:
        for runner in self._runners.values():
            runner.close()
        self._runners = {}

    def _runner(self, forced: Arrays, batch: int) -> Runner:
        """One per kind of graph and batch size, opened when it is first needed."""
        key = bool(forced), batch
        if key not in self._runners:
            graph = with_forced_taps(self._model, forced) if forced else with_taps(self._model)
            self._runners[key] = self._open_graph(graph, batch)
        return self._runners[key]

    def _to_graph(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        dtype = self._dtypes[_tap(name)]
        return np.ascontiguousarray(value + self._offset(name, dtype), dtype=dtype)

    def _from_graph(self, tap: str, value: NDArray[Any]) -> NDArray[Any]:
        if is_float_tap(tap):
            return value
        return value.astype(np.int16) - np.int16(self._offset(_plain(tap), value.dtype))

    def _offset(self, name: str, dtype: np.dtype[Any]) -> int:
        """What the graph adds to codes: uint8 starts at 0, and unsigned 8-bit codes in int8 at -128."""
        if is_float_tap(name):
            return 0
        low, high = self._frozen.quantizer(name).range
        return -low if dtype == np.uint8 else -128 if high > 127 else 0


def open_tapped(backend: str, path: Path, frozen: Frozen) -> TappedModel:
    """The model in one runtime, on one thread: codes must not depend on how many there are."""
    return TappedModel(path, frozen, lambda graph, batch: open_runner(backend, graph, threads=1, batch=batch))


def _image_shape(frozen: Frozen) -> tuple[int, int, int]:
    a = frozen.architecture
    return a.channels, a.image_size, a.image_size


def _tap(name: str) -> str:
    """The graph's name of a tap: codes carry a suffix, floats do not."""
    return name if is_float_tap(name) else f"{name}.codes"


def _plain(tap: str) -> str:
    return tap.removesuffix(".codes")
