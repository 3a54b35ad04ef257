"""Top-1 with one activation step per tensor beside one per token, over several seeds.

    python benchmarks/step_granularity.py run --init deit_tiny_patch16_224.safetensors --data imagenet20 \
        -o benchmarks/results/step_granularity.json
    python benchmarks/step_granularity.py table benchmarks/results/step_granularity.json

`run` trains pretrained weights by the recipe `finetune` (200 steps on 800 images) in both attention forms, and the
digits recipes, each with both kinds of step and otherwise the same settings, seed, batches and augmentation. Top-1 is
what `train` reports: torch in float32 on all test images. Every finished run is kept in the output; the same command
continues there. `table` prints the results as Markdown.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any

from ofq_deploy import api
from ofq_deploy.data.datasets import load_dataset
from ofq_deploy.environment import environment
from ofq_deploy.files import replacing
from ofq_deploy.progress import Reporter
from ofq_deploy.runs.folder import load_run
from ofq_deploy.runtime_tests.proof.accuracy import interval

SEEDS = (0, 1, 2)
STEPS = ("token", "tensor")


@dataclass(frozen=True, slots=True)
class Form:
    """What is trained with either kind of step; its weights and activations have the same bits."""

    recipe: str
    attention: str
    bits: int


# The most telling first, so that an early end leaves whole comparisons.
FORMS = (
    Form("finetune", "qk", 4),
    Form("finetune", "qk", 3),
    Form("digits-w4a4", "qkr", 4),
    Form("digits-w2a2", "qkr", 2),
    Form("finetune", "qkr", 4),
    Form("finetune", "qkr", 3),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run")
    command.add_argument("--init", type=Path, required=True)
    command.add_argument("--data", type=Path, required=True)
    command.add_argument("-o", "--output", type=Path, required=True)
    commands.add_parser("table").add_argument("file", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "table":
        print(table(json.loads(arguments.file.read_text())))
    else:
        run(arguments.init, arguments.data, arguments.output, Reporter(quiet=False))


def run(init: Path, data: Path, output: Path, report: Reporter) -> None:
    """Train what `output` does not hold yet."""
    origin = {"init": init.name, "data": data.name, "environment": environment()}
    result: dict[str, Any] = {"date": "", **origin, "rows": []}
    if output.exists():
        result = json.loads(output.read_text())
        if {key: result[key] for key in origin} != origin:
            raise SystemExit(f"{output} was begun with other weights, images or versions; give another -o")
    cells = [{**asdict(form), "seed": seed, "step": step} for form in FORMS for seed in SEEDS for step in STEPS]
    rows = result["rows"]
    done = [{key: row[key] for key in cells[0]} for row in rows]
    waiting = [cell for cell in cells if cell not in done]
    with tempfile.TemporaryDirectory() as folder:
        while waiting:
            report.say(f"{len(rows)} of {len(cells)} runs done, {_time_left(waiting, rows)}; now {waiting[0]}")
            rows.append(_trained(waiting.pop(0), init, data, Path(folder), report))
            result["date"] = datetime.now(UTC).date().isoformat()
            print(json.dumps(rows[-1]), flush=True)
            with replacing(output, force=True) as temporary:
                temporary.write_text(json.dumps(result, indent=2) + "\n")


def _trained(cell: dict[str, Any], init: Path, data: Path, folder: Path, report: Reporter) -> dict[str, Any]:
    """The cell with its top-1. Runs of one seed share a float teacher, which is kept in `folder`."""
    changes = {
        "seed": cell["seed"],
        "quantization.attention": cell["attention"],
        "quantization.act_step": cell["step"],
        "quantization.weight_bits": cell["bits"],
        "quantization.act_bits": cell["bits"],
    }
    if cell["recipe"] == "finetune":
        changes |= {"init": str(init), "data": str(data)}
    start = time.monotonic()
    made = load_run(
        api.train(cell["recipe"], output=folder / "run", overrides=changes, device="cpu", force=True, report=report)
    )
    images = len(load_dataset(made.recipe.data, made.recipe.model.image_size).test)
    top1, top1_float = made.manifest["results"]["test_top1"], made.manifest["results"]["teacher_test_top1"]
    found = {"top1": top1, "top1_interval": interval(round(top1 * images / 100), images), "top1_float": top1_float}
    return {**cell, **found, "test_images": images, "seconds": round(time.monotonic() - start)}


def _time_left(waiting: list[dict[str, Any]], rows: list[dict[str, Any]]) -> str:
    """By the mean time of the finished runs of the same recipe, of all where it has none."""
    if not rows:
        return "time left not known yet"
    seconds = 0.0
    for cell in waiting:
        alike = [row["seconds"] for row in rows if row["recipe"] == cell["recipe"]]
        seconds += mean(alike or [row["seconds"] for row in rows])
    return f"about {seconds / 60:.0f} min left"


def table(result: dict[str, Any]) -> str:
    """Mean and range over seeds of both kinds of step, and of the difference at the same seed."""
    heads = ["recipe", "attention", "bits", "seeds", "float", *(f"step per {step}" for step in STEPS)]
    heads += ["tensor - token", "at each seed"]
    lines = [heads, ["---"] * len(heads)]
    for form in FORMS:
        rows = [row for row in result["rows"] if all(row[key] == value for key, value in asdict(form).items())]
        token, tensor = ({row["seed"]: row["top1"] for row in rows if row["step"] == step} for step in STEPS)
        seeds = sorted(token.keys() & tensor.keys())
        cells = [form.recipe, form.attention, f"W{form.bits}A{form.bits}", str(len(seeds))]
        if not seeds:
            lines.append([*cells, *["not run"] * (len(heads) - len(cells))])
            continue
        gains = [tensor[seed] - token[seed] for seed in seeds]
        cells.append(_spread([row["top1_float"] for row in rows if row["seed"] in seeds]))
        cells += [_spread([tops[seed] for seed in seeds]) for tops in (token, tensor)]
        lines.append([*cells, f"{mean(gains):+.2f}", ", ".join(f"{gain:+.2f}" for gain in gains)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _spread(values: list[float]) -> str:
    if min(values) == max(values):
        return f"{values[0]:.2f}"
    return f"{mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
