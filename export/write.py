"""From a built graph to a checked file."""

from pathlib import Path

import onnx
import onnx_ir as ir

from ofq_deploy.errors import OutputError
from ofq_deploy.kernels import DOMAIN
from ofq_deploy.model.names import shorten


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The whole model, names and shapes as they were built."""
    return ir.serde.serialize_model(model)


def write_checked(model: ir.Model, path: Path) -> None:
    """Write the model as a file; same model, same bytes. Raises what `finish` raises."""
    path.write_bytes(finish(model, path).SerializeToString(deterministic=True))


def finish(model: ir.Model, path: Path) -> onnx.ModelProto:
    """What the file at `path` is to hold, after the full ONNX checker and strict shape inference.

    Left out of the file: node names, which repeat the name of the first output (fused operators keep theirs, as they name it in
    messages), and shapes that can be inferred.
    All names but those of inputs and outputs are shortened.
    Raises OutputError when the file would exceed protobuf's 2 GB. A graph that fails the checker is our bug and
    surfaces as onnx.checker.ValidationError or onnx.shape_inference.InferenceError.
    """
    proto = to_proto(model)
    for node in proto.graph.node:
        if node.domain != DOMAIN:
            node.ClearField("name")
    proto.graph.ClearField("value_info")
    shorten(proto)
    size = proto.ByteSize()
    if size >= 2**31:
        raise OutputError(f"{path} would have {size} bytes; ONNX files hold 2 GB at most")
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    return proto
