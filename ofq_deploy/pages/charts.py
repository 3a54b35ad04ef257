"""Small charts as HTML: lengths and places in percent, every number as text beside them, so that they read at any width,
in light and dark, and without being seen.
"""

from collections.abc import Iterable, Sequence
from html import escape
from math import floor, log10

BINS = 120
Samples = Sequence[float]


def bars(rows: Iterable[tuple[str, float, str]], caption: str, other: str = "") -> str:
    """A horizontal bar per (label, value, text), lengths as parts of the largest value.

    other: the label of the row that the others are compared with; its bar is grey
    """
    rows = list(rows)
    largest = max((value for _, value, _ in rows), default=0) or 1
    lines = [
        _row(
            label,
            f'<i class="bar{" other" if label == other else ""}" style="width:{_percent(value / largest)}"></i>',
            text,
        )
        for label, value, text in rows
    ]
    return _chart(lines, caption)


def intervals(
    rows: Iterable[tuple[str, float, tuple[float, float] | None, str]], caption: str, mark: float | None = None
) -> str:
    """A dot per (label, value, (low, high), text) on one scale, its interval as a band.

    mark: where to draw a line through all rows, as 1 for "as fast"
    """
    rows = list(rows)
    points = [point for _, value, band, _ in rows for point in (value, *(band or ()))]
    points += [] if mark is None else [mark]
    low, high = min(points), max(points)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - room, high + room

    def place(value: float) -> str:
        return _percent((value - low) / (high - low))

    line = "" if mark is None else f'<i class="mark" style="left:{place(mark)}"></i>'
    lines = []
    for label, value, band, text in rows:
        shape = ""
        if band:
            shape = f'<i class="band" style="left:{place(band[0])};width:{_percent((band[1] - band[0]) / (high - low))}"></i>'
        lines.append(_row(label, f'{line}{shape}<i class="dot" style="left:{place(value)}"></i>', text))
    lines.append(f'<li aria-hidden="true"><div class="track">{_axis(low, high)}</div></li>')
    return _chart(lines, caption)


def distributions(rows: Iterable[tuple[str, Samples, dict[str, float]]], unit: str, other: str = "") -> str:
    """A histogram per (label, samples, {"p50": ..., "p90": ..., "p99": ...}) on one scale, with a line at the median.

    The scale ends a little after the largest p90, or at four times the largest median: tails are long, and what lies
    beyond is counted in words.
    """
    rows = list(rows)
    low = min(min(samples) for _, samples, _ in rows)
    high = min(1.2 * max(marks["p90"] for _, _, marks in rows), 4 * max(marks["p50"] for _, _, marks in rows))
    high = high if high > low else low + (abs(low) or 1.0)
    parts = []
    for label, samples, marks in rows:
        counts = [0] * BINS
        for value in samples:
            if value <= high:
                counts[min(BINS - 1, int(BINS * (value - low) / (high - low)))] += 1
        beyond = len(samples) - sum(counts)
        numbers = ", ".join(f"{name} {value:.3f}" for name, value in marks.items())
        text = f"{label}: {numbers} {unit}" + (f"; {beyond} of {len(samples)} samples lie beyond" if beyond else "")
        tallest = max(counts) or 1
        steps = "".join(f"V{40 - 40 * count / tallest:.1f}h1" for count in counts)
        middle = BINS * (marks["p50"] - low) / (high - low)
        parts.append(
            f'<p class="quiet">{escape(text)}</p>'
            f'<svg class="spread{" other" if label == other else ""}" viewBox="0 0 {BINS} 40" preserveAspectRatio="none" '
            f'role="img" aria-label="{escape(f"Histogram of {len(samples)} samples. {text}")}">'
            f'<path d="M0 40{steps}V40z"/><path class="line" d="M{middle:.2f} 0V40"/></svg>'
        )
    return f'<figure class="spreads">{"".join(parts)}<div class="track">{_axis(low, high, " " + unit)}</div></figure>'


def ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers from low to high."""
    rough = (high - low) / 5
    power = 10.0 ** floor(log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = -floor(-low / step)
    found = []
    while first * step <= high:
        found.append(first * step)
        first += 1
    return found


def _axis(low: float, high: float, unit: str = "") -> str:
    marks = ticks(low, high)
    texts = [f"{mark:.6g}" for mark in marks]
    texts[-1] += unit
    return (
        '<span class="axis" aria-hidden="true">'
        + "".join(
            f'<span style="left:{_percent((mark - low) / (high - low))}">{text}</span>'
            for mark, text in zip(marks, texts, strict=True)
        )
        + "</span>"
    )


def _row(label: str, shapes: str, text: str) -> str:
    return f'<li><span>{escape(label)}</span><b>{escape(text)}</b><div class="track">{shapes}</div></li>'


def _chart(rows: list[str], caption: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption><ul>{''.join(rows)}</ul></figure>"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"
