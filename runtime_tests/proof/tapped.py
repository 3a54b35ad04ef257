"""A model file as a witness: its taps in and out, in the oracle's layout, in any runtime that opens ONNX."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ofq_deploy.errors import OnnxFileError
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.model.frozen import Frozen
from ofq_deploy.runner import FORCED, Arrays, Metadata, Runner
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

    def __init__(self, file: OnnxFile, frozen: Frozen, open_graph: OpenGraph) -> None:
        self._reading = file.described.made_for.load_reading()(file, frozen)
        self._open_graph = open_graph
        self._runners: dict[tuple[bool, int], Runner] = {}
        self._values = self._reading.values
        computed = {name for node in self._reading.watched().graph.node for name in node.output}
        missing = [name for name, value in self._values.items() if value not in computed]
        if missing:
            raise OnnxFileError(f"{file.path} does not compute the codes of {missing[0]}; export it again")
        try:
            image = np.zeros((1, *frozen.graph.image), dtype=np.float32)
            outputs = self._runner({}, 1).infer({"image": image})
        except BaseException:
            self.close()
            raise
        self._dtypes = {name: outputs[value].dtype for name, value in self._values.items()}
        names = tuple(self._values)
        opened = self._runners[False, 1].metadata
        self._metadata = replace(opened, inputs=("image", *(name + FORCED for name in names)), outputs=names)

    @property
    def metadata(self) -> Metadata:
        return self._metadata

    def infer(self, inputs: Arrays) -> Arrays:
        forced = {}
        for name in (name.removesuffix(FORCED) for name in inputs if name.endswith(FORCED)):
            forced[self._values[name]] = self._reading.write(name, inputs[name + FORCED], self._dtypes[name])
        feeds = {"image": inputs["image"], **{value + FORCED: array for value, array in forced.items()}}
        outputs = self._runner(forced, len(inputs["image"])).infer(feeds)
        return {name: self._reading.read(name, outputs[value]) for name, value in self._values.items()}

    def close(self) -> None:
        for runner in self._runners.values():
            runner.close()
        self._runners = {}

    def _runner(self, forced: Arrays, batch: int) -> Runner:
        """One per kind of graph and batch size, opened when it is first needed."""
        key = bool(forced), batch
        if key not in self._runners:
            graph = self._reading.watched()
            if forced:
                self._reading.force(graph, forced)
            self._runners[key] = self._open_graph(graph, batch)
        return self._runners[key]


def open_tapped(backend: str, file: OnnxFile, frozen: Frozen) -> TappedModel:
    """The model in one runtime, on one thread: codes must not depend on how many there are."""
    return TappedModel(file, frozen, lambda graph, batch: open_runner(backend, graph, threads=1, batch=batch))
