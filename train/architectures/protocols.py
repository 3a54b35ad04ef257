"""What training asks of an architecture.

The rest of train/ handles a model as an `nn.Module` and reaches its parts through the adapter of its class alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ofq_deploy.model.architecture import Architecture
from ofq_deploy.train.folding import Writer
from ofq_deploy.train.quantizers import Quantizers, WeightQuantizer


@dataclass(frozen=True, slots=True)
class Layer:
    """A latent weight that is quantized.

    names:  of the frozen file's linears that its rows are, in equal parts: one, or q, k and v
    weight: the parameter, float [rows, ...]; the quantizer sees it as [rows, columns]
    edge:   patch embedding or head, which annealing leaves free
    """

    names: tuple[str, ...]
    weight: Tensor
    quantizer: WeightQuantizer
    edge: bool = False


@dataclass(frozen=True, slots=True)
class Product:
    """A weight that is quantized after it was computed from others, which never are.

    name:    of the frozen file's linear
    factors: the parameters
    weight:  computes it, in a dtype: float [rows, columns]
    """

    name: str
    factors: tuple[Tensor, ...]
    quantizer: WeightQuantizer
    weight: Callable[[torch.dtype], Tensor]


def _as_it_is(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True, slots=True)
class Tap:
    """A place where the frozen file's consumers see a value.

    module:  whose output it is: an LsqQuantizer (codes are seen), or an nn.Identity on the residual stream (floats)
    rows:    how many of the first tokens count (axis -2 of the module's layout), None for all
    outward: the module's layout -> the frozen file's
    inward:  back
    """

    module: nn.Module
    rows: int | None = None
    outward: Callable[[Tensor], Tensor] = _as_it_is
    inward: Callable[[Tensor], Tensor] = _as_it_is

    def counted(self, value: Tensor) -> Tensor:
        """A view of the rows that count, in the module's layout."""
        return value if self.rows is None else value[..., : self.rows, :]


class Adapter(Protocol):
    """One architecture. A module with these functions serves (`architectures/vit`); none of them keeps state.

    `faults` and `convert` take a float model, `logits` and `products` either form, the others a converted model.
    """

    def faults(self, model: nn.Module) -> list[str]:
        """What the model has that its quantized form does not compute, in words that follow "it has"."""
        ...

    def convert(self, model: nn.Module, quantizers: Quantizers) -> None:
        """Replace layers by quantized ones, in place. Paths of what remains, and weights, stay."""
        ...

    def logits(self, model: nn.Module, images: Tensor) -> list[Tensor]:
        """Logits [batch, classes] of every head, that of the classes first; images: [batch, channels, height, width]."""
        ...

    def layers(self, model: nn.Module) -> Iterator[Layer]:
        """Every quantized latent weight."""
        ...

    def products(self, model: nn.Module) -> Iterator[Product]:
        """Every quantized weight that is computed; none for a float model."""
        ...

    def taps(self, model: nn.Module) -> dict[str, Tap]:
        """By the frozen file's names: every activation quantizer, then the residual stream front to back."""
        ...

    def freeze(self, model: nn.Module, writer: Writer) -> Architecture:
        """Write every array, linear and quantizer; returns the sizes."""
        ...
