"""The float16 form of a float32 graph: what an integer model on a GPU has to beat."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def float16(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The same graph with float16 weights and values; images and logits stay float32.

    LayerNormalization keeps its float32 sums inside (stash_type).
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = type(model)()
    copy.CopyFrom(model)
    half = convert_float_to_float16(copy, keep_io_types=True)
    images = {value.name for value in half.graph.input}
    nodes = sorted(half.graph.node, key=lambda node: not images.issuperset(node.input))  # its casts stand last
    del half.graph.node[:]
    half.graph.node.extend(nodes)
    onnx.checker.check_model(half, full_check=True)
    return half
