"""What the commands do, as functions. Paths in, paths or JSON tables out; nothing is printed.

Sub-packages are imported inside the functions: whoever only exports never loads torch.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ofq_deploy.errors import DataError, OnnxFileError, RecipeError, RunError, UnsupportedByTarget
from ofq_deploy.files import refuse_existing, replacing, sha256
from ofq_deploy.frozen import Frozen, load_frozen, save_frozen
from ofq_deploy.progress import Reporter
from ofq_deploy.recipe import DEFAULT, Quantization, Recipe, dump_toml, load_recipe, override
from ofq_deploy.runs import RUNS, Run, load_run, newest_run, write_manifest

if TYPE_CHECKING:
    from torch import nn

    from ofq_deploy.datasets import Dataset
    from ofq_deploy.images import Preprocessing
    from ofq_deploy.runtime_tests.model_file import ModelFile

__all__ = ["bench", "convert", "export", "freeze", "inspect", "load_frozen", "predict", "train", "validate"]

TARGET_NAMES = ("portable", "ort-cpu", "fp32")
PROOF_IMAGES = 16
FREE_RUN_BUDGET = 2e9  # multiplications that the float64 oracle may spend on free runs (some seconds)


def convert(model: "nn.Module", config: Quantization | None = None) -> tuple["nn.Module", list[Any]]:
    """A quantized copy of a timm ViT or DeiT, and what was replaced; see ofq_deploy.train.convert.convert."""
    from ofq_deploy.train.convert import convert as convert_model

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

    The float teacher is trained first and kept in `<folder of the run>/.teachers` for the next run that needs
    the same one. Raises RecipeError, DataError, ModelError and OutputError.
    """
    report = report or Reporter()
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    chosen = override(chosen, overrides or {})
    path = output or RUNS / chosen.name
    refuse_existing(path, force)
    _check_trainable(chosen)

    import torch
    from safetensors.torch import save

    from ofq_deploy.datasets import load_dataset
    from ofq_deploy.train.freeze import freeze as freeze_model
    from ofq_deploy.train.loop import top1, train_student

    device = _device(device)
    data = load_dataset(chosen.data, chosen.model.image_size)
    threads = torch.get_num_threads()
    torch.set_num_threads(chosen.threads or threads)
    try:
        with replacing(path, force) as folder:
            folder.mkdir()
            metrics = folder / "metrics.jsonl"
            metrics.touch()
            teacher, cached = _teacher(chosen, data, path.parent / ".teachers", metrics, device, report)
            torch.manual_seed(chosen.seed)
            report.say(f"training {chosen.name} ({chosen.quantization.label}) on {data.name}")
            student = train_student(teacher, chosen, data, metrics, device, report)
            frozen = freeze_model(student, chosen.quantization, data.preprocessing, data.labels)
            (folder / "recipe.toml").write_text(dump_toml(chosen), encoding="utf-8")
            (folder / "weights.safetensors").write_bytes(save(student.state_dict()))
            shutil.copyfile(cached, folder / "teacher.safetensors")
            save_frozen(frozen, folder / "frozen.safetensors")
            results = {
                "teacher_test_top1": top1(teacher.to("cpu"), data.test),
                "validation_top1": top1(student, data.validation),
                "test_top1": top1(student, data.test),
            }
            write_manifest(folder, chosen.name, results)
    finally:
        torch.set_num_threads(threads)
    report.say(f"{chosen.name}: test top-1 {results['test_top1']:.2f} % (float {results['teacher_test_top1']:.2f} %)")
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

    target: "portable", "ort-cpu", or "fp32" for the float model that the run started from
    output: by default model.<target>.onnx in the run folder

    The file gets its name only after the full checker, shape inference and a session load.
    Raises RunError, FrozenFileError, UnsupportedByTarget and OutputError.
    """
    source = newest_run() if run is None else load_run(Path(run))
    path = output or source.file(f"model.{target}.onnx")
    refuse_existing(path, force)
    model = _build(load_frozen(source.file("frozen.safetensors")), source, target, opset)

    from ofq_deploy.export.write import write_checked
    from ofq_deploy.runtime_tests.ort import open_session

    with replacing(path, force) as temporary:
        write_checked(model, temporary)
        open_session(temporary)
    return path


def validate(
    subject: str | Path | None = None,
    *,
    run: Path | None = None,
    data: str | None = None,
    backend: str = "ort-cpu",
    max_drop: float | None = None,
    images: int = PROOF_IMAGES,
    report: Reporter | None = None,
) -> dict[str, Any]:
    """Prove a model against the training that it came from, and measure its accuracy.

    subject:  an ONNX model, or a run folder whose newest exported model is meant (default: the newest run)
    run:      the run folder or frozen file, when it is not beside the model or under runs/
    max_drop: points of top-1 that the model may lose against the float model of the run
    images:   how many test images go through the operator-by-operator proof, in batches of 1 and 3

    Returns a JSON table with "passed" and, when that is false, "faults".
    """
    report = report or Reporter()
    _check_backend(backend)
    model, source, frozen = _model_and_frozen(subject, run)
    if frozen is None:
        roots = "beside it or under runs/"
        raise RunError(f"no frozen file with the hash that {model.path} names was found {roots}; pass it with --run")

    from ofq_deploy.datasets import load_dataset
    from ofq_deploy.runtime_tests.accuracy import measure_accuracy
    from ofq_deploy.runtime_tests.proof import prove_free_run, prove_operators, prove_weights

    chosen = data or (source.recipe.data if source else None)
    if chosen is None:
        raise DataError("a frozen file alone does not name its data; pass --data NAME|PATH")
    test = load_dataset(chosen, frozen.architecture.image_size, frozen.preprocessing, frozen.labels).test
    batch = test.images(range(min(images, len(test))))
    weights = prove_weights(model.path, frozen)
    fed = None
    if source is not None:
        from ofq_deploy.train.reference import load_student
        from ofq_deploy.train.witness import witness

        student = load_student(source, frozen)
        codes, floats = witness(student, batch)
        fed = {**codes, **floats}
    report.say(f"proving {model.path.name} operator by operator on {len(batch)} images")
    operators = prove_operators(model.path, frozen, batch, fed)
    free = prove_free_run(model.path, frozen, test.images(range(_free_images(frozen, len(batch), len(test)))))
    accuracy = measure_accuracy(model.path, test, report)
    result: dict[str, Any] = {
        "model": str(model.path),
        "backend": backend,
        "target": model.target,
        "data": chosen,
        "test_images": len(test),
        "weights": {"codes_compared": weights.compared, "codes_differing": weights.differing},
        "operators": [
            {
                "witness": proof.witness,
                "images": len(batch),
                "codes_compared": proof.compared,
                "codes_differing": proof.differing,
                "ties": proof.ties,
                "worst_float_error": max(entry.error for entry in proof.floats),
                "passed": proof.passed,
            }
            for proof in operators
        ],
        "free_run": {
            "images": free.images,
            "divergences": [asdict(divergence) for divergence in free.divergences],
            "codes_between_optimization_levels": free.levels_compared,
            "codes_differing_between_levels": free.levels_differing,
        },
        "codes_compared": weights.compared + operators[0].compared,
        "codes_differing": weights.differing + operators[0].differing,
        "ties": operators[0].ties,
        "top1_runtime": accuracy.top1,
    }
    faults = [
        f"{field}: the model's metadata says otherwise than the frozen file"
        for field, own, reference in (
            ("labels", model.labels, frozen.labels),
            ("preprocessing", model.preprocessing, frozen.preprocessing),
            ("quantization", model.quantization, asdict(frozen.quantization)),
        )
        if own != reference
    ]
    faults += [f"{name}.weight: stored codes differ from the frozen ones" for name in weights.layers]
    faults += [f"{proof.witness}: {line}" for proof in operators for line in proof.faults()]
    faults += [
        f"free run: image {entry.image} leaves the oracle at {entry.operator}, and not by a tie"
        for entry in free.divergences
        if not entry.is_tie
    ][:5]
    if free.levels_differing:
        faults.append(f"{free.levels_differing} codes differ between ONNX Runtime's optimization levels")
    if source is not None:
        result |= _agreement(student, test, accuracy.predictions, report)
        result["top1_float"] = _float_top1(source, frozen, test, report)
        result["drop_points"] = result["top1_float"] - accuracy.top1
    if max_drop is not None:
        if "drop_points" not in result:
            raise RunError("--max-drop needs the run folder that the model came from; pass it with --run")
        if result["drop_points"] > max_drop:
            faults.append(f"top-1 drops by {result['drop_points']:.2f} points, allowed are {max_drop:g}")
    return result | {"passed": not faults, "faults": faults}


def bench(
    model: str | Path | None = None,
    *,
    backend: str = "ort-cpu",
    batches: Iterable[int] = (1,),
    threads: int = 1,
    seconds: float = 3.0,
    baseline: Path | None = None,
    report: Reporter | None = None,
) -> dict[str, Any]:
    """Measure a model (default: the newest of the newest run), interleaved with a baseline.

    baseline: an ONNX file; by default the float model of the run that the model came from

    Returns a JSON table; see ofq_deploy.runtime_tests.bench.bench.
    """
    _check_backend(backend)
    described, source, frozen = _model_and_frozen(model, None)

    from ofq_deploy.environment import environment
    from ofq_deploy.runtime_tests.bench import bench as measure

    with tempfile.TemporaryDirectory() as folder:
        own = baseline is None and source is not None and frozen is not None and described.target != "fp32"
        if own:
            from ofq_deploy.export.write import write_checked

            assert source is not None
            assert frozen is not None
            baseline = Path(folder) / "fp32.onnx"
            write_checked(_build(frozen, source, "fp32", None), baseline)
        elif baseline is not None:
            from ofq_deploy.runtime_tests.model_file import read_model

            read_model(baseline)
        result = measure(described.path, baseline, tuple(batches), threads, seconds, report or Reporter())
        if own:
            result["baseline"]["path"] = "the run's float model"
    return result | {"environment": environment()}


def predict(images: list[Path], *, model: str | Path | None = None) -> list[dict[str, Any]]:
    """The five likeliest labels of each image with their probabilities, by ONNX Runtime alone."""
    import numpy as np

    from ofq_deploy.images import load_image
    from ofq_deploy.runtime_tests.model_file import open_model
    from ofq_deploy.runtime_tests.ort import open_session, run_logits

    path = _model_path(model)
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


def inspect(subject: str | Path | None = None) -> dict[str, Any]:
    """The layers of a model, or of the model that a run would export: bits trained, stored and computed."""
    from ofq_deploy.runtime_tests.contents import contents
    from ofq_deploy.runtime_tests.model_file import open_model

    path = Path(subject) if subject is not None else newest_run().path
    if path.is_dir() and not _exported(path):
        from ofq_deploy.export.write import write_checked

        source = load_run(path)
        frozen = load_frozen(source.file("frozen.safetensors"))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            write_checked(_build(frozen, source, "portable", None), file)
            return contents(*open_model(file), frozen) | {"model": f"{path} (not exported yet: as portable)"}
    described, _, found = _model_and_frozen(path, None)
    return contents(open_model(described.path)[0], described, found) | {"model": str(described.path)}


def _build(frozen: Frozen, source: Run, target: str, opset: int | None) -> Any:
    if target not in TARGET_NAMES:
        raise UnsupportedByTarget(f"no target {target!r}; there are {', '.join(TARGET_NAMES)}")
    if target == "fp32":
        from ofq_deploy.export.fp32 import build_fp32

        return build_fp32(frozen, source.file("teacher.safetensors"))
    from ofq_deploy.export.network import build
    from ofq_deploy.export.targets import TARGETS

    return build(frozen, TARGETS[target], opset)


def _model_path(subject: str | Path | None) -> Path:
    """The model itself, or the newest quantized model of a run folder (by default of the newest run)."""
    path = Path(subject) if subject is not None else newest_run().path
    if not path.is_dir():
        return path
    models = _exported(path)
    if not models:
        raise OnnxFileError(f"{path} holds no exported model; make one with: ofq-deploy export {path} --to onnx")
    return max(models, key=lambda file: (file.stat().st_mtime_ns, file.name))


def _exported(folder: Path) -> list[Path]:
    return [file for file in folder.glob("*.onnx") if file.name != "model.fp32.onnx"]


def _model_and_frozen(
    subject: str | Path | None, reference: Path | None
) -> tuple["ModelFile", Run | None, Frozen | None]:
    """A model with the run and the frozen file that it came from, where they can be found."""
    from ofq_deploy.runtime_tests.model_file import open_model, reference_run

    path = _model_path(subject)
    _, model = open_model(path)
    if reference is not None:
        file = reference / "frozen.safetensors" if reference.is_dir() else reference
        frozen = load_frozen(file)
        if sha256(file) != model.frozen_sha256:
            raise RunError(
                f"{path} was not exported from {file} (its metadata names another hash); pass the right --run"
            )
        folder: Path | None = file.parent
    else:
        folder = reference_run(model, [RUNS, path.parent.parent])
        if folder is None:
            return model, None, None
        frozen = load_frozen(folder / "frozen.safetensors")
    assert folder is not None
    return model, load_run(folder) if (folder / "manifest.json").is_file() else None, frozen


def _agreement(student: "nn.Module", test: Any, predictions: Any, report: Reporter) -> dict[str, Any]:
    """Runtime, torch float32 and torch float64 beside one another; the last two show the model's own noise."""
    import torch

    from ofq_deploy.train.reference import predict_classes

    single = predict_classes(student, test, torch.float32, report)
    double = predict_classes(student, test, torch.float64, report)
    return {
        "top1_torch": 100 * float((single == test.classes).mean()),
        "agreement": 100 * float((predictions == single).mean()),
        "runtime_agrees_with_float64": int((predictions == double).sum()),
        "float32_agrees_with_float64": int((single == double).sum()),
    }


def _float_top1(source: Run, frozen: Frozen, test: Any, report: Reporter) -> float:
    from ofq_deploy.export.write import write_checked
    from ofq_deploy.runtime_tests.accuracy import measure_accuracy

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fp32.onnx"
        write_checked(_build(frozen, source, "fp32", None), path)
        return measure_accuracy(path, test, report).top1


def _free_images(frozen: Frozen, least: int, most: int) -> int:
    a = frozen.architecture
    products = a.depth * a.tokens * a.dim * (4 * a.dim + 2 * a.hidden)
    return min(most, max(least, int(FREE_RUN_BUDGET / products)))


def _check_backend(backend: str) -> None:
    if backend != "ort-cpu":
        raise UnsupportedByTarget(f"no backend {backend!r}; there is ort-cpu")


def _check_trainable(recipe: Recipe) -> None:
    least = {
        "train.batch_size": recipe.train.batch_size,
        "train.calibration_images": recipe.train.calibration_images,
    }
    for key, value in least.items():
        if value < 1:
            raise RecipeError(f"recipe key {key!r} is {value}; it takes a number from 1 up")
    if recipe.train.epochs < 1 and not recipe.cga.enabled:
        raise RecipeError("recipe key 'train.epochs' is 0 and annealing is off: nothing would train")


def _device(name: str) -> str:
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise RecipeError(f"no device {name!r}; there are auto, cpu and cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise RecipeError("no CUDA device is available; use --device cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _teacher(
    recipe: Recipe, data: "Dataset", cache: Path, metrics: Path, device: str, report: Reporter
) -> tuple["nn.Module", Path]:
    """The float model of a recipe and its weights file, trained now or found in `cache` under the hash of
    everything that it depends on.
    """
    import torch
    from safetensors.torch import save

    from ofq_deploy.environment import versions
    from ofq_deploy.train.loop import train_teacher
    from ofq_deploy.train.models import build_model, load_weights

    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, data.preprocessing.channels, len(data.labels))
    decisive = {
        **{
            key: value
            for key, value in asdict(recipe).items()
            if key in ("seed", "threads", "model", "augmentation", "teacher")
        },
        "train": {key: getattr(recipe.train, key) for key in ("batch_size", "weight_decay", "warmup")},
        "data": data.fingerprint,
        "torch": versions().get("torch"),
        "device": device,
    }
    key = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
    path = cache / f"{key}.safetensors"
    if path.is_file():
        report.say(f"teacher: {path}, trained before")
        load_weights(model, path)
        return model.eval(), path
    report.say(f"training the float teacher on {data.name}")
    train_teacher(model, recipe, data, metrics, device, report)
    with replacing(path, force=True) as temporary:
        temporary.write_bytes(save(model.state_dict()))
    return model.eval(), path
