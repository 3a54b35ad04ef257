"""Quantized attention, in OFQ's two forms. Submodule names are the frozen file's names."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofq_deploy.model.nodes import PerChannel, PerToken, PerTokenHead
from ofq_deploy.train.architectures.vit.timm_parts import FloatAttention
from ofq_deploy.train.layers import QuantLinear
from ofq_deploy.train.quantizers import Quantizers


class QuantAttention(nn.Module):
    """What both forms share: the activation quantizers on either side of the softmax, and the projection."""

    def __init__(self, source: FloatAttention, tokens: int, quantizers: Quantizers, name: str) -> None:
        super().__init__()
        self.heads, self.head_dim, self.scale = source.num_heads, source.head_dim, source.scale
        self.dim = self.heads * self.head_dim
        channels, per_token = (self.dim,), quantizers.per_token(PerToken(tokens), self.dim)
        self.input = quantizers.activation(f"{name}.input", *per_token, shifts=(channels, channels))
        self.v = quantizers.activation(f"{name}.v", PerChannel(1, self.dim), tokens, shifts=(channels, channels))
        per_row = quantizers.per_token(PerToken(tokens), self.heads * tokens)
        self.softmax = quantizers.activation(f"{name}.softmax", *per_row, grid="unsigned")
        into_proj = quantizers.activation(f"{name}.proj.input", *per_token, shifts=(channels, channels))
        self.proj = QuantLinear(source.proj, quantizers.weight(source.proj.weight, f"{name}.proj"), into_proj)

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


class QkAttention(QuantAttention):
    """q and k quantized apart (OFQ without reparameterization).

    A shift after k only adds a term that is constant over the keys, which the softmax cancels: there is none.
    """

    def __init__(self, source: FloatAttention, tokens: int, quantizers: Quantizers, name: str) -> None:
        super().__init__(source, tokens, quantizers, name)
        names = [f"{name}.{part}" for part in "qkv"]
        self.qkv = QuantLinear(source.qkv, quantizers.weight(source.qkv.weight, *names), None)
        per_token, per_head = quantizers.per_token(PerToken(tokens), self.dim), (self.heads, 1, self.head_dim)
        self.q = quantizers.activation(f"{name}.q", *per_token, shifts=(per_head, per_head))
        self.k = quantizers.activation(f"{name}.k", *per_token, shifts=(per_head, None))

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        scores = self.q(self.split_heads(q)) @ self.k(self.split_heads(k)).mT
        return self.attend(scores * self.scale, self.v(v))


class QkrAttention(QuantAttention):
    """Query-key reparameterization (OFQ section 4.2): the product M = Wq^T Wk of each head is quantized, then
    z = M x; Wq, Wk, q and k never are.

    key_bias: float [heads, dim], Wk^T bq: what the query bias contributes to a score, x_j . key_bias (the other
    bias terms are constant over the keys). A shift after z would be, too: there is none.
    """

    def __init__(self, source: FloatAttention, tokens: int, quantizers: Quantizers, name: str) -> None:
        super().__init__(source, tokens, quantizers, name)
        query, key, value = source.qkv.weight.detach().chunk(3)
        self.query, self.key = nn.Parameter(query.clone()), nn.Parameter(key.clone())
        linear = nn.Linear(self.dim, self.dim, bias=source.qkv.bias is not None)
        linear.weight = nn.Parameter(value.clone())
        self.register_parameter("key_bias", None)
        if source.qkv.bias is not None:
            query_bias, _, value_bias = source.qkv.bias.detach().chunk(3)
            linear.bias = nn.Parameter(value_bias.clone())
        if source.qkv.bias is not None and quantizers.config.key_bias:
            by_head = query_bias.view(self.heads, self.head_dim, 1)
            self.key_bias = nn.Parameter((key.view(self.heads, self.head_dim, -1) * by_head).sum(1))
        self.value = QuantLinear(linear, quantizers.weight(value, f"{name}.v"), None)
        self.product_quant = quantizers.weight(self.product().detach(), f"{name}.z")
        per_head = quantizers.per_token(PerTokenHead(tokens, self.heads), self.dim)
        self.z = quantizers.activation(f"{name}.z", *per_head, shifts=((self.heads, self.dim), None))

    def product(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """M [heads * dim, dim]; row h * dim + D meets the query's channel D, columns meet the key.

        dtype: what it is computed in; always float32 where it is quantized, so that a float64 model quantizes the
               very product that training saw
        """
        query, key = (w.to(dtype).view(self.heads, self.head_dim, -1) for w in (self.query, self.key))
        return torch.bmm(query.mT, key).flatten(0, 1)

    def attention(self, x: Tensor) -> Tensor:
        product = self.product_quant(self.product()).to(x.dtype)
        z = self.z(F.linear(x, product).unflatten(-1, (self.heads, self.dim)))
        scores = x[:, None] @ z.permute(0, 2, 3, 1)
        if self.key_bias is not None:
            scores = scores + F.linear(x, self.key_bias).mT[:, :, None]
        return self.attend(scores * self.scale, self.v(self.value(x)))


ATTENTIONS: dict[str, type[QuantAttention]] = {"qk": QkAttention, "qkr": QkrAttention}  # by `quantization.attention`
