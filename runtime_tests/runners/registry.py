"""The runtimes that open model files, by the name of their backend."""

from pathlib import Path
from typing import TYPE_CHECKING

from ofq_deploy.errors import UnsupportedByTarget
from ofq_deploy.runner import Runner
from ofq_deploy.runtime_tests.runners import openvino, ort, tensorrt
from ofq_deploy.runtime_tests.runners.elsewhere import ElsewhereRunner
from ofq_deploy.runtime_tests.speed import executed
from ofq_deploy.runtime_tests.speed.executed import Executed

if TYPE_CHECKING:
    import onnx

BACKENDS = ("ort-cpu", "openvino", "tensorrt")
PLAIN = "ort-cpu:plain"


def check_backend(backend: str, others: tuple[str, ...] = ()) -> None:
    """Raise UnsupportedByTarget for a name that is neither a backend nor one of `others`."""
    names = dict.fromkeys((*BACKENDS, *others))
    if backend not in names:
        raise UnsupportedByTarget(f"no backend {backend!r}; there are {', '.join(names)}")


def open_runner(backend: str, model: "Path | onnx.ModelProto", threads: int = 0, batch: int | None = None) -> Runner:
    """The model, opened as a deployment would.

    backend: one of `BACKENDS`; or "ort-cpu:plain", which leaves the graph as it is written; either with "@PYTHON" for
             the ONNX Runtime that another interpreter has
    threads: 0 for one per core
    batch:   the only batch size that will be run, where it is known: some runtimes are faster for it

    Raises UnsupportedByTarget for a name that is no backend, BackendMissing without the runtime's package,
    OnnxFileError when it does not load the model.
    """
    name, elsewhere, python = backend.partition("@")
    if name in ("ort-cpu", PLAIN):
        if elsewhere:
            return ElsewhereRunner(Path(python), backend, model, threads, optimize=name != PLAIN)
        return ort.OrtRunner(model, threads, optimize=name != PLAIN)
    check_backend(backend)
    if backend == "tensorrt":
        return tensorrt.TensorRTRunner(model, batch or 1)
    return openvino.OpenVinoRunner(model, threads, batch)


def levels(backend: str) -> tuple[str, ...]:
    """The backend itself, and the same runtime without its optimizer where it can do without."""
    return (backend, backend.replace("ort-cpu", PLAIN)) if backend.partition("@")[0] == "ort-cpu" else (backend,)


def executed_operators(backend: str, path: Path) -> Executed:
    """What the runtime executes after its optimizer."""
    return openvino.executed_operators(path) if backend == "openvino" else executed.executed_operators(path)
