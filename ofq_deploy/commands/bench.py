"""What `bench` does: find the model and its baseline, and measure both on a CPU or a GPU."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ofq_deploy.commands.export import write_model
from ofq_deploy.errors import OnnxFileError, RunError, UnsupportedByTarget
from ofq_deploy.files import sha256
from ofq_deploy.progress import Reporter
from ofq_deploy.runs.folder import Run
from ofq_deploy.runs.subject import find, model_path, tensorrt_model

GPU_BACKENDS = ("tensorrt", "torch-cuda")


def bench_on_cpu(
    model: Path | None,
    backend: str,
    batches: tuple[int, ...],
    threads: int,
    seconds: float,
    baseline: Path | None,
    profile: bool,
    cpus: tuple[int, ...],
    report: Reporter,
) -> dict[str, Any]:
    """See ofq_deploy.api.bench."""
    from ofq_deploy.runtime_tests.runners.registry import check_backend
    from ofq_deploy.runtime_tests.speed.bench import bench as measure
    from ofq_deploy.runtime_tests.speed.bench import image_shape, pinned

    check_backend(backend, GPU_BACKENDS)
    if profile and backend != "ort-cpu":
        raise UnsupportedByTarget(f"no profile on backend {backend!r}; there is one on ort-cpu")
    path = model_path(model)
    with _baseline_of(path, baseline) as (baseline, is_own), pinned(cpus):
        threads = threads or len(cpus)
        result = measure(path, baseline, batches, threads, seconds, report, backend)
        if profile:
            from ofq_deploy.runtime_tests.speed.profile import profile as measure_operators

            for role, file in (("model", path), ("baseline", baseline)):
                if file is not None:
                    shape = (result[role]["latency_ms"][0]["batch"], *image_shape(file))
                    result[role]["profile"] = asdict(measure_operators(file, threads, shape))
        if is_own:
            result["baseline"]["path"] = "the run's float model"
    result["model"]["sha256"] = sha256(path)
    return result


def bench_on_gpu(
    model: Path | None,
    backend: str,
    batches: tuple[int, ...],
    seconds: float,
    baseline: Path | None,
    report: Reporter,
) -> dict[str, Any]:
    """See ofq_deploy.api.bench; on TensorRT, or in torch where there is none."""
    from ofq_deploy.runtime_tests.speed.bench import image_shape
    from ofq_deploy.runtime_tests.speed.rounds import Protocol

    protocol = Protocol(seconds=seconds)
    if backend == "torch-cuda":
        from ofq_deploy.runtime_tests.runners import cuda
        from ofq_deploy.runtime_tests.speed.torch_cuda import WITHOUT_GPU, bench_torch_cuda

        cuda.gpu(WITHOUT_GPU)
        found = find(model)
        if found.frozen is None:
            raise RunError(
                f"no frozen file with the hash that {found.model.path} names was found, and torch-cuda takes the layers "
                "from it; keep the model in its run folder"
            )
        path = found.model.path
        result = bench_torch_cuda(found.frozen, batches, report, protocol)
    else:
        from ofq_deploy.runtime_tests.runners.tensorrt import available
        from ofq_deploy.runtime_tests.speed.tensorrt_bench import bench_tensorrt

        available()
        path = tensorrt_model(model)
        with _baseline_of(path, baseline) as (baseline, _):
            shape = image_shape(path, "model", batches)
            result = bench_tensorrt(path, baseline, batches, shape, report, protocol)
    result["model"] |= {"path": str(path), "sha256": sha256(path), "file_bytes": path.stat().st_size}
    return {"schema": "ofq-deploy/bench-gpu/1", **result}


@contextmanager
def _baseline_of(model: Path, baseline: Path | None) -> Iterator[tuple[Path | None, bool]]:
    """The baseline that was given, else the float model of the model's run, as a file; and whether it is the latter."""
    run = _run_of(model) if baseline is None else None
    with tempfile.TemporaryDirectory() as folder:
        if run is not None:
            baseline = Path(folder) / "fp32.onnx"
            write_model(run, "fp32", baseline)
        yield baseline, run is not None


def _run_of(model: Path) -> Run | None:
    """The run that a model was exported from; None when it is not found, and for models from elsewhere."""
    try:
        return find(model).run
    except OnnxFileError:
        return None
