"""Latency of a model, interleaved with a baseline in one process."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ofq_deploy.errors import OnnxFileError
from ofq_deploy.progress import Reporter
from ofq_deploy.runner import Runner, logits
from ofq_deploy.runtime_tests.model_file import read_model
from ofq_deploy.runtime_tests.probe import probe
from ofq_deploy.runtime_tests.runners import executed_operators, open_runner

WARM_UP = 5
FLOAT = 1  # onnx.TensorProto.FLOAT


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
    backend: str = "ort-cpu",
) -> dict[str, Any]:
    """Measure `model`, and `baseline` in turn with it, for `seconds` at each batch size, on one backend.

    threads: 0 for one per core
    Returns a JSON table: per model load time, peak memory, file bytes, executed operators and latencies; and the
    ratio of the medians, which exists only beside its baseline.
    """
    files = {"model": model, **({"baseline": baseline} if baseline else {})}
    shape = _common_shape(files, batches)
    latencies: dict[str, list[dict[str, Any]]] = {role: [] for role in files}
    for batch in batches:
        with ExitStack() as stack:
            runners = [stack.enter_context(open_runner(backend, path, threads, batch)) for path in files.values()]
            for role, latency in zip(files, _interleaved(runners, (batch, *shape), seconds, report), strict=True):
                latencies[role].append(asdict(latency))
    result: dict[str, Any] = {"backend": backend, "threads": threads or "one per core"}
    for role, path in files.items():
        result[role] = {
            "path": str(path),
            "file_bytes": path.stat().st_size,
            **asdict(probe(backend, path, threads, (batches[0], *shape))),
            "executed": asdict(executed_operators(backend, path)),
            "latency_ms": latencies[role],
        }
    if baseline:
        pairs = zip(result["baseline"]["latency_ms"], result["model"]["latency_ms"], strict=True)
        result["speedup"] = [
            {"batch": own["batch"], "ratio_of_medians": base["p50"] / own["p50"]} for base, own in pairs
        ]
    return result


def image_shape(path: Path, role: str = "model", batches: tuple[int, ...] = ()) -> tuple[int, ...]:
    """[channels, height, width] of the one float input of a model; OnnxFileError for any other input, or for a
    fixed batch size that is not the wanted one.
    """
    graph = read_model(path).graph
    constants = {tensor.name for tensor in graph.initializer}
    found = [(value.name, value.type.tensor_type) for value in graph.input if value.name not in constants]
    axes = [[axis.dim_value for axis in kind.shape.dim] for _, kind in found]
    if len(found) != 1 or found[0][1].elem_type != FLOAT or len(axes[0]) != 4 or not all(axes[0][1:]):
        texts = ", ".join(f"{name} {shape}" for (name, _), shape in zip(found, axes, strict=True))
        raise OnnxFileError(f"the {role} takes {texts}; expected one float input [batch, channels, height, width]")
    fixed, *shape = axes[0]
    if fixed and any(batch != fixed for batch in batches):
        raise OnnxFileError(f"the {role} has the fixed batch size {fixed}; bench it with --batch {fixed}")
    return tuple(shape)


def _common_shape(files: dict[str, Path], batches: tuple[int, ...]) -> tuple[int, ...]:
    """All models must take the same images, at every batch size."""
    shapes = {role: image_shape(path, role, batches) for role, path in files.items()}
    if len(set(shapes.values())) > 1:
        raise OnnxFileError(f"the baseline takes images {shapes['baseline']}, the model {shapes['model']}")
    return shapes["model"]


def _interleaved(runners: list[Runner], shape: tuple[int, ...], seconds: float, report: Reporter) -> Iterator[Latency]:
    """Call the runners in turn, so that whatever else the machine does hits all of them."""
    batch, images = shape[0], np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    times: list[list[float]] = [[] for _ in runners]
    for runner in runners:
        for _ in range(WARM_UP):
            logits(runner, images)
    start_all = time.perf_counter()
    with report.task(f"bench, batch {batch}", max(1, round(seconds))) as advance:
        done = 0
        while (elapsed := time.perf_counter() - start_all) < seconds or len(times[0]) < WARM_UP:
            if elapsed >= done + 1:
                done += 1
                advance()
            for own, runner in zip(times, runners, strict=True):
                start = time.perf_counter()
                logits(runner, images)
                own.append(1000 * (time.perf_counter() - start))
    for own in times:
        p50, p90, p99 = np.percentile(own, [50, 90, 99])
        yield Latency(batch, len(own), float(p50), float(p90), float(p99), 1000 * batch / float(p50))
