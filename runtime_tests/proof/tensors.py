"""Where a quantized graph leaves the float graph that it was made from, tensor by tensor.

Quantizers keep the names of the values that they quantize, so the two graphs are paired by name: `x` itself (ONNX
Runtime's QDQ and dynamic formats, NNCF), or `x_quantized` beside its `x_scale` (its operator format). Every operator
of the quantized graph runs on the reference's values of its inputs. Errors then do not add up along the graph: a
healthy tensor shows a rounding or two, and a fault shows at the operator that has it, and at no other.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ofq_deploy.errors import OnnxFileError
from ofq_deploy.model.file import force
from ofq_deploy.progress import Reporter
from ofq_deploy.runner import FORCED, Arrays
from ofq_deploy.runtime_tests.runners.ort import open_session, run_all

if TYPE_CHECKING:
    import onnx

CODES = "_quantized"
VALUE = f"{CODES}/value"
PRODUCTS = ("MatMul", "Gemm", "Conv")
CONVOLUTIONS = ("Conv", "ConvTranspose")
LAYOUT = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")
LEAST_SIGNAL = 0.01  # of the mean over the channels, in squares; transformers have a few channels that outshine all
FEWEST_VALUES = 8
STANDARD_ERRORS = 3  # by which chance alone may move the gain of one of some hundred channels
LARGEST = 1e9  # what an infinite error is reported as, JSON having no infinity


@dataclass(frozen=True, slots=True)
class TensorError:
    """error: RMS of the difference over RMS of the reference; gain_error: the largest |1 - gain| of a channel, beyond
    what chance explains.

    A channel is a place on the last axis (what convolutions give: on the second), its gain the factor from the
    reference's values to the model's. One wrong scale among hundreds is lost in `error`. Channels with little signal,
    or hardly any values, have no gain.
    """

    name: str
    error: float
    gain_error: float

    def exceeds(self, tolerance: float) -> bool:
        return max(self.error, self.gain_error) > tolerance


@dataclass(frozen=True, slots=True)
class HalfQuantized:
    """A product of codes and floats: `tensor` is what is not quantized."""

    node: str
    tensor: str


def compare_tensors(
    model: "onnx.ModelProto",
    reference: "onnx.ModelProto",
    images: NDArray[np.float32],
    report: Reporter,
    batch: int = 1,
) -> list[TensorError]:
    """The error of every float tensor of two axes or more that both graphs have, in the order of the quantized one.

    images: float32 [images, channels, height, width], run `batch` at a time, without optimizations

    Raises OnnxFileError when the graphs have no tensor in common but their outputs.
    """
    theirs, ours = _watched(reference), _watched(_with_values(model))
    session = open_session(theirs, optimize=False)
    first = _batch(images, 0, batch)
    outputs = {model.graph.output[0].name: reference.graph.output[0].name}
    pairs = _pairs(run_all(session, _feed(reference, first)), _run_once(ours, _feed(model, first)), outputs)
    if len(pairs) <= len(model.graph.output):
        raise OnnxFileError("the model and the reference name no tensor alike; pass the float model it was made from")
    force(ours, {own: value for own, (_, value) in pairs.items()})
    forced = open_session(ours, optimize=False)
    convolved = {name for node in reference.graph.node if node.op_type in CONVOLUTIONS for name in node.output}
    axes = {own: 1 if name in convolved else -1 for own, (name, _) in pairs.items()}
    sums = {own: np.zeros((3, value.shape[axes[own]])) for own, (_, value) in pairs.items()}
    starts = range(0, len(images), batch)
    with report.task("tensors", len(starts)) as advance:
        for start in starts:
            chosen = _batch(images, start, batch)
            expected = run_all(session, _feed(reference, chosen))
            feeds = {own + FORCED: expected[name] for own, (name, _) in pairs.items()}
            found = run_all(forced, _feed(model, chosen) | feeds)
            for own, (name, _) in pairs.items():
                sums[own] += _sums(found[own], expected[name], axes[own])
            advance()
    rows = {own: len(starts) * value.size // value.shape[axes[own]] for own, (_, value) in pairs.items()}
    return [TensorError(name, _error(sums[own]), _gain_error(sums[own], rows[own])) for own, (name, _) in pairs.items()]


def half_quantized(model: "onnx.ModelProto") -> list[HalfQuantized]:
    """Products of which one operand was dequantized just before and the other was not: a Q/DQ pair is missing."""
    producers = {name: node for node in model.graph.node for name in node.output}

    def is_quantized(name: str) -> bool:
        while name in producers and producers[name].op_type in LAYOUT:
            name = producers[name].input[0]
        return name in producers and producers[name].op_type == "DequantizeLinear"

    found = []
    for node in model.graph.node:
        if node.op_type in PRODUCTS:
            floats = [name for name in node.input[:2] if not is_quantized(name)]
            found += [HalfQuantized(node.name, name) for name in floats if len(floats) == 1]
    return found


def _with_values(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """A copy in which codes that an operator makes pass through the floats `x_quantized/value`, which changes nothing.

    Codes that come from QuantizeLinear have their floats in the graph already.
    """
    from onnx import ModelProto, helper

    copy = ModelProto()
    copy.CopyFrom(model)
    constants = {tensor.name for tensor in copy.graph.initializer}
    nodes = []
    for node in copy.graph.node:
        nodes.append(node)
        for name in node.output:
            x = name.removesuffix(CODES)
            step = [f"{x}_scale", f"{x}_zero_point"]
            if node.op_type.startswith("Q") and node.op_type != "QuantizeLinear" and constants.issuperset(step):
                nodes.append(helper.make_node("DequantizeLinear", [name, *step], [x + VALUE]))
                nodes.append(helper.make_node("QuantizeLinear", [x + VALUE, *step], [f"{name}/codes"]))
                for reader in copy.graph.node:
                    reader.input[:] = [f"{name}/codes" if read == name else read for read in reader.input]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _watched(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """A copy whose outputs are its float values, in the order of the graph."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    made = dict.fromkeys(name for node in copy.graph.node for name in node.output if name)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    floats = [v.name for v in open_session(copy, optimize=False).get_outputs() if v.type == "tensor(float)"]
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in floats)
    return copy


def _pairs(reference: Arrays, own: Arrays, outputs: dict[str, str]) -> dict[str, tuple[str, NDArray[np.float32]]]:
    """Own name to the reference's name and value, where the shapes agree; outputs are paired whatever their names."""
    named = {(name + VALUE if name + VALUE in own else name): name for name in reference} | outputs
    return {
        name: (named[name], reference[named[name]])
        for name, value in own.items()
        if name in named and value.ndim > 1 and value.shape == reference[named[name]].shape
    }


def _feed(model: "onnx.ModelProto", images: NDArray[np.float32]) -> Arrays:
    constants = {tensor.name for tensor in model.graph.initializer}
    return {next(value.name for value in model.graph.input if value.name not in constants): images}


def _batch(images: NDArray[np.float32], start: int, size: int) -> NDArray[np.float32]:
    """The last image is repeated to fill the last batch."""
    return images[np.minimum(np.arange(start, start + size), len(images) - 1)]


def _run_once(model: "onnx.ModelProto", feeds: Arrays) -> Arrays:
    return run_all(open_session(model, optimize=False), feeds)


def _sums(own: NDArray[np.float32], reference: NDArray[np.float32], axis: int) -> NDArray[np.float64]:
    """Per channel: squares of the differences, products, squares of the reference; [3, channels]."""
    channels = own.shape[axis]
    x, y = (np.moveaxis(value, axis, -1).reshape(-1, channels).astype(np.float64) for value in (own, reference))
    return np.stack([np.square(x - y).sum(0), (x * y).sum(0), np.square(y).sum(0)])


def _error(sums: NDArray[np.float64]) -> float:
    difference, reference = sums[0].sum(), sums[2].sum()
    if not np.isfinite(difference) or difference > LARGEST**2 * reference:
        return LARGEST
    return float(np.sqrt(difference / reference)) if reference else 0.0


def _gain_error(sums: NDArray[np.float64], rows: int) -> float:
    """By least squares from the sums over `rows` values of each channel."""
    if rows < FEWEST_VALUES:
        return 0.0
    differences, products, reference = sums[:, sums[2] > LEAST_SIGNAL * sums[2].mean()]
    with np.errstate(invalid="ignore"):  # infinite sums
        left = np.maximum(differences - np.square(products - reference) / reference, 0)  # that no gain explains
        errors = np.abs(products / reference - 1) - STANDARD_ERRORS * np.sqrt(left / reference / (rows - 1))
    return float(np.nan_to_num(errors, nan=LARGEST, posinf=LARGEST).max(initial=0))
