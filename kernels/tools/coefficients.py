"""Fits the polynomials of src/coefficients.h and prints that file. Needs numpy and scipy.

    python tools/coefficients.py > src/coefficients.h

gelu(x) = x * (0.5 + z * P(2 z^2 / L^2 - 1)) with z = x cut to [-L, L]; P minimizes the largest error of gelu and makes it 0 at -L.
2^f on [-1/2, 1/2]: P minimizes the largest relative error.
Both by Lawson's iteration: least squares whose weights grow where the error is largest.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfc

LIMIT, GELU_TERMS, EXP_TERMS = 5.25, 14, 6
Doubles = NDArray[np.float64]


def minimax(columns: Doubles, target: Doubles, weight: Doubles) -> Doubles:
    """Coefficients of `columns` [points, terms] that make the largest weighted error against `target` small."""
    importance = np.full(len(target), 1 / len(target))
    best, least = np.zeros(columns.shape[1]), np.inf
    for _ in range(300):
        scale = np.sqrt(importance) * weight
        coefficients = np.linalg.lstsq(columns * scale[:, None], target * scale, rcond=None)[0]
        error = np.abs((columns @ coefficients - target) * weight)
        if error.max() < least:
            best, least = coefficients, error.max()
        importance *= error / error.max() + 1e-3
        importance /= importance.sum()
    return best


def gelu_terms() -> Doubles:
    z = np.linspace(1e-6, LIMIT, 20001)
    u = 2 * z * z / LIMIT**2 - 1
    end = 0.5 / LIMIT  # P(1), for which gelu(-L) is 0
    rest = minimax(
        np.vander(u, GELU_TERMS - 1, increasing=True) * (u - 1)[:, None],
        (0.5 - 0.5 * erfc(z / np.sqrt(2))) / z - end,
        z * z,
    )
    terms = np.zeros(GELU_TERMS)
    terms[0] = end
    terms[1:] += rest
    terms[:-1] -= rest
    return terms


def exp_terms() -> Doubles:
    f = np.linspace(-0.5, 0.5, 20001)
    return minimax(np.vander(f, EXP_TERMS, increasing=True), 2**f, 1 / 2**f)


def main() -> None:
    print("// Made by tools/coefficients.py.\n#pragma once\n")
    print(f"constexpr float GELU_LIMIT = {LIMIT}f;")
    for name, terms in (("GELU_TERMS", gelu_terms()), ("EXP2_TERMS", exp_terms())):
        values = ",\n    ".join(f"{float(np.float32(term)):.9g}f" for term in terms)
        print(f"constexpr float {name}[] = {{\n    {values}}};")


if __name__ == "__main__":
    main()
