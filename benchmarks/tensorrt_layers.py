"""What TensorRT's compiler makes of DeiT-T in every form: products in int8 and in float. Needs no GPU.

    python benchmarks/tensorrt_layers.py -o benchmarks/results/tensorrt_layers.json

224 x 224, 12 blocks, random weights, converted and calibrated. A product of the file is a MatMul; a layer is what the
engine executes, and may hold several products of one input.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import timm
import torch

from ofq_deploy.data.datasets import folder_preprocessing
from ofq_deploy.environment import environment
from ofq_deploy.export.network import build
from ofq_deploy.export.write import write_checked
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.recipe import Quantization
from ofq_deploy.runtime_tests.lint.tensorrt_check import check
from ofq_deploy.targets import TARGETS
from ofq_deploy.train.convert import calibrate, convert
from ofq_deploy.train.freeze import freeze

WIDTHS = [(2, 2), (3, 3), (4, 4), (8, 8), (2, 4)]
HEADER = "| form | steps | attention | products | in int8 | small | other float | int8 layers | float | dequantizing | layers | plan MB | build s |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    network: Any = timm.create_model("deit_tiny_patch16_224").eval()
    rows = []
    print(HEADER + "\n" + "| --- " * HEADER.count(" | ") + "| --- |")
    for row in measure(network):
        rows.append(row)
        print(markdown(row), flush=True)
    result = {"date": datetime.now(UTC).date().isoformat(), "environment": environment(), "rows": rows}
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


def measure(network: Any) -> Iterator[dict[str, Any]]:
    images = torch.randn(2, 3, 224, 224)
    for (weight_bits, act_bits), act_step, attention in product(WIDTHS, ("token", "tensor"), ("qkr", "qk")):
        config = Quantization(weight_bits, act_bits, act_step=act_step, attention=attention)  # type: ignore[arg-type]
        student, _ = convert(network, config)
        calibrate(student, images)
        frozen = freeze(student, config, folder_preprocessing(224), tuple(map(str, range(1000))))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            write_checked(build(frozen, TARGETS["tensorrt"]), path)
            found = check(OnnxFile(path))
        form = {"form": f"W{weight_bits}A{act_bits}", "steps": act_step, "attention": attention}
        yield form | asdict(found) | {"passed": found.passed}


def markdown(row: dict[str, Any]) -> str:
    cells = [row["form"], row["steps"], row["attention"], row["expected"], row["int8"], len(row["small"])]
    cells += [len(row["in_float"]), row["int8_gemms"], row["float_gemms"], row["dequantizing_gemms"], row["layers"]]
    return f"| {' | '.join(map(str, cells))} | {row['plan_bytes'] / 1e6:.1f} | {row['build_seconds']:.1f} |"


if __name__ == "__main__":
    main()
