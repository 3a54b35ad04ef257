"""What the commands do, as functions. Paths in, paths or JSON tables out; nothing is printed.

Sub-packages are imported inside the functions: whoever only exports never loads torch.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ofq_deploy.commands.requests import (
    BenchRequest,
    CheckRequest,
    ExportRequest,
    ImportRequest,
    InspectRequest,
    LintRequest,
    PackageRequest,
    ParityRequest,
    PredictRequest,
    ReportRequest,
    TrainRequest,
    ValidateRequest,
)
from ofq_deploy.model.frozen import Frozen, load_frozen
from ofq_deploy.progress import Reporter
from ofq_deploy.recipe import DEFAULT, Quantization, Recipe
from ofq_deploy.results.fields import Result

if TYPE_CHECKING:
    from torch import nn

    from ofq_deploy.data.images import Preprocessing

__all__ = [
    "bench",
    "check",
    "convert",
    "export",
    "freeze",
    "import_checkpoint",
    "inspect",
    "lint",
    "load_frozen",
    "package",
    "parity",
    "predict",
    "report",
    "train",
    "validate",
]


def convert(model: "nn.Module | str | Path", config: Quantization | None = None) -> tuple["nn.Module", list[Any]]:
    """A quantized copy of a timm ViT or DeiT, and what was replaced; see ofq_deploy.train.convert.convert.

    model: the network, or a file of its weights (.safetensors, .pth), whose heads are then taken to be 64 wide
    """
    from ofq_deploy.train.convert import convert as convert_model
    from ofq_deploy.train.sources.timm_weights import classes_of, load_pretrained, model_of, read_weights

    if isinstance(model, (str, Path)):
        weights = read_weights(Path(model))
        model, _ = load_pretrained(weights, model_of(weights, distilled=False), classes_of(weights))
    return convert_model(model, config or Quantization())


def freeze(model: "nn.Module", config: Quantization, preprocessing: "Preprocessing", labels: tuple[str, ...]) -> Frozen:
    """The frozen form of a converted and calibrated model; see ofq_deploy.train.freeze.freeze."""
    from ofq_deploy.train.freeze import freeze as freeze_model

    return freeze_model(model, config, preprocessing, labels)


def train(
    recipe: str | Path | Recipe = DEFAULT,
    *,
    output: Path | None = None,
    overrides: dict[str, Any] | None = None,
    device: str = TrainRequest.device,
    force: bool = False,
    report: Reporter | None = None,
) -> Path:
    """Run a recipe and return the run folder (by default runs/<recipe name>).

    overrides: dotted recipe keys, as {"train.epochs": 1}
    device:    "auto", "cpu" or "cuda"

    The float teacher is read from the recipe's `init`, or trained first and kept in `.teachers` beside the run folder, for the next run that needs
    the same one. Raises RecipeError, DataError, ModelError and OutputError.
    """
    from ofq_deploy.commands.train import train as run

    request = TrainRequest(recipe=recipe, output=_path(output), overrides=overrides, device=device, force=force)
    return Path(run(request, report or Reporter()).run)


def import_checkpoint(
    checkpoint: str | Path,
    *,
    weight_bits: int | None = None,
    act_bits: int | None = None,
    ema: bool = False,
    output: Path | None = None,
    force: bool = False,
) -> Path:
    """Turn a checkpoint of OFQ's official code into a run folder (by default runs/<file name>) and return it.

    Bits come from the file's own settings or from the arguments. Unpickling happens in a process of its own and
    builds tensors, plain containers and argparse's Namespace only. Raises ModelError and OutputError.
    """
    from ofq_deploy.commands.train import import_checkpoint as run

    request = ImportRequest(
        checkpoint=Path(checkpoint),
        weight_bits=weight_bits,
        act_bits=act_bits,
        ema=ema,
        output=_path(output),
        force=force,
    )
    return Path(run(request).run)


def export(
    run: str | Path | None = None,
    *,
    target: str = ExportRequest.target,
    opset: int | None = None,
    output: Path | None = None,
    force: bool = False,
) -> Path:
    """Write the ONNX model of a run (by default the newest) and return its path.

    target: "portable", "ort-cpu", "ort-ofq", "openvino", "tensorrt", or "fp32" for the float model that the run started from
    output: by default model.<target>.onnx in the run folder

    The file gets its name only after the full checker, shape inference and a session load. Its model card is written
    beside it, as model.<target>.md.
    Raises RunError, FrozenFileError, UnsupportedByTarget and OutputError.
    """
    from ofq_deploy.commands.export import export as write

    request = ExportRequest(run=_path(run), target=target, opset=opset, output=_path(output), force=force)
    return Path(write(request).model)


def validate(
    subject: str | Path | None = None,
    *,
    run: Path | None = None,
    data: str | None = None,
    backend: str = ValidateRequest.backend,
    max_drop: float | None = None,
    images: int = ValidateRequest.images,
    golden: Path | None = None,
    reference: Path | None = None,
    classes: Path | None = None,
    preprocessing: Path | None = None,
    tolerance: float | None = None,
    report: Reporter | None = None,
) -> dict[str, Any]:
    """Prove a model against the training that it came from, and measure its accuracy.

    subject:  an ONNX model, or a run folder whose newest exported model is meant (default: the newest run)
    run:      the run folder or frozen file, when it is not beside the model or under runs/
    backend:  the runtime that is proven: "ort-cpu", "openvino" or "tensorrt"
    max_drop: points of top-1 that the model may lose against the float model of the run
    images:   how many test images go through the operator-by-operator proof, in batches of 1 and 3
    golden:   instead, compare a run folder with golden data of OFQ's official code
    classes:  a file that names the model's classes as the data does; see ofq_deploy.data.classes.read_classes

    reference: instead, the float ONNX model that `subject`, a model from elsewhere, was quantized from
    preprocessing: a JSON file, for a model from elsewhere; see ofq_deploy.data.images.read_preprocessing
    tolerance: error of a tensor of such a model that is a fault, as a share of the reference's RMS

    Returns a JSON table with "passed" and "faults".
    """
    from ofq_deploy.commands.validate import validate as prove

    request = ValidateRequest(
        subject=_path(subject),
        run=_path(run),
        data=data,
        backend=backend,
        max_drop=max_drop,
        images=images,
        golden=_path(golden),
        reference=_path(reference),
        classes=_path(classes),
        preprocessing=_path(preprocessing),
        tolerance=tolerance,
    )
    return _table(prove(request, report or Reporter()))


def parity(
    subject: str | Path | None = None,
    *,
    leader: str = ParityRequest.leader,
    follower: str = ParityRequest.follower,
    run: Path | None = None,
    data: str | None = None,
    images: int = ParityRequest.images,
    report: Reporter | None = None,
) -> dict[str, Any]:
    """Compare two runners of one model, code by code.

    subject: an ONNX model, or a run folder whose newest exported model is meant (default: the newest run)
    leader, follower: "torch", "torch:float64", "torch:cuda", "oracle", or a runtime: "ort-cpu", "ort-cpu:plain" (without its
             optimizer), "openvino", or "ort-cpu@PYTHON", the ONNX Runtime that another interpreter has
    images:  how many test images

    The leader runs freely; every operator of the follower is fed the leader's codes, and what comes out is compared.
    Then both run freely: where an image's codes part, the first operator is named. The float64 oracle tells ties from
    errors. Returns a JSON table with "passed" and "faults".
    """
    from ofq_deploy.commands.parity import parity as compare

    request = ParityRequest(
        subject=_path(subject), leader=leader, follower=follower, run=_path(run), data=data, images=images
    )
    return _table(compare(request, report or Reporter()))


def bench(
    model: str | Path | None = None,
    *,
    backend: str = BenchRequest.backend,
    batches: Iterable[int] = BenchRequest.batches,
    threads: int = BenchRequest.threads,
    seconds: float = BenchRequest.seconds,
    baseline: Path | None = None,
    profile: bool = False,
    affinity: Iterable[int] = BenchRequest.affinity,
    report: Reporter | None = None,
) -> dict[str, Any]:
    """Measure a model (default: the newest of the newest run), interleaved with a baseline.

    model:    any ONNX file that takes images
    baseline: an ONNX file; by default the float model of the run that the model came from
    profile:  add the time of every operator, by kind and by role (ort-cpu)
    affinity: numbers of the CPUs to stay on; threads = 0 then means one for each of them

    Returns a JSON table; see ofq_deploy.runtime_tests.speed.bench.bench, and for "tensorrt" and "torch-cuda" the functions
    of tensorrt_bench and torch_cuda.
    """
    from ofq_deploy.commands.bench import bench as measure

    request = BenchRequest(
        model=_path(model),
        backend=backend,
        batches=tuple(batches),
        threads=threads,
        seconds=seconds,
        baseline=_path(baseline),
        profile=profile,
        affinity=tuple(affinity),
    )
    return _table(measure(request, report or Reporter()))


def predict(images: list[Path], *, model: str | Path | None = None) -> list[dict[str, Any]]:
    """The five likeliest labels of each image with their probabilities, by ONNX Runtime alone."""
    from ofq_deploy.commands.predict import predict as run

    request = PredictRequest(images=tuple(map(Path, images)), model=_path(model))
    return list(_table(run(request))["predictions"])


def package(
    model: str | Path | None = None,
    *,
    kind: str,
    output: Path,
    name: str | None = None,
    backend: str | None = None,
    max_batch: int | None = None,
    threads: int | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write a folder to serve a model from (default: the newest of the newest run).

    kind:      "triton" for a model repository of NVIDIA's Triton Inference Server, "ort" for a folder with a script
    name:      of the model, by default of its run folder or file
    backend:   of Triton, "onnxruntime" or "tensorrt"; by default the one that the model was exported for
    max_batch: images that Triton may run at once, by default 8
    threads:   of one operator on the CPU in Triton, by default one per core

    Returns the manifest as a JSON table, with the key "package".
    """
    from ofq_deploy.commands.package import package as run

    request = PackageRequest(
        model=_path(model),
        kind=kind,
        output=Path(output),
        name=name,
        backend=backend,
        max_batch=max_batch,
        threads=threads,
        force=force,
    )
    return _table(run(request))


def inspect(subject: str | Path | None = None) -> dict[str, Any]:
    """The layers of a model, or of the model that a run would export: bits trained, stored and computed."""
    from ofq_deploy.commands.inspect import inspect as run

    return _table(run(InspectRequest(subject=_path(subject))))


def report(
    subject: str | Path | None = None,
    *,
    output: Path | None = None,
    force: bool = False,
    report: Reporter | None = None,
) -> dict[str, Any]:
    """Write one HTML page about all results in a folder (default: the newest run) and the models that lie there.

    subject: a run folder in which `ofq-deploy validate` and `bench` kept results, or any folder with results of -o
    output:  by default report.html in that folder

    The models' cards are written anew. Returns the paths of the page ("report") and of the "cards", and the number of
    "results" shown. Raises RunError, DataError and OutputError.
    """
    from ofq_deploy.commands.report import report as run

    request = ReportRequest(subject=_path(subject), output=_path(output), force=force)
    return _table(run(request, report or Reporter()))


def lint(model: str | Path | None = None, *, target: str | None = None) -> list[dict[str, str]]:
    """What keeps a model from exact and fast integer arithmetic on a target (default: the one it was made for).

    Returns rule, node, operator, cause, cure and kind (hard, wrong, slow or hint) of every fault. Takes any ONNX
    file when `target` is given.
    """
    from ofq_deploy.commands.lint import lint as run

    return list(_table(run(LintRequest(model=_path(model), target=target)))["faults"])


def check(model: str | Path | None = None, *, target: str = CheckRequest.target) -> dict[str, Any]:
    """Build an engine of a model, which needs no GPU with TensorRT-RTX, and tell which products are int8 there.

    Takes any ONNX file but ours for other targets. Returns a JSON table with "passed", "verdict" and "faults"; the engine is not kept.
    Raises OnnxFileError, UnsupportedByTarget, and BackendMissing without TensorRT and TensorRT-RTX.
    """
    from ofq_deploy.commands.lint import check as run

    return _table(run(CheckRequest(model=_path(model), target=target)))


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)


def _table(result: Result) -> dict[str, Any]:
    """A result as Python's own types; see docs/schema.md."""
    return dict(msgspec.to_builtins(result))
