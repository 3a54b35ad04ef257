"""The quantized block: its one forward pass in training. Submodule names are the frozen file's names."""

from torch import Tensor, nn

from ofq_deploy.model.nodes import PerToken
from ofq_deploy.train.architectures.vit.attention import ATTENTIONS, QuantAttention
from ofq_deploy.train.architectures.vit.timm_parts import FloatBlock, FloatMlp
from ofq_deploy.train.layers import QuantLinear
from ofq_deploy.train.quantizers import Quantizers


class QuantMlp(nn.Module):
    def __init__(self, source: FloatMlp, tokens: int, quantizers: Quantizers, name: str) -> None:
        super().__init__()
        dim, hidden = source.fc1.in_features, source.fc2.in_features
        into_fc1 = quantizers.activation(
            f"{name}.fc1.input", *quantizers.per_token(PerToken(tokens), dim), shifts=((dim,), (dim,))
        )
        into_fc2 = quantizers.activation(
            f"{name}.fc2.input",
            *quantizers.per_token(PerToken(tokens), hidden),
            grid="unsigned",  # the shift before it makes up for what GELU leaves below zero
            shifts=((hidden,), (hidden,)),
        )
        self.fc1 = QuantLinear(source.fc1, quantizers.weight(source.fc1.weight, f"{name}.fc1"), into_fc1)
        self.act = source.act
        self.fc2 = QuantLinear(source.fc2, quantizers.weight(source.fc2.weight, f"{name}.fc2"), into_fc2)

    def forward(self, x: Tensor) -> Tensor:
        """x: float [batch, tokens, dim], normalised -> float [batch, tokens, dim]"""
        return self.fc2(self.act(self.fc1(x)))


class QuantBlock(nn.Module):
    """A pre-norm block, with LayerScale where timm's has it. The residual stream passes through `middle` and `output`, where others may look and change."""

    attn: QuantAttention

    def __init__(self, source: FloatBlock, tokens: int, quantizers: Quantizers, name: str) -> None:
        super().__init__()
        attention = ATTENTIONS[quantizers.config.attention]
        self.norm1 = source.norm1
        self.attn = attention(source.attn, tokens, quantizers, f"{name}.attn")
        self.ls1, self.middle = source.ls1, nn.Identity()
        self.norm2 = source.norm2
        self.mlp = QuantMlp(source.mlp, tokens, quantizers, f"{name}.mlp")
        self.ls2, self.output = source.ls2, nn.Identity()

    def forward(self, x: Tensor, attn_mask: None = None, is_causal: bool = False) -> Tensor:
        """x: float [batch, tokens, dim] -> float [batch, tokens, dim]; raises ValueError for a mask."""
        x = self.middle(x + self.ls1(self.attn(self.norm1(x), attn_mask, is_causal)))
        return self.output(x + self.ls2(self.mlp(self.norm2(x))))
