"""What is concluded from predictions: intervals, paired comparison, classes."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofq_deploy.runtime_tests.proof.accuracy import Accuracy, by_class, interval, paired


def of(predictions: list[int], classes: list[int], second: int = 9) -> Accuracy:
    ranked = np.array([[prediction, second] for prediction in predictions])
    return Accuracy(ranked, np.array(classes), 1.0)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(0, 10, 0.0, 27.75), (10, 10, 72.25, 100.0), (50, 100, 40.38, 59.62), (712, 1000, 68.32, 73.92)],
)
def test_intervals_are_wilsons(hits: int, count: int, low: float, high: float) -> None:
    assert interval(hits, count) == pytest.approx((low, high), abs=0.01)


@given(count=st.integers(1, 10_000), share=st.floats(0, 1))
def test_intervals_follow_wilsons_formula(count: int, share: float) -> None:
    hits = round(share * count)
    p, z2 = hits / count, NormalDist().inv_cdf(0.975) ** 2 / count
    centre, half = (p + z2 / 2) / (1 + z2), math.sqrt(p * (1 - p) * z2 + z2 * z2 / 4) / (1 + z2)

    assert interval(hits, count) == pytest.approx((100 * (centre - half), 100 * (centre + half)), rel=0, abs=1e-9)


@given(count=st.integers(1, 10_000), share=st.floats(0, 1))
def test_an_interval_holds_its_share_and_narrows(count: int, share: float) -> None:
    hits = round(share * count)
    low, high = interval(hits, count)
    narrow = interval(100 * hits, 100 * count)

    assert 0 <= low <= 100 * hits / count + 1e-9
    assert 100 * hits / count - 1e-9 <= high <= 100
    assert narrow[1] - narrow[0] < high - low


def test_top1_and_top5_count_ranks() -> None:
    table = of([1, 2, 3, 4, 5], [1, 2, 3, 9, 0]).table()

    assert (table["images"], table["top1"], table["top5"]) == (5, 60.0, 80.0)


def test_paired_counts_only_what_tells_them_apart() -> None:
    classes = [0] * 12
    ours, theirs = of([0] * 10 + [1, 1], classes), of([0, 0, *[1] * 8, 1, 0], classes)
    result = paired(ours, theirs)

    assert (result["only_model_right"], result["only_reference_right"]) == (8, 1)
    assert result["agreement"] == pytest.approx(100 * 3 / 12)
    assert result["mcnemar_p"] == pytest.approx(20 / 512)  # 2 * (1 + 9) / 2**9


def test_equal_models_are_not_told_apart() -> None:
    assert paired(of([0, 1], [0, 0]), of([0, 1], [0, 0])) == {
        "agreement": 100.0,
        "only_model_right": 0,
        "only_reference_right": 0,
        "mcnemar_p": 1.0,
    }


def test_classes_that_occur_are_listed() -> None:
    assert by_class(of([0, 2, 2], [0, 0, 2]), ("a", "b", "c")) == [
        {"label": "a", "images": 2, "top1": 50.0},
        {"label": "c", "images": 1, "top1": 100.0},
    ]
