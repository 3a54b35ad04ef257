"""The whole path on the embedded data: train, export, prove, measure, report."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ofq_deploy import api
from ofq_deploy.files import refuse_existing, replacing
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.pages.card import write_card
from ofq_deploy.progress import Reporter
from ofq_deploy.recipe import load_recipe
from ofq_deploy.results.record import Result, keep, stamped, to_json

RECIPES = ("digits-w4a4", "digits-w2a2")
BENCH_SECONDS = 2.0
NOTE = (
    "Calls alternate with the float model's in one process, one thread, batch 1. These models are tiny (18 tokens of width "
    "64): the integer graph has more, smaller operators and is not faster than float here."
)


def run_demo(output: Path, seed: int, force: bool, report: Reporter) -> dict[str, Any]:
    """Fill a folder with two runs, their models, report.html and summary.json; return the summary.

    Nothing appears under `output` before everything is there. Raises OutputError when it exists already.
    """
    from ofq_deploy.pages.report import render

    refuse_existing(output, force)
    with replacing(output, force) as folder:
        folder.mkdir()
        made = [_one_model(folder, name, seed, report) for name in RECIPES]
        validation, measured, _ = made[0][1]
        summary = {
            "passed": all(results[0]["passed"] for _, results in made),
            "seed": seed,
            "float_top1": validation["top1_float"],
            "float_file_bytes": measured["baseline"]["file_bytes"],
            "models": [entry for entry, _ in made],
        }
        summary = stamped("demo", _command(seed), summary)
        (folder / "summary.json").write_text(to_json(summary), encoding="utf-8")
        shown = [result for _, results in made for result in results]
        page = render("ofq-deploy: low-bit vision transformers, proven", shown, NOTE)
        (folder / "report.html").write_text(page, encoding="utf-8")
    return summary


def _command(seed: int) -> str:
    return f"ofq-deploy demo --seed {seed}"


def _one_model(folder: Path, name: str, seed: int, report: Reporter) -> tuple[dict[str, Any], list[Result]]:
    """The model's entry in the summary; and what validate, bench and inspect say, paths relative to the folder."""
    recipe = replace(load_recipe(name), seed=seed)
    run = api.train(recipe, output=folder / name, device="cpu", report=report)
    model = api.export(run)
    validation = api.validate(model, report=report)
    measured = api.bench(model, seconds=BENCH_SECONDS, report=report)
    contents = api.inspect(model)
    bits = asdict(recipe.quantization)
    relative = str(model.relative_to(folder))
    validation["model"] = measured["model"]["path"] = contents["model"] = relative
    results = [result | {"command": _command(seed)} for result in (validation, measured, contents)]
    for result in results:
        keep(result, folder)
    write_card(OnnxFile(model), contents, results)
    entry = {
        "name": name,
        "weight_bits": bits["weight_bits"],
        "act_bits": bits["act_bits"],
        **{key: validation[key] for key in ("top1_torch", "top1_runtime", "agreement")},
        **{key: validation[key] for key in ("codes_compared", "codes_differing", "ties")},
        "file_bytes": measured["model"]["file_bytes"],
        "latency_ms_p50": measured["model"]["latency_ms"][0]["p50"],
        "model": relative,
    }
    return entry, results
