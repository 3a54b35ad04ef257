"""Codes as functions of the accumulator: thresholds and scales against float64, at every sum of small layers."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import erf

from ofq_deploy.export.thresholds import (
    GELU_MINIMUM,
    Requantized,
    Thresholds,
    find_thresholds,
    fma,
    reachable,
    settle,
)

CHANNELS, INPUTS = 24, 40


def layer(seed: int, gelu: bool, limits: tuple[int, int], step: float, spread: float = 0.3) -> Requantized:
    """Random; two channels fall, one stands still."""
    random = np.random.default_rng(seed)
    low, high = reachable(2 * random.integers(-8, 8, (CHANNELS, INPUTS)) + 1, (-8, 7))
    scale = random.uniform(1e-4, 8e-3, CHANNELS).astype(np.float32).astype(np.float64)
    scale[:3] *= (-1, -1, 0)
    bias, before = (random.normal(0, size, CHANNELS).astype(np.float32).astype(np.float64) for size in (0.5, spread))
    return Requantized(scale, bias, before, np.full(CHANNELS, step), gelu, limits, low, high)


def every_sum(of: Requantized) -> list[tuple[Requantized, NDArray[np.int64], NDArray[np.bool_]]]:
    """By channel: the layer of that channel alone, all sums that it reaches, and which channel it is."""
    chosen = np.eye(CHANNELS, dtype=bool)
    return [(of.channels(c), np.arange(of.low[i], of.high[i] + 1)[None], c) for i, c in enumerate(chosen)]


@pytest.mark.parametrize("limits", [(0, 15), (0, 3), (-8, 7), (-2, 1), (0, 7)])
@pytest.mark.parametrize(("step", "spread"), [(0.1, 0.3), (0.02, 0.3), (0.5, 0.0), (0.01, 1.0)])
def test_thresholds_are_the_reference_at_every_sum(limits: tuple[int, int], step: float, spread: float) -> None:
    layers = [layer(seed, True, limits, step, spread) for seed in range(3)]
    found = [find_thresholds(own) for own in layers]

    for own, thresholds in zip(layers, found, strict=True):
        assert thresholds is not None
        assert thresholds.rising.shape == (CHANNELS, limits[1] - limits[0])
        assert (np.diff(thresholds.rising.astype(np.int64)) >= 0).all()
        assert (np.diff(thresholds.falling.astype(np.int64)) <= 0).all()
        for channel, sums, c in every_sum(own):
            codes = Thresholds(thresholds.rising[c], thresholds.falling[c]).codes(sums, limits[0])
            np.testing.assert_array_equal(codes, channel.codes(sums))
    if step < 0.1 and spread:
        assert any(own is not None and own.falling.shape[1] > 1 for own in found)  # both branches were there


def test_thresholds_beyond_16_bits_are_none() -> None:
    wide = replace(
        layer(0, True, (0, 15), 0.1, 0.0),
        scale=np.full(CHANNELS, 1e-5),
        low=np.full(CHANNELS, -200_000),
        high=np.full(CHANNELS, 200_000),
    )
    near = replace(wide, high=np.full(CHANNELS, 4_000), low=np.full(CHANNELS, -4_000))

    assert find_thresholds(wide) is None
    found = find_thresholds(near)  # what cannot be reached needs no threshold
    assert found is not None
    for channel, sums, c in every_sum(near):
        codes = Thresholds(found.rising[c], found.falling[c]).codes(sums, 0)
        np.testing.assert_array_equal(codes, channel.codes(sums))


def test_falling_thresholds_are_left_out_where_no_channel_has_one() -> None:
    rising = replace(layer(0, True, (0, 15), 0.1, 0.0), scale=np.full(CHANNELS, 1e-3))

    found = find_thresholds(rising)

    assert found is not None
    assert found.falling.shape == (CHANNELS, 0)


def test_codes_that_are_no_such_function_have_no_thresholds() -> None:
    """The minimum of GELU on a threshold, and sums so near to one another that float64 does not see it grow between them."""
    flat = layer(0, True, (0, 15), 0.1)
    lowest = GELU_MINIMUM * 0.5 * (1 + erf(GELU_MINIMUM / np.sqrt(2)))
    every = np.ones(CHANNELS)
    flat = replace(flat, scale=1e-9 * every, bias=GELU_MINIMUM * every, before=(0.05 - lowest) * every)
    _, (channel, sums, _), *_ = every_sum(flat)
    steps = np.count_nonzero(np.diff(channel.codes(sums)))

    assert steps > 2  # it would fall once and rise once
    assert find_thresholds(flat) is None


@pytest.mark.parametrize("limits", [(0, 15), (-2, 1), (-8, 7), (-128, 127)])
@pytest.mark.parametrize("step", [0.1, 0.017])
def test_settled_scales_give_the_reference_at_every_sum(limits: tuple[int, int], step: float) -> None:
    own = layer(1, False, limits, step)
    scale, bias = (own.scale / step).astype(np.float32), ((own.bias + own.before) / step).astype(np.float32)
    scale, bias, unproven = settle(own, scale, bias)

    assert unproven == 0
    for channel, sums, c in every_sum(own):
        units = fma(sums.astype(np.float32), scale[c][:, None], bias[c][:, None])
        np.testing.assert_array_equal(np.clip(np.rint(units), *limits), channel.codes(sums))


def test_a_scale_is_moved_to_a_neighbour_that_decides_rightly() -> None:
    """A third of 1.5 and a bit lies above a threshold: in float64, but not once it is rounded to float32."""
    own = layer(2, False, (-128, 127), 1.0)
    scale, bias = np.full(CHANNELS, np.float32(1 / 6)), np.zeros(CHANNELS, dtype=np.float32)
    own = replace(own, scale=scale.astype(np.float64), bias=bias.astype(np.float64), before=bias.astype(np.float64))
    moved, same, unproven = settle(own, scale, bias)
    far, _, lost = settle(own, scale * np.float32(1.01), bias)
    three = np.full((CHANNELS, 1), 3)

    assert np.rint(fma(three.astype(np.float32), scale[:, None], bias[:, None])).max() == 0
    assert own.codes(three).min() == 1
    assert unproven == 0
    np.testing.assert_array_equal(moved, np.nextafter(scale, np.float32(1)))
    np.testing.assert_array_equal(same, bias)
    assert lost == CHANNELS
    np.testing.assert_array_equal(far, scale * np.float32(1.01))  # nothing near is right: it stays


FLOATS = st.floats(-1e6, 1e6, width=32)


@given(a=st.integers(-(2**24), 2**24), b=FLOATS, c=st.floats(-100, 100, width=32))
def test_a_product_and_a_sum_are_rounded_once(a: int, b: float, c: float) -> None:
    check_fma(a, b, c)


@pytest.mark.parametrize("c", [1e-20, -1e-20, 0.0, 1.0, -1.0])
def test_a_sum_next_to_a_tie_is_not_rounded_twice(c: float) -> None:
    check_fma(4097, 4097.0, c)  # 2**24 + 2**13 + 1: half way between two float32
    check_fma(4097, -4097.0, c)


def check_fma(a: int, b: float, c: float) -> None:
    exact = Fraction(a) * Fraction(b) + Fraction(np.float32(c).item())
    found = fma(*(np.asarray([x], dtype=np.float32) for x in (a, b, c)))[0]
    around = [np.nextafter(found, np.float32(end)) for end in (-np.inf, np.inf)]
    distances = [abs(Fraction(x.item()) - exact) for x in (found, *around)]
    is_even = not found.view(np.int32) & 1

    assert distances[0] <= min(distances[1:])
    assert is_even or distances[0] < min(distances[1:])


def test_sums_reach_what_codes_and_weights_allow() -> None:
    weights: NDArray[Any] = np.asarray([[1, -3], [7, 0]])

    low, high = reachable(weights, (-2, 1))

    assert low.tolist() == [-2 - 3, -14]
    assert high.tolist() == [1 + 6, 7]
