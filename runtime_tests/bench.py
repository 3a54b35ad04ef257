"""Latency of a model, interleaved with a baseline in one process."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ofq_deploy.errors import OnnxFileError
from ofq_deploy.progress import Reporter
from ofq_deploy.runtime_tests.executed import executed_operators
from ofq_deploy.runtime_tests.ort import open_session, run_logits
from ofq_deploy.runtime_tests.probe import probe

WARM_UP = 5


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds per call at one batch size."""

    batch: int
    calls: int
    p50: float
    p90: float
    p99: float
    images_per_s: float


def bench(
    model: Path,
    baseline: Path | None,
    batches: tuple[int, ...],
    threads: int,
    seconds: float,
    report: Reporter,
) -> dict[str, Any]:
    """Measure `model`, and `baseline` in turn with it, for `seconds` at each batch size.

    threads: 0 for one per core.
    Returns a JSON table: per model load time, peak memory, file bytes, executed operators and latencies; and the
    ratio of the medians, which exists only beside its baseline.
    """
    files = {"model": model, **({"baseline": baseline} if baseline else {})}
    sessions = {role: open_session(path, threads) for role, path in files.items()}
    _check_inputs(sessions, batches)
    result: dict[str, Any] = {"backend": "ort-cpu", "threads": threads or "one per core"}
    for role, path in files.items():
        result[role] = {
            "path": str(path),
            "file_bytes": path.stat().st_size,
            **asdict(probe(path, threads, batches[0])),
            "executed": asdict(executed_operators(path)),
            "latency_ms": [],
        }
    for batch in batches:
        for role, latency in zip(files, _interleaved(list(sessions.values()), batch, seconds, report), strict=True):
            result[role]["latency_ms"].append(asdict(latency))
    if baseline:
        pairs = zip(result["baseline"]["latency_ms"], result["model"]["latency_ms"], strict=True)
        result["speedup"] = [
            {"batch": own["batch"], "ratio_of_medians": base["p50"] / own["p50"]} for base, own in pairs
        ]
    return result


def _check_inputs(sessions: dict[str, Any], batches: tuple[int, ...]) -> None:
    """Both models must take the same float images, at every batch size."""
    shapes = {}
    for role, session in sessions.items():
        inputs = session.get_inputs()
        shapes[role] = inputs[0].shape[1:]
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or not all(type(n) is int for n in shapes[role]):
            found = ", ".join(f"{value.name} {value.type} {value.shape}" for value in inputs)
            raise OnnxFileError(f"the {role} takes {found}; expected one float input [batch, channels, height, width]")
        fixed = inputs[0].shape[0]
        if type(fixed) is int and any(batch != fixed for batch in batches):
            raise OnnxFileError(f"the {role} has the fixed batch size {fixed}; bench it with --batch {fixed}")
    if len({tuple(shape) for shape in shapes.values()}) > 1:
        raise OnnxFileError(f"the baseline takes images {shapes['baseline']}, the model {shapes['model']}")


def _interleaved(sessions: list[Any], batch: int, seconds: float, report: Reporter) -> Iterator[Latency]:
    """Call the sessions in turn, so that whatever else the machine does hits all of them."""
    generator = np.random.default_rng(0)
    shapes = [[batch, *session.get_inputs()[0].shape[1:]] for session in sessions]
    images = [generator.standard_normal(shape, dtype=np.float32) for shape in shapes]
    times: list[list[float]] = [[] for _ in sessions]
    for session, batch_images in zip(sessions, images, strict=True):
        for _ in range(WARM_UP):
            run_logits(session, batch_images)
    start_all = time.perf_counter()
    with report.task(f"bench, batch {batch}", max(1, round(seconds))) as advance:
        done = 0
        while (elapsed := time.perf_counter() - start_all) < seconds or len(times[0]) < WARM_UP:
            if elapsed >= done + 1:
                done += 1
                advance()
            for own, session, batch_images in zip(times, sessions, images, strict=True):
                start = time.perf_counter()
                run_logits(session, batch_images)
                own.append(1000 * (time.perf_counter() - start))
    for own in times:
        p50, p90, p99 = np.percentile(own, [50, 90, 99])
        yield Latency(batch, len(own), float(p50), float(p90), float(p99), 1000 * batch / float(p50))
