"""One block of a frozen model in torch, its codes int8 and its products by a function of choice.

A function for each kind of node; all of them are made before the first call, so that a compiler sees tensors alone.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ofq_deploy.errors import UnsupportedByTarget
from ofq_deploy.model import nodes
from ofq_deploy.model.frozen import Frozen
from ofq_deploy.model.graph import output_shape
from ofq_deploy.model.layout import layout_steps
from ofq_deploy.model.nodes import AnyNode, PerChannel, PerToken, PerTokenHead
from ofq_deploy.runtime_tests.proof import oracle, parity

if TYPE_CHECKING:
    import torch

Limits = tuple[int, int]
Product = Callable[..., "torch.Tensor"]  # with the signature of `product`
Step = Callable[..., "torch.Tensor"]  # from a node's inputs to its value
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

    if a.shape[:2] == (1, 1) and b.shape[0] == 1 and a.shape[-1] > 1:  # 2.14's _int_mm is wrong at k = 1
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
    """One block for a fixed number of images: float32 [images, tokens, dim] to the same; every token is computed.

    multiply: `product`, or another function of its signature
    taps:     where a dict is put here, every code tensor of the next call, by quantizer name
    """

    def __init__(self, frozen: Frozen, name: str, images: int, multiply: Product, device: str) -> None:
        self.frozen, self.images, self.multiply, self.device = frozen, images, multiply, device
        self.nodes = frozen.graph.part(name)
        self.entry, self.exit = self.nodes[0].inputs[0], self.nodes[-1].output
        self.taps: dict[str, torch.Tensor] | None = None
        self.shapes = {self.entry: frozen.graph.shapes[self.entry]}
        for node in self.nodes:
            if isinstance(node, nodes.Rows):
                self.shapes[node.output] = self.shapes[node.x]
            else:
                self.shapes[node.output] = output_shape(node, self.shapes)
        self.steps: list[tuple[str, tuple[str, ...], Step]] = []
        for node in self.nodes:
            coder = self._coder(node)
            if isinstance(node, nodes.Linear) and coder is not None:  # the product rounds to codes itself
                self.steps.append((coder.output, node.inputs, self._linear(node, coder)))
            elif node.output not in {output for output, _, _ in self.steps}:
                self.steps.append((node.output, node.inputs, self._step(node)))

    def __call__(self, x: "torch.Tensor") -> "torch.Tensor":
        values = {self.entry: x}
        for output, inputs, step in self.steps:
            values[output] = step(*[values[name] for name in inputs])
        return values[self.exit]

    def _coder(self, node: AnyNode) -> nodes.Quantize | None:
        """The quantizer that reads a linear and nothing but divides, rounds and clips."""
        if not isinstance(node, nodes.Linear):
            return None
        readers = self.frozen.graph.readers[node.output]
        coder = readers[0] if len(readers) == 1 else None
        return coder if isinstance(coder, nodes.Quantize) and not coder.before else None

    def _step(self, node: AnyNode) -> "Step":
        from torch.nn import functional

        match node:
            case nodes.Quantize():
                return self._quantize(node)
            case nodes.Linear():
                return self._linear(node, None)
            case nodes.Product():
                return self._product(node)
            case nodes.LayerNorm():
                weight, bias = (self._array(f"{node.name}.{part}") for part in ("weight", "bias"))
                return lambda x: functional.layer_norm(x, weight.shape, weight, bias, node.epsilon)
            case nodes.Softmax():
                return lambda x: x.softmax(-1)
            case nodes.Gelu():
                return functional.gelu
            case nodes.Add():
                return lambda x, y: x + y
            case nodes.Rows():
                return lambda x: x
            case nodes.Layout():
                steps = layout_steps(node, self.shapes[node.x])
                return partial(_laid_out, split=steps.split, order=steps.order, merged=steps.merged)
        raise TypeError(f"a block has no {type(node).__name__}")

    def _quantize(self, node: nodes.Quantize) -> "Step":
        quantizer, before = self.frozen.quantizer(node.name), self._optional(f"{node.name}.before")
        step = self._tensor(quantizer.step)
        if isinstance(node.granularity, PerToken):
            step = step[:, None]
        limits = quantizer.range

        def quantize(x: "torch.Tensor") -> "torch.Tensor":
            return self._tap(node.name, codes_of(x if before is None else x + before, step, limits))

        return quantize

    def _linear(self, node: nodes.Linear, coder: nodes.Quantize | None) -> "Step":
        """To float32 [images, tokens, out]; with a `coder` to int8, its heads apart where each has steps of its own."""
        linear, images = self.frozen.linear(node.name), self.images
        row, heads, step, limits = self._row_step(node.x), 1, None, INT8
        if coder is not None:
            quantizer = self.frozen.quantizer(coder.name)
            heads = coder.granularity.heads if isinstance(coder.granularity, PerTokenHead) else 1
            divisor = np.ones((1, 1), np.float32) if coder.folded else quantizer.step.reshape(len(quantizer.step), -1)
            step = self._tensor(np.tile(divisor.T, (1, 1 if coder.folded else images))[:, :, None])
            limits = quantizer.range
        weight = self._tensor(linear.integers.astype(np.int8)).view(1, heads, -1, node.inputs_width)
        column = self._tensor(linear.scale).view(heads, -1)
        bias = None if linear.bias is None else self._tensor(linear.bias).view(heads, -1)
        rows = None if row is None else row.repeat(images)
        multiply = self.multiply

        def multiplied(codes: "torch.Tensor") -> "torch.Tensor":
            flat = codes.reshape(1, 1, -1, codes.shape[-1])
            out = multiply(flat, weight, column, rows, bias, step, limits)
            parts = out[0].view(heads, images, -1, out.shape[-1]).permute(1, 2, 0, 3)
            value = parts if heads > 1 else parts[:, :, 0]
            return value if coder is None else self._tap(coder.name, value)

        return multiplied

    def _product(self, node: nodes.Product) -> "Step":
        """[images, heads, m, n] of codes [images, heads or 1, m, k] and [images, heads, k, n]"""
        import torch

        name, multiply, row = node.name, self.multiply, self._row_step(node.left)
        heads = self.shapes[node.output][0]
        scale, right_step = self._array(f"{name}.scale"), self._column_step(node.right)
        right_quantizer = self.frozen.graph.quantizer_of(node.right)
        by_channel = isinstance(right_quantizer.granularity, PerChannel)
        column = scale.view(heads, -1) if by_channel else scale.t() if scale.ndim == 2 else scale[None]
        key_shift, key_bias = self._optional(f"{name}.key_shift"), self._optional(f"{name}.key_bias")
        other_step = self._column_step(node.bias_of) if node.bias_of else 1.0
        row_sum, bias = self._optional(f"{name}.row_sum"), self._optional(f"{name}.bias")

        def multiplied(left: "torch.Tensor", right: "torch.Tensor", *other: "torch.Tensor") -> "torch.Tensor":
            columns = column if by_channel else column.expand(-1, right.shape[3])
            x = multiply(left, right.transpose(2, 3), columns, None if row_sum is not None else row)
            if row_sum is not None:
                x = x + left.sum(-1, keepdim=True, dtype=torch.float32) * row_sum.view(heads, 1, -1)
                x = x if row is None else x * row[:, None]
            if key_shift is not None:
                x = (
                    x
                    + (torch.einsum("hc,bhcn->bhn", key_shift.expand(heads, -1), right.float()) * right_step)[
                        :, :, None
                    ]
                )
            if key_bias is not None:
                x = x + (torch.einsum("hc,bnc->bhn", key_bias, other[0].float()) * other_step)[:, :, None]
            return x if bias is None else x + bias.view(heads, 1, -1)

        return multiplied

    def _row_step(self, codes: str) -> "torch.Tensor | None":
        """Token steps [tokens] of the quantizer behind some codes; None where a scale has the step."""
        quantizer = self.frozen.graph.quantizer_of(codes)
        return self._array(f"{quantizer.name}.step") if isinstance(quantizer.granularity, PerToken) else None

    def _column_step(self, codes: str) -> "torch.Tensor | float":
        """Token steps as the columns of a product see them, [tokens] or [heads, tokens]; else 1."""
        quantizer = self.frozen.graph.quantizer_of(codes)
        if not isinstance(quantizer.granularity, (PerToken, PerTokenHead)):
            return 1.0
        step = self._array(f"{quantizer.name}.step")
        return step.t() if step.ndim == 2 else step

    def _tap(self, name: str, codes: "torch.Tensor") -> "torch.Tensor":
        if self.taps is not None:
            self.taps[name] = codes.reshape(self.images, *self.shapes[f"{name}.codes"])
        return codes

    def _array(self, name: str) -> "torch.Tensor":
        return self._tensor(self.frozen[name])

    def _optional(self, name: str) -> "torch.Tensor | None":
        return self._array(name) if name in self.frozen.arrays else None

    def _tensor(self, array: NDArray[Any]) -> "torch.Tensor":
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def _laid_out(
    x: "torch.Tensor", split: tuple[int, ...], order: tuple[int, ...], merged: tuple[int, ...]
) -> "torch.Tensor":
    """Without a copy as far as strides allow."""
    parts = x.reshape(len(x), *split).permute(0, *(axis + 1 for axis in order))
    return parts.reshape(len(x), *merged)


def check_block(block: Block, x: "torch.Tensor") -> tuple[parity.CodeParity, ...]:
    """Compare every code of a block with the oracle's, each operator given what the block itself fed it."""
    block.taps = {}
    block(x)
    ours = {name: codes.cpu().numpy().astype(np.int16) for name, codes in block.taps.items()}
    block.taps = None
    trace = oracle.Trace(forced=dict(ours))
    values = {block.entry: x.cpu().numpy().astype(np.float64)}
    oracle.run_nodes(block.frozen, block.nodes, values, trace, all_rows=True)
    return tuple(
        parity.compare_codes(name, codes, trace.codes[name], trace.units[name], TIE) for name, codes in ours.items()
    )


def _leaves_int8(integers: NDArray[np.integer]) -> bool:
    return bool(integers.min() < INT8[0] or integers.max() > INT8[1])
