"""Another installed version of ONNX Runtime: the one that another Python interpreter has."""

import io
import json
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ofq_deploy.errors import BackendMissing, OnnxFileError
from ofq_deploy.kernels import needed_library
from ofq_deploy.runner import Arrays, Metadata, Runner
from ofq_deploy.runtime_tests.runners import worker

if TYPE_CHECKING:
    import onnx


class ElsewhereRunner(Runner):
    """ONNX Runtime in a process of its own; that interpreter needs onnxruntime and numpy, nothing of this project.

    python: path of the interpreter, as venv/bin/python
    backend: what this runner was called by

    Raises BackendMissing when the interpreter is no Python with onnxruntime, or the library of fused operators, which this
    project has, is missing; OnnxFileError when the model does not load.
    """

    def __init__(
        self, python: Path, backend: str, model: "Path | onnx.ModelProto", threads: int = 0, optimize: bool = True
    ) -> None:
        library = needed_library(model)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(model.read_bytes() if isinstance(model, Path) else model.SerializeToString())
            command = [str(python), "-I", worker.__file__, str(path), str(threads), str(int(optimize))]
            command += [] if library is None else [str(library)]
            try:
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            except OSError as error:
                raise BackendMissing(
                    f"{python} is no Python interpreter ({error.strerror}); pass ort-cpu@PATH"
                ) from error
            said = self._read_line()
        if "error" in said:
            self.close()
            if said["missing"]:
                raise BackendMissing(f"{python} lacks a package ({said['error']}); install onnxruntime and numpy there")
            raise OnnxFileError(f"the model does not load in the ONNX Runtime of {python}: {said['error']}")
        if "version" not in said:
            self.close()
            raise BackendMissing(f"{python} is no Python interpreter (it said no line of JSON); pass ort-cpu@PATH")
        settings = {"threads": threads or "one per core", "optimized": optimize, "python": str(python)}
        names = tuple(said["inputs"]), tuple(said["outputs"])
        self._metadata = Metadata(backend, f"onnxruntime {said['version']}", "cpu", settings, *names)

    @property
    def metadata(self) -> Metadata:
        return self._metadata

    def infer(self, inputs: Arrays) -> Arrays:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = io.BytesIO()
        np.savez(request, **inputs)  # type: ignore[arg-type]  # names are free here
        with suppress(BrokenPipeError):  # it has ended: nothing will be read either
            self._process.stdin.write(len(request.getvalue()).to_bytes(8, "little") + request.getvalue())
            self._process.stdin.flush()
        size = int.from_bytes(self._process.stdout.read(8), "little")
        if not size:
            told = self._read_line().get("error", "it has ended")
            where = f"{self._metadata.runtime} of {self._metadata.settings['python']}"
            raise OnnxFileError(f"the model fails in {where}: {told}")
        with np.load(io.BytesIO(self._process.stdout.read(size)), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):  # a request that was never read
                    stream.close()
        self._process.wait()

    def _read_line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        with suppress(ValueError):  # no JSON
            said = json.loads(self._process.stdout.readline())
            return said if isinstance(said, dict) else {}
        return {}
