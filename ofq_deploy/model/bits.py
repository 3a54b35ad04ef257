"""Bits of every layer: where a model departs from the two widths of its recipe."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ofq_deploy.errors import ModelError
from ofq_deploy.model.grids import MAX_BITS, MIN_BITS

if TYPE_CHECKING:
    from ofq_deploy.model.frozen import Frozen


@dataclass(frozen=True, slots=True)
class LayerBits:
    """Bits by the frozen file's names; a name that is missing takes the recipe's (patch embedding and heads 8).

    weights:     of linears, as {"blocks.0.attn.z": 2, "head": 8}
    activations: of quantizers, as {"blocks.0.mlp.fc2.input": 3}

    Raises ModelError for a width that no grid has.
    """

    weights: Mapping[str, int] = field(default_factory=dict)
    activations: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, bits in (*self.weights.items(), *self.activations.items()):
            if type(bits) is not int or not MIN_BITS <= bits <= MAX_BITS:
                raise ModelError(f"{name} is asked for {bits} bits; quantizers exist for {MIN_BITS} to {MAX_BITS}")

    @classmethod
    def of(cls, frozen: "Frozen") -> "LayerBits":
        """Those of every layer of a frozen model."""
        return cls(
            {name: frozen.linear(name).bits for name in frozen.linears},
            {name: frozen.quantizer(name).bits for name in frozen.quantizers},
        )


UNIFORM = LayerBits()
