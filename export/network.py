"""The one list of operations of a quantized vision transformer, as an ONNX graph for any target.

Values that carry activation codes are named `<quantizer>.codes`, the residual stream `embedding`,
`<block>.middle` and `<block>.output`: the proof finds them by these names. The batch axis is symbolic. In which
type codes travel, and what the left operand of a product is offset by, is the target's affair (targets.py).
"""

import json
from dataclasses import asdict

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ofq_deploy.errors import UnsupportedByTarget
from ofq_deploy.export import packing
from ofq_deploy.export.builder import Builder
from ofq_deploy.export.targets import HIGHEST_OPSET, Rescale, Steps, Target
from ofq_deploy.model.frozen import Frozen, Linear, Quantizer, frozen_hash

LOWEST_OPSET = 20  # Gelu
Floats = NDArray[np.float32]


def build(frozen: Frozen, target: Target, opset: int | None = None, sha256: str | None = None) -> ir.Model:
    """The integer model of `frozen`; input `image` float32 [batch, channels, size, size], output `logits`.

    opset:  by default the lowest that holds the graph
    sha256: of the frozen file, for the metadata; by default of the file that `frozen` would be saved as

    Raises UnsupportedByTarget for an opset outside 20 to 26.
    """
    target.check(frozen)
    opset = check_opset(min(default_opset(frozen), target.highest_opset) if opset is None else opset)
    if opset > target.highest_opset:
        raise UnsupportedByTarget(f"{target.name} reads opsets up to {target.highest_opset}; use a lower --opset")
    return _Network(frozen, target, opset).model(metadata(frozen, target.name, sha256 or frozen_hash(frozen)))


def check_opset(opset: int) -> int:
    """The opset, or UnsupportedByTarget when no graph of ours can be written in it."""
    if not LOWEST_OPSET <= opset <= HIGHEST_OPSET:
        raise UnsupportedByTarget(f"opset {opset} cannot hold the graph; use {LOWEST_OPSET} to {HIGHEST_OPSET}")
    return opset


def default_opset(frozen: Frozen) -> int:
    """20 for Gelu, 21 for packed 4-bit and 25 for packed 2-bit tensors."""
    return {4: packing.INT4_OPSET, 2: packing.INT2_OPSET}.get(frozen.quantization.weight_bits, LOWEST_OPSET)


def metadata(frozen: Frozen, target: str, sha256: str) -> dict[str, str]:
    """What a model file says of itself."""
    return {
        "ofq_deploy.target": target,
        "ofq_deploy.frozen_sha256": sha256,
        "ofq_deploy.labels": json.dumps(frozen.labels, separators=(",", ":")),
        "ofq_deploy.method": "ofq",
        "ofq_deploy.preprocessing": json.dumps(asdict(frozen.preprocessing), sort_keys=True),
        "ofq_deploy.quantization": json.dumps(asdict(frozen.quantization), sort_keys=True),
    }


class _Network:
    def __init__(self, frozen: Frozen, target: Target, opset: int) -> None:
        self.frozen, self.target, self.opset, self.a = frozen, target, opset, frozen.architecture
        self.b = Builder()

    def model(self, properties: dict[str, str]) -> ir.Model:
        a = self.a
        shape = ir.Shape(["batch", a.channels, a.image_size, a.image_size])
        image = ir.Value(name="image", shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
        overridable = self.target.overridable(self.b)
        x = self.stem(image)
        for index, name in enumerate(self.frozen.blocks):
            x = self.block(name, x, a.prefix if index == a.depth - 1 else a.tokens)
        logits = self.heads(x)
        logits.shape, logits.type = ir.Shape(["batch", a.classes]), ir.TensorType(ir.DataType.FLOAT)
        return self.b.model(image, logits, self.opset, overridable, properties)

    # Parts of the network.

    def stem(self, image: ir.Value) -> ir.Value:
        b, a = self.b, self.a
        linear, quantizer = self.frozen.linear("patch_embed"), self.frozen.quantizer("patch_embed.input")
        before = self.frozen.get("patch_embed.input.before")
        if before is not None:
            image_shifted = b.op(
                "Add", [image, b.float("patch_embed.input.before", before[None, None])], "image.shifted"
            )
        else:
            image_shifted = image
        codes = self.quantize(image_shifted, "patch_embed.input", quantizer.step, axis=1, rank=4)
        side, p, parts = a.image_size // a.patch_size, a.patch_size, len(linear.scale)
        pixels = b.reshape(codes, [0, a.channels, side, p, side, p], "patch_embed.grid")
        if parts == 1:
            pixels = b.transpose(pixels, (0, 2, 4, 1, 3, 5), "patch_embed.patches")
            inputs = [b.reshape(pixels, [0, a.patches, a.channels * p * p], "patch_embed.rows")]
        else:  # one product per channel: the step differs between them
            pixels = b.transpose(pixels, (1, 0, 2, 4, 3, 5), "patch_embed.patches")
            planes = b.split(pixels, [f"patch_embed.channel{c}" for c in range(parts)], 0)
            squeeze = b.constant("axis.0", np.asarray([0], dtype=np.int64))
            planes = [b.op("Squeeze", [v, squeeze], f"patch_embed.plane{c}") for c, v in enumerate(planes)]
            inputs = [b.reshape(v, [0, a.patches, p * p], f"patch_embed.rows{c}") for c, v in enumerate(planes)]
        x = None
        width = linear.codes.shape[1] // parts
        for part, (value, scale) in enumerate(zip(inputs, linear.scale, strict=True)):
            name = "patch_embed" if parts == 1 else f"patch_embed.{part}"
            columns = slice(part * width, (part + 1) * width)
            product = self.product(name, value, linear, quantizer, Rescale(scale), columns)
            x = product if x is None else b.op("Add", [x, product], f"{name}.partial")
        position = b.float("patch_embed.position", self.frozen["patch_embed.position"][None])
        assert x is not None
        x = b.op("Add", [x, position], "patch_embed.placed")
        batch = b.op("Shape", [image], "batch", {"start": 0, "end": 1})
        ones = b.constant("ones.2", np.ones(2, dtype=np.int64))
        shape = b.op("Concat", [batch, ones], "tokens.shape", {"axis": 0})
        tokens = b.op("Expand", [b.float("tokens.row", self.frozen["tokens"][None]), shape], "tokens")
        return b.op("Concat", [tokens, x], "embedding", {"axis": 1})

    def block(self, name: str, x: ir.Value, rows: int) -> ir.Value:
        """Computes the first `rows` tokens only: the last block is read at the class tokens."""
        b, attn, mlp = self.b, f"{name}.attn", f"{name}.mlp"
        h = self.layer_norm(x, f"{name}.norm1")
        codes = self.quantize_tokens(h, f"{attn}.input", self.a.tokens)
        queries, residual = self.cut(codes, rows, f"{attn}.queries"), self.cut(x, rows, f"{name}.residual")
        scores = self.scores_qkr if self.frozen.quantization.attention == "qkr" else self.scores_qk
        p = b.op("Softmax", [scores(attn, codes, queries, rows)], f"{attn}.probabilities", {"axis": -1})
        p = self.quantize_tokens(p, f"{attn}.softmax", rows, axis=2, rank=4)
        context = self.context(attn, p, self.linear_codes(codes, f"{attn}.v", f"{attn}.input", left=False), rows)
        out = self.linear(context, f"{attn}.proj", f"{attn}.proj.input", rows)
        x = b.op("Add", [residual, out], f"{name}.middle")
        h = self.layer_norm(x, f"{name}.norm2")
        codes = self.quantize_tokens(h, f"{mlp}.fc1.input", rows)
        h = b.op("Gelu", [self.linear(codes, f"{mlp}.fc1", f"{mlp}.fc1.input", rows)], f"{mlp}.act")
        before = self.frozen.get(f"{mlp}.fc2.input.before")
        if before is not None:
            h = b.op("Add", [h, b.float(f"{mlp}.fc2.input.before", before.reshape(1, 1, -1))], f"{mlp}.act.shifted")
        codes = self.quantize_tokens(h, f"{mlp}.fc2.input", rows)
        return b.op("Add", [x, self.linear(codes, f"{mlp}.fc2", f"{mlp}.fc2.input", rows)], f"{name}.output")

    def scores_qk(self, attn: str, codes: ir.Value, queries: ir.Value, rows: int) -> ir.Value:
        b, a = self.b, self.a
        q = self.linear_codes(queries, f"{attn}.q", f"{attn}.input", left=True, rows=rows)
        k = self.linear_codes(codes, f"{attn}.k", f"{attn}.input", left=False)
        q = b.transpose(
            b.reshape(q, [0, rows, a.heads, a.head_dim], f"{attn}.q.split"), (0, 2, 1, 3), f"{attn}.q.heads"
        )
        k = b.reshape(b.transpose(k, (0, 2, 1), f"{attn}.k.t"), [0, a.heads, a.head_dim, a.tokens], f"{attn}.k.heads")
        q_quantizer, k_quantizer = (self.frozen.quantizer(f"{attn}.{part}") for part in "qk")
        scores = self.score_product(attn, q, k, q_quantizer, rows)
        key_shift = self.frozen.get(f"{attn}.scores.key_shift")
        rows_added = [] if key_shift is None else [self.key_shift(attn, k, key_shift[None, :, None], k_quantizer)]
        return self.add_rows(attn, scores, rows_added)

    def scores_qkr(self, attn: str, codes: ir.Value, queries: ir.Value, rows: int) -> ir.Value:
        b, a = self.b, self.a
        z = self.linear_codes(codes, f"{attn}.z", f"{attn}.input", left=False)
        z = b.reshape(b.transpose(z, (0, 2, 1), f"{attn}.z.t"), [0, a.heads, a.dim, a.tokens], f"{attn}.z.heads")
        x = b.reshape(queries, [0, 1, rows, a.dim], f"{attn}.queries.heads")
        x_quantizer, z_quantizer = self.frozen.quantizer(f"{attn}.input"), self.frozen.quantizer(f"{attn}.z")
        scores = self.score_product(attn, x, z, x_quantizer, rows)
        key_shift = self.frozen.get(f"{attn}.scores.key_shift")
        key_bias = self.frozen.get(f"{attn}.scores.key_bias")
        rows_added = [] if key_shift is None else [self.key_shift(attn, z, key_shift[None, :, None], z_quantizer)]
        rows_added += [] if key_bias is None else [self.key_bias(attn, codes, key_bias, x_quantizer)]
        return self.add_rows(attn, scores, rows_added)

    def score_product(self, attn: str, left: ir.Value, right: ir.Value, quantizer: Quantizer, rows: int) -> ir.Value:
        """The left step, where there is one per query, is a Mul of its own: vector steps on both sides of the
        product would round in an order that depends on the batch size.
        """
        b, a, name = self.b, self.a, f"{attn}.scores"
        scale = self.frozen[f"{name}.scale"]
        if scale.size > 1 or not self.target.takes_scalar_scales:
            scale = np.broadcast_to(scale.T if scale.ndim == 2 else scale, (a.heads, a.tokens))[None, :, None]
        to = Rescale(np.ascontiguousarray(scale))
        scores = self.target.batched_product(b, name, left, right, self.zero(quantizer), to)
        if quantizer.step.size == 1:
            return scores
        steps = b.float(f"{name}.query_step", quantizer.step[:rows].reshape(1, 1, -1, 1))
        return b.op("Mul", [scores, steps], f"{name}.stepped")

    def add_rows(self, attn: str, scores: ir.Value, rows: list[ir.Value]) -> ir.Value:
        """Scores plus rows [batch, heads, 1, tokens], which are summed first: they are small, the scores are not."""
        if not rows:
            return scores
        row = rows[0] if len(rows) == 1 else self.b.op("Add", rows, f"{attn}.scores.rows")
        return self.b.op("Add", [scores, row], f"{attn}.scores.shifted")

    def key_shift(self, attn: str, keys: ir.Value, shift: Floats, quantizer: Quantizer) -> ir.Value:
        """shift: float32 [1, heads or 1, 1, width]; keys: codes [batch, heads, width, tokens]"""
        b, name = self.b, f"{attn}.scores.key_shift"
        real = self.target.to_float(b, f"{name}.codes", keys, 0)
        row = b.op("MatMul", [b.float(name, shift), real], f"{name}.row")
        if quantizer.step.size > 1:
            step = np.broadcast_to(quantizer.step.T, (self.a.heads, self.a.tokens))[None, :, None]
            row = b.op("Mul", [row, b.float(f"{name}.step", step)], f"{name}.stepped")
        return row

    def key_bias(self, attn: str, codes: ir.Value, bias: Floats, quantizer: Quantizer) -> ir.Value:
        """bias: float32 [heads, dim]; codes: [batch, tokens, dim], those of a left operand

        They are centred before the product: after it, 8-bit codes would cancel to a few digits.
        """
        b, a, name = self.b, self.a, f"{attn}.scores.key_bias"
        real = self.target.to_float(b, f"{name}.codes", codes, self.zero(quantizer))
        row = b.op("MatMul", [real, b.float(name, bias.T)], f"{name}.product")
        if quantizer.step.size > 1:
            row = b.op("Mul", [row, b.float(f"{name}.step", quantizer.step.reshape(1, -1, 1))], f"{name}.stepped")
        row = b.transpose(row, (0, 2, 1), f"{name}.t")
        return b.reshape(row, [0, a.heads, 1, a.tokens], f"{name}.heads")

    def context(self, attn: str, p: ir.Value, v: ir.Value, rows: int) -> ir.Value:
        """[batch, rows, dim], the codes that the projection reads."""
        b, a, name = self.b, self.a, f"{attn}.context"
        heads = (1, a.heads, 1, a.head_dim)
        v = b.transpose(
            b.reshape(v, [0, a.tokens, a.heads, a.head_dim], f"{attn}.v.split"),
            (0, 2, 1, 3),
            f"{attn}.v.heads",
        )
        scale = self.frozen[f"{name}.scale"].reshape(heads)
        p_quantizer = self.frozen.quantizer(f"{attn}.softmax")
        x = self.target.batched_product(b, name, p, v, self.zero(p_quantizer), Rescale(scale))
        row_sum = self.frozen.get(f"{name}.row_sum")
        if row_sum is not None:
            real = self.target.row_sum(b, f"{name}.row_sum", p, self.zero(p_quantizer), a.tokens)
            shift = b.op("Mul", [real, b.float(f"{name}.row_sum", row_sum.reshape(heads))], f"{name}.row_sum.out")
            x = b.op("Add", [x, shift], f"{name}.shifted")
        if p_quantizer.step.size > 1:
            x = b.op(
                "Mul", [x, b.float(f"{name}.step", p_quantizer.step[:rows].reshape(1, 1, -1, 1))], f"{name}.stepped"
            )
        bias = self.frozen.get(f"{name}.bias")
        if bias is not None:
            x = b.op("Add", [x, b.float(f"{name}.bias", bias.reshape(heads))], f"{name}.biased")
        quantizer = self.frozen.quantizer(f"{attn}.proj.input")
        step = quantizer.step if quantizer.step.size == 1 else quantizer.step[:rows]
        codes = self.quantize(x, f"{attn}.proj.input", step, axis=2, rank=4, output=f"{name}.codes")
        codes = b.transpose(codes, (0, 2, 1, 3), f"{name}.codes.t")
        return b.reshape(codes, [0, rows, a.dim], f"{attn}.proj.input.codes")

    def heads(self, x: ir.Value) -> ir.Value:
        b = self.b
        x = self.layer_norm(x, "norm")
        outputs = []
        for token, head in enumerate(self.frozen.heads):
            h = b.op("Gather", [x, b.constant(f"token.{token}", np.int64(token))], f"{head}.token", {"axis": 1})
            before = self.frozen.get(f"{head}.input.before")
            if before is not None:
                h = b.op("Add", [h, b.float(f"{head}.input.before", before[None])], f"{head}.shifted")
            quantizer, linear = self.frozen.quantizer(f"{head}.input"), self.frozen.linear(head)
            codes = self.quantize(h, f"{head}.input", quantizer.step)
            outputs.append(self.product(head, codes, linear, quantizer, Rescale(linear.scale, linear.bias)))
        return b.op("Identity" if len(outputs) == 1 else "Add", outputs, "logits")

    # Operations.

    def layer_norm(self, x: ir.Value, name: str) -> ir.Value:
        weights = [self.b.float(f"{name}.{part}", self.frozen[f"{name}.{part}"]) for part in ("weight", "bias")]
        return self.b.op("LayerNormalization", [x, *weights], name, {"axis": -1, "epsilon": self.a.epsilon})

    def cut(self, x: ir.Value, rows: int, name: str) -> ir.Value:
        """The first `rows` tokens of [batch, tokens, width]."""
        if rows == self.a.tokens:
            return x
        start, end, axis = ([0], [rows], [1])
        bounds = [
            self.b.constant(f"slice.{v[0]}.{n}", np.asarray(v))
            for n, v in (("from", start), ("to", end), ("axis", axis))
        ]
        return self.b.op("Slice", [x, *bounds], name)

    def quantize(
        self,
        x: ir.Value,
        name: str,
        step: Floats,
        axis: int = 1,
        rank: int = 3,
        left: bool = True,
        output: str | None = None,
    ) -> ir.Value:
        """Divide by the step, round, clip: the codes of quantizer `name`, for the left or the right operand of a
        product. One step, or one per index of `axis` of x, which has `rank` axes.
        """
        steps = Steps(step, axis, rank)
        return self.target.quantize(
            self.b, x, output or f"{name}.codes", steps, self.frozen.quantizer(name).range, left
        )

    def quantize_tokens(self, x: ir.Value, name: str, rows: int, axis: int = 1, rank: int = 3) -> ir.Value:
        step = self.frozen.quantizer(name).step
        return self.quantize(x, name, step if step.size == 1 else step[:rows], axis, rank)

    def zero(self, quantizer: Quantizer) -> int:
        """What its codes are offset by as the left operand of a product."""
        return self.target.left_zero(quantizer.range)

    def linear(self, codes: ir.Value, name: str, input_name: str, rows: int) -> ir.Value:
        """float32 [batch, rows, out]"""
        linear, quantizer = self.frozen.linear(name), self.frozen.quantizer(input_name)
        row = quantizer.step[:rows] if quantizer.step.size > 1 else None
        return self.product(name, codes, linear, quantizer, Rescale(linear.scale, linear.bias, row))

    def linear_codes(
        self, codes: ir.Value, name: str, input_name: str, left: bool, rows: int | None = None
    ) -> ir.Value:
        """Codes of a linear's output, [batch, rows, out]."""
        b, a, quantizer = self.b, self.a, self.frozen.quantizer(name)
        rows = rows or a.tokens
        out = self.linear(codes, name, input_name, rows)
        if quantizer.folded:
            return self.quantize(out, name, np.ones(1, dtype=np.float32), left=left)
        step = quantizer.step[:rows]
        if step.ndim == 1:
            return self.quantize(out, name, step, left=left)
        parts = b.reshape(out, [0, rows * a.heads, a.dim], f"{name}.parts")  # one step per token and head
        made = self.quantize(parts, name, step.reshape(-1), left=left, output=f"{name}.parts.codes")
        return b.reshape(made, [0, rows, a.heads * a.dim], f"{name}.codes")

    def product(
        self,
        name: str,
        codes: ir.Value,
        linear: Linear,
        quantizer: Quantizer,
        to: Rescale,
        columns: slice = slice(None),
    ) -> ir.Value:
        """codes of `quantizer` @ the weights of `linear` (of some input columns), rescaled."""
        storage = packing.storage(linear.bits, self.opset) if self.target.packs_weights else "INT8"
        weight = packing.weight(self.b, name, linear, storage, columns)
        multiply = self.target.wide_product if packing.is_wide(linear) else self.target.linear_product
        return multiply(self.b, name, codes, weight, self.zero(quantizer), to)
