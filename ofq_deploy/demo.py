"""The whole path on the embedded data: train, export, prove, measure, report."""

from dataclasses import replace
from pathlib import Path

import msgspec

from ofq_deploy.commands.bench import bench_on_cpu
from ofq_deploy.commands.export import export
from ofq_deploy.commands.inspect import inspect
from ofq_deploy.commands.report import page, update_card
from ofq_deploy.commands.requests import (
    BenchRequest,
    DemoRequest,
    ExportRequest,
    InspectRequest,
    TrainRequest,
    ValidateRequest,
)
from ofq_deploy.commands.train import train
from ofq_deploy.commands.validate import validate_model
from ofq_deploy.errors import BackendMissing
from ofq_deploy.files import refuse_existing, replacing
from ofq_deploy.kernels import library_path
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.progress import Reporter
from ofq_deploy.recipe import load_recipe
from ofq_deploy.results.bench import BenchResult
from ofq_deploy.results.models import DemoResult, InspectResult
from ofq_deploy.results.proof import ProofResult
from ofq_deploy.results.record import Kind, Table, keep, moved, stamped, to_json
from ofq_deploy.targets import DEFAULT, ORT_OFQ, Target

Measured = tuple[ProofResult, BenchResult, InspectResult]  # what is told of a model

RECIPES = ("digits-w4a4", "digits-w2a2")
BENCH_SECONDS = 2.0
NOTE = "Calls alternate with the float model's in one process, one thread, batch 1."
WITHOUT_FUSED = (
    " These models are tiny (18 tokens of width 64): a graph of ordinary integer operators has more, smaller ones and is not faster "
    "than float here. That of fused ones is: pip install 'ofq-deploy[kernels]'."
)


def run_demo(request: DemoRequest, report: Reporter) -> DemoResult:
    """Fill a folder with two runs, their models, report.html and summary.json; return the summary.

    Nothing appears under `output` before everything is there. Raises OutputError when it exists already.
    """
    refuse_existing(request.output, request.force)
    with replacing(request.output, request.force) as folder:
        folder.mkdir()
        results = {name: _one_model(folder, request, name, report) for name in RECIPES}
        validation, measured, _ = results[RECIPES[0]]
        assert measured.baseline, "a run has a float model"
        summary = {
            "passed": all(validation.passed for validation, _, _ in results.values()),
            "seed": request.seed,
            "float_top1": validation.top1_float,
            "float_file_bytes": measured.baseline.file_bytes,
            "models": [_student(name, *told) for name, told in results.items()],
        }
        result = stamped(DemoResult, _line(request), summary)
        (folder / "summary.json").write_text(to_json(result), encoding="utf-8")
        shown = [result for told in results.values() for result in told]
        note = NOTE if _target() is ORT_OFQ else NOTE + WITHOUT_FUSED
        html = page("ofq-deploy: low-bit vision transformers, proven", shown, note)
        (folder / "report.html").write_text(html, encoding="utf-8")
    return result


def _line(request: DemoRequest) -> str:
    """The command that makes the folder again, wherever it lies."""
    return replace(request, output=DemoRequest.output).line()


def _one_model(folder: Path, request: DemoRequest, name: str, report: Reporter) -> Measured:
    """What validate, bench and inspect say of a model that is trained for it, paths relative to the folder."""
    recipe = replace(load_recipe(name), seed=request.seed)
    run = Path(train(TrainRequest(recipe=recipe, output=folder / name, device="cpu"), report).run)
    model = Path(export(ExportRequest(run=run, target=_target().name)).model)
    relative, line = str(model.relative_to(folder)), _line(request)
    validation = validate_model(ValidateRequest(subject=model), report)
    measured = bench_on_cpu(BenchRequest(model=model, seconds=BENCH_SECONDS), report)
    contents = inspect(InspectRequest(subject=model))
    told = (
        _in_demo(validation, relative, line),
        _in_demo(measured, relative, line),
        _in_demo(contents, relative, line),
    )
    for result in told:
        keep(result, folder)
    update_card(OnnxFile(model), told[-1], told)
    return told


def _target() -> Target:
    """Fused operators where their library is installed."""
    try:
        library_path()
    except BackendMissing:
        return DEFAULT
    return ORT_OFQ


def _in_demo(result: Kind, model: str, line: str) -> Kind:
    return msgspec.structs.replace(moved(result, model), command=line)


def _student(name: str, validation: ProofResult, measured: BenchResult, contents: InspectResult) -> Table:
    """A model's entry in the summary."""
    return {
        "name": name,
        **{key: contents.quantization[key] for key in ("weight_bits", "act_bits")},
        **{key: getattr(validation, key) for key in ("top1_torch", "top1_runtime", "agreement")},
        **{key: getattr(validation, key) for key in ("codes_compared", "codes_differing", "ties")},
        "file_bytes": measured.model.file_bytes,
        "latency_ms_p50": measured.model.latency_ms[0].p50,
        "model": contents.model,
    }
