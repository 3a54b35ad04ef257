"""The one rule that tells a rounding tie from an error."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ofq_deploy.errors import OnnxFileError

TIE_SHARE = 2e-4  # ties among all codes compared
FLOAT_TOLERANCE = 1e-5  # of the tensor's largest magnitude


@dataclass(frozen=True, slots=True)
class CodeParity:
    """Codes of one operator, compared with the oracle's.

    ties:      differing codes that are off by one and whose float64 value lies within the tie tolerance
    worst:     largest distance of a differing code's value to the threshold between the two, in codes
    histogram: how many codes differ by how much, without those that are equal
    """

    operator: str
    compared: int
    differing: int
    ties: int
    worst: float
    histogram: dict[int, int]

    @property
    def mismatches(self) -> int:
        return self.differing - self.ties


@dataclass(frozen=True, slots=True)
class FloatParity:
    """One float tensor, compared with the oracle's: largest difference over the oracle's largest magnitude."""

    operator: str
    error: float

    @property
    def passed(self) -> bool:
        return self.error <= FLOAT_TOLERANCE  # False for NaN


def compare_codes(
    operator: str,
    ours: NDArray[np.integer],
    reference: NDArray[np.integer],
    units: NDArray[np.float64],
    tie: float,
) -> CodeParity:
    """Compare codes [...] with a reference's codes [...]; the oracle rounds to codes from units [...].

    Raises OnnxFileError for codes of another shape, here and for floats.
    """
    _check_shapes(operator, ours, reference)
    different = ours != reference
    ours, reference, units = (
        ours[different].astype(np.int64),
        reference[different].astype(np.int64),
        units[different],
    )
    distance = np.abs(units - (np.minimum(ours, reference) + 0.5))
    distance = np.where(np.abs(ours - reference) == 1, distance, np.inf)
    worst = float(distance.max()) if distance.size else 0.0
    histogram = dict(sorted(Counter((ours - reference).tolist()).items()))
    ties = int((distance <= tie).sum())
    return CodeParity(operator, different.size, int(different.sum()), ties, worst, histogram)


def compare_floats(operator: str, ours: NDArray[np.floating], reference: NDArray[np.floating]) -> FloatParity:
    _check_shapes(operator, ours, reference)
    largest = max(float(np.abs(reference).max()), float(np.finfo(np.float32).tiny))
    return FloatParity(operator, float(np.abs(ours - reference.astype(np.float64)).max()) / largest)


def _check_shapes(operator: str, ours: NDArray[Any], reference: NDArray[Any]) -> None:
    """Shapes that numpy would broadcast are no less wrong."""
    if ours.shape != reference.shape:
        raise OnnxFileError(f"{operator} has the shape {list(ours.shape)}, expected {list(reference.shape)}")


@dataclass(frozen=True, slots=True)
class Parity:
    """All operators of one runner, compared with those of another that was fed the same codes.

    leader:    whose codes both were fed
    reference: whom `follower` is compared with
    """

    leader: str
    reference: str
    follower: str
    images: int
    codes: tuple[CodeParity, ...]
    floats: tuple[FloatParity, ...]

    @property
    def compared(self) -> int:
        return sum(result.compared for result in self.codes)

    @property
    def differing(self) -> int:
        return sum(result.differing for result in self.codes)

    @property
    def ties(self) -> int:
        return sum(result.ties for result in self.codes)

    @property
    def worst_float_error(self) -> float:
        return float(np.max([result.error for result in self.floats]))

    @property
    def histogram(self) -> dict[int, int]:
        total = Counter[int]()
        for result in self.codes:
            total.update(result.histogram)
        return dict(sorted(total.items()))

    @property
    def first_divergence(self) -> str | None:
        """The first operator, in the order of the network, with a code that differs beyond a tie."""
        return next((result.operator for result in self.codes if result.mismatches), None)

    @property
    def passed(self) -> bool:
        few = self.ties <= max(1.0, TIE_SHARE * self.compared)
        return self.differing == self.ties and few and all(result.passed for result in self.floats)

    def faults(self) -> list[str]:
        """What failed, by operator, one line each."""
        lines = [
            f"{r.operator}: {r.mismatches} of {r.compared} codes differ beyond a tie (worst {r.worst:.3g} codes away)"
            for r in self.codes
            if r.mismatches
        ]
        lines += [
            f"{r.operator}: float output off by {r.error:.2g} of its largest value" for r in self.floats if not r.passed
        ]
        if not lines and not self.passed:
            lines.append(f"{self.ties} ties among {self.compared} codes are more than {TIE_SHARE:.2%}")
        return lines

    def table(self) -> dict[str, Any]:
        """Counts in all and by operator, as JSON."""
        return {
            **{key: getattr(self, key) for key in ("leader", "reference", "follower", "images", "passed")},
            "codes_compared": self.compared,
            "codes_differing": self.differing,
            "ties": self.ties,
            "worst_float_error": self.worst_float_error,
            "histogram": _by_text(self.histogram),
            "first_divergence": self.first_divergence,
            "operators": [asdict(entry) | {"histogram": _by_text(entry.histogram)} for entry in self.codes],
            "floats": [asdict(entry) for entry in self.floats],
            "faults": self.faults(),
        }


def _by_text(histogram: dict[int, int]) -> dict[str, int]:
    return {f"{difference:+d}": count for difference, count in histogram.items()}


def merge(parts: Sequence[Parity]) -> Parity:
    """One comparison of several batches."""
    first = parts[0]
    codes = tuple(_merge_codes(same) for same in zip(*(part.codes for part in parts), strict=True))
    floats = tuple(
        FloatParity(same[0].operator, float(np.max([result.error for result in same])))
        for same in zip(*(part.floats for part in parts), strict=True)
    )
    images = sum(part.images for part in parts)
    return Parity(first.leader, first.reference, first.follower, images, codes, floats)


def _merge_codes(same: Sequence[CodeParity]) -> CodeParity:
    histogram = Counter[int]()
    for result in same:
        histogram.update(result.histogram)
    return CodeParity(
        same[0].operator,
        sum(result.compared for result in same),
        sum(result.differing for result in same),
        sum(result.ties for result in same),
        max(result.worst for result in same),
        dict(sorted(histogram.items())),
    )
