"""What `bench` does: find the model and its baseline, and measure both on a CPU or a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from ofq_deploy.commands.build import float_model
from ofq_deploy.commands.requests import BenchRequest
from ofq_deploy.errors import OnnxFileError, RunError, UnsupportedByTarget
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.progress import Reporter
from ofq_deploy.results.bench import BenchResult
from ofq_deploy.results.bench_gpu import BenchGpuResult
from ofq_deploy.results.record import stamped
from ofq_deploy.runs.folder import FLOAT_MODEL, Run
from ofq_deploy.runs.subject import Subject, find, model_for
from ofq_deploy.runtime_tests.runners.registry import BACKENDS, find_backend
from ofq_deploy.targets import TARGETS

if TYPE_CHECKING:
    from ofq_deploy.runtime_tests.runners.registry import Backend


def bench(request: BenchRequest, report: Reporter) -> BenchResult | BenchGpuResult:
    """See ofq_deploy.api.bench."""
    backend = find_backend(request.backend)
    if not backend.on_gpu:
        return bench_on_cpu(request, report)
    if request.profile or request.threads != BenchRequest.threads or request.affinity:
        raise UnsupportedByTarget(f"--profile, --threads and --affinity are for CPUs; leave them out on {backend.name}")
    return _bench_on_gpu(request, backend, report)


def bench_on_cpu(request: BenchRequest, report: Reporter) -> BenchResult:
    """What `bench` does with a backend that runs on CPUs."""
    from ofq_deploy.runtime_tests.speed.bench import bench as measure
    from ofq_deploy.runtime_tests.speed.bench import image_shape, pinned

    backend = find_backend(request.backend)
    if request.profile and not backend.profile:
        known = ", ".join(entry.name for entry in BACKENDS.values() if entry.profile)
        raise UnsupportedByTarget(f"no profile on backend {backend.name!r}; there is one on {known}")
    subject = find(request.model)
    with _baseline_of(subject, request.baseline) as (beside, is_own), pinned(request.affinity):
        threads = request.threads or len(request.affinity)
        result = measure(subject.file, beside, request.batches, threads, request.seconds, report, backend.name)
        if request.profile:
            for role, file in (("model", subject.file), ("baseline", beside)):
                if file is not None:
                    shape = (result[role]["latency_ms"][0]["batch"], *image_shape(file))
                    result[role]["profile"] = resolve_name(backend.profile)(file, threads, shape)
        if is_own:
            result["baseline"]["path"] = FLOAT_MODEL
    result["model"]["sha256"] = subject.file.sha256
    return stamped(BenchResult, request.line(), result)


def _bench_on_gpu(request: BenchRequest, backend: "Backend", report: Reporter) -> BenchGpuResult:
    """The model in its runtime, or, where a backend opens no files, the layers of its frozen file."""
    from ofq_deploy.runtime_tests.speed.bench import image_shape
    from ofq_deploy.runtime_tests.speed.rounds import Protocol

    protocol, batches = Protocol(seconds=request.seconds), request.batches
    resolve_name(backend.available)()
    if backend.bench_layers:
        subject = find(request.model)
        if subject.frozen is None:
            raise RunError(
                f"no frozen file with the hash that {subject.path} names was found, and {backend.name} takes the layers "
                "from it; keep the model in its run folder"
            )
        result = resolve_name(backend.bench_layers)(subject.frozen, batches, report, protocol)
    else:
        subject = Subject(model_for(request.model, TARGETS[backend.rules_of]))
        with _baseline_of(subject, request.baseline) as (beside, _):
            shape = image_shape(subject.file, "model", batches)
            result = resolve_name(backend.bench_models)(subject.file, beside, batches, shape, report, protocol)
    size = subject.path.stat().st_size
    result["model"] |= {"path": str(subject.path), "sha256": subject.file.sha256, "file_bytes": size}
    return stamped(BenchGpuResult, request.line(), result)


@contextmanager
def _baseline_of(subject: Subject, baseline: Path | None) -> Iterator[tuple[OnnxFile | None, bool]]:
    """The baseline that was given, else the float model of the subject's run; and whether it is the latter."""
    run = None
    if baseline is None:
        run = _run_of(subject)
    if run is None:
        yield None if baseline is None else OnnxFile(baseline), False
        return
    with float_model(run) as file:
        yield file, True


def _run_of(subject: Subject) -> Run | None:
    """The run that a model was exported from; None when it is not found, and for models from elsewhere."""
    try:
        return subject.run
    except OnnxFileError:
        return None
