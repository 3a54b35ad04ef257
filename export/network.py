"""A quantized network as an ONNX graph for any target: products of integers, and what lies between them in float.

Values that carry activation codes are named `<quantizer>.codes`, the residual stream `embedding`, `<block>.middle` and
`<block>.output`: the proof finds them by these names. In which type codes travel, and what the left operand of a product
is offset by, is the target's affair (targets/).
"""

import json
from dataclasses import asdict

import numpy as np
import onnx_ir as ir

from ofq_deploy.errors import UnsupportedByTarget
from ofq_deploy.export import packing
from ofq_deploy.export.lowering import LOWEST_OPSET, Floats, Lowering, check_opset
from ofq_deploy.export.targets import Rescale, Steps, TargetOperators
from ofq_deploy.model import nodes
from ofq_deploy.model.frozen import Frozen, Quantizer, frozen_hash
from ofq_deploy.model.grids import recipe_bits
from ofq_deploy.model.layout import layout_steps
from ofq_deploy.model.nodes import PerChannel, PerToken, PerTokenHead
from ofq_deploy.targets import Target


def build(frozen: Frozen, target: Target, opset: int | None = None, sha256: str | None = None) -> ir.Model:
    """The integer model of `frozen` for a target; input `image` float32 [batch, channels, size, size], output `logits`.

    opset:  by default the lowest that holds the graph
    sha256: of the frozen file, for the metadata; by default of the file that `frozen` would be saved as

    Raises UnsupportedByTarget for an opset outside 20 to 26.
    """
    operators, lowers = target.load_operators(), target.load_lowering()
    operators.check(frozen)
    opset = check_opset(min(lowers.default_opset(frozen), operators.highest_opset) if opset is None else opset)
    if opset > operators.highest_opset:
        raise UnsupportedByTarget(f"{target.name} reads opsets up to {operators.highest_opset}; use a lower --opset")
    lowering = lowers(frozen, operators, opset)
    overridable = operators.overridable(lowering.b)
    logits = lowering.lower()
    properties = metadata(frozen, target.name, sha256 or frozen_hash(frozen)) | lowering.findings()
    return lowering.b.model(lowering.image, logits, opset, overridable, properties)


def metadata(frozen: Frozen, target: str, sha256: str) -> dict[str, str]:
    """What a model file says of itself. `ofq_deploy.bits` is there where layers have other bits than the recipe's."""
    quantization = frozen.quantization
    tables = (
        ("weights", frozen.linears, quantization.weight_bits),
        ("activations", frozen.quantizers, quantization.act_bits),
    )
    bits = {
        kind: {name: node.bits for name, node in nodes.items() if node.bits != recipe_bits(name, usual)}
        for kind, nodes, usual in tables
    }
    return {
        "ofq_deploy.target": target,
        "ofq_deploy.frozen_sha256": sha256,
        "ofq_deploy.labels": json.dumps(frozen.labels, separators=(",", ":")),
        "ofq_deploy.method": "ofq",
        "ofq_deploy.preprocessing": json.dumps(asdict(frozen.preprocessing), sort_keys=True),
        "ofq_deploy.quantization": json.dumps(asdict(quantization), sort_keys=True),
        **({"ofq_deploy.bits": json.dumps(bits, sort_keys=True)} if any(bits.values()) else {}),
    }


class Integers(Lowering):
    """Products of integers by the operators of a target."""

    def __init__(self, frozen: Frozen, target: TargetOperators, opset: int) -> None:
        super().__init__(frozen.graph, frozen.arrays)
        self.frozen, self.target, self.opset = frozen, target, opset
        self.columns: dict[str, list[ir.Value]] = {}  # of a layout whose columns are multiplied apart

    @staticmethod
    def default_opset(frozen: Frozen) -> int:
        """The lowest that holds the graph: 20 for Gelu, 21 for packed 4-bit and 25 for packed 2-bit tensors."""
        opsets = {4: packing.INT4_OPSET, 2: packing.INT2_OPSET}
        return max(opsets.get(linear.bits, LOWEST_OPSET) for linear in frozen.linears.values())

    def findings(self) -> dict[str, str]:
        """What is to be said of the graph in the file's metadata."""
        return {}

    def emit(self, node: nodes.AnyNode) -> None:
        reader = self._only_reader(node.output)
        if isinstance(node, nodes.Layout) and isinstance(reader, nodes.Linear) and reader.parts:
            self._emit_columns(node, reader.parts)
        else:
            super().emit(node)

    def is_deferred(self, layout: nodes.Layout) -> bool:
        """Codes move in place of floats: a quantizer that reads a layout alone is put before it."""
        reader = self._only_reader(layout.output)
        return isinstance(reader, nodes.Quantize) and self._axis_before(reader, layout) is not None

    def _only_reader(self, value: str) -> nodes.AnyNode | None:
        readers = self.network.readers[value]
        return readers[0] if len(readers) == 1 else None

    def quantize(self, node: nodes.Quantize) -> ir.Value:
        layout = self.network.makers[node.x]
        if isinstance(layout, nodes.Layout) and node.x not in self.values:
            axis = self._axis_before(node, layout)
            assert axis is not None
            codes = self._codes(node, self.values[layout.x], layout.x, axis, f"{layout.x}.codes")
            return self.layout(layout, codes, f"{layout.x}.codes", node.output)
        x = self.values[node.x]
        if node.before:
            rank = 1 + len(self.network.shapes[node.x])
            before = self.arrays[f"{node.name}.before"].reshape((*(1,) * (rank - len(node.before)), *node.before))
            shifted = f"{node.x.removesuffix('.token')}.shifted"
            x = self.b.op("Add", [x, self.b.float(f"{node.name}.before", before)], shifted)
        if isinstance(node.granularity, PerTokenHead):
            return self._codes_by_head(node, x, node.granularity.heads)
        return self._codes(node, x, node.x, _step_axis(node, len(self.network.shapes[node.x])), node.output)

    def _axis_before(self, node: nodes.Quantize, layout: nodes.Layout) -> int | None:
        """The axis, in the layout's input, of the quantizer's steps; None where they would not be steps of an axis."""
        if node.before or isinstance(node.granularity, (PerTokenHead, PerChannel)):
            return None
        shape, steps = self.network.shapes[layout.x], layout_steps(layout, self.network.shapes[layout.x])
        is_plain = steps.split == shape and shape[steps.order[0]] == steps.merged[0]
        return steps.order[0] if is_plain and len(steps.merged) == 2 else None

    def _codes(self, node: nodes.Quantize, x: ir.Value, value: str, axis: int, output: str) -> ir.Value:
        """Divide by the step, round, clip; `axis` is that of the steps in the shape of `value`."""
        shape = self.network.shapes[value]
        step = self.frozen.quantizer(node.name).step
        if node.folded:
            step = np.ones(1, dtype=np.float32)
        elif isinstance(node.granularity, PerToken):
            step = step[: shape[axis]]
        return self._divided(node, x, Steps(step, axis + 1, len(shape) + 1), output)

    def _codes_by_head(self, node: nodes.Quantize, x: ir.Value, heads: int) -> ir.Value:
        """One step per token and head: heads become rows of their own for as long as it takes."""
        rows, width = self.network.shapes[node.x]
        step = self.frozen.quantizer(node.name).step[:rows].reshape(-1)
        parts = self.b.reshape(x, [0, rows * heads, width // heads], f"{node.name}.parts")
        codes = self._divided(node, parts, Steps(step, 1, 3), f"{node.name}.parts.codes")
        return self.b.reshape(codes, [0, rows, width], node.output)

    def _divided(self, node: nodes.Quantize, x: ir.Value, steps: Steps, output: str) -> ir.Value:
        limits, is_left = self.frozen.quantizer(node.name).range, not self.network.is_right(node)
        return self.target.quantize(self.b, x, output, steps, limits, is_left)

    def linear(self, node: nodes.Linear) -> ir.Value:
        linear = self.frozen.linear(node.name)
        quantizer = self._quantizer_of(node.x)
        row = None
        if isinstance(quantizer.granularity, PerToken):
            row = quantizer.step[: self.network.shapes[node.x][-2]]
        scales = linear.scale.reshape(-1, node.width)
        pieces = self.columns.get(node.x) or [self.values[node.x]]
        width, total = node.inputs_width // len(pieces), None
        for part, (codes, scale) in enumerate(zip(pieces, scales, strict=True)):
            name = node.name if len(pieces) == 1 else f"{node.name}.{part}"
            storage = packing.storage(linear.bits, self.opset) if self.target.packs_weights else "INT8"
            weight = packing.weight(self.b, name, linear, storage, slice(part * width, (part + 1) * width))
            multiply = self.target.wide_product if packing.is_wide(linear) else self.target.linear_product
            made = multiply(self.b, name, codes, weight, self._zero(quantizer), Rescale(scale, linear.bias, row))
            total = made if total is None else self.b.op("Add", [total, made], f"{name}.partial")
        assert total is not None
        return total

    def product(self, node: nodes.Product) -> ir.Value:
        """Sums of products of codes, then the terms that shifts add. The left step, where there is one per row, is a Mul of
        its own: vector steps on both sides would round in an order that depends on the batch size.
        """
        b, name = self.b, node.name
        heads, rows, columns = self.network.shapes[node.output]
        left, right = self._quantizer_of(node.left), self._quantizer_of(node.right)
        zero = self._zero(left)
        by_channel = isinstance(right.granularity, PerChannel)
        scale = self.arrays[f"{name}.scale"]
        if by_channel:
            scale = scale.reshape(1, heads, 1, columns)
        elif scale.size > 1 or not self.target.takes_scalar_scales:
            scale = _by_head(scale, heads, columns)
        codes = self.values[node.left]
        x = self.target.batched_product(b, name, codes, self.values[node.right], zero, Rescale(scale))
        if node.row_sum:
            real = self.target.row_sum(b, f"{name}.row_sum", codes, zero, self.network.shapes[node.left][-1])
            shift = self.arrays[f"{name}.row_sum"].reshape(1, heads, 1, columns)
            x = b.op(
                "Add",
                [x, b.op("Mul", [real, b.float(f"{name}.row_sum", shift)], f"{name}.row_sum.out")],
                f"{name}.shifted",
            )
        if isinstance(left.granularity, PerToken):
            step = b.float(f"{name}.{'step' if by_channel else 'query_step'}", left.step[:rows].reshape(1, 1, -1, 1))
            x = b.op("Mul", [x, step], f"{name}.stepped")
        terms = [self._key_shift(node, heads, columns)] if node.key_shift else []
        terms += [self._key_bias(node, heads, columns)] if node.bias_of else []
        if terms:  # which are summed first: they are small, the scores are not
            row = terms[0] if len(terms) == 1 else b.op("Add", terms, f"{name}.rows")
            x = b.op("Add", [x, row], f"{name}.shifted")
        if node.bias:
            x = b.op(
                "Add",
                [x, b.float(f"{name}.bias", self.arrays[f"{name}.bias"].reshape(1, heads, 1, columns))],
                f"{name}.biased",
            )
        return x

    def _key_shift(self, node: nodes.Product, heads: int, columns: int) -> ir.Value:
        """[batch, heads, 1, columns]: what the shift behind the left quantizer adds to a column"""
        b, name, quantizer = self.b, f"{node.name}.key_shift", self._quantizer_of(node.right)
        real = self.target.to_float(b, f"{name}.codes", self.values[node.right], 0)
        row = b.op("MatMul", [b.float(name, self.arrays[name][None, :, None]), real], f"{name}.row")
        if isinstance(quantizer.granularity, (PerToken, PerTokenHead)):
            row = b.op(
                "Mul", [row, b.float(f"{name}.step", _by_head(quantizer.step, heads, columns))], f"{name}.stepped"
            )
        return row

    def _key_bias(self, node: nodes.Product, heads: int, columns: int) -> ir.Value:
        """[batch, heads, 1, columns]. Codes are centred before the product: after it, 8-bit codes would cancel to a few
        digits.
        """
        b, name, quantizer = self.b, f"{node.name}.key_bias", self._quantizer_of(node.bias_of)
        real = self.target.to_float(b, f"{name}.codes", self.values[node.bias_of], self._zero(quantizer))
        row = b.op("MatMul", [real, b.float(name, self.arrays[name].T)], f"{name}.product")
        if isinstance(quantizer.granularity, PerToken):
            row = b.op("Mul", [row, b.float(f"{name}.step", quantizer.step.reshape(1, -1, 1))], f"{name}.stepped")
        row = b.transpose(row, (0, 2, 1), f"{name}.t")
        return b.reshape(row, [0, heads, 1, columns], f"{name}.heads")

    def _emit_columns(self, node: nodes.Layout, parts: int) -> None:
        """Codes of an image [channels, height, width] as rows of pixels, one value for each part of their columns."""
        b, name, steps = self.b, node.name.rpartition(".")[0], layout_steps(node, self.network.shapes[node.x])
        rows, width = steps.merged[0], steps.merged[1] // parts
        pixels = b.reshape(self.values[node.x], [0, *steps.split], f"{name}.grid")
        if parts == 1:
            pixels = b.transpose(pixels, (0, *(axis + 1 for axis in steps.order)), f"{name}.patches")
            self.columns[node.output] = [b.reshape(pixels, [0, rows, width], node.output)]
            return
        (channel,) = steps.parts[0]
        order = (channel + 1, 0, *(axis + 1 for axis in steps.order if axis != channel))
        pixels = b.transpose(pixels, order, f"{name}.patches")
        planes = b.split(pixels, [f"{name}.channel{c}" for c in range(parts)], 0)
        squeeze = b.constant("axis.0", np.asarray([0], dtype=np.int64))
        planes = [b.op("Squeeze", [plane, squeeze], f"{name}.plane{c}") for c, plane in enumerate(planes)]
        self.columns[node.output] = [
            b.reshape(plane, [0, rows, width], f"{name}.rows{c}") for c, plane in enumerate(planes)
        ]

    def _quantizer_of(self, codes: str) -> Quantizer:
        return self.frozen.quantizer(self.network.quantizer_of(codes).name)

    def _zero(self, quantizer: Quantizer) -> int:
        """What its codes are offset by as the left operand of a product."""
        return self.target.left_zero(quantizer.range)


def _step_axis(node: nodes.Quantize, rank: int) -> int:
    """The axis of the steps in a value of `rank` axes."""
    return node.granularity.axis if isinstance(node.granularity, PerChannel) else rank - 2


def _by_head(steps: Floats, heads: int, columns: int) -> Floats:
    """[1], [columns] or [columns, heads] -> [1, heads, 1, columns]"""
    wide = np.broadcast_to(steps.T if steps.ndim == 2 else steps, (heads, columns))
    return np.ascontiguousarray(wide[None, :, None])
