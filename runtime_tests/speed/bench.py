"""Latency of a model, interleaved with a baseline in one process."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ofq_deploy.errors import OnnxFileError, UnsupportedByTarget
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.progress import Reporter
from ofq_deploy.runner import Metadata, Runner, logits
from ofq_deploy.runtime_tests.runners.registry import executed_operators, open_runner
from ofq_deploy.runtime_tests.speed.arithmetic import PEAK_KERNELS, Work, peak_macs_per_s, work
from ofq_deploy.runtime_tests.speed.probe import probe
from ofq_deploy.runtime_tests.speed.speedup import FEWEST_ROUNDS, speedup

WARM_UP = 5
FEWEST = 3  # rounds of each half
FLOAT = 1  # onnx.TensorProto.FLOAT
SAMPLES = 500
REST_S = 0.005  # before each call on several threads: those of the call before stop spinning
ADVICE = "give it more --seconds, CPUs of its own (--affinity), or a quieter machine"
Times = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds per call at one batch size.

    cpu_p50: median CPU time of the process, on one thread only: there other programs disturb it less than wall time
    samples: single calls in their order, evenly thinned to 500
    """

    batch: int
    calls: int
    p50: float
    p90: float
    p99: float
    images_per_s: float
    cpu_p50: float | None
    samples: tuple[float, ...]


def bench(
    model: OnnxFile,
    baseline: OnnxFile | None,
    batches: tuple[int, ...],
    threads: int,
    seconds: float,
    report: Reporter,
    backend: str = "ort-cpu",
) -> dict[str, Any]:
    """Measure `model`, and `baseline` in turn with it, for `seconds` at each batch size, on one backend.

    threads: 0 for one per core

    Returns a JSON table: per model load time, peak memory, file bytes, executed operators and latencies; what the
    model multiplies, beside what this CPU could; and, only where there is a baseline, the ratio of the median wall
    times with its interval, on one thread also that of the CPU times, and what may be concluded.
    """
    files = {"model": model, **({"baseline": baseline} if baseline else {})}
    shape = _common_shape(files, batches)
    works = {role: work(file, (batches[0], *shape)) for role, file in files.items()}
    latencies: dict[str, list[dict[str, Any]]] = {role: [] for role in files}
    rows: list[dict[str, Any]] = []
    for batch in batches:
        openers: list[Callable[[], Runner]] = [
            partial(open_runner, backend, file, threads, batch) for file in files.values()
        ]
        wall, cpu, how = _interleaved(openers, (batch, *shape), seconds, threads, report)
        for role, own, own_cpu in zip(files, wall, cpu, strict=True):
            latencies[role].append(asdict(_latency(batch, own, own_cpu if threads == 1 else None)))
        if baseline:
            by_cpu = asdict(speedup(cpu[1], cpu[0])) if threads == 1 else None
            rows.append({"batch": batch, **asdict(speedup(wall[1], wall[0])), "cpu_time": by_cpu})
    result: dict[str, Any] = {"backend": backend, "threads": threads or "one per core"}
    result["conditions"] = _conditions(how, threads)
    for role, file in files.items():
        result[role] = {
            "path": str(file.path),
            "file_bytes": file.path.stat().st_size,
            **asdict(probe(backend, file.path, threads, (batches[0], *shape))),
            "executed": asdict(executed_operators(backend, file)),
            "latency_ms": latencies[role],
        }
    peak = peak_macs_per_s(threads) if how.device == "cpu" else None
    own, *others = (_arithmetic(works[role], peak, latencies[role][0]) for role in files)
    result["arithmetic"] = own | {"peak_macs_per_s": peak, "peak_kernels": peak and PEAK_KERNELS}
    if baseline:
        result["arithmetic"]["baseline"] = others[0]
        result["speedup"] = rows
    return result | {"verdict": verdict(rows)}


@contextmanager
def pinned(cpus: tuple[int, ...]) -> Iterator[None]:
    """Keep this thread, and the threads and processes that it starts, on some CPUs; on all of them if none is named.

    Raises UnsupportedByTarget for a CPU that this process may not use, and on systems that cannot do it.
    """
    if not cpus:
        yield
        return
    usable = available_cpus()
    if usable is None:
        raise UnsupportedByTarget("this system keeps no process on chosen CPUs; leave --affinity out")
    if not set(cpus) <= set(usable):
        raise UnsupportedByTarget(f"no CPU {min(set(cpus) - set(usable))} to run on; there are {_listed(usable)}")
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, usable)


def available_cpus() -> list[int] | None:
    """Numbers of the CPUs that this thread may use; None where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def verdict(rows: list[dict[str, Any]]) -> str:
    """What the rows of "speedup" allow to be said, in one sentence."""
    if not rows:
        return "no speed-up is claimed, because nothing was measured beside the model; pass --baseline"
    parts = [f"batch {row['batch']}: {_conclusion(row)}" for row in rows]
    return "; ".join(parts if all(row["conclusive"] for row in rows) else [*parts, ADVICE])


def image_shape(file: OnnxFile, role: str = "model", batches: tuple[int, ...] = ()) -> tuple[int, ...]:
    """[channels, height, width] of the one float input of a model; OnnxFileError for any other input, or for a
    fixed batch size that is not the wanted one.
    """
    graph = file.proto.graph
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


def _common_shape(files: dict[str, OnnxFile], batches: tuple[int, ...]) -> tuple[int, ...]:
    """All models must take the same images, at every batch size."""
    shapes = {role: image_shape(file, role, batches) for role, file in files.items()}
    if len(set(shapes.values())) > 1:
        raise OnnxFileError(f"the baseline takes images {shapes['baseline']}, the model {shapes['model']}")
    return shapes["model"]


def _interleaved(
    openers: list[Callable[[], Runner]], shape: tuple[int, ...], seconds: float, threads: int, report: Reporter
) -> tuple[Times, Times, Metadata]:
    """Wall and CPU milliseconds, [runners, rounds] each, and how the first runner computes.

    One call of each runner per round, so that whatever else the machine does hits all of them; in a new random
    order, so that none always follows the same one. Each half of the time has runners of its own, opened in this and
    in the other order: whichever is opened first is up to 5 % slower while other programs contend for the caches.
    """
    generator = np.random.default_rng(0)
    images = generator.standard_normal(shape, dtype=np.float32)
    indices = range(len(openers))
    times: list[list[tuple[float, float]]] = [[] for _ in indices]
    with report.task(f"bench, batch {shape[0]}", max(1, round(seconds))) as advance:
        for half, order in enumerate((indices, reversed(indices))):
            with ExitStack() as stack:
                runners = {index: stack.enter_context(openers[index]()) for index in order}
                how = runners[0].metadata
                for index in WARM_UP * [*indices]:
                    logits(runners[index], images)
                start, elapsed, rounds = time.perf_counter(), 0.0, 0
                while elapsed < seconds / 2 or rounds < FEWEST:
                    for index in generator.permutation(len(openers)):
                        if threads != 1:
                            time.sleep(REST_S)
                        cpu, wall = time.process_time(), time.perf_counter()
                        logits(runners[index], images)
                        times[index].append((time.perf_counter() - wall, time.process_time() - cpu))
                    before, elapsed, rounds = elapsed, time.perf_counter() - start, rounds + 1
                    if int(half * seconds / 2 + elapsed) > int(half * seconds / 2 + before):
                        advance()
    wall_ms, cpu_ms = np.moveaxis(1000 * np.array(times), -1, 0)
    return wall_ms, cpu_ms, how


def _latency(batch: int, wall: Times, cpu: Times | None) -> Latency:
    p50, p90, p99 = (float(value) for value in np.percentile(wall, [50, 90, 99]))
    kept = np.linspace(0, len(wall) - 1, min(len(wall), SAMPLES)).round().astype(int)
    samples = tuple(round(float(value), 4) for value in wall[kept])
    cpu_p50 = None if cpu is None else float(np.median(cpu))
    return Latency(batch, len(wall), p50, p90, p99, 1000 * batch / p50, cpu_p50, samples)


def _conditions(how: Metadata, threads: int) -> dict[str, Any]:
    """What speed depends on beside the model and the machine."""
    return {
        "runtime": how.runtime,
        "device": how.device,
        "threads": threads or "one per core",
        "affinity": available_cpus(),
        "spinning": bool(how.settings.get("spinning", False)),
    }


def _arithmetic(done: Work, peak: dict[str, float] | None, latency: dict[str, Any]) -> dict[str, Any]:
    """Per image what is multiplied; per call of the first batch size how long that alone would take at `peak`."""
    floor_ms = latency["batch"] * done.floor_ms(peak) if peak else None
    return {
        "macs": done.macs,
        "integer_macs": done.integer_macs,
        "bit_operations": done.bit_operations,
        "uncounted": done.uncounted,
        "floor_ms": floor_ms,
        "distance": latency["p50"] / floor_ms if floor_ms else None,
    }


def _conclusion(row: dict[str, Any]) -> str:
    numbers = "{:.2f}x the baseline's speed (95 % interval {:.2f} to {:.2f})"
    said = numbers.format(row["ratio_of_medians"], *row["interval"])
    if row["conclusive"]:
        return said if row["difference"] != "none" else f"no clear difference, {said}"
    if row["rounds"] < FEWEST_ROUNDS:
        return f"too few calls to conclude: {row['rounds']}"
    said = f"too noisy to conclude: {said}, whose times spread by {100 * row['noise']:.0f} %"
    if (by_cpu := row["cpu_time"]) and by_cpu["conclusive"]:
        said += f"; by CPU time {numbers.format(by_cpu['ratio_of_medians'], *by_cpu['interval'])}"
    return said


def _listed(cpus: list[int]) -> str:
    return ", ".join(map(str, cpus))
