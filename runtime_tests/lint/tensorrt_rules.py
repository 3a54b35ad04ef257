"""What TensorRT refuses, or reads otherwise than ONNX: types, zero points, scales, operators, names.

The ids are those of docs/lint-tensorrt.md, which tells what the builder of TensorRT-RTX did with a minimal model of
each. Nothing here needs TensorRT: the rules read the file alone.
"""

import json
from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

from ofq_deploy.errors import OnnxFileError
from ofq_deploy.model.grids import recipe_bits
from ofq_deploy.runtime_tests.lint.findings import Finding, Graph, Model, Rule, element_type

if TYPE_CHECKING:
    import onnx

    Node = onnx.NodeProto

# Element types, by their names in ONNX.
FLOATS = {"FLOAT": "float32", "FLOAT16": "float16", "BFLOAT16": "bfloat16"}
QUANTIZED = {"INT8", "INT4", "FLOAT8E4M3FN", "FLOAT4E2M1"}
STORABLE = QUANTIZED | set(FLOATS) | {"DOUBLE", "UINT8", "INT32", "INT64", "BOOL"}
# Every standard operator on tensors that no importer reads (OnnxParser.supports_operator of TensorRT-RTX 1.7.1).
INTEGER_OPERATORS = {"ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"}
OTHER_OPERATORS = {"AffineGrid", "Bernoulli", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr"}
OTHER_OPERATORS |= {"BitwiseXor", "CenterCropPad", "Col2Im", "Compress", "CumProd", "DFT", "DeformConv", "Det"}
OTHER_OPERATORS |= {"MaxRoiPool", "MaxUnpool", "MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss"}
OTHER_OPERATORS |= {"SoftmaxCrossEntropyLoss", "SwiGLU", "Unique"}
# Contrib operators that were built, or at least have an importer; two that have one fail all the same.
READ_CONTRIB = {"DequantizeLinear", "Gelu", "QuantizeLinear", "SimplifiedLayerNormalization", "Trilu"}
READ_CONTRIB |= {"GroupQueryAttention", "QMoE", "RotaryEmbedding", "SkipSimplifiedLayerNormalization"}
ONE_TYPE = {"Add", "Concat", "Conv", "ConvTranspose", "Div", "Equal", "Gemm", "Greater", "LayerNormalization", "Less"}
ONE_TYPE |= {"MatMul", "Max", "Mean", "Min", "Mul", "PRelu", "Sub", "Sum", "Where"}
# ONNX Runtime copies a pair behind these.
LAYOUT = {"Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}


def operand(node: "Node", index: int) -> str:
    """Its name, empty where it is left out."""
    return node.input[index] if len(node.input) > index else ""


def integer(node: "Node", name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def size(model: Model, name: str) -> int:
    """Number of elements, 0 where it is not known."""
    shape = model.inferred(name).shape
    return 0 if shape is None or -1 in shape else prod(shape)


def zero_points(model: Model) -> Iterator[Finding]:
    for node in _quantizers(model.file):
        zero = operand(node, 2)
        values = model.file.array(zero)
        if values is None:
            continue
        if values.astype(float).any():
            cure = "shift the codes into symmetric int8, and what that adds to the sums into the bias"
            yield model.finding("Q1", node, f"its zero point {zero} is not 0", cure, "hard")
        if values.size != size(model, operand(node, 1)) > 0:
            cause = f"{values.size} zero points beside {size(model, operand(node, 1))} scales"
            yield model.finding("Q26", node, cause, "give the zero point the shape of the scale", "hard")


def unsigned_codes(model: Model) -> Iterator[Finding]:
    cure = "use int8 with zero point 0; unsigned codes of up to 7 bits fit it as they are"
    graph = model.file
    for node in graph.of_kind("QuantizeLinear"):
        zero, stated = operand(node, 2), integer(node, "output_dtype", 0)
        if element_type(stated) == "UINT8":
            yield model.finding("Q2", node, "its codes are uint8", cure, "hard")
        elif model.inferred(zero).type == "UINT8":
            cause = "its codes are uint8, which TensorRT takes for int8: 128 and above become 127"
            yield model.finding("Q2", node, cause, cure, "wrong")
        elif not zero and not stated:
            cause = "without a zero point its codes are uint8 in ONNX and int8 in TensorRT"
            yield model.finding("Q3", node, cause, "write an int8 zero point of 0, or output_dtype=INT8", "wrong")
    for node in graph.of_kind("DequantizeLinear"):
        codes = operand(node, 0)
        made = _behind_layout(graph, codes)
        if model.inferred(codes).type == "UINT8" and codes not in graph.static and made.op_type != "QuantizeLinear":
            yield model.finding("Q2", node, "it reads uint8 codes", cure, "hard")
    for node in graph.of_kind("Cast"):
        if element_type(integer(node, "to", 0)) == "UINT8" and any(graph.readers.get(node.output[0], [])):
            yield model.finding("Q2", node, "TensorRT has no uint8 values inside a network", cure, "hard")


def stored_types(model: Model) -> Iterator[Finding]:
    graph, seen = model.file, set()
    for node in graph.nodes:
        for index, name in enumerate(node.input):
            tensor = graph.constants.get(name)
            if tensor is None:
                continue
            kind, reads_codes = element_type(tensor.data_type), node.op_type == "DequantizeLinear" and index == 0
            if kind not in STORABLE and name not in seen:
                cause = f"TensorRT imports no tensor of type {kind.lower()}, as {name} is"
                yield model.finding("Q4", node, cause, "store decoded integers as int8 (or int4)", "hard")
            elif reads_codes and kind == "UINT8":
                cause, cure = f"the codes {name} are uint8", "store them as int8 with zero point 0"
                yield model.finding("Q4", node, cause, cure, "hard")
            elif reads_codes and kind == "INT32":
                cause, cure = f"{name} is int32, which TensorRT does not dequantize", "store the bias as floats"
                yield model.finding("Q17", node, cause, cure, "hard")
            elif kind in QUANTIZED and not reads_codes and not _may_read_codes(graph, node, name):
                cause = f"it reads {name}: only DequantizeLinear may read a stored {kind.lower()} tensor"
                cure = "store the weight as the product reads it, in int8, and put nothing before DequantizeLinear"
                yield model.finding("Q16", node, cause, cure, "hard")
                break
            seen.add(name)


def scales(model: Model) -> Iterator[Finding]:
    graph = model.file
    for node in _quantizers(graph):
        scale = operand(node, 1)
        values, count, shape = graph.array(scale), size(model, scale), model.inferred(operand(node, 0)).shape
        if values is not None and (values.astype(float) <= 0).any():
            cure = "floor steps at a tiny positive number; give a dead row of weights codes of 0"
            yield model.finding("Q5", node, f"its scale {scale} is not positive", cure, "hard")
        if scale not in graph.static:
            cause = f"its scale {scale} is computed for every image, and the product is one in float"
            yield model.finding("Q10", node, cause, "use trained or calibrated steps, which are constant")
        if count < 2 or integer(node, "block_size", 0):
            continue
        stated = any(attribute.name == "axis" for attribute in node.attribute)
        axis = integer(node, "axis", 1)
        if not stated:
            cause = "scales without an axis: older parsers take axis 0 where ONNX means 1"
            yield model.finding("Q25", node, cause, "write the axis", "hint")
        if shape and -len(shape) <= axis < len(shape) and shape[axis] not in (-1, count):
            cause = f"{count} scales for {shape[axis]} channels along axis {axis}"
            yield model.finding("Q6", node, cause, "give each channel of the axis one scale", "hard")


def narrow_codes(model: Model) -> Iterator[Finding]:
    for node in model.file.of_kind("QuantizeLinear"):
        if "INT4" in (model.inferred(operand(node, 2)).type, element_type(integer(node, "output_dtype", 0))):
            cause = "4-bit activations: refused for an odd number of elements, and only TensorRT-RTX has them"
            yield model.finding("Q21", node, cause, "clip to the 4-bit range and quantize to int8", "hint")


def clamps(model: Model) -> Iterator[Finding]:
    """Only a model of our own says how many bits its codes have; its 8-bit layers lie outside the blocks."""
    properties = {entry.key: entry.value for entry in model.source.proto.metadata_props}
    text = properties.get("ofq_deploy.quantization", "{}")
    try:
        bits = int(json.loads(text).get("act_bits", 8))
        mixed = json.loads(properties.get("ofq_deploy.bits", "{}")).get("activations", {})
    except (ValueError, AttributeError) as error:
        where = f"{model.source.path} has no readable ofq_deploy.quantization"
        raise OnnxFileError(f"{where} in its metadata ({text!r:.40}); export it again") from error
    graph = model.file
    for node in graph.of_kind("QuantizeLinear"):
        beside = (graph.producers.get(operand(node, 0)), *graph.readers.get(node.output[0], []))
        clipped = any(other is not None and other.op_type in ("Clip", "Min") for other in beside)
        name = _quantizer(graph, node.output[0])
        width = mixed.get(name) or recipe_bits(name, bits)
        if width < 8 and not clipped:
            cause = f"codes of {width} bits without a Clip: TensorRT clamps to 8 bits only"
            yield model.finding("Q15", node, cause, "put a Clip with the limits of the codes before it", "wrong")


def _quantizer(graph: Graph, codes: str) -> str:
    """The quantizer that made codes; where they are laid out at once, they have its name behind that."""
    values = [codes]
    for value in values:
        readers = [reader for reader in graph.readers.get(value, []) if reader is not None]
        values += [reader.output[0] for reader in readers[:1] if reader.op_type in {"DequantizeLinear", *LAYOUT}]
    named = [value for value in values if value.endswith(".codes")]
    return named[-1].removesuffix(".codes") if named else codes


def operators(model: Model) -> Iterator[Finding]:
    for node in model.file.nodes:
        kind, domain = node.op_type, node.domain
        if domain in ("", "ai.onnx"):
            if kind in INTEGER_OPERATORS:
                cure = "write MatMul of two DequantizeLinear, which becomes an integer product"
                yield model.finding("Q18", node, "TensorRT has no operators on integers", cure, "hard")
            elif kind in OTHER_OPERATORS:
                yield model.finding("Q18", node, "TensorRT does not import it", "decode at export", "hard")
        elif not domain.startswith(("trt", "tensorrt")) and kind not in READ_CONTRIB:
            cause = f"TensorRT has no {kind} of domain {domain}"
            yield model.finding("Q19", node, cause, "write it by standard operators", "hard")


def float_types(model: Model) -> Iterator[Finding]:
    for node in model.file.nodes:
        types = {model.inferred(name).type for name in node.input} & FLOATS.keys()
        if len(types) < 2:
            continue
        mixed = " and ".join(name for kind, name in FLOATS.items() if kind in types)
        if node.op_type in ONE_TYPE:
            yield model.finding("T1", node, f"it mixes {mixed}", "write the Cast into the graph", "hard")
        elif node.op_type == "QuantizeLinear":
            cause = f"values and scale are {mixed}: hidden casts, and ONNX before opset 23 forbids it"
            yield model.finding("T2", node, cause, "give the scale the type of the values", "hint")


def layer_names(model: Model) -> Iterator[Finding]:
    seen = set()
    for node in model.file.nodes:
        if node.name and node.name in seen:
            refused = node.op_type in ("QuantizeLinear", "DequantizeLinear")
            cause = f"another node is called {node.name} too" + ("" if refused else "; layer lists tell by names")
            yield model.finding("N1", node, cause, "give every node its own name", "hard" if refused else "hint")
        seen.add(node.name)


def pairs_for_ort(model: Model) -> Iterator[Finding]:
    """Not TensorRT's fault, but such a file cannot be proven by ONNX Runtime (seen in 1.31)."""
    graph = model.file
    opset = max(
        (entry.version for entry in model.source.proto.opset_import if entry.domain in ("", "ai.onnx")), default=0
    )
    for node in graph.of_kind("DequantizeLinear") if opset >= 21 else ():
        made = graph.producers.get(operand(node, 0))
        if made is None or made.op_type != "QuantizeLinear" or model.inferred(operand(made, 2)).type != "INT8":
            continue
        for reader in graph.readers.get(node.output[0], []):
            if reader and reader.op_type in LAYOUT and size(model, operand(node, 1)) == 1:
                cause = "ONNX Runtime copies the pair behind it and refuses the result at opset 21 and above"
                cure = "use opset 20, or output_dtype=INT8 in place of the zero point"
                yield model.finding("O2", reader, cause, cure, "hint")


RULES: tuple[Rule, ...] = (
    *(zero_points, unsigned_codes, stored_types, scales, narrow_codes, clamps, operators),
    *(float_types, layer_names, pairs_for_ort),
)


def _quantizers(graph: Graph) -> Iterator["Node"]:
    """QuantizeLinear, and each DequantizeLinear that does not only repeat the scale and zero point of one."""
    for node in graph.of_kind("QuantizeLinear", "DequantizeLinear"):
        if node.op_type == "DequantizeLinear":
            made = _behind_layout(graph, operand(node, 0))
            if made.op_type == "QuantizeLinear" and made.input[1:] == node.input[1:]:
                continue
        yield node


def _behind_layout(graph: Graph, name: str) -> "Node":
    """The node that made the codes, seen through changes of layout; an empty one for an input or a constant."""
    import onnx

    node = graph.producers.get(name, onnx.NodeProto())
    while node.op_type in LAYOUT:
        node = graph.producers.get(operand(node, 0), onnx.NodeProto())
    return node


def _may_read_codes(graph: Graph, node: "Node", name: str) -> bool:
    """As a zero point, as an int8 limit, or in an operator that is refused for itself."""
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return name == operand(node, 2)
    if node.op_type == "Identity":
        made = node.output[0]
        return all(reader and _may_read_codes(graph, reader, made) for reader in graph.readers.get(made, []))
    return node.op_type in {"Clip"} | INTEGER_OPERATORS | OTHER_OPERATORS or node.domain not in ("", "ai.onnx")
