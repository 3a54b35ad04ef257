"""The speed of one model as a multiple of another's, and whether the machine was quiet enough to say so."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

RESAMPLINGS = 1000
BLOCKS = 15
FEWEST_ROUNDS = 20
WIDEST = 0.1  # of an interval, relative to its ratio
NOISIEST = 0.5
# Two sessions of one file differ by 1 %, for as long as they live: where their memory lies decides.
SAME = 0.02


@dataclass(frozen=True, slots=True)
class Speedup:
    """How many times as fast as the baseline, over some rounds.

    interval:   of 95 % confidence, (low, high)
    noise:      interquartile range of the baseline's times, relative to their median
    conclusive: enough rounds, little noise and a narrow interval; `difference` counts only then
    """

    rounds: int
    ratio_of_medians: float
    interval: tuple[float, float]
    noise: float
    conclusive: bool
    difference: Literal["faster", "slower", "none"]


def speedup(baseline: NDArray[np.float64], own: NDArray[np.float64]) -> Speedup:
    """Median time of the baseline / median time of the model; both [rounds], those of one round side by side.

    A difference is called when the whole interval lies beyond 2 % of 1.
    """
    ratio = float(np.median(baseline) / np.median(own))
    low, high = (float(end) for end in np.percentile(_resampled(baseline, own), [2.5, 97.5]))
    lower, middle, upper = np.percentile(baseline, [25, 50, 75])
    noise = float((upper - lower) / middle)
    conclusive = len(own) >= FEWEST_ROUNDS and noise <= NOISIEST and high - low <= WIDEST * ratio
    difference: Literal["faster", "slower", "none"] = "none"
    if low > 1 + SAME:
        difference = "faster"
    elif high < 1 / (1 + SAME):
        difference = "slower"
    return Speedup(len(own), ratio, (low, high), noise, conclusive, difference)


def _resampled(baseline: NDArray[np.float64], own: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ratios of medians of resampled rounds, [RESAMPLINGS]; the same for the same times.

    Runs of neighbouring rounds are drawn, each a fifteenth of the measurement (the circular block bootstrap of
    Politis and Romano, 1992): what disturbs one round disturbs its neighbours, so rounds are no independent draws.
    Of simulated noise that lasts up to a thirtieth of the measurement, such intervals hold the truth in 9 cases of
    10; those that draw single rounds in 4 to 8.
    """
    rounds = len(own)
    length = -(-rounds // BLOCKS)
    generator, ratios = np.random.default_rng(0), np.empty(RESAMPLINGS)
    for index in range(RESAMPLINGS):
        starts = generator.integers(0, rounds, -(-rounds // length))
        drawn = ((starts[:, None] + np.arange(length)) % rounds).ravel()[:rounds]
        ratios[index] = np.median(baseline[drawn]) / np.median(own[drawn])
    return ratios
