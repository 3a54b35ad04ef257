"""Runs an ONNX file in the onnxruntime of whatever interpreter executes this file; imports nothing of this project.

Started by ofq_deploy.runtime_tests.runners.elsewhere as `PYTHON worker.py MODEL THREADS OPTIMIZE [LIBRARY]`, the
library being that of a model's own operators. On stdout first one line of JSON
(version, inputs and outputs, or what went wrong), then an answer for every request on stdin: eight bytes of length,
then an .npz of arrays by name. An answer of no length is followed by a line of JSON with what went wrong.
"""

import io
import json
import sys
from typing import Any


def main(path: str, threads: int, optimize: bool, libraries: list[str]) -> None:
    try:
        import numpy as np
        import onnxruntime

        options = onnxruntime.SessionOptions()
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        for library in libraries:
            options.register_custom_ops_library(library)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        _line({"error": str(error).splitlines()[0], "missing": isinstance(error, ImportError)})
        return
    inputs, outputs = ([value.name for value in values] for values in (session.get_inputs(), session.get_outputs()))
    _line({"version": onnxruntime.__version__, "inputs": inputs, "outputs": outputs})
    while size := sys.stdin.buffer.read(8):
        with np.load(io.BytesIO(sys.stdin.buffer.read(int.from_bytes(size, "little"))), allow_pickle=False) as file:
            feeds = {name: file[name] for name in file.files}
        try:
            found = session.run(None, feeds)
        except Exception as error:
            sys.stdout.buffer.write(bytes(8))
            _line({"error": str(error).splitlines()[0]})
            return
        made = io.BytesIO()
        np.savez(made, **dict(zip(outputs, found, strict=True)))
        sys.stdout.buffer.write(len(made.getvalue()).to_bytes(8, "little") + made.getvalue())
        sys.stdout.buffer.flush()


def _line(table: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(table).encode() + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "1", sys.argv[4:])
