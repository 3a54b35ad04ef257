"""The runtimes that can be measured, by the name of their backend."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ofq_deploy.errors import UnsupportedByTarget
from ofq_deploy.runtime_tests import executed, openvino, ort
from ofq_deploy.runtime_tests.executed import Executed

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
BACKENDS = ("ort-cpu", "openvino")


def check_backend(backend: str) -> None:
    """Raise UnsupportedByTarget for a name that is no backend."""
    if backend not in BACKENDS:
        raise UnsupportedByTarget(f"no backend {backend!r}; there are {', '.join(BACKENDS)}")


def open_runner(backend: str, path: Path, threads: int, batch: int) -> Run:
    """A function from images [batch, channels, height, width] to logits [batch, classes].

    threads: 0 for one per core

    Raises BackendMissing without the runtime's package, OnnxFileError when it does not load the model.
    """
    if backend == "openvino":
        return openvino.runner(path, threads, batch)
    return partial(ort.run_logits, ort.open_session(path, threads))


def executed_operators(backend: str, path: Path) -> Executed:
    """What the runtime executes after its optimizer."""
    return openvino.executed_operators(path) if backend == "openvino" else executed.executed_operators(path)
