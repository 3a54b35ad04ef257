"""Bytes, load time and memory of exported DeiT-T and DeiT-S at every width.

    python benchmarks/sizes.py -o benchmarks/results/sizes.json

Distilled, 224 x 224, random weights, ImageNet's labels. Load is the CPU time to open a session of one thread, the
median over rounds that open every model in turn; memory is the growth of a fresh process that loads a model and runs
it once. Both stand beside the float model's.
"""

import argparse
import json
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from safetensors.torch import save_file

from ofq_deploy.data import imagenet
from ofq_deploy.data.datasets import folder_preprocessing
from ofq_deploy.environment import environment
from ofq_deploy.export.fp32 import build_fp32
from ofq_deploy.export.network import build
from ofq_deploy.export.write import write_checked
from ofq_deploy.model.contents import contents
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.progress import Reporter
from ofq_deploy.recipe import Quantization
from ofq_deploy.runtime_tests.runners.ort import open_session
from ofq_deploy.runtime_tests.speed.probe import probe
from ofq_deploy.targets import TARGETS
from ofq_deploy.train.convert import calibrate, convert
from ofq_deploy.train.freeze import freeze

MODELS = {"DeiT-T": "deit_tiny_distilled_patch16_224", "DeiT-S": "deit_small_distilled_patch16_224"}
FORMS: dict[str, dict[str, Any]] = {
    "qk, tensor steps, no shifts": {"attention": "qk", "act_step": "tensor", "shifts": False},
    "qkr, token steps + shifts": {"attention": "qkr", "act_step": "token"},
}
IMAGE = (1, 3, 224, 224)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    report, rows = Reporter(quiet=False), []
    for model in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            files = write(model, Path(folder))
            rows += measure(model, files, arguments.rounds, report)
    print(markdown(rows))
    result = {"date": datetime.now(UTC).date().isoformat(), "environment": environment(), "rows": rows}
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


def write(model: str, folder: Path) -> dict[tuple[str, str, str], Path]:
    """Every file of one network by form, width and target; the float one first."""
    torch.manual_seed(0)
    network: Any = timm.create_model(MODELS[model]).eval()
    save_file(network.state_dict(), folder / "weights.safetensors")
    files: dict[tuple[str, str, str], Path] = {}
    for form, choices in FORMS.items():
        for bits in (2, 3, 4):
            config = Quantization(bits, bits, **choices)
            student, _ = convert(network, config)
            calibrate(student, torch.randn(2, *IMAGE[1:]))
            frozen = freeze(student, config, folder_preprocessing(IMAGE[-1]), imagenet.names())
            if not files:
                files["", "float", "fp32"] = folder / "fp32.onnx"
                write_checked(build_fp32(frozen, folder / "weights.safetensors"), folder / "fp32.onnx")
            for target in ("ort-cpu", "portable"):
                path = files[form, config.label, target] = folder / f"{len(files)}.onnx"
                write_checked(build(frozen, TARGETS[target]), path)
    return files


def measure(model: str, files: dict[tuple[str, str, str], Path], rounds: int, report: Reporter) -> list[dict[str, Any]]:
    times: dict[Path, list[float]] = {path: [] for path in files.values()}
    with report.task(f"load {model}", rounds) as advance:
        for _ in range(rounds):
            for path, own in times.items():
                start = time.process_time()
                open_session(path, threads=1)
                own.append(1000 * (time.process_time() - start))
            advance()
    costs = {path: probe("ort-cpu", path, 1, IMAGE) for path in times}
    first = next(iter(times))
    return [
        {
            "model": model,
            "form": form,
            "width": width,
            "target": target,
            "file_bytes": path.stat().st_size,
            "bytes_by_kind": contents((file := OnnxFile(path)).proto, file.described, None)["bytes_by_kind"],
            "load_cpu_ms": median(times[path]),
            "load_ratio": median(times[path]) / median(times[first]),
            "peak_mb": costs[path].peak_mb,
            "peak_ratio": costs[path].peak_mb / costs[first].peak_mb,
        }
        for (form, width, target), path in files.items()
    ]


def markdown(rows: list[dict[str, Any]]) -> str:
    heads = ["model", "form", "width", "target", "bytes", "of them graph", "load beside float", "memory beside float"]
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        sizes = f"{row['file_bytes']:,}", f"{row['bytes_by_kind']['graph']:,}"
        costs = f"{row['load_ratio']:.2f}", f"{row['peak_ratio']:.2f}"
        lines.append([row["model"], row["form"], row["width"], row["target"], *sizes, *costs])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main()
