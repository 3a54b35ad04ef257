"""Small charts as HTML: lengths and places in percent, every number as text beside them, so that they read at any width,
in light and dark, and without being seen.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import Any

from ofq_deploy.pages.html import template

BINS = 120
HEIGHT = 40  # of a histogram, in its own units
Samples = Sequence[float]
Interval = tuple[float, float]


def bars(rows: Iterable[tuple[str, float, str]], caption: str, other: str = "") -> str:
    """A horizontal bar per (label, value, text), lengths as parts of the largest value.

    other: the label of the row that the others are compared with; its bar is grey
    """
    rows = list(rows)
    largest = max((value for _, value, _ in rows), default=0) or 1
    shapes = [
        {"label": label, "text": text, "width": _percent(value / largest), "other": label == other}
        for label, value, text in rows
    ]
    return _markup("bars", shapes, caption)


def intervals(rows: Iterable[tuple[str, float, Interval | None, str]], caption: str, mark: float | None = None) -> str:
    """A dot per (label, value, (low, high), text) on one scale, its interval as a band.

    mark: where to draw a line through all rows, as 1 for "as fast"
    """
    rows = list(rows)
    points = [point for _, value, band, _ in rows for point in (value, *(band or ()))]
    points += [] if mark is None else [mark]
    low, high = min(points), max(points)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    scale = _Scale(low - room, high + room)
    shapes = []
    for label, value, band, text in rows:
        shape = {"label": label, "text": text, "dot": scale.place(value)}
        if band:
            shape |= {"left": scale.place(band[0]), "width": scale.length(band[1] - band[0])}
        shapes.append(shape)
    return _markup("intervals", shapes, caption, None if mark is None else scale.place(mark), scale.ticks())


def distributions(rows: Iterable[tuple[str, Samples, dict[str, float]]], unit: str, other: str = "") -> str:
    """A histogram per (label, samples, {"p50": ..., "p90": ..., "p99": ...}) on one scale, with a line at the median.

    The scale ends a little after the largest p90, or at four times the largest median: tails are long, and what lies
    beyond is counted in words.
    """
    rows = list(rows)
    low = min(min(samples) for _, samples, _ in rows)
    high = min(1.2 * max(marks["p90"] for _, _, marks in rows), 4 * max(marks["p50"] for _, _, marks in rows))
    scale = _Scale(low, high if high > low else low + (abs(low) or 1.0))
    shapes = []
    for label, samples, marks in rows:
        counts = scale.histogram(samples)
        beyond = len(samples) - sum(counts)
        numbers = ", ".join(f"{name} {value:.3f}" for name, value in marks.items())
        text = f"{label}: {numbers} {unit}" + (f"; {beyond} of {len(samples)} samples lie beyond" if beyond else "")
        tallest = max(counts) or 1
        shapes.append(
            {
                "text": text,
                "other": label == other,
                "count": len(samples),
                "height": HEIGHT,
                "tops": [HEIGHT - HEIGHT * count / tallest for count in counts],
                "middle": BINS * scale.share(marks["p50"]),
            }
        )
    return _markup("distributions", shapes, scale.ticks(f" {unit}"))


def ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers from low to high."""
    rough = (high - low) / 5
    power = 10.0 ** floor(log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = -floor(-low / step)
    marks = []
    while first * step <= high:
        marks.append(first * step)
        first += 1
    return marks


@dataclass(frozen=True, slots=True)
class _Scale:
    """What a chart's width stands for."""

    low: float
    high: float

    def share(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)

    def place(self, value: float) -> str:
        return _percent(self.share(value))

    def length(self, size: float) -> str:
        return _percent(size / (self.high - self.low))

    def ticks(self, unit: str = "") -> list[dict[str, str]]:
        """Round numbers and their places; the last one names the unit."""
        marks = [{"left": self.place(mark), "text": f"{mark:.6g}"} for mark in ticks(self.low, self.high)]
        marks[-1]["text"] += unit
        return marks

    def histogram(self, samples: Samples) -> list[int]:
        """How many samples lie in each of the bins; those beyond the scale in none."""
        counts = [0] * BINS
        for value in samples:
            if value <= self.high:
                counts[min(BINS - 1, int(BINS * self.share(value)))] += 1
        return counts


def _markup(name: str, *values: Any) -> str:
    """A macro of the template of charts, filled."""
    markup: str = getattr(template("charts.html").module, name)(*values)
    return markup


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"
