"""The one rule that tells a rounding tie from an error."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RUNTIME_TIE = 1e-4  # codes from a threshold: a runtime against the float64 oracle
TORCH_TIE = 1e-3  # torch float32 against the oracle
TIE_SHARE = 2e-4  # ties among all codes compared
FLOAT_TOLERANCE = 1e-5  # of the tensor's largest magnitude


@dataclass(frozen=True, slots=True)
class CodeParity:
    """Codes of one operator, compared with the oracle's.

    ties:  differing codes that are off by one and whose float64 value lies within the tie tolerance
    worst: largest distance of a differing code's value to the threshold between the two, in codes
    """

    operator: str
    compared: int
    differing: int
    ties: int
    worst: float

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
    oracle: NDArray[np.integer],
    units: NDArray[np.float64],
    tie: float,
) -> CodeParity:
    """Compare codes [...] with the oracle's codes [...], which it rounded from units [...]."""
    different = ours != oracle
    ours, oracle, units = (
        ours[different].astype(np.int64),
        oracle[different].astype(np.int64),
        units[different],
    )
    distance = np.abs(units - (np.minimum(ours, oracle) + 0.5))
    distance = np.where(np.abs(ours - oracle) == 1, distance, np.inf)
    worst = float(distance.max()) if distance.size else 0.0
    return CodeParity(operator, different.size, int(different.sum()), int((distance <= tie).sum()), worst)


def compare_floats(operator: str, ours: NDArray[np.floating], oracle: NDArray[np.float64]) -> FloatParity:
    largest = max(float(np.abs(oracle).max()), float(np.finfo(np.float32).tiny))
    return FloatParity(operator, float(np.abs(ours - oracle).max()) / largest)
