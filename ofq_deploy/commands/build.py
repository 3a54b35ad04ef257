"""From a run to the graph of a model, and to a file of it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ofq_deploy.files import sha256
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.runs.folder import Run
from ofq_deploy.targets import FLOAT, Target

if TYPE_CHECKING:
    import onnx_ir as ir


def build_model(run: Run, target: Target, opset: int | None = None) -> "ir.Model":
    """The graph of a run for a target, or of the float model that it started from."""
    from ofq_deploy.export.fp32 import build_fp32
    from ofq_deploy.export.network import build

    if target.is_float:
        return build_fp32(run.frozen, run.file("teacher.safetensors"), opset)
    return build(run.frozen, target, opset, sha256(run.file("frozen.safetensors")))


@contextmanager
def float_model(run: Run) -> Iterator[OnnxFile]:
    """The float model that a run started from, as a file that is there until the block ends."""
    from ofq_deploy.export.write import write_checked

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.onnx"
        write_checked(build_model(run, FLOAT), path)
        yield OnnxFile(path)
