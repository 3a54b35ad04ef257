"""Every quantizer of a model, made by its name in the frozen file: kind, bits, steps and shifts in one place."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ofq_deploy.errors import ModelError
from ofq_deploy.model.bits import LayerBits
from ofq_deploy.model.grids import EDGE_BITS, Grid
from ofq_deploy.model.nodes import Granularity, PerChannel, PerTensor, PerToken, PerTokenHead
from ofq_deploy.recipe import Quantization
from ofq_deploy.train.quantizers.lsq import LsqQuantizer, LsqWeight
from ofq_deploy.train.quantizers.statsq import StatsQ
from ofq_deploy.train.quantizers.weight import WeightQuantizer

WEIGHT_QUANTIZERS: dict[str, Callable[[int, Tensor], WeightQuantizer]] = {
    "statsq": lambda bits, weight: StatsQ(bits),
    "lsq": LsqWeight,
}  # by `quantization.weights` of the recipe: (bits, weight [rows, columns] to start from) -> quantizer
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Quantizers:
    """Makes the quantizers of one model.

    reference_batch: the constant batch of LSQ's gradient scale
    """

    config: Quantization
    bits: LayerBits
    reference_batch: int

    def weight(self, weight: Tensor, *names: str) -> WeightQuantizer:
        """The quantizer of a weight [rows, columns] of the network's body.

        names: of the linears that its rows are, in equal parts; they share the quantizer, so their bits must agree
        """
        bits = [self.bits.weights.get(name, self.config.weight_bits) for name in names]
        if len(set(bits)) > 1:
            asked = ", ".join(f"{name} {width}" for name, width in zip(names, bits, strict=True))
            raise ModelError(f"{' and '.join(names)} share one weight quantizer; give them equal bits (asked: {asked})")
        return WEIGHT_QUANTIZERS[self.config.weights](bits[0], weight)

    def edge_weight(self, weight: Tensor, name: str) -> WeightQuantizer:
        """The quantizer of the patch embedding or a head: LSQ, whatever the body has."""
        return LsqWeight(self.bits.weights.get(name, EDGE_BITS), weight)

    def per_token(self, fine: Granularity, elements: int) -> tuple[Granularity, int]:
        """A granularity, and elements that share a step, in token form as they are; in tensor form of a single step."""
        if self.config.act_step == "token":
            return fine, elements
        return PerTensor(), elements * math.prod(fine.shape)

    def activation(
        self,
        name: str,
        granularity: Granularity,
        elements: int,
        *,
        grid: Grid = "signed",
        shifts: tuple[Shape | None, Shape | None] = (None, None),
        bits: int | None = None,
    ) -> LsqQuantizer:
        """The quantizer of an activation.

        elements: of one image that share a step
        shifts:   shapes of the shifts before and after; the recipe may do without any
        bits:     unless this name is given others; by default the recipe's
        """
        before, after = shifts if self.config.shifts else (None, None)
        quantizer = LsqQuantizer(
            self.bits.activations.get(name, bits or self.config.act_bits),
            grid,
            _step_shape(granularity),
            elements,
            before=before,
            after=after,
            reference_batch=self.reference_batch,
        )
        quantizer.granularity = granularity
        return quantizer


def _step_shape(granularity: Granularity) -> Shape:
    """As training holds steps: broadcastable to the activation."""
    match granularity:
        case PerToken() | PerTokenHead():
            return (*granularity.shape, 1)
        case PerChannel(axis=0):
            return (*granularity.shape, 1, 1)
        case PerChannel() | PerTensor():
            return granularity.shape
