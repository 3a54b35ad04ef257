"""The definition of what a frozen model computes, in numpy: integer codes, int32 products, float64 between them.

One function for each kind of node (ofq_deploy.model.nodes), slow and plain on purpose. Where a runtime and the oracle
disagree, the distance of the oracle's value to the nearest threshold tells a rounding tie from an error
(ofq_deploy.runtime_tests.proof.parity).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from ofq_deploy.model import nodes
from ofq_deploy.model.frozen import Frozen
from ofq_deploy.model.layout import layout_steps
from ofq_deploy.model.nodes import AnyNode, PerChannel, PerToken, PerTokenHead
from ofq_deploy.runner import FORCED, Arrays, Metadata, Runner, runtime_name

Double = NDArray[np.float64]
Codes = NDArray[np.int16]
Values = dict[str, NDArray[Any]]


@dataclass(slots=True)
class Trace:
    """What a run computed at every tap, and the values that were forced on it.

    codes:  int16, by quantizer name, in the shape that the quantizer's node has, with the batch in front
    units:  float64, the values that were rounded to these codes
    floats: float64, the residual stream ("embedding", "<block>.middle", "<block>.output") and "logits"
    forced: codes or floats by tap; where present, what follows the tap reads them instead of its own
    flips:  by quantizer, (index into its codes, code to put there): single codes that follow another rounding
    """

    codes: dict[str, Codes] = field(default_factory=dict)
    units: dict[str, Double] = field(default_factory=dict)
    floats: dict[str, Double] = field(default_factory=dict)
    forced: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    flips: dict[str, list[tuple[tuple[int, ...], int]]] = field(default_factory=dict)

    def quantize(self, name: str, units: Double, limits: tuple[int, int]) -> Codes:
        self.units[name] = units
        with np.errstate(invalid="ignore"):  # NaN, as a runtime's residual stream may bring it here
            self.codes[name] = np.clip(np.rint(units), *limits).astype(np.int16)
        for index, code in self.flips.get(name, []):
            self.codes[name][index] = code
        return np.asarray(self.forced.get(name, self.codes[name]), dtype=np.int16)

    def tap(self, name: str, value: Double) -> Double:
        self.floats[name] = value
        return np.asarray(self.forced.get(name, value), dtype=np.float64)


def run(frozen: Frozen, images: NDArray[np.float32], forced: dict[str, NDArray[np.generic]] | None = None) -> Trace:
    """Compute logits and every tap for images [batch, channels, size, size]."""
    trace = Trace(forced=forced or {})
    run_nodes(frozen, frozen.graph.nodes, {"image": images.astype(np.float64)}, trace)
    return trace


class Oracle(Runner):
    """The oracle as a runner; takes and gives what ofq_deploy.runtime_tests.proof.tapped.TappedModel does."""

    def __init__(self, frozen: Frozen) -> None:
        self._frozen = frozen
        names = tuple(frozen.graph.taps)
        inputs = ("image", *(name + FORCED for name in names if name != "logits"))
        self._metadata = Metadata("oracle", runtime_name("numpy"), "cpu", {"dtype": "float64"}, inputs, names, tie=0.0)

    @property
    def metadata(self) -> Metadata:
        return self._metadata

    def infer(self, inputs: Arrays) -> Arrays:
        trace = self.trace(inputs)
        return {**trace.codes, **trace.floats}

    def trace(self, inputs: Arrays) -> Trace:
        """What `infer` gives, with the values that were rounded to codes."""
        forced = {name.removesuffix(FORCED): value for name, value in inputs.items() if name.endswith(FORCED)}
        return run(self._frozen, inputs["image"], forced)

    def close(self) -> None:
        return


def run_nodes(
    frozen: Frozen, chosen: Iterable[AnyNode], values: Values, trace: Trace, all_rows: bool = False
) -> NDArray[Any]:
    """Compute some nodes in their order and return the value of the last.

    values:   those that the nodes read and none of them makes, with the batch in front; all others are added
    all_rows: compute every token where the network cuts those that nothing reads
    """
    value = np.zeros(0)
    for node in chosen:
        if isinstance(node, nodes.Rows) and all_rows:
            value = values[node.x]
        else:
            value = compute(node, frozen, values, trace)
        values[node.output] = value
    return value


def compute(node: AnyNode, frozen: Frozen, values: Values, trace: Trace) -> NDArray[Any]:
    """The value of one node [batch, ...] from those that it reads."""
    x = [values[name] for name in node.inputs]
    match node:
        case nodes.Image():
            return values[node.name]
        case nodes.Constant():
            return _double(frozen, node.name)[None]
        case nodes.Quantize():
            return _quantize(node, frozen, x[0], trace)
        case nodes.Linear():
            return _linear(node, frozen, x[0])
        case nodes.Product():
            return _product(node, frozen, *x)
        case nodes.LayerNorm():
            centred = x[0] - x[0].mean(-1, keepdims=True)
            deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + node.epsilon)
            return centred / deviation * frozen[f"{node.name}.weight"] + frozen[f"{node.name}.bias"]
        case nodes.Softmax():
            power = np.exp(x[0] - x[0].max(-1, keepdims=True))
            return power / power.sum(-1, keepdims=True)
        case nodes.Gelu():
            return x[0] * 0.5 * (1 + erf(x[0] / np.sqrt(2.0)))
        case nodes.Add():
            total = sum(x[1:], start=x[0])
            return trace.tap(node.name, total) if node.tap else total
        case nodes.Concat():
            batch = max(len(part) for part in x)
            joined = np.concatenate([np.broadcast_to(part, (batch, *part.shape[1:])) for part in x], axis=1)
            return trace.tap(node.name, joined) if node.tap else joined
        case nodes.Rows():
            return x[0][:, : node.count]
        case nodes.Token():
            return x[0][:, node.index]
        case nodes.Pool():
            return x[0][:, node.start :].mean(1)
        case nodes.Layout():
            steps = layout_steps(node, x[0].shape[1:])
            parts = x[0].reshape(-1, *steps.split).transpose(0, *(axis + 1 for axis in steps.order))
            return parts.reshape(-1, *steps.merged)


def _quantize(node: nodes.Quantize, frozen: Frozen, x: Double, trace: Trace) -> Codes:
    """Codes of x [batch, ...]; a folded step is in x already."""
    quantizer = frozen.quantizer(node.name)
    if node.before:
        x = x + _double(frozen, f"{node.name}.before")
    if not node.folded:
        step = quantizer.step.astype(np.float64)
        match node.granularity:
            case PerToken():
                step = step[: x.shape[-2], None]
            case PerTokenHead(heads=heads):
                step = np.repeat(step[: x.shape[-2]], x.shape[-1] // heads, axis=-1)
            case PerChannel(axis=0):
                step = step[:, None, None]
        x = x / step
    return trace.quantize(node.name, x, quantizer.range)


def _linear(node: nodes.Linear, frozen: Frozen, codes: Codes) -> Double:
    """float64 [batch, ..., out]; one product for each part, within which the scale is constant."""
    linear = frozen.linear(node.name)
    pieces = np.split(codes, node.parts or 1, axis=-1), np.split(linear.integers, node.parts or 1, axis=-1)
    out = np.zeros(())
    for piece, weights, scale in zip(*pieces, linear.scale.reshape(-1, node.width), strict=True):
        out = out + integer_product(piece, weights.T) * scale.astype(np.float64)
    out = out * _row_step(frozen, node.x, codes)
    return np.asarray(out if linear.bias is None else out + linear.bias, dtype=np.float64)


def _product(node: nodes.Product, frozen: Frozen, left: Codes, right: Codes, other: Codes | None = None) -> Double:
    """left [batch, heads or 1, m, k] @ right [batch, heads, k, n]: float64 [batch, heads, m, n]"""
    name, columns = node.name, (right.shape[1], 1, right.shape[3])
    right_quantizer = frozen.graph.quantizer_of(node.right)
    scale = _double(frozen, f"{name}.scale")
    if isinstance(right_quantizer.granularity, PerTokenHead):
        scale = scale.T[:, None]
    elif isinstance(right_quantizer.granularity, PerChannel):
        scale = scale.reshape(columns)
    out = integer_product(left, right) * scale
    if node.row_sum:
        out = out + left.sum(-1, dtype=np.int32, keepdims=True) * _double(frozen, f"{name}.row_sum").reshape(columns)
    out = out * _row_step(frozen, node.left, left)
    if node.key_shift:
        row = (_double(frozen, f"{name}.key_shift")[:, None] @ right)[:, :, 0]
        out = out + (row * _column_step(frozen, node.right))[:, :, None]
    if other is not None:
        row = _double(frozen, f"{name}.key_bias") @ other.swapaxes(1, 2)
        out = out + (row * _column_step(frozen, node.bias_of))[:, :, None]
    return out + _double(frozen, f"{name}.bias").reshape(columns) if node.bias else out


def integer_product(a: NDArray[np.integer], b: NDArray[np.integer]) -> NDArray[np.int32]:
    """a [..., m, k] @ b [..., k, n] as int32.

    Multiplied in float64, where every sum below 2**53 is exact and BLAS is fast. Raises OverflowError when a sum
    leaves int32: no runtime could hold it either.
    """
    total = np.matmul(a.astype(np.float64), b.astype(np.float64))
    if total.size and np.abs(total).max() >= 2**31:
        raise OverflowError("an integer product leaves int32")
    return total.astype(np.int32)


def _row_step(frozen: Frozen, codes: str, value: Codes) -> Double | float:
    """Token steps as seen by the rows of codes [..., rows, width]: [rows, 1]. Others are in the scale and count as 1."""
    quantizer = frozen.graph.quantizer_of(codes)
    if not isinstance(quantizer.granularity, PerToken):
        return 1.0
    return _double(frozen, f"{quantizer.name}.step")[: value.shape[-2], None]


def _column_step(frozen: Frozen, codes: str) -> Double | float:
    """Token steps as seen by the columns of a product: [tokens], or [heads, tokens]. Others count as 1."""
    quantizer = frozen.graph.quantizer_of(codes)
    if not isinstance(quantizer.granularity, (PerToken, PerTokenHead)):
        return 1.0
    return _double(frozen, f"{quantizer.name}.step").T


def _double(frozen: Frozen, name: str) -> Double:
    return frozen[name].astype(np.float64)
