"""The report as one HTML page: results in, text out. A section appears when its data is there."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from ofq_deploy.pages import charts, sections, speed_sections
from ofq_deploy.pages.html import percent, template
from ofq_deploy.pages.speed_sections import FLOAT, ratio, role_name
from ofq_deploy.results.record import Table as Result
from ofq_deploy.results.record import command_of, model_of

SHOWN = ("validate", "parity", "bench", "bench-gpu", "inspect")


@dataclass(slots=True)
class _Model:
    """The results about one model, by the command that made them."""

    validate: list[Result] = field(default_factory=list)
    parity: list[Result] = field(default_factory=list)
    bench: list[Result] = field(default_factory=list)
    bench_gpu: list[Result] = field(default_factory=list)
    inspect: list[Result] = field(default_factory=list)

    @property
    def verdicts(self) -> list[Result]:
        return [*self.validate, *self.parity, *self.bench, *self.bench_gpu]

    @property
    def timed(self) -> list[Result]:
        """Those with a latency: on a GPU no form may have been right, and then none was timed."""
        return [bench for bench in self.bench if bench["model"]["latency_ms"]]

    @property
    def float_bytes(self) -> list[int]:
        """How large the run's float model is, by each bench against it."""
        return [bench["baseline"]["file_bytes"] for bench in self.bench if role_name(bench, "baseline") == FLOAT]


def render(title: str, results: Sequence[Result], note: str = "") -> str:
    """The page about some results; those of one model stand together, in the order in which the models first occur.

    Takes results as `validate`, `parity`, `bench` and `inspect` return them (see docs/schema.md) and passes over those of other
    commands. Raises KeyError, TypeError and the like for a result that lacks what its schema promises.
    """
    from jinja2 import UndefinedError

    models = _by_model(results)
    many = len(models) > 1
    try:
        return template("page.html").render(
            title=title,
            note=note,
            verdicts=[_verdict(v, name if many else "") for name, model in models.items() for v in model.verdicts],
            overview=_overview(models) if many else None,
            models=models,
            environments=_environments(results),
            reproduce=dict.fromkeys(str(result["command"]) for result in results),
            charts=charts,
            sections=sections,
            speed=speed_sections,
            FLOAT=FLOAT,
        )
    except UndefinedError as error:
        raise KeyError(error.message) from error


def _by_model(results: Sequence[Result]) -> dict[str, _Model]:
    """The models by the names of their files, where that tells them apart, else by their paths."""
    models: dict[str, _Model] = defaultdict(_Model)
    for result in results:
        if command_of(result) in SHOWN:
            model = models[model_of(result) or str(result.get("run"))]
            getattr(model, command_of(result).replace("-", "_")).append(result)
    names = Counter(PurePath(path).name for path in models)
    return {name if names[name := PurePath(path).name] == 1 else path: model for path, model in models.items()}


def _verdict(result: Result, model: str) -> dict[str, str]:
    """What the sentence on top says, and whether it is good. A passed bench on a GPU is no proof: it only tells.

    model: its name, when there are several
    """
    command, text = command_of(result), str(result["verdict"])
    runtime = str(result["backend"]) if command in ("bench", "bench-gpu") else ""
    judged = "passed" in result and not (command == "bench-gpu" and result["passed"])
    state = "" if not judged else "good" if result["passed"] else "bad"
    word, _, rest = text.partition(": ") if judged and command != "bench" else ("", "", text)
    about = ", ".join(filter(None, (model, runtime)))
    return {"state": state, "word": word if rest else "", "text": rest or text, "about": about}


def _overview(models: dict[str, _Model]) -> dict[str, Any]:
    """The models beside one another, and the float model when they all have the same one: cells of a table, rows of
    charts.
    """
    rows: list[list[str]] = []
    accuracies: list[sections.Row] = []
    sizes: list[tuple[str, int]] = []
    for name, model in models.items():
        cells = dict.fromkeys(("bits", "top-1", "file", "p50", "speed"), "-")
        for contents in model.inspect:
            cells |= {"bits": _bits(contents), "file": f"{contents['file_bytes']:,} B"}
            sizes.append((name, contents["file_bytes"]))
        for validation in model.validate:
            if validation.get("top1_runtime") is not None:
                cells["top-1"] = percent(validation["top1_runtime"])
                accuracies.append(sections.accuracy_row(name, validation["accuracy"]))
        for bench in model.timed[:1]:  # of several runtimes, the one that stands first below
            cells["p50"] = f"{bench['model']['latency_ms'][0]['p50']:.3f} ms, {bench['backend']}"
            cells["speed"] = ratio(bench["speedup"][0]) if "speedup" in bench else "-"
        rows.append([name, *cells.values()])
    top1s = {v["top1_float"] for m in models.values() for v in m.validate if v.get("top1_float") is not None}
    floats = {size for model in models.values() for size in model.float_bytes}
    if len(top1s) == len(floats) == 1:
        (top1,), (size,) = top1s, floats
        rows.insert(0, [FLOAT, "32 / 32", percent(top1), f"{size:,} B", "-", "1"])
        accuracies.insert(0, (FLOAT, top1, None, percent(top1)))
        sizes.insert(0, (FLOAT, size))
    bars = [(name, size, f"{size / 1000:,.0f} kB") for name, size in sizes]
    return {"rows": rows, "accuracies": accuracies, "sizes": bars}


def _bits(contents: Result) -> str:
    if not contents["quantization"]:
        return "32 / 32"
    layers = [layer for layer in contents["layers"] if layer["name"].startswith("blocks.")]
    weights, acts = ({layer[key] for layer in layers} - {None} for key in ("bits_trained", "act_bits"))
    usual = contents["quantization"]
    return f"{_widths(weights or {usual['weight_bits']})} / {_widths(acts or {usual['act_bits']})}"


def _widths(bits: set[int]) -> str:
    return f"{min(bits)}" if len(bits) == 1 else f"{min(bits)} to {max(bits)}"


def _environments(results: Sequence[Result]) -> list[tuple[dict[str, Any], list[str]]]:
    """Every environment that results were made in, and the commands that made them there."""
    from msgspec import json

    lines: dict[bytes, list[str]] = defaultdict(list)
    for result in results:
        lines[json.encode(result["environment"], order="sorted")].append(str(result["command"]))
    return [(json.decode(environment), commands) for environment, commands in lines.items()]
