"""Learning rates over the steps of a phase."""

import math
from collections.abc import Callable

Schedule = Callable[[int, int], float]  # (step, steps) -> learning rate


def warmup_cosine(peak: float, warmup: float, final: float) -> Schedule:
    """Linear from 0 over the first `warmup` share of the steps, then a cosine to the share `final` of the peak.

    timm's CosineLRScheduler has no such curve: its warm-up ends one step before the peak that this one reaches, and
    with it every later step would have another rate, so that a run could not be repeated.
    """

    def rate(step: int, steps: int) -> float:
        rising = max(1, round(warmup * steps))
        if step < rising:
            return peak * (step + 1) / rising
        progress = (step - rising) / max(1, steps - rising)
        return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))

    return rate


def constant(rate: float) -> Schedule:
    return lambda step, steps: rate
