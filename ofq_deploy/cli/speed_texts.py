"""What `bench` prints."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ofq_deploy.results.bench import Arithmetic, BenchResult, Conditions
    from ofq_deploy.results.bench_gpu import BenchGpuResult

SHOWN = 16  # rows of a profile
NAMED = 5  # nodes in a warning


def bench_text(result: "BenchResult") -> str:
    """What `bench` measured, a line each."""
    entries = {"model": result.model} | ({"baseline": result.baseline} if result.baseline else {})
    lines = []
    for role, entry in entries.items():
        run = entry.executed
        lines.append(
            f"{role} {entry.path}: {entry.file_bytes:,} bytes, load {entry.load_ms:.0f} ms, "
            f"peak +{entry.peak_mb:.1f} MB; products: {run.integer} in integers, {run.float} in float, "
            f"{run.small} small per-key ones"
        )
        if run.integer and run.float:
            named = ", ".join((run.float_nodes or [])[:NAMED]) + (", ..." if run.float > NAMED else "")
            lines.append(f"  warning: {run.float} products of a quantized model run in float: {named}")
        lines += [
            f"  batch {row.batch}: p50 {row.p50:.3f} ms, p90 {row.p90:.3f}, p99 {row.p99:.3f}, "
            f"{row.images_per_s:.0f} images/s ({row.calls} calls)"
            + (f", CPU time p50 {row.cpu_p50:.3f} ms" if row.cpu_p50 else "")
            for row in entry.latency_ms
        ]
    for role, entry in entries.items():
        if not entry.profile:
            continue
        for kind, shares in (("operators", entry.profile.operators), ("roles", entry.profile.roles)):
            lines.append(f"{role} by {kind}:")
            lines += [
                f"  {row.name:48} {row.nodes:4} nodes {row.ms:8.3f} ms {100 * row.share:5.1f} %"
                for row in shares[:SHOWN]
            ]
    lines += _arithmetic_lines(result.arithmetic) if result.arithmetic else []
    lines += [_conditions_line(result.conditions)] if result.conditions else []
    return "\n".join([*lines, result.verdict])


def _arithmetic_lines(done: "Arithmetic") -> list[str]:
    """What the model multiplies, and how far it is from what the CPU could."""
    line = (
        f"arithmetic: {done.macs / 1e6:,.1f} M multiply-accumulates, {done.bit_operations / 1e9:,.2f} G bit operations"
    )
    if base := done.baseline:
        line += f" (baseline: {base.macs / 1e6:,.1f} M, {base.bit_operations / 1e9:,.2f} G)"
    lines = [line + "".join(f"; {operator} is not counted" for operator in done.uncounted or [])]
    if (peak := done.peak_macs_per_s) and done.distance is not None:
        lines.append(
            f"  p50 is {done.distance:.1f} times the {done.floor_ms:.3f} ms that these would take at the rates of "
            f"ONNX Runtime's best kernels here ({peak['int8'] / 1e9:.0f} G/s in int8, {peak['float32'] / 1e9:.0f} G/s in float32)"
        )
    return lines


def _conditions_line(how: "Conditions") -> str:
    cpus = "unknown" if how.affinity is None else ", ".join(map(str, how.affinity))
    spinning = " (idle ones spin)" if how.spinning else ""
    return (
        f"conditions: {how.runtime} on {how.device}, threads: {how.threads}{spinning}, CPUs: {cpus}; "
        "one call of each model per round, in random order"
    )


def gpu_bench_text(result: "BenchGpuResult") -> str:
    """What `bench` measured on a GPU, a line each."""
    gpu = result.gpu
    lines = [
        f"{result.model.path} on {gpu.name}, compute capability {gpu.capability}, driver {gpu.driver or 'unknown'}"
    ]
    for role, entry in (("model", result.model), ("baseline", result.baseline), ("float32", result.float32)):
        if not entry:
            continue
        lines.append(f"{role}: {entry.what}")
        for rows, what in ((entry.latency_ms, "CUDA graph"), (entry.latency_ms_without_graph, "plain launches")):
            lines += [
                f"  batch {row.batch}, {row.form or what}: p50 {row.p50:.3f} ms, p10 {row.p10:.3f}, "
                f"p90 {row.p90:.3f}, {row.images_per_s:.0f} images/s ({row.calls} calls)"
                for row in rows or []
            ]
    for row in result.speedup or []:
        noise = "" if row.conclusive else ", not conclusive"
        lines.append(
            f"batch {row.batch}: {row.ratio_of_medians:.2f}x the baseline's speed "
            "({:.2f} to {:.2f} with 95 % confidence".format(*row.interval)
            + f"{noise})"
        )
    lines += [f"FAULT {fault}" for fault in result.faults]
    return "\n".join([*lines, result.verdict])
