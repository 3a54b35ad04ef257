"""What a family of networks is to everything outside of training: sizes, from which the list of nodes is made."""

from collections.abc import Mapping
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from ofq_deploy.model.graph import Graph
from ofq_deploy.model.grids import Grid
from ofq_deploy.model.nodes import Bits
from ofq_deploy.recipe import Quantization

Floats = NDArray[np.float32]


class Coding(msgspec.Struct, frozen=True):
    """On which grid a tensor's codes lie, and in how many bits."""

    grid: Grid
    bits: Bits


Codings = Mapping[str, Coding]  # by the name of a quantizer or linear


class Architecture(Protocol):
    """The sizes of one network, a frozen dataclass of numbers and texts; its family is listed in families.py."""

    def graph(self, quantization: Quantization, quantizers: Codings, linears: Codings) -> Graph:
        """The network on codes; ValueError for tables that lack a name or have one too many."""
        ...

    def float_graph(self) -> Graph:
        """The same network with its quantizers off."""
        ...

    def float_arrays(self, weights: Mapping[str, Floats]) -> dict[str, Floats]:
        """The tensors of the float model, by their names in torch, as the arrays of `float_graph`; KeyError where one is
        missing.
        """
        ...
