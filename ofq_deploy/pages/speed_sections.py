"""What the parts of a report about speed compute; how they look is in the templates."""

from collections.abc import Iterator
from typing import Any

from ofq_deploy.pages.html import plain
from ofq_deploy.results.record import Table as Result
from ofq_deploy.runs.folder import FLOAT_MODEL

FLOAT = "float model"
GPU_ROLES = ("model", "baseline", "float32")
PERCENTILES = ("p50", "p90", "p99")
ROLES = 12  # of a profile
Bar = tuple[str, float, str]


def roles(bench: Result) -> list[tuple[str, str]]:
    """What was measured, and what it is called."""
    return [(role, role_name(bench, role)) for role in ("model", "baseline") if role in bench]


def role_name(bench: Result, role: str) -> str:
    """What a measured model is called; empty when there is none in that role."""
    if role == "model":
        return "this model"
    path = str(bench.get(role, {}).get("path", ""))
    return FLOAT if path == FLOAT_MODEL else path


def distributions(bench: Result) -> list[tuple[list[tuple[str, list[float], dict[str, float]]], str]]:
    """By batch, what was sampled as rows of a chart, and the label of the baseline among them."""
    charts = []
    for index, own in enumerate(bench["model"]["latency_ms"]):
        measured = [(name, bench[role]["latency_ms"][index]) for role, name in roles(bench)]
        rows = [
            (f"{name}, batch {row['batch']}", row["samples"], {key: row[key] for key in PERCENTILES})
            for name, row in measured
            if row.get("samples")
        ]
        if rows:
            charts.append((rows, f"{role_name(bench, 'baseline')}, batch {own['batch']}"))
    return charts


def ratios(bench: Result) -> dict[int, str]:
    return {row["batch"]: ratio(row) for row in bench.get("speedup", [])}


def ratio(row: dict[str, Any]) -> str:
    """The ratio of medians; one that allows no conclusion says so wherever it stands."""
    return f"{row['ratio_of_medians']:.2f}{'' if row.get('conclusive', True) else ', not conclusive'}"


def ratio_rows(bench: Result) -> list[tuple[str, float, tuple[float, float], str]]:
    """Ratios by the clock and by the time of the processor, where they have intervals."""
    rows = []
    for row in _ratios_with_intervals(bench):
        for what, ratio in (("", row), (", CPU time", row.get("cpu_time"))):
            if ratio:
                low, high = ratio["interval"]
                text = f"{ratio['ratio_of_medians']:.2f} ({low:.2f} to {high:.2f})"
                rows.append((f"batch {row['batch']}{what}", ratio["ratio_of_medians"], (low, high), text))
    return rows


def doubtful(bench: Result) -> list[str]:
    """The batches whose ratio allows no conclusion."""
    return [f"batch {row['batch']}" for row in _ratios_with_intervals(bench) if not row["conclusive"]]


def _ratios_with_intervals(bench: Result) -> list[dict[str, Any]]:
    return [row for row in bench.get("speedup", []) if "interval" in row]


def conditions(bench: Result) -> list[str]:
    texts = [f"threads: {bench['threads']}"]
    if "conditions" in bench:
        texts += [f"{name}: {plain(value)}" for name, value in bench["conditions"].items() if name != "threads"]
    if "baseline" in bench:
        texts.append("calls alternate with the baseline's in one process")
    return texts


def gpu_latencies(bench: Result) -> Iterator[tuple[str, str, dict[str, Any], str]]:
    """Every latency: of what, how it was launched, itself, and how many times as fast the model is."""
    for role in GPU_ROLES:
        measured = bench.get(role, {})
        for suffix, launched in (("", "CUDA graph"), ("_without_graph", "one by one")):
            ratios = {row["batch"]: f"{row['ratio_of_medians']:.2f}" for row in bench.get(f"speedup{suffix}", [])}
            for row in measured.get(f"latency_ms{suffix}", []):
                ratio = ratios.get(row["batch"], "-") if role == "model" else "-"
                yield row.get("form", measured["what"]), launched, row, ratio


def engines(bench: Result) -> list[tuple[str, dict[str, Any]]]:
    """Every engine, and what it computes."""
    return [
        (bench[role]["what"], engine)
        for role in GPU_ROLES
        if role in bench
        for engine in bench[role].get("batches", [])
    ]


def times(arithmetic: dict[str, Any], first: dict[str, Any]) -> list[Bar]:
    """The time of a call, and the least that its products could take."""
    return [
        (f"measured, batch {first['batch']}", first["p50"], f"{first['p50']:.3f} ms"),
        ("floor", arithmetic["floor_ms"], f"{arithmetic['floor_ms']:.4f} ms"),
    ]


def rates(arithmetic: dict[str, Any], first: dict[str, Any]) -> list[Bar]:
    """Multiply-accumulates per second, 1e9: the model's and the machine's."""
    reached = first["batch"] * arithmetic["macs"] / first["p50"] / 1e6
    rates = {"this model": reached}
    rates |= {f"peak, {name}": peak / 1e9 for name, peak in arithmetic["peak_macs_per_s"].items()}
    return [(name, rate, f"{rate:,.1f} GMAC/s") for name, rate in rates.items()]


def largest(roles: list[dict[str, Any]]) -> list[Bar]:
    """What takes the most time."""
    return [(role["name"], role["ms"], f"{role['ms']:.3f} ms, {100 * role['share']:.1f} %") for role in roles[:ROLES]]
