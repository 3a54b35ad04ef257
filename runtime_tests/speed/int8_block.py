"""One block of a frozen model in torch, its codes int8 and its products by a function of choice."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ofq_deploy.errors import UnsupportedByTarget
from ofq_deploy.model.frozen import Frozen, Quantizer
from ofq_deploy.runtime_tests.proof import oracle, parity

if TYPE_CHECKING:
    import torch

Limits = tuple[int, int]
Product = Callable[..., "torch.Tensor"]  # with the signature of `product`
INT8 = (-128, 127)
TIE = 1e-3  # codes from a threshold: float32 between the products, on any device, against the float64 oracle


def product(
    a: "torch.Tensor",
    b: "torch.Tensor",
    column: "torch.Tensor",
    row: "torch.Tensor | None" = None,
    bias: "torch.Tensor | None" = None,
    step: "torch.Tensor | None" = None,
    limits: Limits = INT8,
) -> "torch.Tensor":
    """(a @ b^T) * column * row [+ bias] as float32 [images, heads, m, n]; with a `step` clip(round(it / step)) as int8.

    a:      int8 [images, heads or 1, m, k]
    b:      int8 [images or 1, heads or 1, n, k]
    column: float32 [heads or 1, n]; bias: the same; row: float32 [m or 1]
    step:   float32, broadcastable to [heads, m, n]

    torch._int_mm where the left side is one matrix. torch has no int8 product for more of them: they are multiplied
    in float32, where every sum below 2**24 is exact.
    """
    import torch

    if a.shape[:2] == (1, 1) and b.shape[0] == 1:
        side_by_side = torch._int_mm(a[0, 0], b.reshape(-1, b.shape[-1]).t())
        total = side_by_side.view(a.shape[2], b.shape[1], -1).transpose(0, 1)[None].float()
    else:
        total = a.float() @ b.float().transpose(2, 3)
    value = total * column[:, None]
    if row is not None:
        value = value * row[:, None]
    if bias is not None:
        value = value + bias[:, None]
    return value if step is None else codes_of(value, step, limits)


def codes_of(x: "torch.Tensor", step: "torch.Tensor", limits: Limits) -> "torch.Tensor":
    """int8, clip(round(x / step))"""
    import torch

    return torch.clamp(torch.round(x / step), *limits).to(torch.int8)


def check_int8(frozen: Frozen) -> None:
    """Raise UnsupportedByTarget when codes of the blocks do not fit int8."""
    wide = [
        name for name in frozen.linears if name.startswith("blocks.") and _leaves_int8(frozen.linear(name).integers)
    ]
    wide += [
        name for name in frozen.quantizers if name.startswith("blocks.") and frozen.quantizer(name).range[1] > INT8[1]
    ]
    if wide:
        raise UnsupportedByTarget(
            f"{wide[0]} has codes beyond int8, which these kernels do not hold; time a model of at most 7 bits"
        )


class Block:
    """One block for a fixed number of images: float32 [images, tokens, dim] to the same.

    multiply: `product`, or another function of its signature
    taps:     where a dict is put here, every code tensor of the next call, by quantizer name
    """

    def __init__(self, frozen: Frozen, name: str, images: int, multiply: Product, device: str) -> None:
        self.frozen, self.name, self.images, self.multiply, self.device = frozen, name, images, multiply, device
        self.a, self.qkr = frozen.architecture, frozen.quantization.attention == "qkr"
        self.taps: dict[str, torch.Tensor] | None = None
        prefix = f"{name}."
        self.arrays = {key: self._tensor(array) for key, array in frozen.arrays.items() if key.startswith(prefix)}
        for key in frozen.linears:
            if key.startswith(prefix):
                self.arrays[f"{key}.weight.codes"] = self._tensor(frozen.linear(key).integers.astype(np.int8))
        self.limits, self.steps, self.coded_steps = {}, {}, {}
        for key in frozen.quantizers:
            if key.startswith(prefix):
                quantizer = frozen.quantizer(key)
                self.limits[key], self.steps[key] = quantizer.range, self._steps(quantizer)
                self.coded_steps[key] = self._coded_steps(quantizer)

    def __call__(self, x: "torch.Tensor") -> "torch.Tensor":
        import torch
        from torch.nn import functional

        a, attn, mlp = self.a, f"{self.name}.attn", f"{self.name}.mlp"
        codes = self.quantize(self.layer_norm(x, "norm1"), f"{attn}.input")
        v = self.heads(self.linear(codes, f"{attn}.v", f"{attn}.input", coded=True))
        scores = self.scores_qkr(codes) if self.qkr else self.scores_qk(codes)
        p = self.quantize(torch.softmax(scores, -1), f"{attn}.softmax")
        context = self.multiply(p, v.transpose(2, 3), self.arrays[f"{attn}.context.scale"].view(a.heads, a.head_dim))
        row_sum, bias = self.arrays.get(f"{attn}.context.row_sum"), self.arrays.get(f"{attn}.context.bias")
        if row_sum is not None:
            context = context + p.sum(-1, keepdim=True, dtype=torch.float32) * row_sum.view(a.heads, 1, a.head_dim)
        row = self.steps[f"{attn}.softmax"]
        context = context.transpose(1, 2).reshape(self.images, a.tokens, a.dim)
        context = context if row.numel() == 1 else context * row
        codes = self.quantize(context if bias is None else context + bias, f"{attn}.proj.input")
        x = x + self.linear(codes, f"{attn}.proj", f"{attn}.proj.input")
        codes = self.quantize(self.layer_norm(x, "norm2"), f"{mlp}.fc1.input")
        h = functional.gelu(self.linear(codes, f"{mlp}.fc1", f"{mlp}.fc1.input"))
        before = self.arrays.get(f"{mlp}.fc2.input.before")
        codes = self.quantize(h if before is None else h + before, f"{mlp}.fc2.input")
        return x + self.linear(codes, f"{mlp}.fc2", f"{mlp}.fc2.input")

    def scores_qk(self, codes: "torch.Tensor") -> "torch.Tensor":
        import torch

        attn = f"{self.name}.attn"
        q, k = (self.heads(self.linear(codes, f"{attn}.{part}", f"{attn}.input", coded=True)) for part in "qk")
        scores = self.score_product(q, k, f"{attn}.q")
        shift = self.arrays.get(f"{attn}.scores.key_shift")
        if shift is None:
            return scores
        return scores + (torch.einsum("hc,bhmc->bhm", shift, k.float()) * self.key_step(f"{attn}.k"))[:, :, None]

    def scores_qkr(self, codes: "torch.Tensor") -> "torch.Tensor":
        import torch

        a, attn = self.a, f"{self.name}.attn"
        z = self.linear(codes, f"{attn}.z", f"{attn}.input", coded=True, heads=a.heads)
        z = z.view(a.heads, self.images, a.tokens, a.dim).transpose(0, 1)
        scores = self.score_product(codes[:, None], z, f"{attn}.input")
        shift, bias = self.arrays.get(f"{attn}.scores.key_shift"), self.arrays.get(f"{attn}.scores.key_bias")
        if shift is not None:
            row = torch.einsum("c,bhmc->bhm", shift[0], z.float()) * self.key_step(f"{attn}.z")
            scores = scores + row[:, :, None]
        if bias is not None:
            row = torch.einsum("hc,bmc->bhm", bias, codes.float()) * self.key_step(f"{attn}.input")
            scores = scores + row[:, :, None]
        return scores

    def score_product(self, left: "torch.Tensor", right: "torch.Tensor", query: str) -> "torch.Tensor":
        scale, step = self.arrays[f"{self.name}.attn.scores.scale"], self.steps[query]
        column = (scale.t() if scale.ndim == 2 else scale[None]).expand(-1, self.a.tokens)
        return self.multiply(left, right, column, None if step.numel() == 1 else step.view(-1))

    def linear(
        self, codes: "torch.Tensor", name: str, source: str, coded: bool = False, heads: int = 1
    ) -> "torch.Tensor":
        """[images, tokens, out], or [heads, images * tokens, out] of the layer cut into `heads`; int8 when `coded`."""
        row, bias = self.steps[source], self.arrays.get(f"{name}.bias")
        weight, column = self.arrays[f"{name}.weight.codes"], self.arrays[f"{name}.scale"]
        flat = codes.reshape(1, 1, self.images * self.a.tokens, -1)
        out = self.multiply(
            flat,
            weight.view(1, heads, -1, flat.shape[-1]),
            column.view(heads, -1),
            None if row.numel() == 1 else row.view(-1).repeat(self.images),
            None if bias is None else bias.view(heads, -1),
            self.coded_steps[name] if coded else None,
            self.limits[name] if coded else INT8,
        )
        if coded and self.taps is not None:
            self.tap(name, out[0].view(heads, self.images, self.a.tokens, -1).permute(1, 2, 0, 3).flatten(2))
        return out[0] if heads > 1 else out.view(self.images, self.a.tokens, -1)

    def quantize(self, x: "torch.Tensor", name: str) -> "torch.Tensor":
        return self.tap(name, codes_of(x, self.steps[name], self.limits[name]))

    def tap(self, name: str, codes: "torch.Tensor") -> "torch.Tensor":
        if self.taps is not None:
            self.taps[name] = codes
        return codes

    def heads(self, codes: "torch.Tensor") -> "torch.Tensor":
        return codes.view(self.images, self.a.tokens, self.a.heads, -1).transpose(1, 2)

    def key_step(self, name: str) -> "torch.Tensor":
        """[1], [tokens] or [heads, tokens]; a single step is folded and counts as 1."""
        step = self.steps[name]
        return step.new_ones(1) if step.numel() == 1 else step.t()

    def layer_norm(self, x: "torch.Tensor", norm: str) -> "torch.Tensor":
        from torch.nn import functional

        weight, bias = (self.arrays[f"{self.name}.{norm}.{part}"] for part in ("weight", "bias"))
        return functional.layer_norm(x, (self.a.dim,), weight, bias, self.a.epsilon)

    def _steps(self, quantizer: Quantizer) -> "torch.Tensor":
        """[1], [1, dim] of channels, or [tokens, 1] or [tokens, heads]"""
        step = quantizer.step
        if step.ndim == 1 and step.size > 1:
            step = step[None] if step.size == self.a.dim and quantizer.folded else step[:, None]
        return self._tensor(step)

    def _coded_steps(self, quantizer: Quantizer) -> "torch.Tensor":
        """[1, 1, 1], or [1 or heads, images * tokens, 1]: what the linear layer before it divides by."""
        step = np.ones((1, 1), np.float32) if quantizer.folded else quantizer.step.reshape(len(quantizer.step), -1)
        return self._tensor(np.tile(step.T, (1, 1 if quantizer.folded else self.images))[:, :, None])

    def _tensor(self, array: NDArray[Any]) -> "torch.Tensor":
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def check_block(block: Block, x: "torch.Tensor") -> tuple[parity.CodeParity, ...]:
    """Compare every code of a block with the oracle's, each operator given what the block itself fed it."""
    block.taps = {}
    block(x)
    ours = {name: codes.cpu().numpy().astype(np.int16) for name, codes in block.taps.items()}
    block.taps = None
    trace = oracle.Trace(forced=dict(ours))
    oracle.run_block(block.frozen, block.name, x.cpu().numpy().astype(np.float64), block.a.tokens, trace)
    return tuple(
        parity.compare_codes(name, codes, trace.codes[name], trace.units[name], TIE) for name, codes in ours.items()
    )


def _leaves_int8(integers: NDArray[np.integer]) -> bool:
    return bool(integers.min() < INT8[0] or integers.max() > INT8[1])
