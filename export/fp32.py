"""The float model of the same architecture: the baseline that a quantized model is measured against."""

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ofq_deploy.errors import ModelError
from ofq_deploy.export.builder import Builder
from ofq_deploy.export.network import LOWEST_OPSET, check_opset, metadata
from ofq_deploy.model.frozen import Frozen


def build_fp32(frozen: Frozen, weights: Path, opset: int | None = None) -> ir.Model:
    """A float32 ONNX model from timm-named weights (safetensors), with the sizes of `frozen`.

    q, k and v are one product and the attention scale is in its weights, as a careful hand would write it. All
    tokens of the last block are computed, as float exports do.
    Raises ModelError when the file is cut or does not have the architecture's tensors.
    """
    try:
        return _Float(frozen, load_file(weights)).model(check_opset(opset or LOWEST_OPSET))
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{weights} is not a whole safetensors file ({error})") from error
    except KeyError as error:
        raise ModelError(
            f"{weights} lacks the tensor {error}; expected timm's names of a vision transformer"
        ) from error


class _Float:
    def __init__(self, frozen: Frozen, weights: dict[str, NDArray[np.float32]]) -> None:
        self.frozen, self.a, self.w, self.b = frozen, frozen.architecture, weights, Builder()

    def model(self, opset: int) -> ir.Model:
        a, b = self.a, self.b
        shape = ir.Shape(["batch", a.channels, a.image_size, a.image_size])
        image = ir.Value(name="image", shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
        x = self.stem(image)
        for name in self.frozen.blocks:
            h = self.norm(x, f"{name}.norm1")
            x = b.op("Add", [x, self.attention(h, f"{name}.attn")], f"{name}.middle")
            h = self.linear(self.norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
            h = self.linear(b.op("Gelu", [h], f"{name}.mlp.act"), f"{name}.mlp.fc2")
            x = b.op("Add", [x, h], f"{name}.output")
        x = self.norm(x, "norm")
        share = np.float32(1 / len(self.frozen.heads))
        outputs = []
        for token, head in enumerate(self.frozen.heads):
            h = b.op("Gather", [x, b.constant(f"token.{token}", np.int64(token))], f"{head}.token", {"axis": 1})
            matrix, bias = share * self.w[f"{head}.weight"].T, share * self.w[f"{head}.bias"]
            outputs.append(
                b.op(
                    "Gemm",
                    [h, b.float(f"{head}.weight", matrix), b.float(f"{head}.bias", bias)],
                    f"{head}.out",
                )
            )
        logits = b.op("Identity" if len(outputs) == 1 else "Add", outputs, "logits")
        logits.shape, logits.type = ir.Shape(["batch", a.classes]), ir.TensorType(ir.DataType.FLOAT)
        own = {"ofq_deploy.method": "float", "ofq_deploy.quantization": json.dumps({})}
        return b.model(image, logits, opset, [], {**metadata(self.frozen, "fp32", ""), **own})

    def stem(self, image: ir.Value) -> ir.Value:
        a, b = self.a, self.b
        weight, bias = self.w["patch_embed.proj.weight"], self.w["patch_embed.proj.bias"]
        operands = [image, b.float("patch_embed.weight", weight), b.float("patch_embed.bias", bias)]
        x = b.op("Conv", operands, "patch_embed.grid", {"strides": [a.patch_size, a.patch_size]})
        x = b.transpose(b.reshape(x, [0, a.dim, a.patches], "patch_embed.flat"), (0, 2, 1), "patch_embed.rows")
        names = ["cls_token", "dist_token"][: a.prefix]
        position = self.w["pos_embed"]
        x = b.op("Add", [x, b.float("patch_embed.position", position[:, a.prefix :])], "patch_embed.placed")
        row = np.concatenate([self.w[name] for name in names], axis=1) + position[:, : a.prefix]
        batch = b.op("Shape", [image], "batch", {"start": 0, "end": 1})
        shape = b.op("Concat", [batch, b.constant("ones.2", np.ones(2, dtype=np.int64))], "tokens.shape", {"axis": 0})
        tokens = b.op("Expand", [b.float("tokens.row", row), shape], "tokens")
        return b.op("Concat", [tokens, x], "embedding", {"axis": 1})

    def attention(self, x: ir.Value, name: str) -> ir.Value:
        a, b = self.a, self.b
        factor = np.ones(3 * a.dim, dtype=np.float32)
        factor[: a.dim] = a.head_dim**-0.5
        qkv = self.linear(x, f"{name}.qkv", factor)
        parts = b.split(
            b.reshape(qkv, [0, a.tokens, 3 * a.heads, a.head_dim], f"{name}.split"),
            [f"{name}.{p}" for p in "qkv"],
            2,
        )
        q, v = (b.transpose(part, (0, 2, 1, 3), f"{part.name}.heads") for part in (parts[0], parts[2]))
        k = b.transpose(parts[1], (0, 2, 3, 1), f"{name}.k.heads")
        p = b.op("Softmax", [b.op("MatMul", [q, k], f"{name}.scores")], f"{name}.softmax", {"axis": -1})
        context = b.transpose(b.op("MatMul", [p, v], f"{name}.context"), (0, 2, 1, 3), f"{name}.context.t")
        return self.linear(b.reshape(context, [0, a.tokens, a.dim], f"{name}.context.flat"), f"{name}.proj")

    def linear(self, x: ir.Value, name: str, factor: NDArray[np.float32] | None = None) -> ir.Value:
        weight, bias = self.w[f"{name}.weight"].T, self.w.get(f"{name}.bias")
        if factor is not None:
            weight, bias = weight * factor, None if bias is None else bias * factor
        product = self.b.op("MatMul", [x, self.b.float(f"{name}.weight", weight)], f"{name}.product")
        if bias is None:
            return product
        return self.b.op("Add", [product, self.b.float(f"{name}.bias", bias.reshape(1, 1, -1))], f"{name}.out")

    def norm(self, x: ir.Value, name: str) -> ir.Value:
        weights = [self.b.float(f"{name}.{part}", self.w[f"{name}.{part}"]) for part in ("weight", "bias")]
        return self.b.op("LayerNormalization", [x, *weights], name, {"axis": -1, "epsilon": self.a.epsilon})
