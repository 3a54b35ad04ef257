"""The parts of a report that tell of accuracy, of the proof and of the file. A part appears when its data is there."""

from collections import Counter
from typing import Any

from ofq_deploy.pages.charts import bars, intervals
from ofq_deploy.pages.html import folded, paragraph, table
from ofq_deploy.pages.speed_sections import FLOAT
from ofq_deploy.results.record import Result

CLASSES = 20  # shown, the worst of them
TERMS = (
    "Codes are the integers that layers multiply. Every operator is fed the same codes, and what comes out is compared. The "
    "oracle computes the frozen model in float64. A tie is a code off by one whose exact value lies at the threshold between two."
)


def accuracy_row(label: str, accuracy: dict[str, Any]) -> tuple[str, float, tuple[float, float] | None, str]:
    low, high = accuracy["top1_interval"]
    return label, accuracy["top1"], (low, high), f"{percent(accuracy['top1'])} ({low:.1f} to {high:.1f})"


def accuracy(validation: Result) -> list[str]:
    if "accuracy" not in validation:
        return []
    accuracy = validation["accuracy"]
    what = f"{accuracy['images']:,} test images of {validation['data']}; {accuracy['images_per_s']:,.0f} images/s."
    if "top1" not in accuracy:
        return [paragraph(what + " They have no labels.")]
    rows = [accuracy_row(f"this model, {validation['backend']}", accuracy)]
    if "accuracy_reference" in validation:
        rows.append(accuracy_row("the reference", validation["accuracy_reference"]))
    else:
        rows += [
            (label, validation[key], None, percent(validation[key]))
            for label, key in (("training, torch", "top1_torch"), (FLOAT, "top1_float"))
            if validation.get(key) is not None
        ]
    five = "{:.2f} % ({:.1f} to {:.1f})".format(accuracy["top5"], *accuracy["top5_interval"])
    lines = [intervals(rows, "Top-1 with its 95 % interval"), paragraph(f"{what} Top-5: {five}.")]
    if "against_float" in validation:
        pair = validation["against_float"]
        text = f"Same prediction as the float model: {percent(pair['agreement'])}"
        if "mcnemar_p" in pair:
            text += (
                f"; alone right: this model on {pair['only_model_right']} images, the float model on "
                f"{pair['only_reference_right']} (McNemar p = {pair['mcnemar_p']:.2g})"
            )
        torch = f" Same prediction as torch: {percent(validation['agreement'])}." if "agreement" in validation else ""
        lines.append(paragraph(f"{text}.{torch}"))
    classes = sorted(validation.get("by_class", []), key=lambda row: row["top1"])
    if classes:
        shown = [[row["label"], f"{row['images']:,}", percent(row["top1"])] for row in classes[:CLASSES]]
        title = (
            f"Classes ({len(classes)})" if len(classes) <= CLASSES else f"The {CLASSES} worst of {len(classes)} classes"
        )
        lines.append(folded(title, table(["class", "images", "top-1"], shown)))
    return lines


def proof(validation: Result) -> list[str]:
    """Who was compared with whom, how codes differ, and every operator."""
    pairs = validation.get("parity", [])
    rows = [*_weights(validation), *map(_pair, pairs), *_golden(validation)]
    head = ["compared", "images", "codes", "differing", "of them ties", "floats to", "verdict"]
    lines = [table(head, rows)] if rows else []
    lines += [paragraph(TERMS, "quiet")] if pairs else []
    for pair in pairs:
        lines += _differences(pair)
    if "free_run" in validation:
        free = validation["free_run"]
        parted, ties = len(free["divergences"]), sum(entry["is_tie"] for entry in free["divergences"])
        text = f"Free runs: all codes of all {free['images']:,} images are equal."
        if parted:
            text = f"Free runs: codes part in {parted} of {free['images']:,} images, in {ties} of them first at a tie."
        if "codes_between_optimization_levels" in free:
            text += (
                f" Between all optimizations and none {free['codes_differing_between_levels']:,} of "
                f"{free['codes_between_optimization_levels']:,} codes differ."
            )
        lines.append(paragraph(text))
    if "tensors" in validation:
        first = validation["first_beyond_tolerance"]
        text = (
            f"First tensor beyond the tolerance: {first['name']}." if first else "All tensors are within the tolerance."
        )
        shown = [[row["name"], _scientific(row["error"])] for row in validation["tensors"]]
        lines += [paragraph(text), folded(f"Tensors ({len(shown)})", table(["tensor", "error, RMS over RMS"], shown))]
    return lines + [paragraph(f"Fault: {fault}", "fault") for fault in validation["faults"]]


def _weights(validation: Result) -> list[list[str]]:
    if "golden" in validation or "weights" not in validation:
        return []
    weights = validation["weights"]
    verdict = "DIFFER" if weights["codes_differing"] else "equal"
    numbers = [f"{weights[key]:,}" for key in ("codes_compared", "codes_differing")]
    return [["weights in the file", "", *numbers, "", "", verdict]]


def _pair(pair: dict[str, Any]) -> list[str]:
    numbers = [f"{pair[key]:,}" for key in ("images", "codes_compared", "codes_differing", "ties")]
    return [_name(pair), *numbers, _scientific(pair["worst_float_error"]), "passed" if pair["passed"] else "FAILED"]


def _name(pair: dict[str, Any]) -> str:
    return f"{pair['follower']} against {pair.get('reference', pair['leader'])}"


def _golden(validation: Result) -> list[list[str]]:
    """What was compared with golden data, if that was done."""
    if "golden" not in validation:
        return []
    weights = [
        [f"{row['name']}.weight", "", f"{row['compared']:,}", f"{row['differing']:,}", "", "", ""]
        for row in validation["weights"]
    ]
    images = f"{validation['images']:,}"
    codes = [
        [row["operator"], images, *(f"{row[key]:,}" for key in ("compared", "differing", "ties")), "", ""]
        for row in validation["activations"]
    ]
    floats = [[row["operator"], images, "", "", "", _scientific(row["error"]), ""] for row in validation["floats"]]
    blocks = [
        [row["block"], images, "", "", "", _scientific(row["max_error"]), "equal" if row["passed"] else "DIFFERS"]
        for row in validation["blocks"]
    ]
    return [*weights, *codes, *floats, *blocks]


def _differences(pair: dict[str, Any]) -> list[str]:
    """How far codes differ, and where."""
    lines = []
    if pair["histogram"]:
        rows = [(steps, count, f"{count:,}") for steps, count in _steps(pair["histogram"])]
        lines.append(bars(rows, f"Code differences, {_name(pair)}: by how many steps, how often"))
    if pair["first_divergence"]:
        lines.append(paragraph(f"The first operator that differs beyond a tie: {pair['first_divergence']}.", "fault"))
    shown = [
        [
            row["operator"],
            *(f"{row[key]:,}" for key in ("compared", "differing", "ties")),
            _scientific(row["worst"]) if row["differing"] else "-",
            ", ".join(f"{steps}: {count:,}" for steps, count in _steps(row["histogram"])) or "-",
        ]
        for row in sorted(pair["operators"], key=lambda row: -row["differing"])
    ]
    differing = sum(row["differing"] > 0 for row in pair["operators"])
    head = ["operator", "codes", "differing", "of them ties", "codes from the threshold", "by steps"]
    title = f"{_name(pair)}, fed with codes of {pair['leader']}: {differing} of {len(shown)} operators differ"
    return [*lines, folded(title, table(head, shown))]


def _steps(histogram: dict[str, int]) -> list[tuple[str, int]]:
    """Code differences with their signs, and how often each occurs."""
    counts = sorted((int(steps), count) for steps, count in histogram.items())
    return [(f"{steps:+d}".replace("-", "\u2212"), count) for steps, count in counts]


def size(contents: Result) -> list[str]:
    total = contents["file_bytes"]
    kinds = sorted(contents["bytes_by_kind"].items(), key=lambda item: -item[1])
    rows = [(kind, size, f"{size:,} B, {100 * size / total:.1f} %") for kind, size in kinds]
    digest = f"sha256 {contents['model_sha256']}" if "model_sha256" in contents else ""
    return [bars(rows, f"{total:,} bytes by kind"), paragraph(digest, "quiet")]


def bits(contents: Result) -> list[str]:
    layers = contents["layers"]
    widths = Counter((str(row["bits_trained"]), _stored(row), str(row["bits_computed"])) for row in layers)
    rows = [[f"{count} layer{'s' * (count > 1)}", *bits] for bits, count in widths.most_common()]
    every = [
        [
            row["name"],
            "x".join(map(str, row["shape"])) if row["shape"] else "?",
            str(row["bits_trained"]),
            _stored(row),
            str(row["bits_computed"]),
            str(row["act_bits"] or "-"),
            f"{row['bytes']:,}",
        ]
        for row in layers
    ]
    head = ["layer", "shape", "trained", "stored", "computed", "input bits", "bytes"]
    return [table(["weights of", *head[2:5]], rows), folded(f"Layers ({len(layers)})", table(head, every))]


def _stored(row: dict[str, Any]) -> str:
    return "?" if row["bits_stored"] is None else f"{row['bits_stored']:g}"


def percent(value: float) -> str:
    return f"{value:.2f} %"


def _scientific(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"
