"""What the tests draw: weights and activations at a quantizer's corners."""

from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from ofq_deploy.model.grids import Grid
from ofq_deploy.train.quantizers import LsqQuantizer

bits = st.integers(2, 8)
seeds = st.integers(0, 2**32 - 1)
ROW_KINDS = ("gaussian", "dead", "constant", "outlier", "ties", "large", "tiny")


@st.composite
def weights(draw: st.DrawFn, kinds: tuple[str, ...] = ROW_KINDS) -> Tensor:
    """float32 [rows, columns]; every row is of its own kind, one column is allowed."""
    columns = draw(st.integers(1, 12))
    random = np.random.default_rng(draw(seeds))
    rows = [
        _weight_row(kind, columns, random) for kind in draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=6))
    ]
    return torch.from_numpy(np.stack(rows).astype(np.float32))


def _weight_row(kind: str, columns: int, random: np.random.Generator) -> Any:
    row = random.normal(size=columns) * 0.05
    if kind == "dead":
        return np.zeros(columns)
    if kind == "constant":
        return np.full(columns, random.normal())
    if kind == "ties":
        return _row_of_ties(columns, random)
    if kind == "outlier":
        row[random.integers(columns)] = random.choice([-1e30, -1e4, 1e4, 1e30])
    return row * {"large": 1e4, "tiny": 1e-20}.get(kind, 1)


def _row_of_ties(columns: int, random: np.random.Generator) -> Any:
    """Magnitudes in pairs that add to 1: StatsQ's scale is exactly 1, and multiples of 1 / 128 are ties."""
    half = random.integers(0, 129, size=columns // 2) / 128
    row = np.concatenate([half, 1 - half, [0.5] * (columns % 2)])
    return row * random.choice([-1, 1], size=columns)


@st.composite
def quantized_activations(draw: st.DrawFn, shifts: bool = True) -> tuple[LsqQuantizer, Tensor]:
    """An LSQ quantizer with steps of any layout, and an input [batch, tokens, dim], saturated or on ties."""
    batch, tokens, dim = (draw(st.integers(1, 4)) for _ in range(3))
    step_shape = draw(st.sampled_from([(tokens, 1), (dim,), (1,)]))
    shift = (dim,) if shifts and draw(st.booleans()) else None
    grid: Grid = draw(st.sampled_from(["signed", "unsigned"]))
    quantizer = LsqQuantizer(draw(bits), grid, step_shape, dim, before=shift, after=shift)
    random = np.random.default_rng(draw(seeds))
    with torch.no_grad():
        quantizer.initialized.fill_(True)
        quantizer.step.copy_(torch.from_numpy(np.exp(random.normal(-1, 2, size=step_shape))))
        for value in (quantizer.before, quantizer.after):
            if value is not None:
                value.copy_(torch.from_numpy(random.normal(size=dim)))
        codes = torch.from_numpy(random.integers(-3, 4, size=(batch, tokens, dim)))
        ties = (codes + 0.5) * quantizer.step
    scale = draw(st.sampled_from([0.0, 0.1, 1.0, 1e4, 1e30]))
    values = torch.from_numpy(random.normal(size=(batch, tokens, dim)) * scale).float()
    return quantizer, torch.where(torch.from_numpy(random.random((batch, tokens, dim)) < 0.3), ties, values)
