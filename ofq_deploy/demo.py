"""The whole path on the embedded data: train, export, prove, measure, report."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ofq_deploy import api
from ofq_deploy.environment import environment
from ofq_deploy.files import refuse_existing, replacing
from ofq_deploy.progress import Reporter
from ofq_deploy.recipe import load_recipe

RECIPES = ("digits-w4a4", "digits-w2a2")
BENCH_SECONDS = 2.0


def run_demo(output: Path, seed: int, force: bool, report: Reporter) -> dict[str, Any]:
    """Fill a folder with two runs, their models, report.html and summary.json; return the summary.

    Nothing appears under `output` before everything is there. Raises OutputError when it exists already.
    """
    from ofq_deploy.report import render

    refuse_existing(output, force)
    with replacing(output, force) as folder:
        folder.mkdir()
        models, details = [], []
        for name in RECIPES:
            entry, detail = _one_model(folder, name, seed, report)
            models.append(entry)
            details.append(detail)
        summary = {
            "passed": all(detail["validation"]["passed"] for detail in details),
            "seed": seed,
            "float_top1": details[0]["validation"]["top1_float"],
            "float_file_bytes": details[0]["bench"]["baseline"]["file_bytes"],
            "models": models,
            "environment": environment(),
        }
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        (folder / "report.html").write_text(render(summary, details), encoding="utf-8")
    return summary


def _one_model(folder: Path, name: str, seed: int, report: Reporter) -> tuple[dict[str, Any], dict[str, Any]]:
    recipe = replace(load_recipe(name), seed=seed)
    run = api.train(recipe, output=folder / name, device="cpu", report=report)
    model = api.export(run)
    validation = api.validate(model, report=report)
    measured = api.bench(model, seconds=BENCH_SECONDS, report=report)
    contents = api.inspect(model)
    bits = asdict(recipe.quantization)
    relative = str(model.relative_to(folder))
    validation["model"] = measured["model"]["path"] = contents["model"] = relative
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
    return entry, {"validation": validation, "bench": measured, "contents": contents}
