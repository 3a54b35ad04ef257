"""The report as one HTML page: results in, text out. A section appears when its data is there."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import PurePath

from ofq_deploy.pages import sections, speed_sections
from ofq_deploy.pages.charts import bars, intervals
from ofq_deploy.pages.html import commands, document, figures, paragraph, section, table, verdict
from ofq_deploy.pages.sections import percent
from ofq_deploy.pages.speed_sections import FLOAT, first_row, plain, ratio, role_name
from ofq_deploy.results.record import Result, command_of, model_of

SHOWN = ("validate", "parity", "bench", "bench-gpu", "inspect")


@dataclass(slots=True)
class _Model:
    """The results about one model, by the command that made them."""

    validate: list[Result] = field(default_factory=list)
    parity: list[Result] = field(default_factory=list)
    bench: list[Result] = field(default_factory=list)
    bench_gpu: list[Result] = field(default_factory=list)
    inspect: list[Result] = field(default_factory=list)


def render(title: str, results: Sequence[Result], note: str = "") -> str:
    """The page about some results; those of one model stand together, in the order in which the models first occur.

    Takes results as `validate`, `parity`, `bench` and `inspect` return them (see docs/schema.md) and passes over those of other
    commands. Raises KeyError, TypeError and the like for a result that lacks what its schema promises.
    """
    models: dict[str, _Model] = defaultdict(_Model)
    for result in results:
        if command_of(result) in SHOWN:
            model = models[model_of(result) or str(result.get("run"))]
            getattr(model, command_of(result).replace("-", "_")).append(result)
    models = _shortly_named(models)
    many = len(models) > 1
    verdicts = [
        _verdict(result, name if many else "")
        for name, model in models.items()
        for result in (*model.validate, *model.parity, *model.bench, *model.bench_gpu)
    ]
    body = [
        *verdicts,
        paragraph(note),
        _overview(models) if many else "",
        *(_sections(name, model) for name, model in models.items()),
        "<h2>Environment</h2>",
        _environments(results),
        "<h2>Reproduce</h2>",
        commands(dict.fromkeys(str(result["command"]) for result in results)),
    ]
    return document(title, body)


def _shortly_named(models: dict[str, _Model]) -> dict[str, _Model]:
    """The models by the names of their files, where that tells them apart."""
    names = Counter(PurePath(path).name for path in models)
    return {name if names[name := PurePath(path).name] == 1 else path: model for path, model in models.items()}


def _verdict(result: Result, about: str) -> str:
    """A passed bench on a GPU is no proof: it only tells."""
    command, text, runtime = command_of(result), str(result["verdict"]), ""
    judged = "passed" in result and not (command == "bench-gpu" and result["passed"])
    state = "" if not judged else "good" if result["passed"] else "bad"
    word, _, rest = text.partition(": ")
    if command in ("bench", "bench-gpu"):
        runtime = str(result["backend"])
    if command == "bench" or not judged:
        word, rest = "", text
    return verdict(state, word if rest else "", rest or text, ", ".join(filter(None, (about, runtime))))


def _overview(models: dict[str, _Model]) -> str:
    """The models beside one another, and the float model when they all have the same one."""
    rows, accuracies, sizes = [], [], []
    for name, model in models.items():
        row: dict[str, str] = {}
        for contents in model.inspect:
            row |= {"bits": _bits(contents), "file": f"{contents['file_bytes']:,} B"}
            sizes.append((name, int(contents["file_bytes"])))
        for validation in model.validate:
            if validation.get("top1_runtime") is not None:
                row["top-1"] = percent(validation["top1_runtime"])
                accuracies.append(sections.accuracy_row(name, validation["accuracy"]))
        for bench in _timed(model):
            if "p50" not in row:  # of several runtimes, the one that stands first below
                row["p50"] = f"{first_row(bench, 'model')['p50']:.3f} ms, {bench['backend']}"
                row["speed"] = ratio(bench["speedup"][0]) if "speedup" in bench else "-"
        rows.append([name, *(row.get(key, "-") for key in ("bits", "top-1", "file", "p50", "speed"))])
    every = list(models.values())
    accuracy = {v["top1_float"] for model in every for v in model.validate if v.get("top1_float") is not None}
    size = {b["baseline"]["file_bytes"] for model in every for b in model.bench if role_name(b, "baseline") == FLOAT}
    if len(accuracy) == len(size) == 1:
        rows.insert(0, [FLOAT, "32 / 32", percent(*accuracy), "{:,} B".format(*size), "-", "1"])
        accuracies.insert(0, (FLOAT, *accuracy, None, percent(*accuracy)))
        sizes.insert(0, (FLOAT, *size))
    return "\n".join(
        [
            "<h2>Models</h2>",
            table(["model", "bits W / A", "top-1", "file", "p50", "speed beside the baseline"], rows),
            intervals(accuracies, "Top-1 with its 95 % interval") if accuracies else "",
            bars([(name, size, f"{size / 1000:,.0f} kB") for name, size in sizes], "File", FLOAT) if sizes else "",
        ]
    )


def _sections(name: str, model: _Model) -> str:
    parts = [f"<h2>{escape(name)}</h2>", _figures(model)]
    for validation in model.validate:
        parts += [
            section("Accuracy", *sections.accuracy(validation)),
            section("Beside the reference" if "reference" in validation else "Proof", *sections.proof(validation)),
        ]
    for parity in model.parity:
        parts.append(section(f"{parity['follower']} against {parity['leader']}", *sections.proof(parity)))
    for bench in model.bench:
        runtime = f"in {bench['backend']}"
        parts += [
            section(f"Speed {runtime}", *speed_sections.speed(bench)),
            section(f"Arithmetic {runtime}", *speed_sections.arithmetic(bench)),
            section(f"Where the time goes {runtime}", *speed_sections.profile(bench)),
        ]
    for bench in model.bench_gpu:
        parts.append(section(f"Speed in {bench['backend']} on a GPU", *speed_sections.gpu(bench)))
    for contents in model.inspect:
        parts += [
            section("Size", *sections.size(contents)),
            section("Bits trained, stored and computed", *sections.bits(contents)),
        ]
    return "\n".join(part for part in parts if part)


def _timed(model: _Model) -> list[Result]:
    """Those with a latency: on a GPU no form may have been right, and then none was timed."""
    return [bench for bench in model.bench if bench["model"]["latency_ms"]]


def _figures(model: _Model) -> str:
    """What one wants to know first, large."""
    rows = []
    for validation in model.validate:
        if validation.get("top1_runtime") is not None:
            beside = f"{FLOAT} {percent(validation['top1_float'])}" if "top1_float" in validation else ""
            rows.append(("Top-1", percent(validation["top1_runtime"]), beside))
        if "codes_compared" in validation:
            beside = f"of {validation['codes_compared']:,} ({validation['ties']} of them ties)"
            rows.append(("Codes differing", f"{validation['codes_differing']:,}", beside))
    floats = [bench["baseline"]["file_bytes"] for bench in model.bench if role_name(bench, "baseline") == FLOAT]
    for contents in model.inspect:
        size = contents["file_bytes"]
        beside = f"{FLOAT}: {floats[0] / size:.1f} times as large" if floats else f"{size:,} bytes"
        rows.append(("File", f"{size / 1000:,.0f} kB", beside))
    for bench in _timed(model):
        first = first_row(bench, "model")
        what = f"Median, batch {first['batch']}, {bench['backend']}"
        name = role_name(bench, "baseline")
        beside = f"{name} {first_row(bench, 'baseline')['p50']:.3f} ms" if name else ""
        rows.append((what, f"{first['p50']:.3f} ms", beside))
    return figures(rows) if rows else ""


def _environments(results: Sequence[Result]) -> str:
    """One table when all results were made in the same environment, else one for each, under its commands."""
    lines: dict[str, list[str]] = defaultdict(list)  # by environment
    for result in results:
        lines[json.dumps(result["environment"], sort_keys=True)].append(str(result["command"]))
    parts = []
    for text, own in lines.items():
        environment = json.loads(text)
        rows = [[key, plain(value)] for key, value in environment.items() if key != "packages"]
        rows += [[name, str(number)] for name, number in environment.get("packages", {}).items()]
        parts += [commands(own) if len(lines) > 1 else "", table([], rows, "texts")]
    return "\n".join(parts)


def _bits(contents: Result) -> str:
    if contents["target"] == "fp32":
        return "32 / 32"
    return "{weight_bits} / {act_bits}".format(**contents["quantization"])
