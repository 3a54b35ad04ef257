"""ONNX Runtime on the CPU."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ofq_deploy.errors import BackendMissing, OnnxFileError
from ofq_deploy.kernels import needed_library
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.runner import Arrays, Metadata, Opening, Runner, runtime_name
from ofq_deploy.runtime_tests.runners.elsewhere import ElsewhereRunner

if TYPE_CHECKING:
    import onnx
    import onnxruntime


def open_session(
    model: "Path | onnx.ModelProto",
    threads: int = 0,
    optimize: bool = True,
    optimized_path: Path | None = None,
    profile_prefix: Path | None = None,
    where: Path | None = None,
) -> "onnxruntime.InferenceSession":
    """A session with all optimizations (or none), the way a deployment opens it.

    threads: 0 for one per core
    where:   the file that a model in memory comes from, for the message

    Raises BackendMissing without onnxruntime, or the library of fused operators for a model that has some; OnnxFileError when
    the model does not load.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendMissing("onnxruntime is not installed; install it with: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised, and warnings of saving an optimized model say nothing new
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
    library = needed_library(model)
    source = os.fspath(model) if isinstance(model, Path) else model.SerializeToString()
    providers = ["CPUExecutionProvider"]
    try:
        if library is not None:
            options.register_custom_ops_library(os.fspath(library))
        try:
            return onnxruntime.InferenceSession(source, options, providers=providers)
        except onnxruntime.capi.onnxruntime_pybind11_state.Fail as error:
            if "output_dtype INT8 does not match" not in str(error):
                raise
            options.add_session_config_entry("session.qdqisint8allowed", "1")  # its rewriting to uint8 forgets a type
            return onnxruntime.InferenceSession(source, options, providers=providers)
    except Exception as error:  # onnxruntime raises its own classes, all of them direct children of Exception
        named = model if isinstance(model, Path) else where or "the model"
        raise OnnxFileError(f"{named} does not load in ONNX Runtime: {str(error).splitlines()[0]}") from error


def open_in_ort(model: "OnnxFile | onnx.ModelProto", how: Opening) -> Runner:
    """On this interpreter's ONNX Runtime or another's; a file is read by the runtime itself, as in a deployment."""
    source = model.path if isinstance(model, OnnxFile) else model
    if how.python is not None:
        return ElsewhereRunner(how.python, how.name, source, how.threads, how.optimize)
    return OrtRunner(source, how.threads, how.optimize)


class OrtRunner(Runner):
    """ONNX Runtime on the CPU, with all its optimizations or none."""

    def __init__(self, model: "Path | onnx.ModelProto", threads: int = 0, optimize: bool = True) -> None:
        self._session: onnxruntime.InferenceSession | None = open_session(model, threads, optimize)
        inputs, outputs = (
            tuple(value.name for value in values)
            for values in (self._session.get_inputs(), self._session.get_outputs())
        )
        settings = {"threads": threads or "one per core", "optimized": optimize}
        settings["spinning"] = threads != 1  # its default: idle workers wait in a loop, where there are any
        backend = "ort-cpu" if optimize else "ort-cpu:plain"
        self._metadata = Metadata(backend, runtime_name("onnxruntime"), "cpu", settings, inputs, outputs)

    @property
    def metadata(self) -> Metadata:
        return self._metadata

    def infer(self, inputs: Arrays) -> Arrays:
        assert self._session is not None, "the runner is closed"
        return run_all(self._session, inputs)

    def close(self) -> None:
        self._session = None


def run_logits(session: "onnxruntime.InferenceSession", images: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 [batch, classes]"""
    made = run_all(session, {session.get_inputs()[0].name: images})
    return np.asarray(made[session.get_outputs()[0].name])


def run_all(
    session: "onnxruntime.InferenceSession", feeds: dict[str, NDArray[Any]], names: Sequence[str] = ()
) -> dict[str, NDArray[Any]]:
    """Every output by its name, or those that `names` lists; OnnxFileError when a node cannot compute what it is given."""
    names = names or [value.name for value in session.get_outputs()]
    try:
        made = session.run(names, feeds)
    except (TypeError, ValueError):  # wrong feeds
        raise
    except Exception as error:  # onnxruntime's own classes, as above
        raise OnnxFileError(f"the model fails in ONNX Runtime: {str(error).splitlines()[0]}") from error
    return dict(zip(names, made, strict=True))


def optimized_graph(file: OnnxFile) -> "onnx.ModelProto":
    """The graph that ONNX Runtime really executes, with the long names."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        open_session(file.proto, optimized_path=optimized, where=file.path)
        return onnx.load(optimized)
