"""The fused operators of docs/kernels.md in numpy: float64 for floats, integers for sums. Ordinary nodes are onnx's reference.

Slow and plain on purpose, and written from the document alone: it stands for the library where that is not installed.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from scipy.special import erf

from ofq_deploy.runner import Arrays, Metadata, Runner

Array = NDArray[Any]
LANES = 16


def lanes(codes: Array, width: int) -> Array:
    """[batch, tiles, rows, 64] -> [batch, tokens of whole tiles, width], bytes as int64"""
    batch, tiles, _, _ = codes.shape
    found = np.zeros((batch, tiles * LANES, width), dtype=np.int64)
    for t in range(tiles * LANES):
        for k in range(width):
            found[:, t, k] = codes[:, t // 16, k // 4, 4 * (t % 16) + k % 4]
    return found


def lines(values: Array) -> Array:
    """[batch, tokens, width], stored bytes -> [batch, tiles, rows, 64]; what fills up is 255, so that a reader is noticed"""
    batch, tokens, width = values.shape
    made = np.full((batch, -(-tokens // 16), 16 * -(-width // 64), 64), 255, dtype=np.uint8)
    for t in range(tokens):
        for k in range(width):
            made[:, t // 16, k // 4, 4 * (t % 16) + k % 4] = values[:, t, k]
    return made


def residual_rows(x: Array, tokens: int, channels: int) -> Array:
    """[batch, tiles, channels, 16] -> float64 [batch, tokens, channels]"""
    rows = [x[:, t // 16, :channels, t % 16] for t in range(tokens)]
    return np.stack(rows, axis=1).astype(np.float64)


def residual_tiles(values: Array) -> Array:
    batch, tokens, channels = values.shape
    made = np.full((batch, -(-tokens // 16), 16 * -(-channels // 16), 16), np.nan, dtype=np.float32)
    for t in range(tokens):
        made[:, t // 16, :channels, t % 16] = values[:, t]
    return made


def zero(bits: int, signed: int) -> int:
    return 2 ** (bits - 1) if signed else 0


def quantized(units: Array, bits: int, signed: int) -> Array:
    """Stored bytes."""
    with np.errstate(invalid="ignore"):
        codes = np.clip(np.nan_to_num(np.rint(units), nan=-1e9), -zero(bits, signed), 2**bits - 1 - zero(bits, signed))
    return (codes + zero(bits, signed)).astype(np.uint8)


def integers(weight: Array, bits: int, half: int, outputs: int, inputs: int) -> Array:
    stream = [int(weight[place // 8]) >> place % 8 & 1 for place in range(bits * outputs * inputs)]
    codes = sum(np.asarray(stream).reshape(bits, -1)[plane] << plane for plane in range(bits)) - 2 ** (bits - 1)
    return np.asarray(2 * codes + 1 if half else codes, dtype=np.int64).reshape(outputs, inputs)


def sums(x: Array, tokens: int, a: dict[str, int], weight: Array, parts: int = 1) -> list[Array]:
    """int64 [batch, tokens, width] of each part."""
    inputs, padded = a["inputs"], 64 * -(-a["inputs"] // 64)
    whole = integers(weight, a["weight_bits"], a["half"], a["width"], parts * inputs)
    codes = lanes(x, parts * padded)[:, :tokens] - zero(a["in_bits"], a["in_signed"])
    return [
        codes[..., part * padded : part * padded + inputs] @ whole[:, part * inputs : (part + 1) * inputs].T
        for part in range(parts)
    ]


def double(value: Array | None, otherwise: float = 0.0) -> Array:
    return np.asarray(otherwise) if value is None else value.astype(np.float64)


class Fused(OpRun):
    op_domain = "ofq"
    op_schema = None  # else ONNX's operator of that name would add its attributes


class Patches(Fused):
    def _run(self, image, reciprocal, before=None, **a):
        batch, channels, size, _ = image.shape
        patch, first, parts, side = a["patch"], a["first"], a["parts"], size // a["patch"]
        assert a["tokens"] == first + side**2
        units = (image.astype(np.float64) + double(before)) * double(reciprocal).reshape(-1, 1, 1)
        codes = quantized(units, a["out_bits"], a["out_signed"])
        width = channels // parts * patch**2
        padded = 64 * -(-width // 64)
        rows = np.full((batch, a["tokens"], parts * padded), zero(a["out_bits"], a["out_signed"]), dtype=np.uint8)
        for token in range(side**2):
            y, x = divmod(token, side)
            pixels = codes[:, :, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch].reshape(batch, parts, width)
            for part in range(parts):
                rows[:, first + token, part * padded : part * padded + width] = pixels[:, part]
        return (lines(rows),)


class LayerNorm(Fused):
    def _run(self, x, gamma, beta, reciprocal=None, **a):
        x = residual_rows(x, a["tokens"], a["width"])
        z = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + a["epsilon"])
        units = z * double(gamma) + double(beta)
        if reciprocal is not None:
            units = units * double(reciprocal)[: a["tokens"], None]
        return (lines(quantized(units, a["out_bits"], a["out_signed"])),)


class Linear(Fused):
    def _run(self, x, weight, scale, bias, in_step=None, reciprocal=None, shift=None, rising=None, falling=None, **a):
        tokens, heads = a["tokens"], a["heads"]
        (acc,) = sums(x, tokens, a, weight)
        if rising is not None:
            assert (scale, bias, in_step, reciprocal, shift) == (None,) * 5
            cut = np.clip(acc, -32767, 32766)[..., None]
            bytes_ = (cut >= rising).sum(-1)
            if falling is not None:
                bytes_ = bytes_ + (cut < falling).sum(-1)
            return (lines(bytes_.astype(np.uint8)),)
        value = acc * double(scale) * (1 if in_step is None else double(in_step)[:tokens, None]) + double(bias)
        if a["gelu"]:
            value = value * 0.5 * (1 + erf(value / np.sqrt(2))) + double(shift)
        if reciprocal is not None:
            by_head = double(reciprocal)[:tokens].reshape(tokens, -1)
            assert by_head.shape[1] in (1, heads)
            value = value * np.repeat(by_head, a["width"] // by_head.shape[1], axis=1)
        return (lines(quantized(value, a["out_bits"], a["out_signed"])),)


class LinearAdd(Fused):
    def _run(self, x, weight, scale, bias, residual, in_step=None, **a):
        tokens = a["tokens"]
        assert scale.shape == (a["parts"], a["width"])
        total = residual_rows(residual, tokens, a["width"]) + double(bias)
        for acc, own in zip(sums(x, tokens, a, weight, a["parts"]), double(scale), strict=True):
            total = total + acc * own * (1 if in_step is None else double(in_step)[:tokens, None])
        return (residual_tiles(total),)


class LinearHead(Fused):
    def _run(self, x, weight, scale, bias, add=None, **a):
        (acc,) = sums(x, a["token"] + 1, a, weight)
        return ((acc[:, a["token"]] * double(scale) + double(bias) + double(add)).astype(np.float32),)


class Attention(Fused):
    """Powers come from the scale: a kernel may take them from a table of exponentials, which says the same."""

    def _run(
        self, q, k, v, scale, context_scale, context_bias, p_reciprocal, table=None, query_step=None, key_shift=None,
        key_shift_step=None, key_bias=None, other=None, key_bias_step=None, row_sum=None, p_step=None,
        out_reciprocal=None, forced=None, **a,
    ):  # fmt: skip
        heads, tokens, rows, width, value_width = (a[n] for n in ("heads", "tokens", "rows", "width", "value_width"))
        q = lanes(q, width * (1 if a["shared"] else heads))[:, :rows] - zero(a["q_bits"], a["q_signed"])
        k = lanes(k, width * heads)[:, :tokens] - zero(a["k_bits"], a["k_signed"])
        v = lanes(v, value_width * heads)[:, :tokens] - zero(a["v_bits"], a["v_signed"])
        other = None if other is None else lanes(other, key_bias.shape[1]) - zero(a["other_bits"], a["other_signed"])
        made, probabilities = [], []
        for h in range(heads):
            own_q = q[..., :width] if a["shared"] else q[..., h * width : (h + 1) * width]
            own_k, own_v = k[..., h * width : (h + 1) * width], v[..., h * value_width : (h + 1) * value_width]
            acc = own_q @ own_k.swapaxes(1, 2)
            key = np.zeros((len(q), tokens))
            if key_shift is not None:
                term = own_k @ double(key_shift)[h if len(key_shift) > 1 else 0]
                key = key + term * self._by_head(key_shift_step, tokens, h)
            if key_bias is not None:
                term = other[:, :tokens] @ double(key_bias)[h]
                key = key + term * self._by_head(key_bias_step, tokens, h)
            powers = acc * self._by_head(scale, tokens, h)
            if query_step is not None:
                powers = powers * double(query_step)[:rows, None]
            powers = powers + key[:, None]
            distance = powers - powers.max(-1, keepdims=True)
            p = np.exp2(distance)
            reciprocal = double(p_reciprocal)[:rows, None] if p_reciprocal.size > 1 else double(p_reciprocal)
            codes = np.minimum(np.rint(p * (reciprocal / p.sum(-1, keepdims=True))), 2 ** a["p_bits"] - 1)
            probabilities.append(codes)
            codes = codes.astype(np.int64) if forced is None else forced[:, h].astype(np.int64)
            own = slice(h * value_width, (h + 1) * value_width)
            value = (codes @ own_v) * double(context_scale)[own]
            if row_sum is not None:
                value = value + codes.sum(-1, keepdims=True) * double(row_sum)[own]
            if p_step is not None:
                value = value * double(p_step)[:rows, None]
            value = value + double(context_bias)[own]
            made.append(value if out_reciprocal is None else value * double(out_reciprocal)[:rows, None])
        codes = lines(quantized(np.concatenate(made, axis=-1), a["out_bits"], a["out_signed"]))
        return codes, np.stack(probabilities, axis=1).astype(np.uint8)

    @staticmethod
    def _by_head(steps: Array | None, tokens: int, head: int) -> Array:
        if steps is None or steps.size == 1:
            return double(steps, 1.0)
        return double(steps)[:tokens, head] if steps.ndim == 2 else double(steps)[:tokens]


class MatMulIntegerToFloat(OpRun):
    """ONNX Runtime's, which graphs of both kinds of operators have."""

    op_domain = "com.microsoft"

    def _run(self, a, b, a_scale, b_scale, a_zero=None, b_zero=None, bias=None):
        assert b_zero is None or not b_zero.any()
        total = (a.astype(np.int64) - np.int64(a_zero)) @ b.astype(np.int64)
        return ((total * double(a_scale) * double(b_scale) + double(bias)).astype(np.float32),)


OPERATORS = [Patches, LayerNorm, Linear, LinearAdd, LinearHead, Attention, MatMulIntegerToFloat]


class ReferenceRunner(Runner):
    """A graph of fused and ordinary operators, as any runtime opens it."""

    def __init__(self, model: onnx.ModelProto, batch: int = 0) -> None:
        typed = onnx.ModelProto()
        typed.CopyFrom(model)
        for value in typed.graph.output:
            if not value.HasField("type"):  # the evaluator asks for one and does not use it
                value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        self._evaluator = ReferenceEvaluator(typed, new_ops=OPERATORS)
        inputs, outputs = tuple(self._evaluator.input_names), tuple(self._evaluator.output_names)
        self._metadata = Metadata("fused-reference", "numpy", "cpu", {}, inputs, outputs, tie=1e-4)

    @property
    def metadata(self) -> Metadata:
        return self._metadata

    def infer(self, inputs: Arrays) -> Arrays:
        found = self._evaluator.run(list(self._metadata.outputs), inputs)
        return dict(zip(self._metadata.outputs, found, strict=True))

    def close(self) -> None:
        return
