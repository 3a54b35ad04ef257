"""The backends: runtimes, and what each can do.

Light records: a runtime is imported when a model is opened. What does the work is named as "module:object" and resolved
when somebody asks. To add a runtime, add a record; nothing else compares names.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from ofq_deploy.errors import UnsupportedByTarget
from ofq_deploy.runner import Opening, Runner
from ofq_deploy.targets import Target

if TYPE_CHECKING:
    import onnx

    from ofq_deploy.model.file import OnnxFile
    from ofq_deploy.runtime_tests.runners.executed import Executed

PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Backend:
    """A runtime, and what is done with it. A capability that is empty or False is one that it lacks.

    name:          as --backend takes it
    title:         as texts call it
    package:       what Python imports
    install:       the command that brings it
    without_gpu:   what to do where there is no NVIDIA GPU; empty for runtimes on CPUs
    opens:         (OnnxFile or ModelProto, Opening) -> Runner
    has_plain:     it can leave a graph as it is written: NAME:plain
    has_elsewhere: it can be the one that another interpreter has: NAME@PYTHON
    executed:      OnnxFile -> Executed, what of a file it executes
    profile:       (OnnxFile, threads, shape of images) -> Profile
    rules_of:      the target whose rules tell what keeps a model from elsewhere from integers in it
    available:     () -> anything; raises BackendMissing where it cannot be timed
    bench_models:  times a model of the target `rules_of` on a GPU; see tensorrt_bench
    bench_layers:  times the layers of a frozen file on a GPU; see torch_cuda
    """

    name: str
    title: str
    package: str
    install: str
    without_gpu: str = ""
    opens: str = ""
    has_plain: bool = False
    has_elsewhere: bool = False
    executed: str = ""
    profile: str = ""
    rules_of: str = ""
    available: str = ""
    bench_models: str = ""
    bench_layers: str = ""

    @property
    def is_timed(self) -> bool:
        return bool(self.opens or self.bench_layers)

    @property
    def on_gpu(self) -> bool:
        return bool(self.without_gpu)


_ROOM = "ofq_deploy.runtime_tests"
_WITHOUT_GPU = "ofq-deploy check MODEL --target tensorrt builds engines without one"
BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            "ort-cpu",
            title="ONNX Runtime",
            package="onnxruntime",
            install="pip install onnxruntime",
            opens=f"{_ROOM}.runners.ort:open_in_ort",
            has_plain=True,
            has_elsewhere=True,
            executed=f"{_ROOM}.runners.executed:executed_operators",
            profile=f"{_ROOM}.speed.profile:profile",
            rules_of="ort-cpu",
        ),
        Backend(
            "openvino",
            title="OpenVINO",
            package="openvino",
            install="pip install 'ofq-deploy[openvino]'",
            opens=f"{_ROOM}.runners.openvino:open_in_openvino",
            executed=f"{_ROOM}.runners.openvino:executed_operators",
            rules_of="openvino",
        ),
        Backend(
            "tensorrt",
            title="TensorRT",
            package="tensorrt",
            install="pip install 'ofq-deploy[tensorrt]' (from NVIDIA's own index)",
            without_gpu=_WITHOUT_GPU,
            opens=f"{_ROOM}.runners.tensorrt:open_in_tensorrt",
            executed=f"{_ROOM}.runners.executed:executed_operators",
            rules_of="tensorrt",
            available=f"{_ROOM}.runners.tensorrt:available",
            bench_models=f"{_ROOM}.speed.tensorrt_bench:bench_tensorrt",
        ),
        Backend(
            "tensorrt-rtx",
            title="TensorRT-RTX",
            package="tensorrt_rtx",
            install="pip install 'ofq-deploy[tensorrt-rtx]'",
            without_gpu=_WITHOUT_GPU,
        ),
        Backend(
            "torch-cuda",
            title="torch",
            package="torch",
            install="pip install torch",
            without_gpu="use ort-cpu, or a machine with one",
            available=f"{_ROOM}.speed.torch_cuda:available",
            bench_layers=f"{_ROOM}.speed.torch_cuda:bench_torch_cuda",
        ),
    )
}


DEFAULT = BACKENDS["ort-cpu"]


def backend_of(name: str) -> Backend | None:
    """The record behind a name, whatever its variant, if there is one."""
    return BACKENDS.get(re.split("[:@]", name, maxsplit=1)[0])


def find_backend(name: str) -> Backend:
    """The backend of that very name that models are timed with, or UnsupportedByTarget."""
    backend = BACKENDS.get(name)
    if backend is None or not backend.is_timed:
        raise _unknown(name, [backend.name for backend in BACKENDS.values() if backend.is_timed])
    return backend


def find_opening(name: str, others: tuple[str, ...] = ()) -> tuple[Backend, Opening]:
    """The backend that opens models under that name, and how.

    name:   a backend's; with ":plain" for its graphs as they are written, with "@PYTHON" for that of another interpreter
    others: names that the caller knows beside them, for the message

    Raises UnsupportedByTarget for a name that is none.
    """
    called, elsewhere, python = name.partition("@")
    _, _, variant = called.partition(":")
    backend = backend_of(name)
    variants = ("", PLAIN) if backend is not None and backend.has_plain else ("",)
    if backend is None or not backend.opens or variant not in variants or (elsewhere and not backend.has_elsewhere):
        raise _unknown(name, [*(backend.name for backend in BACKENDS.values() if backend.opens), *others])
    return backend, Opening(name, optimize=not variant, python=Path(python) if elsewhere else None)


def open_runner(name: str, model: "OnnxFile | onnx.ModelProto", threads: int = 0, batch: int | None = None) -> Runner:
    """The model, opened as a deployment would.

    name:    see `find_opening`
    threads: 0 for one per core
    batch:   the only batch size that will be run, where it is known: some runtimes are faster for it

    Raises UnsupportedByTarget for a name that is no backend, BackendMissing without the runtime's package,
    OnnxFileError when it does not load the model.
    """
    backend, how = find_opening(name)
    runner: Runner = resolve_name(backend.opens)(model, replace(how, threads=threads, batch=batch))
    return runner


def levels(name: str) -> tuple[str, ...]:
    """The backend itself, and the same runtime without its optimizer where it can do without."""
    backend, how = find_opening(name)
    if not (backend.has_plain and how.optimize):
        return (name,)
    return name, name.replace(backend.name, f"{backend.name}:{PLAIN}", 1)


def proves(name: str, target: Target) -> bool:
    """Whether a backend computes models of that target as they are meant, codes and all."""
    return not target.is_float and target.only_on in ("", find_opening(name)[0].name)


def executed_operators(name: str, file: "OnnxFile") -> "Executed":
    """What the runtime executes after its optimizer."""
    executed: Executed = resolve_name(find_opening(name)[0].executed)(file)
    return executed


def _unknown(name: str, names: list[str]) -> UnsupportedByTarget:
    return UnsupportedByTarget(f"no backend {name!r}; there are {', '.join(names)}")
