"""What the commands do, as functions. Paths in, paths or JSON tables out; nothing is printed.

Sub-packages are imported inside the functions: whoever only exports never loads torch.
"""

import tempfile
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ofq_deploy.card import card, card_path, refuse_other_card
from ofq_deploy.errors import DataError, ModelError, OnnxFileError, RecipeError, RunError, UnsupportedByTarget
from ofq_deploy.files import refuse_existing, replacing, sha256, write_text
from ofq_deploy.frozen import Frozen, load_frozen, save_frozen
from ofq_deploy.lookup import exported_models, find, model_path
from ofq_deploy.progress import Reporter
from ofq_deploy.recipe import DEFAULT, Quantization, Recipe, dump_toml, load_recipe, override
from ofq_deploy.results import result_of
from ofq_deploy.runs import RUNS, Run, load_run, newest_run, write_manifest

if TYPE_CHECKING:
    from torch import nn

    from ofq_deploy.datasets import Dataset
    from ofq_deploy.images import Preprocessing

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

TARGET_NAMES = ("portable", "ort-cpu", "openvino", "tensorrt", "fp32")
PROOF_IMAGES = 16
GPU_BACKENDS = ("tensorrt", "torch-cuda")


def convert(model: "nn.Module | str | Path", config: Quantization | None = None) -> tuple["nn.Module", list[Any]]:
    """A quantized copy of a timm ViT or DeiT, and what was replaced; see ofq_deploy.train.convert.convert.

    model: the network, or a file of its weights (.safetensors, .pth), whose heads are then taken to be 64 wide
    """
    from ofq_deploy.train.convert import convert as convert_model
    from ofq_deploy.train.pretrained import classes_of, load_pretrained, model_of, read_weights

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
    device: str = "auto",
    force: bool = False,
    report: Reporter | None = None,
) -> Path:
    """Run a recipe and return the run folder (by default runs/<recipe name>).

    overrides: dotted recipe keys, as {"train.epochs": 1}
    device:    "auto", "cpu" or "cuda"

    The float teacher is read from the recipe's `init`, or trained first and kept in `.teachers` beside the run folder, for the next run that needs
    the same one. Raises RecipeError, DataError, ModelError and OutputError.
    """
    report = report or Reporter()
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    chosen = override(chosen, overrides or {})
    for key, value in (("data", chosen.data), ("init", chosen.init)):
        if value and value != "digits" and Path(value).exists():
            chosen = override(chosen, {key: str(Path(value).resolve())})  # for later commands, from anywhere
    path = Path(output) if output else RUNS / chosen.name
    refuse_existing(path, force)

    import torch
    from safetensors.torch import save

    from ofq_deploy.train.freeze import freeze as freeze_model
    from ofq_deploy.train.loop import top1, train_student
    from ofq_deploy.train.pretrained import model_of, read_weights
    from ofq_deploy.train.teacher import float_teacher

    device = _device(device)
    weights = None
    if chosen.init:
        weights = read_weights(Path(chosen.init))
        wanted = chosen.model
        chosen = replace(chosen, model=model_of(weights, wanted.distilled))
        if wanted.dim == chosen.model.dim:
            chosen = replace(chosen, model=model_of(weights, wanted.distilled, wanted.heads))
        report.say(f"{chosen.init}: {chosen.model.depth} blocks, {chosen.model.heads} heads, width {chosen.model.dim}")
    data = _training_data(chosen, weights)
    if not len(data.train) or len(data.labels) < 2:
        raise DataError(f"{chosen.data} cannot be trained on; expected train/ and val/ with at least two class folders")
    threads = torch.get_num_threads()
    torch.set_num_threads(chosen.threads or threads)
    try:
        with replacing(path, force) as folder:
            folder.mkdir()
            metrics = folder / "metrics.jsonl"
            metrics.touch()
            teacher = float_teacher(chosen, data, weights, path.parent / ".teachers", metrics, device, report)
            teacher_bytes = save(teacher.state_dict())
            torch.manual_seed(chosen.seed)
            report.say(f"training {chosen.name} ({chosen.quantization.label}) on {data.name}")
            student = train_student(teacher, chosen, data, metrics, device, report)
            test_top1 = top1(student, data.test)
            results = {
                "teacher_test_top1": top1(teacher.to("cpu"), data.test),
                "validation_top1": test_top1 if data.validation is data.test else top1(student, data.validation),
                "test_top1": test_top1,
            }
            frozen = freeze_model(student, chosen.quantization, data.preprocessing, data.labels)
            _fill_run(folder, chosen, save(student.state_dict()), teacher_bytes, frozen, results)
    finally:
        torch.set_num_threads(threads)
    report.say(f"{chosen.name}: test top-1 {results['test_top1']:.2f} % (float {results['teacher_test_top1']:.2f} %)")
    return path


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
    source = Path(checkpoint)
    name = source.name.split(".")[0] or "imported"
    path = Path(output) if output else RUNS / name
    refuse_existing(path, force)

    from safetensors.torch import save

    from ofq_deploy import imagenet
    from ofq_deploy.datasets import folder_preprocessing
    from ofq_deploy.train.freeze import freeze as freeze_model
    from ofq_deploy.train.official import load_official
    from ofq_deploy.train.unpickle import read_checkpoint

    official = load_official(read_checkpoint(source, ema), weight_bits, act_bits)
    classes = official.model.head.weight.shape[0]
    known = classes == imagenet.CLASSES == len(imagenet.names())
    labels = imagenet.names() if known else tuple(map(str, range(classes)))
    how = folder_preprocessing(official.base.image_size)
    frozen = freeze_model(official.model, official.quantization, how, labels)
    recipe = Recipe(name=name, data="", model=official.base, quantization=official.quantization)
    with replacing(path, force) as folder:
        folder.mkdir()
        (folder / "metrics.jsonl").touch()
        _fill_run(folder, recipe, save(official.model.state_dict()), save(official.latent), frozen, {})
    return path


def export(
    run: str | Path | None = None,
    *,
    target: str = "portable",
    opset: int | None = None,
    output: Path | None = None,
    force: bool = False,
) -> Path:
    """Write the ONNX model of a run (by default the newest) and return its path.

    target: "portable", "ort-cpu", "openvino", "tensorrt", or "fp32" for the float model that the run started from
    output: by default model.<target>.onnx in the run folder

    The file gets its name only after the full checker, shape inference and a session load. Its model card is written
    beside it, as model.<target>.md.
    Raises RunError, FrozenFileError, UnsupportedByTarget and OutputError.
    """
    source = newest_run() if run is None else load_run(Path(run))
    path = Path(output) if output else source.file(f"model.{target}.onnx")
    refuse_existing(path, force)
    refuse_other_card(path, force)
    model = _build(source, target, opset)

    from ofq_deploy.export.write import write_checked
    from ofq_deploy.runtime_tests.ort import open_session

    with replacing(path, force) as temporary:
        write_checked(model, temporary)
        open_session(temporary)
        write_text(card_path(path), card(temporary, path.name, source.path, []), force=True)
    return path


@result_of("validate")
def validate(
    subject: str | Path | None = None,
    *,
    run: Path | None = None,
    data: str | None = None,
    backend: str = "ort-cpu",
    max_drop: float | None = None,
    images: int = PROOF_IMAGES,
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
    classes:  a file that names the model's classes as the data does; see ofq_deploy.classes.read_classes

    reference: instead, the float ONNX model that `subject`, a model from elsewhere, was quantized from
    preprocessing: a JSON file, for a model from elsewhere; see ofq_deploy.images.read_preprocessing
    tolerance: error of a tensor of such a model that is a fault, as a share of the reference's RMS

    Returns a JSON table with "passed" and "faults".
    """
    from ofq_deploy.validation import validate_golden, validate_model
    from ofq_deploy.verdicts import judged

    report = report or Reporter()
    if golden is not None:
        if any(given is not None for given in (data, max_drop, run, reference, classes, preprocessing, tolerance)):
            raise DataError("golden data is compared with the run alone; leave the options of other comparisons out")
        return judged(validate_golden(subject, Path(golden), report))
    for option, value in (("--max-drop", max_drop), ("--tolerance", tolerance)):
        if value is not None and not value >= 0:  # as nothing exceeds a NaN
            raise DataError(f"{option} is {value:g}; expected a number from 0")
    names = Path(classes) if classes else None
    if reference is not None:
        from ofq_deploy.foreign import validate_foreign

        if run is not None:
            raise DataError("a model is compared with its --reference or proven by its --run; leave one out")
        how = Path(preprocessing) if preprocessing else None
        files = model_path(subject), Path(reference)
        return validate_foreign(*files, data, names, how, max_drop, tolerance, images, backend, report)
    if preprocessing is not None or tolerance is not None:
        raise DataError("--preprocessing and --tolerance are for models from elsewhere; pass --reference FP32.onnx too")
    return judged(validate_model(subject, run, data, names, max_drop, images, backend, report))


@result_of("parity")
def parity(
    subject: str | Path | None = None,
    *,
    leader: str = "torch",
    follower: str = "ort-cpu",
    run: Path | None = None,
    data: str | None = None,
    images: int = PROOF_IMAGES,
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
    from ofq_deploy.comparison import compare_two
    from ofq_deploy.verdicts import parity_verdict

    result = compare_two(subject, leader, follower, run, data, images, report or Reporter())
    return {"verdict": parity_verdict(result)} | result


@result_of("bench")
def bench(
    model: str | Path | None = None,
    *,
    backend: str = "ort-cpu",
    batches: Iterable[int] = (1,),
    threads: int = 1,
    seconds: float = 3.0,
    baseline: Path | None = None,
    profile: bool = False,
    affinity: Iterable[int] = (),
    report: Reporter | None = None,
) -> dict[str, Any]:
    """Measure a model (default: the newest of the newest run), interleaved with a baseline.

    model:    any ONNX file that takes images
    baseline: an ONNX file; by default the float model of the run that the model came from
    profile:  add the time of every operator, by kind and by role (ort-cpu)
    affinity: numbers of the CPUs to stay on; threads = 0 then means one for each of them

    Returns a JSON table; see ofq_deploy.runtime_tests.bench.bench, and for "tensorrt" and "torch-cuda" the functions
    of tensorrt_bench and torch_cuda.
    """
    if backend in GPU_BACKENDS and not profile:
        return _bench_gpu(backend, model, tuple(batches), seconds, baseline, report or Reporter())
    from ofq_deploy.runtime_tests.bench import bench as measure
    from ofq_deploy.runtime_tests.bench import image_shape, pinned
    from ofq_deploy.runtime_tests.runners import check_backend

    check_backend(backend, GPU_BACKENDS)
    if profile and backend != "ort-cpu":
        raise UnsupportedByTarget(f"no profile on backend {backend!r}; there is one on ort-cpu")
    path, cpus = model_path(model), tuple(affinity)
    run = _run_of(path) if baseline is None else None
    with tempfile.TemporaryDirectory() as folder, pinned(cpus):
        if run is not None:
            from ofq_deploy.export.write import write_checked

            baseline = Path(folder) / "fp32.onnx"
            write_checked(_build(run, "fp32", None), baseline)
        threads = threads or len(cpus)
        result = measure(path, baseline, tuple(batches), threads, seconds, report or Reporter(), backend)
        if profile:
            from ofq_deploy.runtime_tests.profile import profile as measure_operators

            for role, file in (("model", path), ("baseline", baseline)):
                if file is not None:
                    shape = (result[role]["latency_ms"][0]["batch"], *image_shape(file))
                    result[role]["profile"] = asdict(measure_operators(file, threads, shape))
        if run is not None:
            result["baseline"]["path"] = "the run's float model"
    result["model"]["sha256"] = sha256(path)
    return result


def predict(images: list[Path], *, model: str | Path | None = None) -> list[dict[str, Any]]:
    """The five likeliest labels of each image with their probabilities, by ONNX Runtime alone."""
    import numpy as np

    from ofq_deploy.images import load_image
    from ofq_deploy.runtime_tests.model_file import open_model
    from ofq_deploy.runtime_tests.ort import open_session, run_logits

    path = model_path(model)
    described = open_model(path)[1]
    loaded = np.stack([load_image(image, described.preprocessing) for image in images])
    logits = run_logits(open_session(path), loaded).astype(np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities = powers / powers.sum(-1, keepdims=True)
    best = np.argsort(-probabilities, axis=-1, kind="stable")[:, :5]
    return [
        {
            "image": str(image),
            "top5": [{"label": described.labels[k], "probability": round(float(row[k]), 6)} for k in order],
        }
        for image, row, order in zip(images, probabilities, best, strict=True)
    ]


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
    from ofq_deploy.package import make_package

    return make_package(
        model_path(model),
        kind,
        Path(output),
        name=name,
        backend=backend,
        max_batch=max_batch,
        threads=threads,
        force=force,
    )


@result_of("inspect")
def inspect(subject: str | Path | None = None) -> dict[str, Any]:
    """The layers of a model, or of the model that a run would export: bits trained, stored and computed."""
    from ofq_deploy.runtime_tests.contents import contents
    from ofq_deploy.runtime_tests.model_file import open_model

    path = Path(subject) if subject is not None else newest_run().path
    if path.is_dir() and not exported_models(path):
        from ofq_deploy.export.write import write_checked

        source = load_run(path)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            write_checked(_build(source, "portable", None), file)
            table = contents(*open_model(file), load_frozen(source.file("frozen.safetensors")))
        return table | {"model": f"{path} (not exported yet: as portable)"}
    found = find(path)
    about = {"model": str(found.model.path), "model_sha256": sha256(found.model.path)}
    return contents(open_model(found.model.path)[0], found.model, found.frozen) | about


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
    from ofq_deploy.reporting import report_folder

    return report_folder(Path(subject) if subject is not None else None, output, force, report or Reporter())


def lint(model: str | Path | None = None, *, target: str | None = None) -> list[dict[str, str]]:
    """What keeps a model from exact and fast integer arithmetic on a target (default: the one it was made for).

    Returns rule, node, operator, cause, cure and kind (hard, wrong, slow or hint) of every fault. Takes any ONNX
    file when `target` is given.
    """
    from ofq_deploy.runtime_tests.lint import lint as find_faults
    from ofq_deploy.runtime_tests.model_file import read_model

    path = model_path(model)
    stated = {entry.key: entry.value for entry in read_model(path).metadata_props}.get("ofq_deploy.target")
    if target is None and stated is None:
        raise UnsupportedByTarget(f"{path} does not say what it was made for; pass --target")
    return [asdict(fault) for fault in find_faults(path, target or str(stated))]


@result_of("check")
def check(model: str | Path | None = None, *, target: str = "tensorrt") -> dict[str, Any]:
    """Build an engine of a model, which needs no GPU with TensorRT-RTX, and tell which products are int8 there.

    Takes any ONNX file but ours for other targets. Returns a JSON table with "passed", "verdict" and "faults"; the engine is not kept.
    Raises OnnxFileError, UnsupportedByTarget, and BackendMissing without TensorRT and TensorRT-RTX.
    """
    from ofq_deploy.runtime_tests.tensorrt_check import check as check_engine

    if target != "tensorrt":
        raise UnsupportedByTarget(f"no check for target {target!r}; there is one for tensorrt")
    path = _tensorrt_model(model)
    result = check_engine(path)
    return {
        "model": str(path),
        "target": target,
        "verdict": result.verdict,
        "passed": result.passed,
        **asdict(result),
    }


def _tensorrt_model(model: str | Path | None) -> Path:
    """The model itself, or the newest one in a run folder that was exported for TensorRT."""
    path = Path(model) if model is not None else newest_run().path
    others = tuple(name for name in TARGET_NAMES if name != "tensorrt")
    if path.is_dir() and not exported_models(path, others):
        raise OnnxFileError(f"{path} holds no model for it; make one with: ofq-deploy export {path} --target tensorrt")
    return model_path(path, others)


def _bench_gpu(
    backend: str,
    model: str | Path | None,
    batches: tuple[int, ...],
    seconds: float,
    baseline: Path | None,
    report: Reporter,
) -> dict[str, Any]:
    from ofq_deploy.runtime_tests.bench import image_shape
    from ofq_deploy.runtime_tests.rounds import Protocol

    protocol = Protocol(seconds=seconds)
    if backend == "torch-cuda":
        from ofq_deploy.runtime_tests import cuda
        from ofq_deploy.runtime_tests.torch_cuda import WITHOUT_GPU, bench_torch_cuda

        cuda.gpu(WITHOUT_GPU)
        found = find(model)
        if found.frozen is None:
            raise RunError(
                f"no frozen file with the hash that {found.model.path} names was found, and torch-cuda takes the layers "
                "from it; keep the model in its run folder"
            )
        path = found.model.path
        result = bench_torch_cuda(found.frozen, batches, report, protocol)
    else:
        from ofq_deploy.runtime_tests.tensorrt import available
        from ofq_deploy.runtime_tests.tensorrt_bench import bench_tensorrt

        available()
        path = _tensorrt_model(model)
        run = _run_of(path) if baseline is None else None
        with tempfile.TemporaryDirectory() as folder:
            if run is not None:
                from ofq_deploy.export.write import write_checked

                baseline = Path(folder) / "fp32.onnx"
                write_checked(_build(run, "fp32", None), baseline)
            shape = image_shape(path, "model", batches)
            result = bench_tensorrt(path, baseline, batches, shape, report, protocol)
    result["model"] |= {"path": str(path), "sha256": sha256(path), "file_bytes": path.stat().st_size}
    return {"schema": "ofq-deploy/bench-gpu/1", **result}


def _fill_run(
    folder: Path, recipe: Recipe, weights: bytes, teacher: bytes, frozen: Frozen, results: dict[str, Any]
) -> None:
    (folder / "recipe.toml").write_text(dump_toml(recipe), encoding="utf-8")
    (folder / "weights.safetensors").write_bytes(weights)
    (folder / "teacher.safetensors").write_bytes(teacher)
    save_frozen(frozen, folder / "frozen.safetensors")
    write_manifest(folder, recipe.name, results)


def _training_data(recipe: Recipe, weights: Any) -> "Dataset":
    """The recipe's data; under its 1000 classes when the weights and the folders are ImageNet's."""
    from ofq_deploy import imagenet
    from ofq_deploy.datasets import load_dataset

    size = recipe.model.image_size
    data = load_dataset(recipe.data, size)
    if weights is None:
        return data
    from ofq_deploy.train.pretrained import channels_of, classes_of

    if channels_of(weights) != data.preprocessing.channels:
        raise ModelError(
            f"{recipe.init} takes images of {channels_of(weights)} channels, {recipe.data} has "
            f"{data.preprocessing.channels}; pass other weights or --data FOLDER"
        )
    if classes_of(weights) == imagenet.CLASSES and set(data.labels) <= {*imagenet.wnids(), *imagenet.names()}:
        return load_dataset(recipe.data, size, labels=imagenet.names())
    return data


def _build(source: Run, target: str, opset: int | None) -> Any:
    if target not in TARGET_NAMES:
        raise UnsupportedByTarget(f"no target {target!r}; there are {', '.join(TARGET_NAMES)}")
    file = source.file("frozen.safetensors")
    frozen = load_frozen(file)
    if target == "fp32":
        from ofq_deploy.export.fp32 import build_fp32

        return build_fp32(frozen, source.file("teacher.safetensors"), opset)
    from ofq_deploy.export.network import build
    from ofq_deploy.export.targets import TARGETS

    return build(frozen, TARGETS[target], opset, sha256(file))


def _run_of(model: Path) -> Run | None:
    """The run that a model was exported from; None when it is not found, and for models from elsewhere."""
    try:
        return find(model).run
    except OnnxFileError:
        return None


def _device(name: str) -> str:
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise RecipeError(f"no device {name!r}; there are auto, cpu and cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise RecipeError("no CUDA device is available; use --device cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
