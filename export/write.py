"""From a built graph to a checked file."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from ofq_deploy.errors import OutputError

BLOCK_NAME = re.compile(r"blocks\.(\d+)\.(.+)")
ROLES = "ofq_deploy.roles"


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The whole model, names and shapes as they were built."""
    return ir.serde.serialize_model(model)


def write_checked(model: ir.Model, path: Path) -> None:
    """Write the model as a file; same model, same bytes. Raises what `finish` raises."""
    path.write_bytes(finish(model, path).SerializeToString(deterministic=True))


def finish(model: ir.Model, path: Path) -> onnx.ModelProto:
    """What the file at `path` is to hold, after the full ONNX checker and strict shape inference.

    Left out of the file: node names, which repeat the name of the first output, and shapes that can be inferred.
    All names but those of inputs and outputs are shortened.
    Raises OutputError when the file would exceed protobuf's 2 GB. A graph that fails the checker is our bug and
    surfaces as onnx.checker.ValidationError or onnx.shape_inference.InferenceError.
    """
    proto = to_proto(model)
    for node in proto.graph.node:
        node.ClearField("name")
    proto.graph.ClearField("value_info")
    _shorten(proto)
    size = proto.ByteSize()
    if size >= 2**31:
        raise OutputError(f"{path} would have {size} bytes; ONNX files hold 2 GB at most")
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    return proto


def _shorten(model: onnx.ModelProto) -> None:
    """`blocks.3.attn.q.codes` becomes `3.h`, h (in base 36) being its role's place in the list that the metadata
    keeps; names outside of the blocks become `.i`.

    Every block repeats the same hundred names; in a 4-bit DeiT-T they would take 60 kB.
    """
    roles: dict[str, int] = {}
    public = {"", *(value.name for value in (*model.graph.input, *model.graph.output))}

    def short(name: str) -> str:
        if name in public:
            return name
        match = BLOCK_NAME.fullmatch(name)
        block, role = match.groups() if match else ("", name)
        return f"{block}.{np.base_repr(roles.setdefault(role, len(roles)), 36).lower()}"

    for node in model.graph.node:
        for names in (node.output, node.input):
            for index, name in enumerate(names):
                names[index] = short(name)
    for tensor in model.graph.initializer:
        tensor.name = short(tensor.name)
    if roles:
        model.metadata_props.add(key=ROLES, value=json.dumps(list(roles), separators=(",", ":")))
