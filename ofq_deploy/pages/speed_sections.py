"""The parts of a report that tell of speed: ratios, distributions, arithmetic, profile. A part appears when its data is there."""

from collections.abc import Sequence
from typing import Any

from ofq_deploy.pages.charts import bars, distributions, intervals
from ofq_deploy.pages.html import paragraph, table
from ofq_deploy.results.record import Result

FLOAT = "float model"
GPU_ROLES = ("model", "baseline", "float32")
ROLES = 12  # of a profile


def speed(bench: Result) -> list[str]:
    """Ratios with their intervals, distributions of calls, and what loading and running takes."""
    roles = [(role, role_name(bench, role)) for role in ("model", "baseline") if role in bench]
    lines, rows = _ratios(bench), []
    for index, own in enumerate(bench["model"]["latency_ms"]):
        measured = [(name, bench[role]["latency_ms"][index]) for role, name in roles]
        sampled = [
            (f"{name}, batch {row['batch']}", row["samples"], {key: row[key] for key in ("p50", "p90", "p99")})
            for name, row in measured
            if row.get("samples")
        ]
        if sampled:
            lines.append(distributions(sampled, "ms", f"{role_name(bench, 'baseline')}, batch {own['batch']}"))
        ratios = {entry["batch"]: ratio(entry) for entry in bench.get("speedup", [])}
        for name, row in measured:
            numbers = [f"{row[key]:.3f}" for key in ("p50", "p90", "p99")]
            speed = ratios.get(row["batch"], "-") if row is own else "-"
            rows.append([name, str(row["batch"]), *numbers, f"{row['images_per_s']:,.0f}", f"{row['calls']:,}", speed])
    lines.append(table(["", "batch", "p50 ms", "p90 ms", "p99 ms", "images/s", "calls", "speed"], rows))
    return [*lines, _costs(bench, roles), paragraph(_conditions(bench), "quiet")]


def ratio(row: dict[str, Any]) -> str:
    """The ratio of medians; one that allows no conclusion says so wherever it stands."""
    return f"{row['ratio_of_medians']:.2f}{'' if row.get('conclusive', True) else ', not conclusive'}"


def _costs(bench: Result, roles: Sequence[tuple[str, str]]) -> str:
    """What loading and running takes, and what is multiplied."""
    rows = []
    for role, name in roles:
        entry, run = bench[role], bench[role]["executed"]
        products = [str(run[key]) for key in ("integer", "float", "small")]
        costs = [f"{entry['file_bytes']:,}", f"{entry['load_ms']:.0f}", f"{entry['peak_mb']:.1f}"]
        rows.append([name, *costs, *products])
    head = ["", "file, bytes", "load, ms", "memory, MB", "integer products", "float products", "small ones"]
    return table(head, rows)


def gpu(bench: Result) -> list[str]:
    """What `bench` measured on a GPU: ratios, every latency, what the engines hold."""
    lines, rows, engines = _ratios(bench), [], []
    for role in GPU_ROLES:
        measured = bench.get(role, {})
        for suffix, launches in (("", "CUDA graph"), ("_without_graph", "one by one")):
            ratios = {row["batch"]: f"{row['ratio_of_medians']:.2f}" for row in bench.get(f"speedup{suffix}", [])}
            for row in measured.get(f"latency_ms{suffix}", []):
                numbers = [f"{row[key]:.3f}" for key in ("p50", "p90", "p99")]
                ratio = ratios.get(row["batch"], "-") if role == "model" else "-"
                named = [row.get("form", measured["what"]), launches, str(row["batch"])]
                rows.append([*named, *numbers, f"{row['images_per_s']:,.0f}", f"{row['calls']:,}", ratio])
        for engine in measured.get("batches", []):
            products, compared = engine["products"], engine["against_onnxruntime"]
            counts = [str(products[key]) for key in ("integer", "float", "small", "fused_attention")]
            same = f"{compared['same_prediction']} of {compared['images']}"
            built = engine["engine"]["settings"]
            sizes = [f"{built[key] / 1e6:,.1f}" for key in ("plan_bytes", "device_memory_bytes")]
            engines.append([measured["what"], str(engine["batch"]), *counts, same, f"{built['load_ms']:,.0f}", *sizes])
    head = ["", "launched", "batch", "p50 ms", "p90 ms", "p99 ms", "images/s", "calls", "speed"]
    lines.append(table(head, rows))
    if engines:
        head = ["engine", "batch", "integer products", "float products", "small ones", "attentions", "as ONNX Runtime"]
        head += ["load, ms", "plan, MB", "scratch, MB"]
        lines.append(table(head, engines))
    lines += [paragraph(f"Fault: {fault}", "fault") for fault in bench["faults"]]
    device = bench["gpu"]
    where = f"{device['name']}, compute capability {device['capability']}, driver {device['driver'] or 'unknown'}"
    return [*lines, paragraph(f"Measured on {where}.", "quiet")]


def _ratios(bench: Result) -> list[str]:
    rows = [row for row in bench.get("speedup", []) if "interval" in row]
    if not rows:
        return []
    shown = []
    for row in rows:
        for name, ratio in (("", row), (", CPU time", row.get("cpu_time"))):
            if ratio:
                low, high = ratio["interval"]
                text = f"{ratio['ratio_of_medians']:.2f} ({low:.2f} to {high:.2f})"
                shown.append((f"batch {row['batch']}{name}", ratio["ratio_of_medians"], (low, high), text))
    chart = intervals(shown, "Speed beside the baseline, with its 95 % interval; 1 is as fast", mark=1.0)
    doubtful = ", ".join(f"batch {row['batch']}" for row in rows if not row["conclusive"])
    return [chart, paragraph(f"Too noisy to conclude: {doubtful}." if doubtful else "")]


def role_name(bench: Result, role: str) -> str:
    """What a measured model is called; empty when there is none in that role."""
    if role == "model":
        return "this model"
    path = str(bench.get(role, {}).get("path", ""))
    return FLOAT if path == "the run's float model" else path


def _conditions(bench: Result) -> str:
    texts = [f"threads: {bench['threads']}"]
    if "conditions" in bench:
        texts += [f"{name}: {plain(value)}" for name, value in bench["conditions"].items() if name != "threads"]
    if "baseline" in bench:
        texts.append("calls alternate with the baseline's in one process")
    return "Measured with " + "; ".join(texts) + "."


def arithmetic(bench: Result) -> list[str]:
    """What the products alone would take at the machine's peak, beside what the model takes."""
    if "arithmetic" not in bench:
        return []
    own, lines = bench["arithmetic"], []
    peaks = own["peak_macs_per_s"]
    if peaks and own["floor_ms"]:
        first = first_row(bench, "model")
        times = [
            (f"measured, batch {first['batch']}", first["p50"], f"{first['p50']:.3f} ms"),
            ("floor", own["floor_ms"], f"{own['floor_ms']:.4f} ms"),
        ]
        reached = first["batch"] * own["macs"] / first["p50"] / 1e6
        rates = [("this model", reached, f"{reached:,.1f} GMAC/s")]
        rates += [(f"peak, {name}", peak / 1e9, f"{peak / 1e9:,.1f} GMAC/s") for name, peak in peaks.items()]
        lines += [
            bars(times, "Time a call, and the least that its products could take at the machine's peak", "floor"),
            bars(rates, "Multiply-accumulates per second"),
            paragraph(f"The model takes {own['distance']:.1f} times its floor."),
        ]
    numbers = f"{own['macs']:,} multiply-accumulates and {own['bit_operations']:,} bit operations an image"
    if "baseline" in own:
        base = own["baseline"]
        numbers += f"; {role_name(bench, 'baseline')}: {base['macs']:,} and {base['bit_operations']:,}"
    kernels = "; ".join(f"{name}: {text}" for name, text in (own.get("peak_kernels") or {}).items())
    return [*lines, paragraph(f"{numbers}."), paragraph(f"Peak: {kernels}." if kernels else "", "quiet")]


def profile(bench: Result) -> list[str]:
    roles = bench["model"].get("profile", {}).get("roles", [])[:ROLES]
    rows = [(row["name"], row["ms"], f"{row['ms']:.3f} ms, {100 * row['share']:.1f} %") for row in roles]
    return [bars(rows, f"Time by role, all blocks together; the {len(rows)} largest")] if rows else []


def first_row(bench: Result, role: str) -> dict[str, Any]:
    return bench[role]["latency_ms"][0]


def plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
