"""The report as one HTML page: results of validate, bench and inspect in, text out. A section appears when its data is there."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from ofq_deploy.charts import bars, distributions, intervals
from ofq_deploy.pages import commands, document, figures, folded, paragraph, section, table, verdict
from ofq_deploy.results import Result, model_of

FLOAT = "float model"
SHOWN = 20  # rows of long lists: classes, roles of a profile


def render(title: str, results: Sequence[Result], note: str = "") -> str:
    """The page about some results; those of one model stand together, in the order in which the models first occur.

    Takes results as `validate`, `bench` and `inspect` return them (see docs/schema.md) and passes over those of other
    commands. Raises KeyError, TypeError and the like for a result that lacks what its schema promises.
    """
    models: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        if _command(result) in ("validate", "bench", "inspect"):
            models[model_of(result) or str(result.get("run"))].append(result)
    judged = [result for own in models.values() for result in own if "verdict" in result]
    many = len(models) > 1
    body = [
        *(_verdict(result, f"{model_of(result)}: " if many else "") for result in judged),
        paragraph(note),
        _overview(models) if many else "",
        *(_model(name, own) for name, own in models.items()),
        "<h2>Environment</h2>",
        _environments(results),
        "<h2>Reproduce</h2>",
        commands(dict.fromkeys(str(result["command"]) for result in results if "command" in result)),
    ]
    return document(title, body)


def _command(result: Result) -> str:
    return str(result["schema"]).split("/")[1]


def _only(results: Iterable[Result], command: str) -> list[Result]:
    return [result for result in results if _command(result) == command]


def _verdict(result: Result, about: str) -> str:
    state = "" if "passed" not in result else "good" if result["passed"] else "bad"
    sentence = str(result["verdict"])
    if about and state:
        word, colon, rest = sentence.partition(": ")
        return verdict(state, f"{word}{colon}{about}{rest}")
    return verdict(state, about + sentence)


def _overview(models: dict[str, list[Result]]) -> str:
    """The models beside one another, and the float models that they were compared with."""
    rows, accuracies, sizes = [], [], {}
    floats: dict[str, list[str]] = {}
    for name, own in models.items():
        row: dict[str, str] = {}
        for contents in _only(own, "inspect"):
            row |= {"bits W / A": _bits_of(contents), "file": f"{contents['file_bytes']:,} B"}
            sizes[name] = int(contents["file_bytes"])
        for proof in _only(own, "validate"):
            if proof.get("top1_runtime") is not None:
                row |= {"top-1": _percent(proof["top1_runtime"])}
                accuracies.append(_accuracy_row(name, proof))
            if proof.get("top1_float") is not None:
                floats.setdefault(FLOAT, ["32 / 32", _percent(proof["top1_float"]), "", "", ""])
        for bench in _only(own, "bench"):
            row |= {"p50": f"{_first(bench, 'model')['p50']:.3f} ms"}
            if "baseline" in bench:
                row |= {"float / model": f"{bench['speedup'][0]['ratio_of_medians']:.2f}"}
                sizes.setdefault(FLOAT, int(bench["baseline"]["file_bytes"]))
        floats[name] = [row.get(key, "-") for key in ("bits W / A", "top-1", "file", "p50", "float / model")]
    if FLOAT in floats:
        size = f"{sizes[FLOAT]:,} B" if FLOAT in sizes else "-"
        floats[FLOAT][2:] = [size, "-", "-"]
        rows.append([FLOAT, *floats.pop(FLOAT)])
    rows += [[name, *row] for name, row in floats.items()]
    head = ["model", "bits W / A", "top-1", "file", "p50", "float / model"]
    files = [(name, size, f"{size / 1000:,.0f} kB") for name, size in sorted(sizes.items(), key=lambda item: -item[1])]
    return "\n".join(
        [
            "<h2>Models</h2>",
            table(head, rows),
            intervals(accuracies, "Top-1 with its 95 % interval") if accuracies else "",
            bars(files, "File", FLOAT) if files else "",
        ]
    )


def _model(name: str, own: list[Result]) -> str:
    proofs, benches, contents = (_only(own, command) for command in ("validate", "bench", "inspect"))
    parts = [
        f"<h2>{escape(name)}</h2>",
        _figures(proofs, benches, contents),
        *(section("Accuracy", *_accuracy(proof)) for proof in proofs if "accuracy" in proof),
        *(section("Proof", *_proof(proof)) for proof in proofs),
        *(section(f"Speed in {bench['backend']}", *_speed(bench)) for bench in benches),
        *(
            section(f"Arithmetic in {bench['backend']}", *_arithmetic(bench))
            for bench in benches
            if "arithmetic" in bench
        ),
        *(section(f"Where the time goes in {bench['backend']}", *_profile(bench)) for bench in benches),
        *(section("Size", _size(entry)) for entry in contents),
        *(section("Bits trained, stored and computed", *_bits(entry)) for entry in contents),
    ]
    return "\n".join(part for part in parts if part)


def _figures(proofs: list[Result], benches: list[Result], contents: list[Result]) -> str:
    rows = []
    for proof in proofs:
        if proof.get("top1_runtime") is not None:
            beside = f"float model {_percent(proof['top1_float'])}" if "top1_float" in proof else ""
            rows.append(("Top-1", _percent(proof["top1_runtime"]), beside))
        if "codes_compared" in proof:
            beside = f"of {proof['codes_compared']:,} ({proof['ties']} of them ties)"
            rows.append(("Codes differing", f"{proof['codes_differing']:,}", beside))
    floats = {bench["baseline"]["file_bytes"] for bench in benches if "baseline" in bench}
    for entry in contents:
        beside = f"float / model: {max(floats) / entry['file_bytes']:.1f}" if floats else f"{entry['file_bytes']:,} B"
        rows.append(("File", f"{entry['file_bytes'] / 1000:,.0f} kB", beside))
    for bench in benches:
        first = _first(bench, "model")
        what = f"Median, batch {first['batch']}, {bench['backend']}"
        beside = f"float {_first(bench, 'baseline')['p50']:.3f} ms" if "baseline" in bench else ""
        rows.append((what, f"{first['p50']:.3f} ms", beside))
    return figures(rows) if rows else ""


def _accuracy_row(label: str, proof: Result) -> tuple[str, float, tuple[float, float] | None, str]:
    accuracy = proof["accuracy"]
    low, high = accuracy["top1_interval"]
    return label, accuracy["top1"], (low, high), f"{_percent(accuracy['top1'])} ({low:.1f} to {high:.1f})"


def _accuracy(proof: Result) -> list[str]:
    accuracy = proof["accuracy"]
    what = f"{accuracy['images']:,} test images of {proof['data']}; {accuracy['images_per_s']:,.0f} images/s."
    if "top1" not in accuracy:
        return [paragraph(what + " They have no labels.")]
    rows = [_accuracy_row(f"this model, {proof['backend']}", proof)]
    rows += [
        (label, proof[key], None, _percent(proof[key]))
        for label, key in (("training, torch", "top1_torch"), (FLOAT, "top1_float"))
        if proof.get(key) is not None
    ]
    five = "{:.2f} % ({:.1f} to {:.1f})".format(accuracy["top5"], *accuracy["top5_interval"])
    lines = [intervals(rows, "Top-1 with its 95 % interval"), paragraph(f"{what} Top-5: {five}.")]
    if "against_float" in proof:
        pair = proof["against_float"]
        text = f"Same prediction as the float model: {_percent(pair['agreement'])}"
        if "mcnemar_p" in pair:
            text += (
                f"; alone right: this model on {pair['only_model_right']} images, the float model on "
                f"{pair['only_reference_right']} (McNemar p = {pair['mcnemar_p']:.2g})"
            )
        lines.append(paragraph(f"{text}. Same prediction as torch: {_percent(proof['agreement'])}."))
    classes = sorted(proof.get("by_class", []), key=lambda row: row["top1"])
    if classes:
        shown = [[row["label"], f"{row['images']:,}", _percent(row["top1"])] for row in classes[:SHOWN]]
        title = f"Classes ({len(classes)})" if len(classes) <= SHOWN else f"The {SHOWN} worst of {len(classes)} classes"
        lines.append(folded(title, table(["class", "images", "top-1"], shown)))
    return lines


def _proof(proof: Result) -> list[str]:
    """Who was compared with whom, how codes differ, and every operator."""
    rows, lines = [], []
    if isinstance(proof.get("weights"), dict):
        weights = proof["weights"]
        rows.append(["weights in the file", "", f"{weights['codes_compared']:,}", f"{weights['codes_differing']:,}"])
        rows[0] += ["", "", "equal" if weights["codes_differing"] == 0 else "DIFFER"]
    pairs = proof.get("parity") or [
        {**row, "follower": row["witness"], "leader": "the oracle"} for row in proof.get("operators", [])
    ]
    for pair in pairs:
        rows.append([f"{pair['follower']} against {pair['leader']}", f"{pair['images']:,}"])
        rows[-1] += [f"{pair[key]:,}" for key in ("codes_compared", "codes_differing", "ties")]
        rows[-1] += [f"{pair['worst_float_error']:.1e}", "passed" if pair["passed"] else "FAILED"]
    for row in proof.get("activations", []):  # golden data
        rows.append([row["operator"], f"{proof['images']:,}"])
        rows[-1] += [*(f"{row[key]:,}" for key in ("compared", "differing", "ties")), "", ""]
    if rows:
        head = ["compared", "images", "codes", "differing", "of them ties", "floats to", "verdict"]
        lines.append(table(head, rows))
    for pair in pairs:
        lines += _differences(pair)
    if "free_run" in proof:
        free = proof["free_run"]
        left = len(free["divergences"])
        ties = sum(entry["is_tie"] for entry in free["divergences"])
        lines.append(
            paragraph(
                f"Free runs: {left} of {free['images']:,} images leave the oracle, {ties} of them at a tie. Between all "
                f"optimizations and none {free['codes_differing_between_levels']:,} of "
                f"{free['codes_between_optimization_levels']:,} codes differ."
            )
        )
    if "tensors" in proof:
        first = proof.get("first_beyond_tolerance")
        lines.append(
            paragraph(f"First tensor beyond the tolerance: {first}." if first else "No tensor is beyond the tolerance.")
        )
        shown = [[row["name"], f"{row['error']:.1e}"] for row in proof["tensors"]]
        lines.append(folded(f"Tensors ({len(shown)})", table(["tensor", "largest error"], shown)))
    lines += [paragraph(f"Fault: {fault}", "bad") for fault in proof["faults"]]
    return lines


def _differences(pair: dict[str, Any]) -> list[str]:
    """How far codes differ, and where."""
    title = f"{pair['follower']} against {pair['leader']}"
    lines = []
    if pair.get("histogram"):
        counts = sorted((int(step), count) for step, count in pair["histogram"].items())
        rows = [(f"{step:+d}".replace("-", "\u2212"), count, f"{count:,}") for step, count in counts]
        lines.append(bars(rows, f"Code differences, {title}: by how many steps, how often"))
    if pair.get("first_divergence"):
        lines.append(paragraph(f"{title}: the first operator that differs is {pair['first_divergence']}."))
    operators = sorted(pair.get("operators", []), key=lambda row: -row["differing"])
    if operators:
        shown = [
            [
                row["operator"],
                *(f"{row[key]:,}" for key in ("compared", "differing", "ties")),
                f"{row['worst']:.1e}" if row["differing"] else "-",
            ]
            for row in operators
        ]
        head = ["operator", "codes", "differing", "of them ties", "worst, codes from the threshold"]
        differing = sum(row["differing"] > 0 for row in operators)
        lines.append(folded(f"{title}: {differing} of {len(operators)} operators differ", table(head, shown)))
    return lines


def _speed(bench: Result) -> list[str]:
    roles = [(role, _role_name(bench, role)) for role in ("model", "baseline") if role in bench]
    lines, rows = [], []
    if "speedup" in bench and "interval" in bench["speedup"][0]:
        speedups = [
            (
                f"batch {row['batch']}",
                row["ratio_of_medians"],
                tuple(row["interval"]),
                "{:.2f} ({:.2f} to {:.2f})".format(row["ratio_of_medians"], *row["interval"]),
            )
            for row in bench["speedup"]
        ]
        lines.append(intervals(speedups, "Speed beside the baseline, with its 95 % interval; 1 is as fast", mark=1.0))
        doubtful = [f"batch {row['batch']}" for row in bench["speedup"] if not row.get("conclusive", True)]
        if doubtful:
            lines.append(paragraph(f"The machine was too noisy to conclude anything at {', '.join(doubtful)}."))
    for index, first in enumerate(bench["model"]["latency_ms"]):
        measured = [(name, bench[role]["latency_ms"][index]) for role, name in roles]
        sampled = [
            (f"{name}, batch {row['batch']}", row["samples"], {key: row[key] for key in ("p50", "p90", "p99")})
            for name, row in measured
            if row.get("samples")
        ]
        if sampled:
            lines.append(distributions(sampled, "ms", f"{_role_name(bench, 'baseline')}, batch {first['batch']}"))
        for name, row in measured:
            numbers = [f"{row[key]:.3f}" for key in ("p50", "p90", "p99")]
            rows.append([name, str(row["batch"]), *numbers, f"{row['images_per_s']:,.0f}", f"{row['calls']:,}"])
            ratios = [entry for entry in bench.get("speedup", []) if entry["batch"] == row["batch"]]
            rows[-1].append(f"{ratios[0]['ratio_of_medians']:.2f}" if ratios and row is measured[0][1] else "")
    head = ["", "batch", "p50 ms", "p90 ms", "p99 ms", "images/s", "calls", "float / model"]
    lines.append(
        table(head[:-1] if "speedup" not in bench else head, [r if "speedup" in bench else r[:-1] for r in rows])
    )
    rows = []
    for role, name in roles:
        entry, run = bench[role], bench[role]["executed"]
        rows.append([name, f"{entry['file_bytes']:,}", f"{entry['load_ms']:.0f}", f"{entry['peak_mb']:.1f}"])
        rows[-1] += [str(run[key]) for key in ("integer", "float", "small")]
    head = ["", "file, bytes", "load, ms", "memory, MB", "integer products", "float products", "small ones"]
    lines.append(table(head, rows))
    return [*lines, paragraph(_conditions(bench), "quiet")]


def _role_name(bench: Result, role: str) -> str:
    if role == "model":
        return "this model"
    path = str(bench.get("baseline", {}).get("path", ""))
    return FLOAT if path == "the run's float model" else path


def _conditions(bench: Result) -> str:
    texts = [f"threads: {bench['threads']}"]
    if "conditions" in bench:
        texts += [f"{name}: {_plain(value)}" for name, value in bench["conditions"].items() if name != "threads"]
    if "baseline" in bench:
        texts.append("calls alternate with the baseline's in one process")
    return "Measured with " + "; ".join(texts) + "."


def _arithmetic(bench: Result) -> list[str]:
    """What the products alone would take at the machine's peak, beside what the model takes."""
    arithmetic, first = bench["arithmetic"], _first(bench, "model")
    peaks = {name: value for name, value in arithmetic["peak_macs_per_s"].items() if value}
    times = [
        (f"measured, batch {first['batch']}", first["p50"], f"{first['p50']:.3f} ms"),
        ("floor", arithmetic["floor_ms"], f"{arithmetic['floor_ms']:.3f} ms"),
    ]
    rates = [(f"peak, {name}", peak / 1e9, f"{peak / 1e9:,.1f} GMAC/s") for name, peak in peaks.items()]
    if "int8" in peaks:
        reached = peaks["int8"] / arithmetic["distance"] / 1e9
        rates.insert(0, ("this model", reached, f"{reached:,.1f} GMAC/s"))
    return [
        bars(times, "Time a call, and the least that its products could take at the machine's peak", "floor"),
        bars(rates, "Multiplications with additions per second"),
        paragraph(
            f"{arithmetic['macs']:,} multiplications with additions, {arithmetic['bit_operations']:,} bit operations. "
            f"The model takes {arithmetic['distance']:.1f} times its floor."
        ),
    ]


def _profile(bench: Result) -> list[str]:
    roles = bench["model"].get("profile", {}).get("roles", [])[:SHOWN]
    rows = [(row["name"], row["ms"], f"{row['ms']:.3f} ms, {100 * row['share']:.1f} %") for row in roles]
    return [bars(rows, "Time by role, all blocks together")] if rows else []


def _size(contents: Result) -> str:
    total = contents["file_bytes"]
    kinds = sorted(contents["bytes_by_kind"].items(), key=lambda item: -item[1])
    rows = [(kind, size, f"{size:,} B, {100 * size / total:.1f} %") for kind, size in kinds]
    return bars(rows, f"{total:,} bytes by kind")


def _bits(contents: Result) -> list[str]:
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


def _environments(results: Sequence[Result]) -> str:
    """One table when all results were made in the same environment, else one for each, under its commands."""
    lines: dict[str, list[str]] = defaultdict(list)  # by environment
    for result in results:
        if "environment" in result:
            lines[json.dumps(result["environment"], sort_keys=True)].append(str(result.get("command", "")))
    parts = []
    for text, own in lines.items():
        environment = json.loads(text)
        rows = [[key, _plain(value)] for key, value in environment.items() if key != "packages"]
        rows += [[name, str(number)] for name, number in environment.get("packages", {}).items()]
        parts += [commands(own) if len(lines) > 1 else "", table([], rows, "texts")]
    return "\n".join(parts)


def _first(bench: Result, role: str) -> dict[str, Any]:
    return bench[role]["latency_ms"][0]


def _bits_of(contents: Result) -> str:
    if contents["target"] == "fp32":
        return "32 / 32"
    return "{weight_bits} / {act_bits}".format(**contents["quantization"])


def _stored(row: dict[str, Any]) -> str:
    return "?" if row["bits_stored"] is None else f"{row['bits_stored']:g}"


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _percent(value: float) -> str:
    return f"{value:.2f} %"
