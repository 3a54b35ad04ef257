"""Codes as functions of an integer sum: where they step, found and proven in float64 (docs/kernels.md).

The reference is the oracle's formula on the frozen float32 numbers,

    v = sum * scale + bias;  with GELU v = v * Phi(v);  code = clip(rint((v + before) / step))

Along the sums of a channel v falls to the minimum of GELU and rises behind it (a plain v does one of the two), and so does
the code: both branches are searched by bisection. Sums, products, quotients and their roundings are monotone, so for a plain
v the steps found are those of every sum. GELU is monotone on a branch, its float64 value only up to an error: where the
values at a step and before it are further from the threshold than that error, no other value of the branch can lie on
the wrong side of it. A channel with a value that is nearer is compared sum by sum.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

Double = NDArray[np.float64]
Floats = NDArray[np.float32]
Sums = NDArray[np.int64]  # [channels, n], or [channels]

GELU_MINIMUM = -0.7517915246935645  # where the derivative of x * Phi(x) is 0
EVERY, NONE = np.iinfo(np.int16).min, np.iinfo(np.int16).max  # sums that reach such a threshold
REACH = NONE - 1  # all others lie within +-REACH
NUDGES = 3  # float32 neighbours by which a scale, and a bias, may move


@dataclass(frozen=True, slots=True)
class Requantized:
    """How the sums of a layer become codes.

    scale, bias, before, step: float64 [channels]
    limits:    lowest and highest code
    low, high: int64 [channels], the least and the largest sum that can occur
    """

    scale: Double
    bias: Double
    before: Double
    step: Double
    gelu: bool
    limits: tuple[int, int]
    low: Sums
    high: Sums

    def units(self, sums: Sums) -> Double:
        """float64 [channels, n], what is rounded to codes, of sums [channels, n]."""
        value = sums * self.scale[:, None] + self.bias[:, None]
        if self.gelu:
            value = value * 0.5 * (1 + erf(value / np.sqrt(2.0)))
        return np.asarray((value + self.before[:, None]) / self.step[:, None])

    def codes(self, sums: Sums) -> NDArray[np.int64]:
        return np.clip(np.rint(self.units(sums)), *self.limits).astype(np.int64)

    def channels(self, chosen: NDArray[np.bool_]) -> "Requantized":
        """The same for some channels."""
        arrays = ("scale", "bias", "before", "step", "low", "high")
        return replace(self, **{name: getattr(self, name)[chosen] for name in arrays})

    def turn(self) -> Sums:
        """int64 [channels]: the last sum of the falling branch, low - 1 where there is none."""
        if not self.gelu:
            return np.where(self.scale < 0, self.high, self.low - 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            turn = np.nan_to_num(np.floor((GELU_MINIMUM - self.bias) / self.scale))
        return np.clip(turn, self.low - 1, self.high).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """code = lowest + #{j: sum >= rising[c, j]} + #{i: sum < falling[c, i]}

    rising:  int16 [channels, codes - 1], ascending; EVERY counts always, NONE never
    falling: int16 [channels, n], descending; EVERY counts never; n is 0 where no channel falls through a threshold
    """

    rising: NDArray[np.int16]
    falling: NDArray[np.int16]

    def codes(self, sums: Sums, lowest: int) -> NDArray[np.int64]:
        """int64 [channels, n] of sums [channels, n]."""
        sums = np.clip(sums, EVERY + 1, REACH)[..., None]
        reached = (sums >= self.rising[:, None]).sum(-1)
        return np.asarray(lowest + reached + (sums < self.falling[:, None]).sum(-1))


def reachable(integers: NDArray[np.integer], limits: tuple[int, int]) -> tuple[Sums, Sums]:
    """int64 [out] each: the least and the largest sum of integers [out, in] times codes within limits."""
    ends = integers.astype(np.int64)[..., None] * np.asarray(limits)  # [out, in, 2]
    return ends.min(-1).sum(-1), ends.max(-1).sum(-1)


def find_thresholds(layer: Requantized) -> Thresholds | None:
    """The thresholds of a layer, equal to the reference at every sum; None where there are none, or none in 16 bits."""
    rising, falling = _branches(layer)
    low, high = layer.low[:, None], layer.high[:, None]
    both = rising == falling  # where the branches meet: every sum is past one of the two
    rises, falls = ~both & (rising > low) & (rising <= high), ~both & (falling > low)
    if (np.abs(rising[rises]) > REACH).any() or (np.abs(falling[falls]) > REACH).any():
        return None
    ends = np.where(rises, rising, np.where(~both & (rising > high), NONE, EVERY))
    starts = -np.sort(-np.where(falls, falling, EVERY), axis=1)
    used = int((starts != EVERY).sum(1).max(initial=0))
    found = Thresholds(np.sort(ends, axis=1).astype(np.int16), starts[:, :used].astype(np.int16))
    for channel in np.flatnonzero(_is_near(layer, rising, falling)):
        chosen = np.arange(len(layer.scale)) == channel
        sums = np.arange(layer.low[channel], layer.high[channel] + 1)[None]
        own = Thresholds(found.rising[chosen], found.falling[chosen])
        if (own.codes(sums, layer.limits[0]) != layer.channels(chosen).codes(sums)).any():
            return None
    return found


def settle(layer: Requantized, scale: Floats, bias: Floats) -> tuple[Floats, Floats, int]:
    """Scale and bias [channels] for which rint(fma(sum, scale, bias)) in float32 is the code of every sum, and in how many
    channels it is not.

    scale, bias: the plain layer's, divided by its step; they move by up to NUDGES float32 neighbours each

    Compared at the ends and on both sides of every step: both functions are monotone, so they are equal in between.
    """
    steps = np.concatenate(_branches(layer), axis=1)
    ends = np.stack([layer.low, layer.high], axis=1)
    sums = np.concatenate([ends, np.clip(np.concatenate([steps - 1, steps], axis=1), ends[:, :1], ends[:, 1:])], axis=1)
    expected = layer.codes(sums)

    def fails(chosen: NDArray[np.bool_], scale: Floats, bias: Floats) -> NDArray[np.bool_]:
        units = fma(sums[chosen].astype(np.float32), scale[:, None], bias[:, None])
        return np.asarray((np.clip(np.rint(units), *layer.limits) != expected[chosen]).any(1))

    scale, bias = scale.copy(), bias.copy()
    failing = fails(np.ones(len(scale), dtype=bool), scale, bias)
    start, moves = (scale.copy(), bias.copy()), range(-NUDGES, NUDGES + 1)
    for move in sorted(product(moves, moves), key=lambda move: (abs(move[0]) + abs(move[1]), move))[1:]:
        if not failing.any():
            break
        moved = _neighbour(start[0][failing], move[0]), _neighbour(start[1][failing], move[1])
        holds = ~fails(failing, *moved)
        settled = np.flatnonzero(failing)[holds]
        scale[settled], bias[settled] = moved[0][holds], moved[1][holds]
        failing[settled] = False
    return scale, bias, int(failing.sum())


def fma(a: Floats, b: Floats, c: Floats) -> Floats:
    """float32 a * b + c, rounded once.

    The product of two float32 is exact in float64, the sum is not: its error says to which side it was rounded. A sum
    that is inexact and even moves there by one float64 neighbour; an odd one is no tie for the rounding to float32, which
    has 29 digits less (round to odd: Boldo and Melquiond, 2008).
    """
    exact = a.astype(np.float64) * b.astype(np.float64)
    addend = np.broadcast_to(c.astype(np.float64), exact.shape)
    total = exact + addend
    kept = total - exact
    error = (exact - (total - kept)) + (addend - kept)
    even = (total.view(np.int64) & 1) == 0
    moved = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where(even & (error != 0), moved, total).astype(np.float32)


def _branches(layer: Requantized) -> tuple[Sums, Sums]:
    """rising, falling: int64 [channels, codes - 1]; for every code above the lowest the first sum of the rising branch that
    has it, and the first one of the falling branch that does not.
    """
    codes = np.arange(layer.limits[0] + 1, layer.limits[1] + 1)
    shape = (len(layer.scale), len(codes))
    turn, low, high = (np.broadcast_to(sums[:, None], shape) for sums in (layer.turn(), layer.low, layer.high))
    rising = _first(turn + 1, high + 1, lambda sums: layer.codes(sums) >= codes)
    return rising, _first(low, turn + 1, lambda sums: layer.codes(sums) < codes)


def _first(start: Sums, stop: Sums, holds: Callable[[Sums], NDArray[np.bool_]]) -> Sums:
    """The first sum from `start` on that passes, by bisection; `stop` where none does."""
    while (is_open := start < stop).any():
        middle = (start + stop) // 2
        passed = holds(middle)
        start, stop = (
            np.where(is_open & ~passed, middle + 1, start),
            np.where(is_open & passed, middle, stop),
        )
    return stop


def _is_near(layer: Requantized, rising: Sums, falling: Sums) -> NDArray[np.bool_]:
    """bool [channels]: whether a value beside a step is as near to its threshold as the errors of GELU in float64 are large.

    x * 0.5 * (1 + erf): the sum is off by 2**-52 and x below 9 where the result is not 0, or it is off by a few units in
    the last place of values that are at most the highest threshold.
    """
    if not layer.gelu:
        return np.zeros(len(layer.scale), dtype=bool)
    turn, low, high = layer.turn()[:, None], layer.low[:, None], layer.high[:, None]
    thresholds = np.arange(layer.limits[0] + 1, layer.limits[1] + 1) - 0.5
    largest = np.abs(thresholds).max() * layer.step + np.abs(layer.before)
    error = (1e-14 * (1 + largest) / layer.step)[:, None]
    beside = [(rising, rising <= high), (rising - 1, rising - 1 > turn)]
    beside += [(falling, falling <= turn), (falling - 1, falling - 1 >= low)]
    near = [is_inside & (np.abs(layer.units(sums) - thresholds) <= error) for sums, is_inside in beside]
    return np.asarray(np.any(near, axis=(0, 2)))


def _neighbour(values: Floats, by: int) -> Floats:
    """The float32 that lies so many numbers above, or below."""
    for _ in range(abs(by)):
        values = np.nextafter(values, np.float32(np.copysign(np.inf, by)))
    return values
