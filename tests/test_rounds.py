"""Timing in rounds: who is called when, what is thrown away, and what may be concluded."""

from itertools import pairwise

import numpy as np
import pytest

from ofq_deploy.progress import Reporter
from ofq_deploy.runtime_tests.speed.rounds import SAMPLES_KEPT, Call, Protocol, latency, measure, ratio, wall_timer

QUICK = Protocol(warm_up_calls=3, warm_up_seconds=0, rounds=4, samples=2, calls=3)


def one_ms(call: Call, samples: int, calls: int) -> list[float]:
    for number in range(samples * calls):
        call(number)
    return [1.0] * samples


def test_candidates_take_turns_and_none_is_always_first() -> None:
    order: list[str] = []
    calls: dict[str, Call] = {name: lambda number, name=name: order.append(name) for name in "abc"}  # type: ignore[misc]

    found = measure(calls, one_ms, lambda: None, QUICK, Reporter(True), "turns")

    timed = order[3 * QUICK.warm_up_calls :]
    blocks = [timed[start : start + 6] for start in range(0, len(timed), 6)]  # samples * calls
    assert [set(block) for block in blocks] == [{name} for name in "abcbcacababc"]
    assert {name: len(rounds) for name, rounds in found.rounds.items()} == dict.fromkeys("abc", 4)
    assert found.clock == [None] * 5


def test_rounds_in_which_the_clock_moved_are_repeated() -> None:
    clock = iter([1980, 1980, 1700, 1700, 1710, 1710])

    found = measure({"a": lambda number: None}, one_ms, lambda: next(clock), QUICK, Reporter(True), "clock")

    assert found.discarded == 1
    assert len(found.rounds["a"]) == QUICK.rounds  # one was repeated
    assert found.clock == [1980, 1980, 1700, 1700, 1710, 1710]


def test_rounds_that_all_moved_are_kept_rather_than_nothing() -> None:
    clock = iter(range(1000, 3000, 200))

    found = measure({"a": lambda number: None}, one_ms, lambda: next(clock), QUICK, Reporter(True), "clock")

    assert (found.discarded, len(found.rounds["a"])) == (0, 2 * QUICK.rounds)
    assert any(after > before for before, after in pairwise(found.clock) if before and after)


def test_rounds_go_on_for_the_time_asked() -> None:
    protocol = Protocol(warm_up_calls=1, warm_up_seconds=0, rounds=1, seconds=0.05, samples=1, calls=1)

    found = measure({"a": lambda number: None}, wall_timer, lambda: None, protocol, Reporter(True), "time")

    assert len(found.rounds["a"]) > 1


@pytest.mark.parametrize(("factor", "difference"), [(1.0, "none"), (1.5, "faster"), (0.5, "slower")])
def test_a_ratio_compares_the_medians_of_rounds(factor: float, difference: str) -> None:
    rng = np.random.default_rng(0)
    slow = [[*rng.uniform(factor, 1.05 * factor, 10), 100.0] for _ in range(30)]  # an outlier in every round
    fast = [list(rng.uniform(1, 1.05, 11)) for _ in range(30)]

    found = ratio(8, slow, fast)

    assert found["ratio_of_medians"] == pytest.approx(factor, rel=0.03)
    assert (found["batch"], found["rounds"], found["conclusive"]) == (8, 30, True)
    assert found["difference"] == difference
    assert found["noise"] < 0.05


def test_quantiles_and_thinned_samples() -> None:
    rounds = [list(np.arange(start, start + 1000.0)) for start in (0, 1000)]

    found = latency(8, rounds, QUICK)

    assert (found.calls, found.batch) == (2000 * QUICK.calls, 8)
    assert (found.p10, found.p50, found.p90, found.p99) == pytest.approx((199.9, 999.5, 1799.1, 1979.01))
    assert found.images_per_s == pytest.approx(8000 / 999.5)
    assert len(found.samples) == SAMPLES_KEPT
    assert (found.samples[0], found.samples[-1]) == (0, 1999)
