"""Exactness of 12-block models: every operator of the exported files against training, on real images.

    python benchmarks/exactness.py forms --init deit_tiny_patch16_224.safetensors --data imagenet20 \
        -o benchmarks/results/exactness_forms.json
    python benchmarks/exactness.py runs runs/deit-w2 runs/deit-w4 --data imagenet20 \
        -o benchmarks/results/exactness_runs.json
    python benchmarks/exactness.py table benchmarks/results/exactness_*.json

`forms` converts and calibrates the weights in every form (W2A2, W3A3, W4A4, W8A8, steps per token and tensor, both
attention forms; shifts set at random, some times wider than a short training leaves them), and feeds each operator of the targets torch's codes
in batches of 1, 3 and 8. `runs` does what `validate` does with trained runs: the proof, and accuracy on all images.
`table` prints the results as Markdown.
"""

import argparse
import itertools
import json
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ofq_deploy import api
from ofq_deploy.data import imagenet
from ofq_deploy.data.datasets import load_dataset
from ofq_deploy.environment import environment
from ofq_deploy.export.network import build
from ofq_deploy.export.write import write_checked
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.progress import Reporter
from ofq_deploy.recipe import Quantization
from ofq_deploy.runtime_tests.proof.parity import Parity
from ofq_deploy.runtime_tests.proof.proof import prove_operators, prove_weights
from ofq_deploy.targets import TARGETS
from ofq_deploy.train.convert import calibrate, convert
from ofq_deploy.train.freeze import freeze
from ofq_deploy.train.sources.timm_weights import load_pretrained, model_of, read_weights
from ofq_deploy.train.witness import TorchRunner

BATCHES = (1, 3, 8)
TARGET_NAMES = ("portable", "ort-cpu", "ort-ofq")
RESULTS: tuple[str, ...] = ("top1_float", "top1_torch", "top1_torch_float64", "top1_runtime", "agreement")
RESULTS += ("runtime_agrees_with_float64", "float32_agrees_with_float64", "test_images", "passed", "faults")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("forms", "runs"):
        command = commands.add_parser(name)
        command.add_argument("--data", required=True)
        command.add_argument("--images", type=int, default=16)
        command.add_argument("-o", "--output", type=Path, required=True)
        if name == "forms":
            command.add_argument("--init", type=Path, required=True)
            command.add_argument("--shift", type=float, default=0.01, help="spread of the random shifts")
            command.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4, 8])
            command.add_argument("--targets", nargs="+", choices=TARGET_NAMES, default=list(TARGET_NAMES))
        else:
            command.add_argument("runs", type=Path, nargs="+")
    commands.add_parser("table").add_argument("files", type=Path, nargs="+")
    arguments = parser.parse_args()
    if arguments.command == "table":
        print("\n\n".join(table(json.loads(path.read_text())) for path in arguments.files))
        return
    rows = (forms if arguments.command == "forms" else trained)(arguments, Reporter(quiet=False))
    found: list[dict[str, Any]] = []
    for row in rows:
        found.append(row)
        print(json.dumps(row), flush=True)
        result = {"date": datetime.now(UTC).date().isoformat(), "environment": environment(), "rows": found}
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


def forms(arguments: argparse.Namespace, report: Reporter) -> Any:
    weights = read_weights(arguments.init)
    sizes = model_of(weights, distilled=True)
    model, _ = load_pretrained(weights, sizes, imagenet.CLASSES)
    data = load_dataset(arguments.data, sizes.image_size, labels=imagenet.names())
    images = data.test.spread(arguments.images)
    steps, attention = ("token", "tensor"), ("qkr", "qk")
    for bits, step, form in itertools.product(arguments.bits, steps, attention):
        config = Quantization(bits, bits, attention=form, act_step=step)  # type: ignore[arg-type]
        torch.manual_seed(0)
        student, _ = convert(model, config)
        calibrate(student, torch.from_numpy(images[:8]))
        with torch.no_grad():
            for name, parameter in student.named_parameters():
                if name.endswith((".before", ".after")):
                    parameter.normal_(std=arguments.shift)
        calibrate(student, torch.from_numpy(images[:8]))  # the steps that fit the shifted inputs
        frozen = freeze(student.eval(), config, data.preprocessing, data.labels)
        leader = TorchRunner(student)
        for target in arguments.targets:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"{config.label}-{step}-{form}-{target}.onnx"
                write_checked(build(frozen, TARGETS[target]), path)
                stored = prove_weights(OnnxFile(path), frozen)
                runtime, in_torch = prove_operators(OnnxFile(path), frozen, images, leader, report, batches=BATCHES)
            row: dict[str, Any] = {"form": config.label, "steps": step, "attention": form, "target": target}
            row |= {"images": len(images), "shift": arguments.shift, "weights": asdict(stored)}
            yield row | {"runtime": _counts(runtime), "torch": _counts(in_torch)}


def trained(arguments: argparse.Namespace, report: Reporter) -> Any:
    for run in arguments.runs:
        with tempfile.TemporaryDirectory() as folder:
            model = api.export(run, target="ort-cpu", output=Path(folder) / "model.onnx")
            proof = api.validate(model, run=run, data=arguments.data, images=arguments.images, report=report)
        operators = {entry["witness"]: entry for entry in proof["operators"]}
        row = {"run": run.name, "target": "ort-cpu", "images": arguments.images, "weights": proof["weights"]}
        row |= {
            "form": "W{weight_bits}A{act_bits}".format(**_quantization(run)),
            "steps": _quantization(run)["act_step"],
        }
        row |= {"attention": _quantization(run)["attention"], "free_run": proof["free_run"]}
        row |= {"runtime": operators["ort-cpu"], "torch": operators["torch"]}
        yield row | {key: proof[key] for key in RESULTS}


def table(result: dict[str, Any]) -> str:
    """Codes compared, equal and ties by form; for runs also accuracy, beside torch's own noise."""
    rows = result["rows"]
    is_run = "run" in rows[0]
    heads = ["form", "steps", "attention", "target", "weight codes", "codes compared", "differ", "of them ties"]
    heads += ["torch float32: differ", "ties", "verdict"]
    heads += (
        ["top-1 runtime / torch float32 / float64 / float model", "equal to float64: runtime / torch float32"]
        if is_run
        else []
    )
    lines = [heads, ["---"] * len(heads)]
    total = 0
    for row in rows:
        runtime, in_torch, weights = row["runtime"], row["torch"], row["weights"]
        compared = runtime["codes_compared"]
        total += compared
        stored = weights.get("compared", weights.get("codes_compared"))
        cells = [row["form"], row["steps"], row["attention"], row["target"], f"{stored:,}", f"{compared:,}"]
        cells += [runtime["codes_differing"], runtime["ties"], in_torch["codes_differing"], in_torch["ties"]]
        wrong = weights.get("differing", weights.get("codes_differing"))
        cells.append("exact" if runtime["passed"] and in_torch["passed"] and not wrong else "DIFFERS")
        if is_run:
            cells[0] = f"{row['run']} ({row['form']})"
            shares = (row.get(f"top1_{name}") for name in ("runtime", "torch", "torch_float64", "float"))
            cells.append(" / ".join("-" if share is None else f"{share:.1f}" for share in shares))
            agree = row["runtime_agrees_with_float64"], row["float32_agrees_with_float64"]
            cells.append(f"{agree[0]} / {agree[1]} of {row['test_images']}")
        lines.append([str(cell) for cell in cells])
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{text}\n\n{total:,} activation codes compared; {result['date']}"


def _counts(proof: Parity) -> dict[str, Any]:
    counts = {"codes_compared": proof.compared, "codes_differing": proof.differing, "ties": proof.ties}
    return counts | {"worst_float_error": proof.worst_float_error, "passed": proof.passed, "faults": proof.faults()}


def _quantization(run: Path) -> dict[str, Any]:
    return asdict(api.load_frozen(run / "frozen.safetensors").quantization)


if __name__ == "__main__":
    main()
