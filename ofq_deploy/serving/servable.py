"""What a server must know of a model: its tensors, labels and preprocessing, checked against each other."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ofq_deploy.data.images import Preprocessing
from ofq_deploy.errors import OnnxFileError
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.targets import Target

if TYPE_CHECKING:
    import onnx

# The oldest ONNX Runtime 1.x that loads a file of an opset; measured, docs/serving.md has the table.
OLDEST_MINOR = {20: 17, 21: 18, 22: 21, 23: 24, 24: 24, 25: 24, 26: 25}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A graph input or output.

    dtype: ONNX's name of it, as FLOAT
    shape: None for a symbolic axis
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Servable:
    """An image classifier that `ofq-deploy export` wrote.

    image:       its input, float32 [batch, channels, size, size]
    logits:      its output, float32 [batch, classes]
    opset:       of the standard operators
    onnxruntime: the oldest version that loads it
    """

    path: Path
    target: Target
    frozen_sha256: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    image: Tensor
    logits: Tensor
    opset: int
    onnxruntime: str

    @property
    def batch(self) -> int | None:
        """The only batch size that it takes, None for any."""
        return self.image.shape[0]


def read_servable(source: OnnxFile) -> Servable:
    """The model in a file.

    Raises OnnxFileError when it is missing, cut, from elsewhere, or does not fit what its metadata says.
    """
    path, model, file = source.path, source.proto, source.described
    how = file.preprocessing
    fault = _fault(how, file.labels) or _bits_fault(file.quantization)
    if fault:
        raise OnnxFileError(f"{path} has damaged metadata: {fault}; export it again")
    # An input with a default value is none that a client fills: Triton refuses it beside a batch axis.
    defaults = {tensor.name for tensor in model.graph.initializer}
    image = _only_tensor(path, "input", [value for value in model.graph.input if value.name not in defaults])
    logits = _only_tensor(path, "output", list(model.graph.output))
    batch = image.shape[0] if image.shape else None
    _expect(path, "preprocessing", image, (batch, how.channels, how.size, how.size))
    _expect(path, "labels", logits, (batch, len(file.labels)))
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    return Servable(
        path=path,
        target=file.made_for,
        frozen_sha256=file.frozen_sha256,
        labels=file.labels,
        preprocessing=how,
        image=image,
        logits=logits,
        opset=opset,
        onnxruntime=oldest_onnxruntime(opset, file.weight_widths, file.act_widths),
    )


def oldest_onnxruntime(opset: int, weight_bits: set[int], act_bits: set[int]) -> str:
    """The oldest version of ONNX Runtime that has the operators and types of a model; "1.17" was the oldest tried.

    weight_bits, act_bits: all widths in the model
    """
    minor = OLDEST_MINOR.get(max(opset, min(OLDEST_MINOR)), max(OLDEST_MINOR.values()))
    if min(weight_bits) <= 4:
        minor = max(minor, 21)  # Add of int8, which joins bit planes
    if 4 in weight_bits and opset >= 21:
        minor = max(minor, 23)  # Cast of INT4
    if min(act_bits) < 8:
        minor = max(minor, 24)  # Min of uint8, which clips codes
    return f"1.{minor}"


def _fault(how: Preprocessing, labels: tuple[Any, ...]) -> str | None:
    """What is wrong with values that parsed, if anything is."""
    if not all(type(side) is int and side > 0 for side in (how.size, how.resize)):
        return f"image sides {how.size!r} and {how.resize!r} are no positive integers"
    if how.interpolation not in ("bilinear", "bicubic"):
        return f"interpolation {how.interpolation!r} is neither bilinear nor bicubic"
    numbers = all(type(value) in (int, float) and -1e6 < value < 1e6 for value in (*how.mean, *how.std))
    if not numbers or len(how.mean) != len(how.std) or len(how.mean) not in (1, 3) or min(how.std) <= 0:
        return f"mean {how.mean!r} and std {how.std!r} are not one or three numbers each, std above 0"
    unfit = [label for label in labels if not _is_line(label)]
    return f"label {unfit[0]!r} is not one line of text" if unfit else None


def _is_line(label: Any) -> bool:
    """Whether it can stand on a line of its own in a UTF-8 file."""
    if not isinstance(label, str) or {"\n", "\r"} & set(label):
        return False
    return label.encode(errors="ignore").decode() == label


def _bits_fault(quantization: Any) -> str | None:
    widths = [quantization.get(key, 8) for key in ("weight_bits", "act_bits")] if isinstance(quantization, dict) else []
    return None if widths and all(type(bits) is int for bits in widths) else f"quantization {quantization!r}"


def _only_tensor(path: Path, kind: str, values: "list[onnx.ValueInfoProto]") -> Tensor:
    import onnx

    if len(values) != 1:
        names = ", ".join(value.name for value in values) or "none"
        raise OnnxFileError(f"{path} has {len(values)} {kind}s ({names}), expected one; export it again")
    kind_of = values[0].type.tensor_type
    shape = tuple(axis.dim_value if axis.HasField("dim_value") else None for axis in kind_of.shape.dim)
    return Tensor(values[0].name, onnx.TensorProto.DataType.Name(kind_of.elem_type), shape)


def _expect(path: Path, source: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    if (tensor.dtype, tensor.shape) != ("FLOAT", shape):
        found = f"{tensor.dtype} {axes(tensor.shape)}"
        raise OnnxFileError(
            f"{path}: its {source} ask for {tensor.name!r} as FLOAT {axes(shape)}, the graph has {found}; export it again"
        )


def axes(shape: tuple[int | None, ...]) -> str:
    """`[batch, 3, 224, 224]`"""
    return "[" + ", ".join("batch" if axis is None else str(axis) for axis in shape) + "]"
