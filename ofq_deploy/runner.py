"""What every runtime looks like to the code that measures and compares."""

from dataclasses import dataclass
from importlib import metadata as packages
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

RUNTIME_TIE = 1e-4  # codes from a threshold: a runtime against the float64 oracle
TORCH_TIE = 1e-3  # torch float32, which sums thousands of rounded products
FORCED = "/forced"  # ends the name of an input that takes the place of a tap
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Metadata:
    """Which runtime computes, on what, and how it was told to.

    backend:  the name by which it is chosen, as "ort-cpu"
    runtime:  package and version, as "onnxruntime 1.31.1"
    device:   "cpu", or the name of the GPU
    settings: threads and whatever else changes speed or rounding
    inputs, outputs: the names that `infer` takes and gives
    tie:      how close to a threshold, in codes, its arithmetic may round the other way than float64 does
    """

    backend: str
    runtime: str
    device: str
    settings: dict[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tie: float = RUNTIME_TIE


@dataclass(frozen=True, slots=True)
class Opening:
    """How a model is opened.

    name:     what the runner is called by, as "ort-cpu:plain"
    threads:  0 for one per core
    batch:    the only batch size that will be run, where it is known: some runtimes are faster for it
    optimize: whether the runtime's optimizer may rewrite the graph
    python:   the interpreter whose runtime is meant, where it is not this one's
    """

    name: str
    threads: int = 0
    batch: int | None = None
    optimize: bool = True
    python: Path | None = None


class Runner(Protocol):
    """One model, opened in one runtime. A context manager: leaving it closes it."""

    @property
    def metadata(self) -> Metadata: ...

    def infer(self, inputs: Arrays) -> Arrays:
        """Every output by its name."""
        ...

    def close(self) -> None:
        """Free what the runtime holds; the runner cannot be used after it."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def logits(runner: Runner, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 [batch, classes] of images [batch, channels, height, width], by a model of one input."""
    return runner.infer({runner.metadata.inputs[0]: images})[runner.metadata.outputs[0]]


def runtime_name(package: str) -> str:
    """Package and installed version, as "onnxruntime 1.31.1"."""
    return f"{package} {packages.version(package)}"
