"""What the parts of a report about accuracy, proof and file compute; how they look is in the templates."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ofq_deploy.pages.html import percent
from ofq_deploy.pages.speed_sections import FLOAT
from ofq_deploy.results.record import Table as Result

CLASSES = 20  # shown, the worst of them
Row = tuple[str, float, tuple[float, float] | None, str]


def accuracies(validation: Result) -> list[Row]:
    """Top-1 of the model and of what it is compared with."""
    rows = [accuracy_row(f"this model, {validation['backend']}", validation["accuracy"])]
    if "accuracy_reference" in validation:
        return [*rows, accuracy_row("the reference", validation["accuracy_reference"])]
    return rows + [
        (label, validation[key], None, percent(validation[key]))
        for label, key in (("training, torch", "top1_torch"), (FLOAT, "top1_float"))
        if validation.get(key) is not None
    ]


def accuracy_row(label: str, accuracy: dict[str, Any]) -> Row:
    low, high = accuracy["top1_interval"]
    return label, accuracy["top1"], (low, high), f"{percent(accuracy['top1'])} ({low:.1f} to {high:.1f})"


def pair_name(pair: dict[str, Any]) -> str:
    return f"{pair['follower']} against {pair.get('reference', pair['leader'])}"


def steps(histogram: dict[str, int]) -> list[tuple[str, int, str]]:
    """Code differences with their signs, and how often each occurs, as a number and as text."""
    counts = sorted((int(steps), count) for steps, count in histogram.items())
    return [(f"{steps:+d}".replace("-", "\u2212"), count, f"{count:,}") for steps, count in counts]


def kinds(bytes_by_kind: dict[str, int], total: int) -> list[tuple[str, int, str]]:
    """What a file's bytes are, the most first."""
    largest = sorted(bytes_by_kind.items(), key=lambda item: -item[1])
    return [(kind, size, f"{size:,} B, {100 * size / total:.1f} %") for kind, size in largest]


def widths(layers: Sequence[dict[str, Any]]) -> list[tuple[tuple[str, str, str], int]]:
    """The bits that layers have, the most frequent first, and how many layers have them."""
    return Counter(bits(layer) for layer in layers).most_common()


def bits(layer: dict[str, Any]) -> tuple[str, str, str]:
    """Bits of its weights: trained, stored, computed."""
    stored = "?" if layer["bits_stored"] is None else f"{layer['bits_stored']:g}"
    return str(layer["bits_trained"]), stored, str(layer["bits_computed"])
