"""Quantized layers that any architecture is made of. Submodule names are the frozen file's names."""

import torch.nn.functional as F
from torch import Tensor, nn

from ofq_deploy.model.grids import EDGE_BITS
from ofq_deploy.model.nodes import PerChannel, PerTensor
from ofq_deploy.train.quantizers import LsqQuantizer, Quantizers, WeightQuantizer


class QuantLinear(nn.Module):
    """A linear layer whose weight, and input if it has a quantizer of its own, are quantized."""

    def __init__(self, source: nn.Linear, weight_quant: WeightQuantizer, input: LsqQuantizer | None) -> None:
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

    def __init__(self, source: nn.Conv2d, image_size: tuple[int, int], quantizers: Quantizers, name: str) -> None:
        super().__init__()
        self.weight, self.bias, self.stride = source.weight, source.bias, source.stride
        self.weight_quant = quantizers.edge_weight(source.weight.flatten(1), name)
        steps = quantizers.per_token(PerChannel(0, source.in_channels), image_size[0] * image_size[1])
        shift = (1, *image_size)
        self.input = quantizers.activation(f"{name}.input", *steps, shifts=(shift, shift), bits=EDGE_BITS)

    def forward(self, image: Tensor) -> Tensor:
        """image: float [batch, channels, height, width] -> float [batch, dim, height / patch, width / patch]"""
        if self.input.calibrating:
            self.input.set_grid("signed" if image.min() < -1e-5 else "unsigned")
        weight = self.weight_quant(self.weight.flatten(1)).view_as(self.weight)
        return F.conv2d(self.input(image), weight, self.bias, self.stride)


def quant_head(source: nn.Linear, quantizers: Quantizers, name: str) -> QuantLinear:
    """A classifier: 8 bits, one step."""
    shift, weight = (source.in_features,), quantizers.edge_weight(source.weight, name)
    input = quantizers.activation(
        f"{name}.input", PerTensor(), source.in_features, shifts=(shift, shift), bits=EDGE_BITS
    )
    return QuantLinear(source, weight, input)
