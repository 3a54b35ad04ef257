"""Timing candidates in turn, round by round, so that whatever else the machine does hits all of them.

A sample is the mean of a few calls. Ratios compare the medians of rounds.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ofq_deploy.progress import Reporter
from ofq_deploy.runtime_tests.speed.speedup import FEWEST_ROUNDS, speedup

Call = Callable[[int], None]  # does the work once; the number of the call picks its input
Timer = Callable[[Call, int, int], list[float]]  # call, samples, calls of a sample -> milliseconds of one call
Clock = Callable[[], int | None]  # MHz, where it can be read

SAMPLES_KEPT = 500


@dataclass(frozen=True, slots=True)
class Protocol:
    """How long to measure. Every candidate warms up for both times; rounds go on until both numbers are reached.

    moved: relative change of the clock that makes a round worthless
    """

    warm_up_calls: int = 50
    warm_up_seconds: float = 1.0
    rounds: int = FEWEST_ROUNDS
    seconds: float = 0.0
    samples: int = 10
    calls: int = 10
    moved: float = 0.03


@dataclass(slots=True)
class Measured:
    """Samples of every candidate by round, milliseconds; the clock before the first round and after each.

    discarded: rounds in which the clock moved
    """

    rounds: dict[str, list[list[float]]]
    clock: list[int | None] = field(default_factory=list)
    discarded: int = 0


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds per call at one batch size; every sample is the mean of a few calls."""

    batch: int
    calls: int
    p10: float
    p50: float
    p90: float
    p99: float
    images_per_s: float
    samples: list[float]


def measure(
    candidates: dict[str, Call], timer: Timer, clock: Clock, protocol: Protocol, report: Reporter, title: str
) -> Measured:
    """Time the candidates in turn, first another one in each round.

    Rounds in which the clock moved are repeated, as often as there are rounds, and left out unless none would remain.
    """
    for call in candidates.values():
        _warm_up(call, timer, protocol)
    found, names = Measured({name: [] for name in candidates}, [clock()]), list(candidates)
    steady: list[bool] = []
    start = time.perf_counter()
    with report.task(title, protocol.rounds) as advance:
        while (
            sum(steady) < protocol.rounds and len(steady) < 2 * protocol.rounds
        ) or time.perf_counter() - start < protocol.seconds:
            first = len(steady) % len(names)
            for name in names[first:] + names[:first]:
                found.rounds[name].append(timer(candidates[name], protocol.samples, protocol.calls))
            found.clock.append(clock())
            steady.append(not _moved(found.clock[-2], found.clock[-1], protocol.moved))
            if len(steady) <= protocol.rounds:
                advance()
    if any(steady):
        found.discarded = steady.count(False)
        for name, rounds in found.rounds.items():
            found.rounds[name] = [samples for samples, kept in zip(rounds, steady, strict=True) if kept]
    return found


def latency(batch: int, rounds: list[list[float]], protocol: Protocol) -> Latency:
    """Quantiles of all samples."""
    samples = np.concatenate(rounds)
    p10, p50, p90, p99 = (float(value) for value in np.percentile(samples, [10, 50, 90, 99]))
    kept = samples[np.linspace(0, samples.size - 1, min(samples.size, SAMPLES_KEPT)).round().astype(int)]
    calls = samples.size * protocol.calls
    return Latency(batch, calls, p10, p50, p90, p99, 1000 * batch / p50, [round(float(value), 5) for value in kept])


def ratio(batch: int, baseline: list[list[float]], model: list[list[float]]) -> dict[str, Any]:
    """The speed of the model over that of the baseline that was timed in the same rounds, as `bench` tells it."""
    theirs, ours = (np.median(rounds, axis=1) for rounds in (baseline, model))
    return {"batch": batch, **asdict(speedup(theirs, ours))}


def wall_timer(call: Call, samples: int, calls: int) -> list[float]:
    """By the processor's clock, for work that is done when the call returns."""
    found = []
    for sample in range(samples):
        start = time.perf_counter()
        for number in range(calls):
            call(sample * calls + number)
        found.append(1000 * (time.perf_counter() - start) / calls)
    return found


def _warm_up(call: Call, timer: Timer, protocol: Protocol) -> None:
    start, done = time.perf_counter(), 0
    while done < protocol.warm_up_calls or time.perf_counter() - start < protocol.warm_up_seconds:
        timer(call, 1, protocol.calls)
        done += protocol.calls


def _moved(before: int | None, after: int | None, limit: float) -> bool:
    return bool(before and after and abs(after - before) > limit * before)
