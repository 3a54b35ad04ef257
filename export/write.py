"""From a built graph to a checked file."""

from pathlib import Path

import onnx
import onnx_ir as ir

from ofq_deploy.errors import OutputError


def write_checked(model: ir.Model, path: Path) -> None:
    """Serialize, run the full ONNX checker and strict shape inference, and write; same model, same bytes.

    Left out of the file: node names, which repeat the name of the first output, and shapes that can be inferred.
    Raises OutputError when the file would exceed protobuf's 2 GB. A graph that fails the checker is our bug and
    surfaces as onnx.checker.ValidationError or onnx.shape_inference.InferenceError.
    """
    proto = ir.serde.serialize_model(model)
    for node in proto.graph.node:
        node.ClearField("name")
    proto.graph.ClearField("value_info")
    size = proto.ByteSize()
    if size >= 2**31:
        raise OutputError(f"{path} would have {size} bytes; ONNX files hold 2 GB at most")
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    path.write_bytes(proto.SerializeToString(deterministic=True))
