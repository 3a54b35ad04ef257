"""Quantized forms of the layers of a vision transformer. Submodule names are the frozen file's names."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofq_deploy.recipe import Quantization
from ofq_deploy.train.quantizers import LsqQuantizer, LsqWeight, StatsQ

EDGE_BITS = 8  # of the patch embedding and the heads, whatever the rest has


def weight_quantizer(config: Quantization, weight: Tensor) -> StatsQ | LsqWeight:
    """The quantizer of a transformer block's weight [rows, columns]."""
    return StatsQ(config.weight_bits) if config.weights == "statsq" else LsqWeight(config.weight_bits, weight)


class QuantLinear(nn.Module):
    """A linear layer whose weight, and input if it has a quantizer of its own, are quantized."""

    def __init__(self, source: nn.Linear, weight_quant: StatsQ | LsqWeight, input: LsqQuantizer | None) -> None:
        super().__init__()
        self.weight, self.bias = source.weight, source.bias
        self.weight_quant, self.input = weight_quant, input

    def forward(self, x: Tensor) -> Tensor:
        """x: float [..., in] -> float [..., out]"""
        x = x if self.input is None else self.input(x)
        return F.linear(x, self.weight_quant(self.weight), self.bias)


class QuantPatchEmbedding(nn.Module):
    """The patch convolution (stride = kernel) with 8-bit LSQ weights and pixels.

    The image quantizer has one step per channel (token form) or one in all, and one shift per pixel, shared by
    the channels. Whether its grid is signed is decided once, at calibration.
    """

    def __init__(self, source: nn.Conv2d, image_size: tuple[int, int], config: Quantization, batch: int) -> None:
        super().__init__()
        self.weight, self.bias, self.stride = source.weight, source.bias, source.stride
        self.weight_quant = LsqWeight(EDGE_BITS, source.weight.flatten(1))
        channels, pixels = source.in_channels, image_size[0] * image_size[1]
        shift = (1, *image_size) if config.shifts else None
        self.input = LsqQuantizer(
            EDGE_BITS,
            "signed",
            (channels, 1, 1) if config.act_step == "token" else (1,),
            pixels if config.act_step == "token" else pixels * channels,
            before=shift,
            after=shift,
            start_factor=2.0,
            reference_batch=batch,
        )

    def forward(self, image: Tensor) -> Tensor:
        """image: float [batch, channels, height, width] -> float [batch, dim, height / patch, width / patch]"""
        if self.input.calibrating:
            self.input.set_grid("signed" if image.min() < -1e-5 else "unsigned")
        weight = self.weight_quant(self.weight.flatten(1)).view_as(self.weight)
        return F.conv2d(self.input(image), weight, self.bias, self.stride)


class _Attention(nn.Module):
    """What both forms share: the activation quantizers on either side of the softmax, and the projection."""

    def __init__(self, source: Any, tokens: int, config: Quantization, batch: int) -> None:
        super().__init__()
        self.heads, self.head_dim, self.scale = source.num_heads, source.head_dim, source.scale
        self.dim, self.tokens, self.config, self.batch = self.heads * self.head_dim, tokens, config, batch
        self.input = self.per_token((tokens, 1), self.dim, shifts=((self.dim,), (self.dim,)))
        channels = (self.dim,) if config.shifts else None
        self.v = LsqQuantizer(
            config.act_bits,
            "signed",
            (self.dim,),
            tokens,
            before=channels,
            after=channels,
            reference_batch=batch,
        )
        self.softmax = self.per_token((tokens, 1), self.heads * tokens, grid="unsigned")
        proj = self.per_token((tokens, 1), self.dim, shifts=((self.dim,), (self.dim,)))
        self.proj = QuantLinear(source.proj, weight_quantizer(config, source.proj.weight), proj)

    def per_token(
        self,
        step_shape: tuple[int, ...],
        elements: int,
        *,
        grid: Literal["signed", "unsigned"] = "signed",
        shifts: tuple[tuple[int, ...] | None, tuple[int, ...] | None] = (None, None),
    ) -> LsqQuantizer:
        """A quantizer with these steps in token form, with a single step in tensor form."""
        if self.config.act_step == "tensor":
            steps = torch.Size(step_shape).numel()
            step_shape, elements = (1,), elements * steps
        before, after = shifts if self.config.shifts else (None, None)
        return LsqQuantizer(
            self.config.act_bits,
            grid,
            step_shape,
            elements,
            before=before,
            after=after,
            reference_batch=self.batch,
        )

    def split_heads(self, x: Tensor) -> Tensor:
        """[batch, tokens, dim] -> [batch, heads, tokens, head_dim]"""
        return x.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)

    def attend(self, scores: Tensor, v: Tensor) -> Tensor:
        """scores: [batch, heads, tokens, tokens], v: [batch, tokens, dim] -> [batch, tokens, dim]"""
        p = self.softmax(scores.softmax(-1))
        context = p @ self.split_heads(v)
        return self.proj(context.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, attn_mask: None = None, is_causal: bool = False) -> Tensor:
        """x: float [batch, tokens, dim], normalised -> float [batch, tokens, dim]"""
        if attn_mask is not None or is_causal:
            raise ValueError("quantized attention takes no mask")
        return self.attention(self.input(x))

    def attention(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class QkAttention(_Attention):
    """q and k quantized apart (OFQ without reparameterization).

    A shift after k only adds a term that is constant over the keys, which the softmax cancels: there is none.
    """

    def __init__(self, source: Any, tokens: int, config: Quantization, batch: int) -> None:
        super().__init__(source, tokens, config, batch)
        self.qkv = QuantLinear(source.qkv, weight_quantizer(config, source.qkv.weight), None)
        per_head = (self.heads, 1, self.head_dim)
        self.q = self.per_token((tokens, 1), self.dim, shifts=(per_head, per_head))
        self.k = self.per_token((tokens, 1), self.dim, shifts=(per_head, None))

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        scores = self.q(self.split_heads(q)) @ self.k(self.split_heads(k)).mT
        return self.attend(scores * self.scale, self.v(v))


class QkrAttention(_Attention):
    """Query-key reparameterization (OFQ section 4.2): the product M = Wq^T Wk of each head is quantized, then
    z = M x; Wq, Wk, q and k never are.

    key_bias: float [heads, dim], Wk^T bq: what the query bias contributes to a score, x_j . key_bias (the other
    bias terms are constant over the keys). A shift after z would be, too: there is none.
    """

    def __init__(self, source: Any, tokens: int, config: Quantization, batch: int) -> None:
        super().__init__(source, tokens, config, batch)
        query, key, value = source.qkv.weight.detach().chunk(3)
        self.query, self.key = nn.Parameter(query.clone()), nn.Parameter(key.clone())
        linear = nn.Linear(self.dim, self.dim, bias=source.qkv.bias is not None)
        linear.weight = nn.Parameter(value.clone())
        self.register_parameter("key_bias", None)
        if source.qkv.bias is not None:
            query_bias, _, value_bias = source.qkv.bias.detach().chunk(3)
            linear.bias = nn.Parameter(value_bias.clone())
        if source.qkv.bias is not None and config.key_bias:
            by_head = query_bias.view(self.heads, self.head_dim, 1)
            self.key_bias = nn.Parameter((key.view(self.heads, self.head_dim, -1) * by_head).sum(1))
        self.value = QuantLinear(linear, weight_quantizer(config, value), None)
        self.product_quant = weight_quantizer(config, self.product().detach())
        self.z = self.per_token((tokens, self.heads, 1), self.dim, shifts=((self.heads, self.dim), None))

    def product(self) -> Tensor:
        """M, float32 [heads * dim, dim]; row h * dim + D meets the query's channel D, columns meet the key.

        Always computed in float32, so that a float64 model quantizes the very product that training saw.
        """
        query, key = (w.float().view(self.heads, self.head_dim, -1) for w in (self.query, self.key))
        return torch.bmm(query.mT, key).flatten(0, 1)

    def attention(self, x: Tensor) -> Tensor:
        product = self.product_quant(self.product()).to(x.dtype)
        z = self.z(F.linear(x, product).unflatten(-1, (self.heads, self.dim)))
        scores = x[:, None] @ z.permute(0, 2, 3, 1)
        if self.key_bias is not None:
            scores = scores + F.linear(x, self.key_bias).mT[:, :, None]
        return self.attend(scores * self.scale, self.v(self.value(x)))
