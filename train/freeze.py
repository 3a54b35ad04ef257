"""Where torch ends: a trained model as codes and constants.

Codes, steps and QKR's merged product come from torch's own forward. What can be folded is folded here, once, in
float64, and cast once to float32: every later consumer uses these constants and never folds again. The folds
are exact in real arithmetic; flips of codes against torch are counted by the proof.
"""

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import nn

from ofq_deploy.data.images import Preprocessing
from ofq_deploy.errors import ModelError
from ofq_deploy.model.frozen import Frozen
from ofq_deploy.model.vit import Architecture, Coding, quantized_graph
from ofq_deploy.recipe import Quantization
from ofq_deploy.train.convert import activation_quantizers, head_names
from ofq_deploy.train.layers import QkrAttention, QuantLinear
from ofq_deploy.train.quantizers import STEP_FLOOR, Coded, LsqQuantizer

Double = NDArray[np.float64]


def freeze(model: Any, config: Quantization, preprocessing: Preprocessing, labels: tuple[str, ...]) -> Frozen:
    """The frozen form of a converted, calibrated model (see docs/architecture.md for every array).

    Raises ModelError when an activation quantizer has no steps yet, or a number is not finite.
    """
    waiting = [path for path, quantizer in activation_quantizers(model).items() if not quantizer.initialized]
    if waiting:
        raise ModelError(f"{waiting[0]} and {len(waiting) - 1} more quantizers have no steps; run calibrate first")
    broken = [name for name, value in model.state_dict().items() if not torch.isfinite(value).all()]
    if broken:
        raise ModelError(f"{broken[0]} holds values that are not finite ({len(broken)} tensors); train again")
    writer = _Writer()
    _freeze_stem(writer, model)
    for index, block in enumerate(model.blocks):
        _freeze_block(writer, block, f"blocks.{index}")
    writer.put("norm.weight", _double(model.norm.weight))
    writer.put("norm.bias", _double(model.norm.bias))
    names = head_names(model)
    for name in names:
        _freeze_head(writer, getattr(model, name), name, 1 / len(names))
    patch, block = model.patch_embed, model.blocks[0]
    architecture = Architecture(
        image_size=patch.img_size[0],
        channels=patch.proj.weight.shape[1],
        patch_size=patch.patch_size[0],
        dim=model.embed_dim,
        depth=len(model.blocks),
        heads=block.attn.heads,
        hidden=block.mlp.fc1.weight.shape[0],
        classes=model.head.weight.shape[0],
        prefix=len(names),
        key_bias=getattr(block.attn, "key_bias", None) is not None,
        epsilon=float(model.norm.eps),
    )
    hashes = {"weights.safetensors": hashlib.sha256(save(model.state_dict())).hexdigest()}
    network = quantized_graph(architecture, config, writer.quantizers, writer.linears)
    return Frozen(architecture, network, config, preprocessing, labels, hashes, writer.arrays)


class _Writer:
    """Collects arrays (cast to float32 once), and on which grids codes lie."""

    def __init__(self) -> None:
        self.arrays: dict[str, Any] = {}
        self.quantizers: dict[str, Coding] = {}
        self.linears: dict[str, Coding] = {}

    def put(self, name: str, value: Double | None) -> None:
        if value is not None:
            if not np.isfinite(value).all():
                raise ModelError(
                    f"{name} is not finite when frozen; the weights are too large or the training diverged"
                )
            self.arrays[name] = np.ascontiguousarray(value, dtype=np.float32)

    def quantizer(self, name: str, source: LsqQuantizer, step: Double) -> None:
        self.quantizers[name] = Coding(source.grid, source.bits)
        self.put(f"{name}.step", step)

    def linear(self, name: str, coded: Coded, bits: int, scale: Double, bias: Double | None) -> None:
        """`scale` [out] or [channels, out] in units of the weight's step: what the accumulator is multiplied with."""
        self.linears[name] = Coding(coded.grid, bits)
        step = _double(coded.step)[:, 0]
        self.arrays[f"{name}.weight.codes"] = coded.codes.numpy()
        self.put(f"{name}.weight.step", step)
        self.put(f"{name}.scale", scale * step)
        self.put(f"{name}.bias", bias)


def _double(tensor: torch.Tensor) -> Double:
    return tensor.detach().double().numpy()


def _step(quantizer: LsqQuantizer) -> Double:
    return _double(quantizer.step.clamp_min(STEP_FLOOR))


def _shift(shift: torch.Tensor | None) -> Double | float:
    return 0.0 if shift is None else _double(shift)


def _optional(shift: torch.Tensor | None) -> Double | None:
    return None if shift is None else _double(shift)


def _scalar(step: Double) -> Double | float:
    """What folds into a scale: the step of a tensor quantizer. Token steps stay outside and count as 1 here."""
    return step.item() if step.size == 1 else 1.0


def _weight(coded: Coded) -> Double:
    """The real weight [out, in] in float64: integers times step, without a rounding."""
    codes = coded.codes.double()
    return ((codes * 2 + 1 if coded.grid == "half" else codes) * coded.step.double()).numpy()


def _bias(layer: QuantLinear, coded: Coded, after: torch.Tensor | None) -> Double:
    """The layer's bias plus what the input's shift contributes: W @ after."""
    own = _double(layer.bias) if layer.bias is not None else np.zeros(layer.weight.shape[0])
    return own if after is None else own + _weight(coded) @ _double(after)


def _freeze_stem(writer: _Writer, model: Any) -> None:
    layer = model.patch_embed.proj
    image = layer.input
    coded = layer.weight_quant.coded(layer.weight.flatten(1))
    step = _step(image).reshape(-1)
    writer.quantizer("patch_embed.input", image, step)
    writer.linear("patch_embed", coded, layer.weight_quant.bits, step[:, None], None)
    if image.before is not None:
        writer.put("patch_embed.input.before", _double(image.before)[0])
    constant = np.zeros((1, model.embed_dim))
    if layer.bias is not None:
        constant = constant + _double(layer.bias)
    if image.after is not None:
        kernel = torch.from_numpy(_weight(coded)).view(layer.weight.shape)
        shift = image.after.detach().double().expand(1, layer.weight.shape[1], -1, -1)
        constant = constant + torch.conv2d(shift, kernel, stride=layer.stride).flatten(2)[0].T.numpy()
    position = _double(model.pos_embed)[0]
    prefix = len(head_names(model))
    writer.put("patch_embed.position", position[prefix:] + constant)
    tokens = [model.cls_token, *([model.dist_token] if prefix == 2 else [])]
    writer.put("tokens", np.concatenate([_double(token)[0] for token in tokens]) + position[:prefix])


def _freeze_norm(writer: _Writer, name: str, norm: nn.LayerNorm, before: torch.Tensor | None) -> None:
    writer.put(f"{name}.weight", _double(norm.weight))
    writer.put(f"{name}.bias", _double(norm.bias) + _shift(before))


def _freeze_block(writer: _Writer, block: Any, name: str) -> None:
    attn, mlp = block.attn, block.mlp
    _freeze_norm(writer, f"{name}.norm1", block.norm1, attn.input.before)
    x_step = _step(attn.input).reshape(-1)
    writer.quantizer(f"{name}.attn.input", attn.input, x_step)
    if isinstance(attn, QkrAttention):
        _freeze_qkr(writer, attn, f"{name}.attn", x_step)
    else:
        _freeze_qk(writer, attn, f"{name}.attn", x_step)
    _freeze_context(writer, attn, f"{name}.attn")
    _freeze_norm(writer, f"{name}.norm2", block.norm2, mlp.fc1.input.before)
    for layer in ("fc1", "fc2"):
        _freeze_linear(writer, getattr(mlp, layer), f"{name}.mlp.{layer}")
    writer.put(f"{name}.mlp.fc2.input.before", _optional(mlp.fc2.input.before))


def _freeze_linear(writer: _Writer, layer: QuantLinear, name: str) -> None:
    """A layer with its own input quantizer, whose output stays float."""
    assert layer.input is not None
    step = _step(layer.input).reshape(-1)
    writer.quantizer(f"{name}.input", layer.input, step)
    coded = layer.weight_quant.coded(layer.weight)
    scale = np.full(coded.codes.shape[0], _scalar(step))
    writer.linear(name, coded, layer.weight_quant.bits, scale, _bias(layer, coded, layer.input.after))


def _freeze_value(
    writer: _Writer, name: str, coded: Coded, bits: int, bias: Double, quantizer: LsqQuantizer, x_step: Double
) -> None:
    """A linear whose output goes straight to a quantizer: the shift before it joins the bias, and a step that is
    constant over the tokens divides scale and bias.
    """
    step = _step(quantizer)
    per_token = quantizer.step.ndim > 1
    divisor = np.ones(1) if per_token else step
    bias = bias + np.ravel(_shift(quantizer.before))
    scale = np.full(coded.codes.shape[0], _scalar(x_step))
    writer.linear(name, coded, bits, scale / divisor, bias / divisor)
    if quantizer.step.ndim == 3:
        step = step[:, :, 0]  # [tokens, heads]
    writer.quantizer(name, quantizer, step if quantizer.step.ndim == 3 else step.reshape(-1))


def _freeze_qkr(writer: _Writer, attn: QkrAttention, name: str, x_step: Double) -> None:
    value = attn.value.weight_quant.coded(attn.value.weight)
    bias = _bias(attn.value, value, attn.input.after)
    _freeze_value(writer, f"{name}.v", value, attn.value.weight_quant.bits, bias, attn.v, x_step)
    product = attn.product_quant.coded(attn.product())
    shift = attn.input.after
    bias = np.zeros(product.codes.shape[0]) if shift is None else _weight(product) @ _double(shift)
    _freeze_value(writer, f"{name}.z", product, attn.product_quant.bits, bias, attn.z, x_step)
    z_step = writer.arrays[f"{name}.z.step"].astype(np.float64)
    writer.put(f"{name}.scores.scale", attn.scale * _scalar(x_step) * z_step)
    if shift is not None:
        writer.put(f"{name}.scores.key_shift", attn.scale * _scalar(z_step) * _double(shift)[None])
    if attn.key_bias is not None:
        writer.put(f"{name}.scores.key_bias", attn.scale * _scalar(x_step) * _double(attn.key_bias))


def _freeze_qk(writer: _Writer, attn: Any, name: str, x_step: Double) -> None:
    coded = attn.qkv.weight_quant.coded(attn.qkv.weight)
    bias = _bias(attn.qkv, coded, attn.input.after)
    for index, part in enumerate("qkv"):
        rows = slice(index * attn.dim, (index + 1) * attn.dim)
        piece = Coded(coded.codes[rows].contiguous(), coded.step[rows], coded.zero[rows], coded.grid)
        bits = attn.qkv.weight_quant.bits
        _freeze_value(writer, f"{name}.{part}", piece, bits, bias[rows], getattr(attn, part), x_step)
    q_step, k_step = (writer.arrays[f"{name}.{part}.step"].astype(np.float64) for part in "qk")
    writer.put(f"{name}.scores.scale", attn.scale * _scalar(q_step) * k_step)
    if attn.q.after is not None:
        writer.put(f"{name}.scores.key_shift", attn.scale * _scalar(k_step) * _double(attn.q.after)[:, 0])


def _freeze_context(writer: _Writer, attn: Any, name: str) -> None:
    p_step = _step(attn.softmax).reshape(-1)
    writer.quantizer(f"{name}.softmax", attn.softmax, p_step)
    writer.put(f"{name}.context.scale", _scalar(p_step) * _step(attn.v))
    if attn.v.after is not None:
        writer.put(f"{name}.context.row_sum", _scalar(p_step) * _double(attn.v.after))
    writer.put(f"{name}.context.bias", _optional(attn.proj.input.before))
    _freeze_linear(writer, attn.proj, f"{name}.proj")


def _freeze_head(writer: _Writer, layer: QuantLinear, name: str, share: float) -> None:
    """`share`: 1, or 1/2 where the mean of two heads is the output."""
    assert layer.input is not None
    step = _step(layer.input).reshape(-1)
    writer.quantizer(f"{name}.input", layer.input, step)
    coded = layer.weight_quant.coded(layer.weight)
    scale = np.full(coded.codes.shape[0], step.item() * share)
    writer.linear(name, coded, layer.weight_quant.bits, scale, share * _bias(layer, coded, layer.input.after))
    writer.put(f"{name}.input.before", _optional(layer.input.before))
