"""A quantized network as fused integer operators of the domain `ofq` (docs/kernels.md), and ordinary ones around them.

What `patterns.py` finds becomes one operator, whose value lies in tiles; what it does not is lowered by network.py, in the
plain layout. A value that is read in the other layout is brought to it, once. Values keep their names.
"""

from collections.abc import Sequence
from typing import assert_never

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ofq_deploy.export import tiling
from ofq_deploy.export.lowering import LOWEST_OPSET, Floats
from ofq_deploy.export.network import Integers
from ofq_deploy.export.patterns import (
    Attention,
    Heads,
    LinearCodes,
    LinearSum,
    NormCodes,
    PatchEmbedding,
    Pattern,
    find_pattern,
)
from ofq_deploy.export.targets import TargetOperators
from ofq_deploy.export.thresholds import Requantized, find_thresholds, reachable, settle
from ofq_deploy.kernels import DOMAIN
from ofq_deploy.model import nodes
from ofq_deploy.model.frozen import Frozen, Quantizer
from ofq_deploy.model.nodes import PerChannel, PerTensor, PerToken, PerTokenHead
from ofq_deploy.model.planes import pack_planes
from ofq_deploy.model.tiles import tile_floats

LOG2_E = np.log2(np.e)
MOST_THRESHOLD_BITS = 4
SMALLEST_POWER = 1e-10  # beside a largest of 1; no softmax code of 8 bits shows it
Double = NDArray[np.float64]
Inputs = Sequence[ir.Value | None]
Attributes = dict[str, int | float]


class Fused(Integers):
    """Emits a fused operator for every pattern, and nothing that only patterns would read.

    patterns: by the value that ends them
    needed:   values that are computed
    tiles:    values that lie in tiles, by name
    unproven: channels whose codes by float32 scale and bias are not float64's at every sum
    """

    def __init__(self, frozen: Frozen, target: TargetOperators, opset: int) -> None:
        super().__init__(frozen, target, opset)
        self.patterns: dict[str, Pattern] = {}
        self.needed = {"logits"}
        self.tiles: dict[str, ir.Value] = {}
        self.unproven = 0
        for node in reversed(self.network.nodes):
            if node.output in self.needed:
                pattern = find_pattern(self.network, node)
                if pattern is not None:
                    self.patterns[node.output] = pattern
                self.needed.update(node.inputs if pattern is None else pattern.reads)

    @staticmethod
    def default_opset(frozen: Frozen) -> int:
        """Weights are planes of bits in any opset."""
        return LOWEST_OPSET

    def findings(self) -> dict[str, str]:
        return {"ofq_deploy.unproven": str(self.unproven)} if self.unproven else {}

    def emit(self, node: nodes.AnyNode) -> None:
        value = node.output
        match self.patterns.get(value):
            case None:
                if value in self.needed:
                    for name in node.inputs:
                        self._untile(name)
                    super().emit(node)
            case PatchEmbedding() as pattern:
                self.tiles[value] = self._patches(pattern, value)
            case NormCodes() as pattern:
                self.tiles[value] = self._norm_codes(pattern)
            case LinearCodes() as pattern:
                self.tiles[value] = self._linear_codes(pattern)
            case LinearSum() as pattern:
                codes, residual = (self._tile(name) for name in pattern.reads)
                self.tiles[value] = self._linear_sum(pattern.linear, codes, residual, value)
            case Attention() as pattern:
                self.tiles[value] = self._attention(pattern)
            case Heads() as pattern:
                self.values[value] = self._heads(pattern, value)
            case other:
                assert_never(other)

    # One function for each pattern.

    def _patches(self, pattern: PatchEmbedding, value: str) -> ir.Value:
        """Codes of patches, and their product with what every image has in common as the residual stream."""
        node, linear = pattern.quantizer, pattern.linear
        quantizer = self.frozen.quantizer(node.name)
        position = self.arrays[pattern.position.name] + self._bias(linear)
        rows = [*(self.arrays[constant.name] for constant in pattern.prefix), position.astype(np.float32)]
        before = self.b.float(f"{node.name}.before", self.arrays[f"{node.name}.before"]) if node.before else None
        reciprocal = self.b.float(f"{node.name}.reciprocal", _reciprocal(quantizer.step))
        attributes: Attributes = {"channels": self.network.image[0], "patch": pattern.patch, "parts": linear.parts or 1}
        attributes |= {"first": sum(map(len, rows[:-1])), "tokens": sum(map(len, rows)), **_grid("out", quantizer)}
        codes = self._op("Patches", [self.image, reciprocal, before], node.output, attributes)
        constant = self.b.float(f"{pattern.position.name}.placed", tile_floats(np.concatenate(rows)[None]))
        return self._linear_sum(linear, codes, constant, value, with_bias=False)

    def _norm_codes(self, pattern: NormCodes) -> ir.Value:
        norm, node = pattern.norm, pattern.quantizer
        quantizer = self.frozen.quantizer(node.name)
        step = _folding_step(quantizer)
        gamma = self.arrays[f"{norm.name}.weight"] / step
        beta = (self.arrays[f"{norm.name}.bias"] + self._before(node)) / step
        inputs = [
            self._tile(pattern.reads[0]),
            self.b.float(f"{node.name}.gamma", gamma),
            self.b.float(f"{node.name}.beta", beta),
            self._out_reciprocal(node.name, quantizer, pattern.tokens),
        ]
        attributes = {"width": gamma.size, "tokens": pattern.tokens, "epsilon": norm.epsilon}
        return self._op("LayerNorm", inputs, node.output, attributes | _grid("out", quantizer))

    def _linear_codes(self, pattern: LinearCodes) -> ir.Value:
        node, name = pattern.linear, pattern.quantizer.name
        quantizer, given = self.frozen.quantizer(name), self._quantizer_of(node.x)
        tokens = self.network.shapes[pattern.quantizer.output][0]
        in_step = self._row_step(node.name, given, tokens)
        reciprocal = self._out_reciprocal(name, quantizer, tokens)
        linear, before, step = self.frozen.linear(node.name), self._before(pattern.quantizer), _folding_step(quantizer)
        every = np.zeros(node.width)
        layer = Requantized(
            linear.scale + every,
            self._bias(node),
            before + every,
            step + every,
            pattern.gelu,
            quantizer.range,
            *reachable(linear.integers, given.range),
        )
        by_sum = in_step is None and reciprocal is None
        shift = None
        thresholds: Inputs = []
        if pattern.gelu and by_sum and quantizer.bits <= MOST_THRESHOLD_BITS:
            thresholds = self._thresholds(node.name, layer)
        if thresholds:
            scale, bias = None, None
        elif pattern.gelu:
            scale, bias = self._scale_and_bias(node.name, layer.scale, layer.bias)
            shift = self.b.float(f"{node.name}.shift", layer.before) if pattern.quantizer.before else None
            if reciprocal is None and not quantizer.folded:  # no scale in front of GELU takes a step behind it
                reciprocal = self.b.float(f"{name}.reciprocal", _reciprocal(np.repeat(quantizer.step, tokens)))
        else:
            folded = layer.scale / step, (layer.bias + before) / step
            scale, bias = self._scale_and_bias(node.name, *folded, layer if by_sum else None)
        inputs = [
            self._tile(pattern.reads[0]),
            self._weight(node),
            scale,
            bias,
            in_step,
            reciprocal,
            shift,
            *thresholds,
        ]
        heads = quantizer.granularity.heads if isinstance(quantizer.granularity, PerTokenHead) else 1
        attributes = {"tokens": tokens, "heads": heads, "gelu": int(pattern.gelu), **self._weight_attributes(node)}
        attributes |= _grid("in", given) | _grid("out", quantizer)
        return self._op("Linear", inputs, pattern.quantizer.output, attributes)

    def _linear_sum(
        self, node: nodes.Linear, codes: ir.Value, residual: ir.Value, value: str, with_bias: bool = True
    ) -> ir.Value:
        given, parts, tokens = self._quantizer_of(node.x), node.parts or 1, self.network.shapes[value][0]
        scale, bias = self.arrays[f"{node.name}.scale"].reshape(parts, -1), self._bias(node) * with_bias
        constants = self._scale_and_bias(node.name, scale, bias)
        inputs = [codes, self._weight(node), *constants, residual, self._row_step(node.name, given, tokens)]
        attributes = {"tokens": tokens, "parts": parts, **self._weight_attributes(node)}
        return self._op("LinearAdd", inputs, value, attributes | _grid("in", given))

    def _heads(self, pattern: Heads, value: str) -> ir.Value:
        """Each adds to the one before it."""
        total: ir.Value | None = None
        for node, token in zip(pattern.linears, pattern.tokens, strict=True):
            name = value if node is pattern.linears[-1] else node.output
            constants = self._scale_and_bias(node.name, self.arrays[f"{node.name}.scale"], self._bias(node))
            inputs = [self._tile(node.x), self._weight(node), *constants, total]
            attributes = {"token": token, **self._weight_attributes(node)}
            total = self._op("LinearHead", inputs, name, attributes | _grid("in", self._quantizer_of(node.x)))
        assert total is not None
        return total

    def _attention(self, pattern: Attention) -> ir.Value:
        b, scores, context, shapes = self.b, pattern.scores, pattern.context, self.network.shapes
        heads, rows, tokens = shapes[scores.output]
        grids = dict(zip(("q", "k", "v", "other"), map(self._quantizer_of, pattern.reads), strict=False))
        softmax, out = (self.frozen.quantizer(node.name) for node in (pattern.softmax, pattern.quantizer))
        q, k, v, *other = (self._tile(value) for value in pattern.reads)
        step, every = _folding_step(out), np.zeros(shapes[pattern.quantizer.output][1])
        context_scale = (self.arrays[f"{context.name}.scale"] + every) / step
        bias = self.arrays[f"{context.name}.bias"] if context.bias else every
        scale = np.asarray(self.arrays[f"{scores.name}.scale"] * LOG2_E, dtype=np.float32)
        query_step = self._row_step(f"{scores.name}.query", grids["q"], rows)
        table = exponentials(scale) if query_step is None else None
        p_step = softmax.step[:rows] if isinstance(softmax.granularity, PerToken) else softmax.step
        row_sum = self.arrays[f"{context.name}.row_sum"] / step if context.row_sum else None
        key_shift = self._key_term(f"{scores.name}.key_shift", grids["k"]) if scores.key_shift else (None, None)
        key_bias = self._key_term(f"{scores.name}.key_bias", grids["other"]) if other else (None, None)
        inputs = [
            *(q, k, v, b.float(f"{scores.name}.scale", scale)),
            b.float(f"{context.name}.scale", context_scale),
            b.float(f"{context.name}.bias", (bias + self._before(pattern.quantizer)) / step),
            b.float(f"{pattern.softmax.name}.reciprocal", _reciprocal(p_step)),
            None if table is None else b.float(f"{scores.name}.exponentials", table),
            query_step,
            *key_shift,
            *(key_bias[0], other[0] if other else None, key_bias[1]),
            None if row_sum is None else b.float(f"{context.name}.row_sum", row_sum),
            self._row_step(context.name, softmax, rows),
            self._out_reciprocal(pattern.quantizer.name, out, rows),
        ]
        attributes: Attributes = {"heads": heads, "tokens": tokens, "rows": rows, "width": shapes[scores.left][2]}
        attributes |= {"value_width": shapes[context.output][2], "shared": int(pattern.shared), "p_bits": softmax.bits}
        for name, quantizer in {**grids, "out": out}.items():
            attributes |= _grid(name, quantizer)
        return self._op("Attention", inputs, pattern.quantizer.output, attributes)

    # Parts of operators.

    def _op(self, kind: str, inputs: Inputs, name: str, attributes: Attributes) -> ir.Value:
        there = [place for place, value in enumerate(inputs) if value is not None]
        return self.b.op(kind, inputs[: there[-1] + 1], name, attributes, DOMAIN)

    def _weight(self, node: nodes.Linear) -> ir.Value:
        linear = self.frozen.linear(node.name)
        return self.b.constant(f"{node.name}.weight.codes", pack_planes(linear.codes, linear.bits))

    @staticmethod
    def _weight_attributes(node: nodes.Linear) -> Attributes:
        inputs = node.inputs_width // (node.parts or 1)
        return {"inputs": inputs, "width": node.width, "weight_bits": node.bits, "half": int(node.grid == "half")}

    def _scale_and_bias(
        self, name: str, scale: Double | Floats, bias: Double | Floats, layer: Requantized | None = None
    ) -> tuple[ir.Value, ir.Value]:
        """layer: whose codes they give; they are moved until every sum has the right one"""
        scale, bias = scale.astype(np.float32), bias.astype(np.float32)
        if layer is not None:
            scale, bias, unproven = settle(layer, scale, bias)
            self.unproven += unproven
        return self.b.float(f"{name}.scale", scale), self.b.float(f"{name}.bias", bias)

    def _thresholds(self, name: str, layer: Requantized) -> Inputs:
        """rising and falling; nothing where the codes are no such function"""
        found = find_thresholds(layer)
        if found is None:
            return []
        falling = self.b.constant(f"{name}.falling", found.falling) if found.falling.size else None
        return [self.b.constant(f"{name}.rising", found.rising), falling]

    def _key_term(self, name: str, quantizer: Quantizer) -> tuple[ir.Value, ir.Value | None]:
        """What codes of the keys, or of `other`, are multiplied with, and their step where it is one per token."""
        by_token = isinstance(quantizer.granularity, (PerToken, PerTokenHead))
        step = self.b.float(f"{name}.step", quantizer.step) if by_token else None
        return self.b.float(name, self.arrays[name] * LOG2_E), step

    def _bias(self, node: nodes.Linear) -> Double:
        """float64 [out]"""
        return self.arrays[f"{node.name}.bias"].astype(np.float64) if node.bias else np.zeros(node.width)

    def _before(self, node: nodes.Quantize) -> Double:
        """float64 [width], or [1] without a shift in front of the quantizer."""
        return self.arrays[f"{node.name}.before"].astype(np.float64) if node.before else np.zeros(1)

    def _row_step(self, name: str, quantizer: Quantizer, rows: int) -> ir.Value | None:
        """float32 [rows], where codes have a step for each."""
        by_token = isinstance(quantizer.granularity, PerToken)
        return self.b.float(f"{name}.row_step", quantizer.step[:rows]) if by_token else None

    def _out_reciprocal(self, name: str, quantizer: Quantizer, tokens: int) -> ir.Value | None:
        """float32 [tokens] or [tokens, heads]: what no scale of a channel takes."""
        if quantizer.folded or not isinstance(quantizer.granularity, (PerToken, PerTokenHead)):
            return None
        return self.b.float(f"{name}.reciprocal", _reciprocal(quantizer.step[:tokens]))

    # Layouts.

    def _tile(self, name: str) -> ir.Value:
        """A value in tiles, wherever it comes from."""
        if name not in self.tiles:
            tiled = f"{name}.tiles"
            if name not in self.values:
                self.tiles[name] = self.b.float(tiled, tile_floats(self.arrays[name][None]))
                return self.tiles[name]
            x, (tokens, width) = self.values[name], self.network.shapes[name]
            if not self.network.holds_codes(name):
                self.tiles[name] = tiling.tile_floats(self.b, x, (tokens, width), tiled)
                return self.tiles[name]
            if self._is_right(name):
                x = self._offset(x, "Add", name, ir.DataType.UINT8)
            self.tiles[name] = tiling.tile_codes(self.b, x, (tokens, width), tiled)
        return self.tiles[name]

    def _untile(self, name: str) -> None:
        """Have a value that lies in tiles in the plain layout too."""
        if name not in self.patterns or name in self.values:
            return
        shape, pattern, plain = self.network.shapes[name], self.patterns[name], f"{name}.plain"
        token = pattern.token if isinstance(pattern, NormCodes) else None
        tokens = range(shape[0]) if token is None else range(token, token + 1)
        if self.network.holds_codes(name):
            x = tiling.untile_codes(self.b, self.tiles[name], tokens, shape[-1], plain)
            x = self._offset(x, "Sub", name, ir.DataType.INT8) if self._is_right(name) else x
        else:
            x = tiling.untile_floats(self.b, self.tiles[name], tokens, shape[-1], plain)
        if token is not None:
            x = self.b.op("Squeeze", [x, self.b.constant("slice.1.axis", np.asarray([1]))], f"{plain}.token")
        self.values[name] = x

    def _is_right(self, name: str) -> bool:
        return self.network.is_right(self.network.quantizer_of(name))

    def _offset(self, x: ir.Value, operation: str, name: str, dtype: ir.DataType) -> ir.Value:
        """Between bytes in tiles, which have a zero point, and right operands of ordinary products, which have none."""
        offset = self._zero(self._quantizer_of(name))
        zero = self.b.constant(f"zero_int32_{offset}", np.int32(offset))
        wide = self.b.cast(x, ir.DataType.INT32, f"{name}.wide")
        return self.b.cast(self.b.op(operation, [wide, zero], f"{name}.offset"), dtype, f"{name}.moved")


def exponentials(scale: Floats) -> Floats | None:
    """float32 [64] or [80]: powers of 2 by multiples of -scale, which give any that a softmax code shows as a product of
    two or three; None where there are several scales, or distances that are cut would be seen.
    """
    if scale.size > 1 or scale.item() <= 0:
        return None
    unit = -float(scale.item())
    ends = {1023: (32, 1), 16383: (32, 1, 1024)}
    for cut, factors in ends.items():
        if 2 ** (cut * unit) < SMALLEST_POWER:
            counts = (32, 32, 16)
            powers = [2.0 ** (factor * unit * np.arange(count)) for factor, count in zip(factors, counts, strict=False)]
            return np.concatenate(powers).astype(np.float32)
    return None


def _grid(name: str, quantizer: Quantizer) -> Attributes:
    return {f"{name}_bits": quantizer.bits, f"{name}_signed": int(quantizer.grid == "signed")}


def _folding_step(quantizer: Quantizer) -> Double:
    """float64 [1] or [channels]: the step that scales in front of a quantizer take; 1 where they have, or cannot."""
    if quantizer.folded or not isinstance(quantizer.granularity, (PerTensor, PerChannel)):
        return np.ones(1)
    return quantizer.step.astype(np.float64)


def _reciprocal(step: Floats) -> Floats:
    return (1 / step.astype(np.float64)).astype(np.float32)
