"""Accuracy of the official checkpoint, of a float DeiT-T and of others' int8 of it, on every backend; and who agrees.

    python benchmarks/backends.py -o docs/results/backends.json

Needs the folder that OFQ_SHARED names (docs/data.md says what it holds): OFQ's official W4A4 DeiT-T checkpoint, DeiT-T's
float weights, imagenet20/val (1000 validation images of 20 ImageNet classes; argmax over all 1000 classes) and nips1000
(1000 photographs with ImageNet labels). ONNX Runtime's and NNCF's quantizers are calibrated on imagenet20/train. About an hour on two busy
cores. `--table` prints the Markdown of a result.
"""

import argparse
import contextlib
import itertools
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peers import export_float, quantized_by_onnxruntime

from ofq_deploy import api
from ofq_deploy.data import imagenet
from ofq_deploy.data.datasets import Split, folder_preprocessing, load_dataset
from ofq_deploy.environment import environment
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.model.frozen import load_frozen
from ofq_deploy.progress import Reporter
from ofq_deploy.runs.folder import load_run
from ofq_deploy.runtime_tests.proof.accuracy import Accuracy, measure_accuracy, paired
from ofq_deploy.runtime_tests.runners.executed import executed_operators

SHARED = Path(os.environ.get("OFQ_SHARED", ""))
CHECKPOINT = SHARED / "ofq-official" / "deit_t_w4a4_qkr.pth.tar"
WEIGHTS = SHARED / "weights" / "deit_tiny_patch16_224.safetensors"
IMAGENET20, NIPS1000 = SHARED / "data" / "imagenet20", SHARED / "data" / "nips1000"
CALIBRATION_IMAGES = 64
SIZE = 224
Predictions = dict[tuple[str, str], Accuracy]  # by model and backend


@dataclass(frozen=True, slots=True)
class Subject:
    """A model file, and the backends that run it."""

    name: str
    path: Path
    backends: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="of each data set")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--table", type=Path, help="print the tables of a result instead")
    arguments = parser.parse_args()
    if arguments.table:
        print(tables(json.loads(arguments.table.read_text())))
        return
    if not os.environ.get("OFQ_SHARED"):
        parser.exit(2, "backends: let OFQ_SHARED name a folder of models and images as docs/data.md describes it\n")
    logging.disable(logging.WARNING)  # the peers' own remarks
    warnings.simplefilter("ignore")
    report = Reporter(quiet=False)
    result: dict[str, Any] = {"date": datetime.now(UTC).date().isoformat(), "environment": environment()}
    with contextlib.suppress(metadata.PackageNotFoundError):
        result["environment"]["packages"]["nncf"] = metadata.version("nncf")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        run = api.import_checkpoint(CHECKPOINT, output=Path(folder) / "official")
        subjects = [*official(run), *peers(Path(folder), report)]
        result["files"] = {
            subject.name: {
                "bytes": subject.path.stat().st_size,
                "products": dict(zip(("integer", "float", "small"), _products(subject.path), strict=True)),
            }
            for subject in subjects
        }
        for name, split in data_sets(arguments.images).items():
            report.say(name)
            made = {
                (subject.name, backend): measure_accuracy(OnnxFile(subject.path), split, report, backend)
                for subject in subjects
                for backend in subject.backends
            }
            made |= in_torch(run, split, report)
            result[name] = rows(made)
            if name == "nips1000":
                result["agreement"] = agreement(made)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(tables(result))


def data_sets(images: int) -> dict[str, Split]:
    """Both data sets, the first so many images of each evenly spread, by name."""
    how, labels = folder_preprocessing(SIZE), imagenet.names()
    places = {"imagenet20/val": IMAGENET20 / "val", "nips1000": table_of_nips()}
    found = {}
    for name, place in places.items():
        found[name] = spread(load_dataset(str(place), SIZE, how, labels).test, images)
    return found


def spread(split: Split, images: int) -> Split:
    """So many of its images, evenly spread."""
    chosen = np.arange(0, len(split), max(1, len(split) // images))[:images]
    return Split(split.classes[chosen], lambda index: split.load(int(chosen[index])))


def table_of_nips() -> Path:
    """nips1000's labels as a table that `--data` reads, in a temporary file beside nothing: paths are absolute."""
    import csv

    root = NIPS1000.resolve()
    path = Path(tempfile.mkdtemp()) / "nips1000.csv"
    with (root / "labels.csv").open(newline="", encoding="utf-8") as source, path.open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(["file", "label"])
        for row in csv.DictReader(source):
            file = Path(row["file"])
            writer.writerow([root / file if (root / file).is_file() else root / "images" / file, row["label"]])
    return path


# The files.


def official(run: Path) -> Iterator[Subject]:
    """Our exports of the official checkpoint. It has a step per token, so there is no form for OpenVINO."""
    for target in ("ort-cpu", "portable", "tensorrt"):
        yield Subject(f"OFQ W4A4, {target}", api.export(run, target=target), ("ort-cpu", "openvino"))


def peers(folder: Path, report: Reporter) -> Iterator[Subject]:
    """The float DeiT-T, and what ONNX Runtime's and NNCF's quantizers make of it."""
    source = folder / "float.onnx"
    export_float(float_network(), (3, SIZE, SIZE), source)
    yield Subject("float32", source, ("ort-cpu", "openvino"))
    images = calibration_images()
    report.say("quantize_dynamic")
    yield Subject(
        "ONNX Runtime quantize_dynamic",
        quantized_by_onnxruntime(source, "image", images, is_static=False),
        ("ort-cpu", "openvino"),
    )
    report.say("quantize_static")
    yield Subject(
        "ONNX Runtime quantize_static",
        quantized_by_onnxruntime(source, "image", images, is_static=True),
        ("ort-cpu", "openvino"),
    )
    report.say("NNCF")
    yield Subject("NNCF int8", nncf_quantized(source, images), ("ort-cpu", "openvino"))


def float_network() -> Any:
    """timm's DeiT-T with the weights of `WEIGHTS`."""
    import timm
    from safetensors.torch import load_file

    network: Any = timm.create_model("deit_tiny_patch16_224").eval()
    network.load_state_dict(load_file(WEIGHTS), strict=True)
    return network


def calibration_images() -> list[NDArray[np.float32]]:
    split = load_dataset(str(IMAGENET20 / "train"), SIZE, folder_preprocessing(SIZE), None).test
    return [image[None] for image in split.spread(CALIBRATION_IMAGES)]


def nncf_quantized(source: Path, images: list[NDArray[np.float32]]) -> Path:
    """NNCF's quantizer on the ONNX file itself, with its preset for transformers."""
    import nncf
    import onnx

    data = nncf.Dataset([{"image": image} for image in images])
    kind = nncf.ModelType.TRANSFORMER
    model = nncf.quantize(onnx.load(source), data, model_type=kind, subset_size=len(images))
    path = source.with_suffix(".nncf.onnx")
    onnx.save(model, path)
    return path


def _products(path: Path) -> tuple[int, int, int]:
    executed = executed_operators(OnnxFile(path))
    return executed.integer, executed.float, executed.small


# What they say.


def in_torch(run: Path, split: Split, report: Reporter) -> Predictions:
    """The official checkpoint as our training code computes it, in float32 and float64; and the float DeiT-T."""
    import torch

    from ofq_deploy.train.reference import load_student
    from ofq_deploy.train.witness import TorchRunner

    student = load_student(load_run(run), load_frozen(run / "frozen.safetensors"))
    found: Predictions = {}
    for name, dtype in (("torch float32", torch.float32), ("torch float64", torch.float64)):
        with TorchRunner(student, dtype) as runner:
            ranked = _ranked(lambda images, own=runner: logits_of(own, images), split, report, name)
        found["OFQ W4A4", name] = Accuracy(ranked, split.classes, 0.0)
    network = float_network()
    with torch.no_grad():
        ranked = _ranked(lambda images: network(torch.from_numpy(images)).numpy(), split, report, "float32 in torch")
    found["float32", "torch float32"] = Accuracy(ranked, split.classes, 0.0)
    return found


def logits_of(runner: Any, images: NDArray[np.float32]) -> NDArray[np.float32]:
    return runner.infer({"image": images})["logits"]


def _ranked(run: Any, split: Split, report: Reporter, name: str) -> NDArray[np.int64]:
    ranked = []
    with report.task(name, -(-len(split) // 32)) as advance:
        for images, _ in split.batches(32):
            ranked.append(np.argsort(-run(images), axis=-1, kind="stable")[:, :5])
            advance()
    return np.concatenate(ranked)


def rows(made: Predictions) -> list[dict[str, Any]]:
    """Accuracy of each, and beside the float model in ONNX Runtime."""
    reference = made["float32", "ort-cpu"]
    return [
        {"model": model, "backend": backend, **own.table(), **paired(own, reference)}
        for (model, backend), own in made.items()
    ]


def agreement(made: Predictions) -> list[dict[str, Any]]:
    """Every two backends of one model (our files of one checkpoint count as one model): share of equal predictions."""
    groups: dict[str, list[tuple[str, Accuracy]]] = {}
    for (model, backend), own in made.items():
        kind, _, target = model.partition(", ")
        groups.setdefault(kind, []).append((f"{target} in {backend}" if target else backend, own))
    return [
        {"model": kind, "a": a, "b": b, "agreement": paired(one, other)["agreement"]}
        for kind, members in groups.items()
        for (a, one), (b, other) in itertools.combinations(members, 2)
    ]


def tables(result: dict[str, Any]) -> str:
    """The results as Markdown."""
    packages = result["environment"]["packages"]
    versions = ", ".join(
        f"{name} {packages[name]}" for name in ("torch", "onnxruntime", "openvino", "nncf") if name in packages
    )
    lines = [f"{result['date']}, {result['environment']['cpu']}, {versions}"]
    for name in ("imagenet20/val", "nips1000"):
        lines += ["", f"### {name}, {result[name][0]['images']} images", ""]
        lines += ["| model | backend | top-1 | 95 % | top-5 | same as float | alone right: model / float | McNemar p |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        lines += [
            f"| {row['model']} | {row['backend']} | {row['top1']:.1f} | {row['top1_interval'][0]:.1f} to "
            f"{row['top1_interval'][1]:.1f} | {row['top5']:.1f} | {row['agreement']:.1f} | "
            f"{row['only_model_right']} / {row['only_reference_right']} | {row['mcnemar_p']:.2g} |"
            for row in result[name]
        ]
    lines += [
        "",
        "### Agreement between backends on nips1000, percent of the predictions",
        "",
        "| model | a | b | equal |",
    ]
    lines += ["|---|---|---|---|"]
    lines += [f"| {row['model']} | {row['a']} | {row['b']} | {row['agreement']:.1f} |" for row in result["agreement"]]
    lines += ["", "### Files", "", "| model | bytes | products in integers / float / small |", "|---|---|---|"]
    lines += [
        f"| {name} | {file['bytes']:,} | {file['products']['integer']} / {file['products']['float']} / {file['products']['small']} |"
        for name, file in result["files"].items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
