"""What an exported file holds: its layers at three widths, and its bytes by kind."""

from collections import Counter
from typing import TYPE_CHECKING, Any

from ofq_deploy.model.file import ModelFile
from ofq_deploy.model.frozen import Frozen

if TYPE_CHECKING:
    import onnx

INTEGER_BITS, FLOAT_BITS = 8, 32  # of the runtime's products


def contents(model: "onnx.ModelProto", described: ModelFile, frozen: Frozen | None) -> dict[str, Any]:
    """Layers and bytes of a model as a JSON table.

    Bits trained are those that the file says were trained; bits stored are bytes in the file x 8 / weights; bits computed
    are those of the runtime's integer product (int8 whatever was trained; 32 in the float baseline). With `frozen`, the
    range of each layer's activation steps is shown too.
    """
    layers = [_layer(name, tensors, described, frozen) for name, tensors in _by_layer(model).items()]
    total = described.file_bytes
    kinds = Counter[str]()
    for tensor in model.graph.initializer:
        kinds[_kind(tensor.name, described)] += _bytes(tensor)
    kinds["labels and metadata"] = sum(entry.ByteSize() for entry in model.metadata_props)
    kinds["graph"] = total - sum(kinds.values())
    return {
        "target": described.target,
        "quantization": described.quantization,
        "file_bytes": total,
        "bytes_by_kind": dict(sorted(kinds.items())),
        "layers": layers,
    }


def _by_layer(model: "onnx.ModelProto") -> dict[str, list["onnx.TensorProto"]]:
    """Weight matrices by layer; one that is cut by columns, `layer.0.weight` and on, counts as one layer."""
    layers: dict[str, list[onnx.TensorProto]] = {}
    for tensor in model.graph.initializer:
        name = tensor.name.removesuffix(".codes")
        if name.endswith(".weight") and "norm" not in name.split(".")[-2]:
            layer, _, part = name.removesuffix(".weight").rpartition(".")
            whole = layer if layer and part.isdecimal() else name.removesuffix(".weight")
            layers.setdefault(whole, []).append(tensor)
    return layers


def _layer(name: str, tensors: list["onnx.TensorProto"], described: ModelFile, frozen: Frozen | None) -> dict[str, Any]:
    stored = sum(_bytes(tensor) for tensor in tensors)
    is_float = not described.quantization
    computed = FLOAT_BITS if is_float else INTEGER_BITS
    row: dict[str, Any] = {
        "name": name,
        "shape": None,
        "bits_trained": described.weight_bits(name),
        "bits_stored": None,
    }
    row |= {"bits_computed": computed, "bytes": stored, "act_bits": None, "step_range": None}
    if is_float:
        return row | {"shape": list(tensors[0].dims), "bits_stored": float(FLOAT_BITS)}
    if frozen is not None:
        codes = frozen[f"{name}.weight.codes"]
        quantizer = frozen.quantizer(frozen.graph.quantizer_of(frozen.linears[name].x).name)
        return row | {
            "shape": list(codes.shape),
            "bits_stored": round(8 * stored / codes.size, 2),
            "act_bits": quantizer.bits,
            "step_range": [float(quantizer.step.min()), float(quantizer.step.max())],
        }
    if len(tensors[0].dims) == 2:
        count = sum(tensor.dims[0] * tensor.dims[1] for tensor in tensors)
        width = sum(tensor.dims[0] for tensor in tensors)
        row |= {"shape": [tensors[0].dims[1], width], "bits_stored": round(8 * stored / count, 2)}
    return row


def _bytes(tensor: "onnx.TensorProto") -> int:
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    return int(tensor.ByteSize())


def _kind(name: str, described: ModelFile) -> str:
    if name.startswith("patch_embed.position"):
        return "position embedding"
    if name.endswith((".weight", ".weight.codes")) and "norm" not in name:
        if not described.quantization:
            return "float weights"
        if not name.startswith("blocks."):
            return "8-bit layers"
        return "packed codes" if described.made_for.packs_weights else "codes, a byte each"
    if name.endswith(
        (".scale", ".step", ".row_step", ".query_step", ".reciprocal", ".rising", ".falling", ".exponentials")
    ):
        return "steps and scales"
    if name.endswith(("before", ".shift", ".row_sum", "key_shift", "key_bias")):
        return "shifts"
    return "biases, norms, tokens and constants"
