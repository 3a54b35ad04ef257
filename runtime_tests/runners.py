"""The runtimes that open model files, by the name of their backend."""

from pathlib import Path
from typing import TYPE_CHECKING

from ofq_deploy.errors import UnsupportedByTarget
from ofq_deploy.runner import Runner
from ofq_deploy.runtime_tests import executed, openvino, ort
from ofq_deploy.runtime_tests.executed import Executed

if TYPE_CHECKING:
    import onnx

BACKENDS = ("ort-cpu", "openvino")


def check_backend(backend: str) -> None:
    """Raise UnsupportedByTarget for a name that is no backend."""
    if backend not in BACKENDS:
        raise UnsupportedByTarget(f"no backend {backend!r}; there are {', '.join(BACKENDS)}")


def open_runner(
    backend: str, model: "Path | onnx.ModelProto", threads: int = 0, batch: int | None = None, optimize: bool = True
) -> Runner:
    """The model, opened as a deployment would.

    threads:  0 for one per core
    batch:    the only batch size that will be run, where it is known: some runtimes are faster for it
    optimize: False leaves the graph as it is written (ort-cpu only)

    Raises BackendMissing without the runtime's package, OnnxFileError when it does not load the model.
    """
    check_backend(backend)
    if backend == "openvino":
        return openvino.OpenVinoRunner(model, threads, batch)
    return ort.OrtRunner(model, threads, optimize)


def levels(backend: str) -> tuple[bool, ...]:
    """The values of `optimize` that a backend can be opened with, the deployed one first."""
    return (True, False) if backend == "ort-cpu" else (True,)


def executed_operators(backend: str, path: Path) -> Executed:
    """What the runtime executes after its optimizer."""
    return openvino.executed_operators(path) if backend == "openvino" else executed.executed_operators(path)
