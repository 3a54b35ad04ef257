"""The definition of what a frozen model computes, in numpy: integer codes, int32 products, float64 between them.

Slow and plain on purpose. Where a runtime and the oracle disagree, the distance of the oracle's value to the
nearest threshold tells a rounding tie from an error (ofq_deploy.runtime_tests.proof.parity).
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from ofq_deploy.model.frozen import Frozen, Linear, Quantizer
from ofq_deploy.runner import FORCED, Arrays, Metadata, Runner, runtime_name

Double = NDArray[np.float64]
Codes = NDArray[np.int16]


@dataclass(slots=True)
class Trace:
    """What a run computed at every tap, and the values that were forced on it.

    codes:  int16, by quantizer name; [batch, tokens, width], softmax [batch, heads, queries, keys],
            image [batch, channels, height, width], heads [batch, dim]
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

    def quantize(self, name: str, units: Double, quantizer: Quantizer) -> Codes:
        self.units[name] = units
        with np.errstate(invalid="ignore"):  # NaN, as a runtime's residual stream may bring it here
            self.codes[name] = np.clip(np.rint(units), *quantizer.range).astype(np.int16)
        for index, code in self.flips.get(name, []):
            self.codes[name][index] = code
        return np.asarray(self.forced.get(name, self.codes[name]), dtype=np.int16)

    def tap(self, name: str, value: Double) -> Double:
        self.floats[name] = value
        return np.asarray(self.forced.get(name, value), dtype=np.float64)


def run(frozen: Frozen, images: NDArray[np.float32], forced: dict[str, NDArray[np.generic]] | None = None) -> Trace:
    """Compute logits and every tap for images [batch, channels, size, size]."""
    trace = Trace(forced=forced or {})
    x = run_stem(frozen, images.astype(np.float64), trace)
    for index, name in enumerate(frozen.blocks):
        last = index == frozen.architecture.depth - 1
        x = run_block(frozen, name, x, frozen.architecture.prefix if last else frozen.architecture.tokens, trace)
    run_heads(frozen, x, trace)
    return trace


class Oracle(Runner):
    """The oracle as a runner; takes and gives what ofq_deploy.runtime_tests.proof.tapped.TappedModel does."""

    def __init__(self, frozen: Frozen) -> None:
        self._frozen = frozen
        names = tuple(name for block in (frozen.quantizers, _float_taps(frozen)) for name in block)
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


def _float_taps(frozen: Frozen) -> list[str]:
    return ["embedding", *(f"{block}.{end}" for block in frozen.blocks for end in ("middle", "output")), "logits"]


def run_stem(frozen: Frozen, image: Double, trace: Trace) -> Double:
    """Images [batch, channels, size, size] to tokens [batch, tokens, dim]."""
    a, linear = frozen.architecture, frozen.linear("patch_embed")
    quantizer = frozen.quantizer("patch_embed.input")
    before = frozen.get("patch_embed.input.before")
    shifted = image if before is None else image + before
    codes = trace.quantize("patch_embed.input", shifted / quantizer.step.astype(np.float64)[:, None, None], quantizer)
    side, p = a.image_size // a.patch_size, a.patch_size
    patches = codes.reshape(-1, a.channels, side, p, side, p).transpose(0, 2, 4, 1, 3, 5)
    patches = patches.reshape(-1, a.patches, len(linear.scale), a.channels * p * p // len(linear.scale))
    weights = linear.integers.reshape(a.dim, len(linear.scale), -1)
    x = frozen["patch_embed.position"].astype(np.float64)
    for channel, scale in enumerate(linear.scale):  # one product per step: the step is not constant inside it
        x = x + integer_product(patches[:, :, channel], weights[:, channel].T) * scale.astype(np.float64)
    tokens = np.broadcast_to(frozen["tokens"].astype(np.float64), (len(x), a.prefix, a.dim))
    return trace.tap("embedding", np.concatenate([tokens, x], axis=1))


def run_block(frozen: Frozen, name: str, x: Double, rows: int, trace: Trace) -> Double:
    """One block; only its first `rows` tokens are computed (the last block is read at the class tokens only)."""
    attn, mlp = f"{name}.attn", f"{name}.mlp"
    h = _layer_norm(frozen, f"{name}.norm1", x)
    codes = _quantize_tokens(frozen, f"{attn}.input", h, trace)
    v = _quantize_linear(frozen, f"{attn}.v", codes, f"{attn}.input", trace)
    scores = _scores_qkr if frozen.quantization.attention == "qkr" else _scores_qk
    p = _quantize_tokens(frozen, f"{attn}.softmax", _softmax(scores(frozen, attn, codes, rows, trace)), trace)
    context = _quantize_tokens(frozen, f"{attn}.proj.input", _context(frozen, attn, p, v), trace)
    x = trace.tap(f"{name}.middle", x[:, :rows] + _linear(frozen, f"{attn}.proj", context, f"{attn}.proj.input"))
    h = _layer_norm(frozen, f"{name}.norm2", x)
    codes = _quantize_tokens(frozen, f"{mlp}.fc1.input", h, trace)
    h = _gelu(_linear(frozen, f"{mlp}.fc1", codes, f"{mlp}.fc1.input"))
    before = frozen.get(f"{mlp}.fc2.input.before")
    codes = _quantize_tokens(frozen, f"{mlp}.fc2.input", h if before is None else h + before, trace)
    return trace.tap(f"{name}.output", x + _linear(frozen, f"{mlp}.fc2", codes, f"{mlp}.fc2.input"))


def _scores_qk(frozen: Frozen, attn: str, codes: Codes, rows: int, trace: Trace) -> Double:
    """[batch, heads, rows, tokens]: q.k in integers, times both steps, plus the shift after q seen by each key."""
    q = _quantize_linear(frozen, f"{attn}.q", codes[:, :rows], f"{attn}.input", trace)
    k = _quantize_linear(frozen, f"{attn}.k", codes, f"{attn}.input", trace)
    q, k = _split_heads(frozen, q), _split_heads(frozen, k)
    scores = integer_product(q, k.swapaxes(2, 3)) * _per_key(frozen[f"{attn}.scores.scale"])
    scores = scores * _token_step(frozen.quantizer(f"{attn}.q"), rows)
    key_shift = frozen.get(f"{attn}.scores.key_shift")  # [heads, head_dim]
    if key_shift is not None:
        row = np.einsum("hc,bhmc->bhm", key_shift.astype(np.float64), k)
        scores = scores + (row * _key_step(frozen.quantizer(f"{attn}.k")))[:, :, None]
    return scores


def _scores_qkr(frozen: Frozen, attn: str, codes: Codes, rows: int, trace: Trace) -> Double:
    """[batch, heads, rows, tokens]: x.z in integers, plus per-key terms of the shift after x and the query bias."""
    a = frozen.architecture
    z = _quantize_linear(frozen, f"{attn}.z", codes, f"{attn}.input", trace)
    z = z.reshape(*z.shape[:2], a.heads, a.dim).transpose(0, 2, 1, 3)
    x_quantizer, z_quantizer = frozen.quantizer(f"{attn}.input"), frozen.quantizer(f"{attn}.z")
    scores = integer_product(codes[:, None, :rows], z.swapaxes(2, 3)) * _per_key(frozen[f"{attn}.scores.scale"])
    scores = scores * _token_step(x_quantizer, rows)
    key_shift = frozen.get(f"{attn}.scores.key_shift")  # [1, dim]
    if key_shift is not None:
        row = np.einsum("c,bhmc->bhm", key_shift[0].astype(np.float64), z)
        scores = scores + (row * _key_step(z_quantizer))[:, :, None]
    key_bias = frozen.get(f"{attn}.scores.key_bias")  # [heads, dim]
    if key_bias is not None:
        row = np.einsum("hc,bmc->bhm", key_bias.astype(np.float64), codes)
        scores = scores + (row * _key_step(x_quantizer))[:, :, None]
    return scores


def _context(frozen: Frozen, attn: str, p: Codes, v: Codes) -> Double:
    """[batch, rows, dim]: p.v in integers; the shift after v enters with the row sum of p, which is not 1."""
    total = integer_product(p, _split_heads(frozen, v)).transpose(0, 2, 1, 3)  # [batch, rows, heads, head_dim]
    heads = total.shape[2:]
    context = total * frozen[f"{attn}.context.scale"].astype(np.float64).reshape(heads)
    row_sum = frozen.get(f"{attn}.context.row_sum")
    if row_sum is not None:
        sums = p.sum(-1, dtype=np.int32).transpose(0, 2, 1)[..., None]  # [batch, rows, heads, 1]
        context = context + sums * row_sum.astype(np.float64).reshape(heads)
    context = context.reshape(*context.shape[:2], -1) * _token_step(frozen.quantizer(f"{attn}.softmax"), p.shape[2])
    bias = frozen.get(f"{attn}.context.bias")
    return context if bias is None else context + bias


def run_heads(frozen: Frozen, x: Double, trace: Trace) -> Double:
    """Class tokens [batch, prefix or more, dim] to logits [batch, classes]."""
    x = _layer_norm(frozen, "norm", x)
    logits = np.zeros(())
    for token, head in enumerate(frozen.heads):
        quantizer, before = frozen.quantizer(f"{head}.input"), frozen.get(f"{head}.input.before")
        h = x[:, token] if before is None else x[:, token] + before
        codes = trace.quantize(f"{head}.input", h / quantizer.step.astype(np.float64), quantizer)
        logits = logits + _affine(frozen.linear(head), codes)
    return trace.tap("logits", logits)


def integer_product(a: NDArray[np.integer], b: NDArray[np.integer]) -> NDArray[np.int32]:
    """a [..., m, k] @ b [..., k, n] as int32.

    Multiplied in float64, where every sum below 2**53 is exact and BLAS is fast. Raises OverflowError when a sum
    leaves int32: no runtime could hold it either.
    """
    total = np.matmul(a.astype(np.float64), b.astype(np.float64))
    if total.size and np.abs(total).max() >= 2**31:
        raise OverflowError("an integer product leaves int32")
    return total.astype(np.int32)


def _affine(linear: Linear, codes: Codes, row: Double | float = 1.0) -> Double:
    """float64 [..., out]; row: the step of each token, where it is not in the scale"""
    out = integer_product(codes, linear.integers.T) * linear.scale.astype(np.float64) * row
    return np.asarray(out if linear.bias is None else out + linear.bias, dtype=np.float64)


def _linear(frozen: Frozen, name: str, codes: Codes, input_name: str) -> Double:
    return _affine(frozen.linear(name), codes, _token_step(frozen.quantizer(input_name), codes.shape[1]))


def _quantize_linear(frozen: Frozen, name: str, codes: Codes, input_name: str, trace: Trace) -> Codes:
    out, quantizer = _linear(frozen, name, codes, input_name), frozen.quantizer(name)
    if quantizer.folded:
        return trace.quantize(name, out, quantizer)
    step = quantizer.step.astype(np.float64)[: out.shape[1]]  # [rows], or [rows, heads] for z
    by_step = out.reshape(*out.shape[:2], step[0].size, -1) / step.reshape(1, len(step), -1, 1)
    return trace.quantize(name, by_step.reshape(out.shape), quantizer)


def _quantize_tokens(frozen: Frozen, name: str, x: Double, trace: Trace) -> Codes:
    quantizer = frozen.quantizer(name)
    step = quantizer.step.astype(np.float64)
    return trace.quantize(name, x / (step if step.size == 1 else step[: x.shape[-2], None]), quantizer)


def _token_step(quantizer: Quantizer, rows: int) -> Double | float:
    """[rows, 1]; a single step is folded into the scale before and counts as 1."""
    return 1.0 if quantizer.step.size == 1 else quantizer.step.astype(np.float64)[:rows, None]


def _key_step(quantizer: Quantizer) -> Double | float:
    """The step as seen by each key, [tokens] or [heads, tokens]; a single one is folded and counts as 1."""
    return 1.0 if quantizer.step.size == 1 else quantizer.step.astype(np.float64).T


def _per_key(scale: NDArray[np.float32]) -> Double:
    """[1], [tokens] or [tokens, heads] -> broadcastable to [heads, rows, tokens]"""
    wide = scale.astype(np.float64)
    return wide.T[:, None] if wide.ndim == 2 else wide


def _split_heads(frozen: Frozen, codes: Codes) -> Codes:
    a = frozen.architecture
    return codes.reshape(*codes.shape[:2], a.heads, a.head_dim).transpose(0, 2, 1, 3)


def _layer_norm(frozen: Frozen, name: str, x: Double) -> Double:
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + frozen.architecture.epsilon)
    return centred / deviation * frozen[f"{name}.weight"] + frozen[f"{name}.bias"]


def _softmax(x: Double) -> Double:
    power = np.exp(x - x.max(-1, keepdims=True))
    return power / power.sum(-1, keepdims=True)


def _gelu(x: Double) -> Double:
    return x * 0.5 * (1 + erf(x / np.sqrt(2.0)))
