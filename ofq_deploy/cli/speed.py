"""The commands that measure and tell: bench, report."""

from pathlib import Path
from typing import Annotated

import typer

from ofq_deploy.cli.common import AsJson, Force, JsonFile, Page, Quiet, Subject, finish, refuse
from ofq_deploy.cli.speed_texts import bench_text, gpu_bench_text
from ofq_deploy.commands.requests import BenchRequest, ReportRequest
from ofq_deploy.progress import Reporter


def bench(
    model: Subject = None,
    backend: Annotated[
        str, typer.Option(help="Runtime: ort-cpu, openvino, tensorrt, torch-cuda (docs/gpu.md).")
    ] = BenchRequest.backend,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, max=65536, help="Batch size; may be given again [default: 1].")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0 for one per core.")] = BenchRequest.threads,
    seconds: Annotated[float, typer.Option(min=0, max=86400, help="Time per batch size.")] = BenchRequest.seconds,
    baseline: Annotated[
        Path | None, typer.Option(help="ONNX file to compare with [default: the run's float model].")
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Where the time goes, by operator and role.")] = False,
    affinity: Annotated[
        str | None, typer.Option(metavar="CPU,...", help="CPUs to stay on, as 0,1 [default: all that are allowed].")
    ] = None,
    page: Page = None,
    output: JsonFile = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure a model's speed, in turn with a float baseline.

    Latency, load time, memory, arithmetic and executed operators. A speed-up is the ratio of median wall times with a 95 % interval; where that is wide, it says so.

    The result of a model in a run folder is kept beside it, as MODEL.bench.BACKEND.json, for: ofq-deploy report

    Example: ofq-deploy bench --backend ort-cpu --batch 1 --batch 8 --threads 1
    """
    from ofq_deploy.commands.bench import bench as measure
    from ofq_deploy.results.bench_gpu import BenchGpuResult

    refuse(output, force)
    cpus = [] if affinity is None else affinity.split(",")
    if not all(cpu.isdecimal() for cpu in cpus):
        raise typer.BadParameter(f"{affinity!r} is no list of CPU numbers, such as 0,1", param_hint="--affinity")
    refuse(page, force, output)
    request = BenchRequest(
        model=model,
        backend=backend,
        batches=tuple(batch or BenchRequest.batches),
        threads=threads,
        seconds=seconds,
        baseline=baseline,
        profile=profile,
        affinity=tuple(map(int, cpus)),
    )
    result = measure(request, Reporter(quiet))
    if isinstance(result, BenchGpuResult):
        finish(result, gpu_bench_text(result), as_json, output, force, page, passed=result.passed)
    else:
        finish(result, bench_text(result), as_json, output, force, page)


def report(
    subject: Annotated[
        Path | None, typer.Argument(metavar="[RUN|FOLDER]", help="A folder with results [default: the newest run].")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="HTML file to write [default: report.html in the folder].")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write one HTML page about all results in a folder.

    It tells of the models there too, whose cards are brought up to date. Results are those that validate and bench kept in a run folder, or wrote with -o.

    Example: ofq-deploy report runs/digits-w4a4 -o report.html
    """
    from ofq_deploy.commands.report import report as run

    result = run(ReportRequest(subject=subject, output=output, force=force), Reporter(quiet))
    finish(result, result.report, as_json)
