"""What `train` and `import` do: fill run folders."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ofq_deploy.commands.requests import ImportRequest, TrainRequest
from ofq_deploy.errors import DataError, ModelError, RecipeError
from ofq_deploy.files import refuse_existing, replacing
from ofq_deploy.model.frozen import Frozen, save_frozen
from ofq_deploy.progress import Reporter
from ofq_deploy.recipe import Recipe, dump_toml, load_recipe, override
from ofq_deploy.results.models import ImportResult, TrainResult
from ofq_deploy.results.record import stamped
from ofq_deploy.runs.folder import RUNS, write_manifest

if TYPE_CHECKING:
    from ofq_deploy.data.datasets import Dataset


def train(request: TrainRequest, report: Reporter) -> TrainResult:
    """See ofq_deploy.api.train."""
    chosen = request.recipe if isinstance(request.recipe, Recipe) else load_recipe(request.recipe)
    chosen = override(chosen, request.overrides or {})
    for key, value in (("data", chosen.data), ("init", chosen.init)):
        if value and value != "digits" and Path(value).exists():
            chosen = override(chosen, {key: str(Path(value).resolve())})  # for later commands, from anywhere
    path = request.output or RUNS / chosen.name
    refuse_existing(path, request.force)

    import torch
    from safetensors.torch import save

    from ofq_deploy.train.evaluation import top1
    from ofq_deploy.train.freeze import freeze as freeze_model
    from ofq_deploy.train.loop.student import train_student
    from ofq_deploy.train.loop.teacher import float_teacher
    from ofq_deploy.train.sources.timm_weights import model_of, read_weights

    device = _device(request.device)
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
        with replacing(path, request.force) as folder:
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
    return stamped(TrainResult, request.line(), {"run": str(path), **results})


def import_checkpoint(request: ImportRequest) -> ImportResult:
    """See ofq_deploy.api.import_checkpoint."""
    name = request.checkpoint.name.split(".")[0] or "imported"
    path = request.output or RUNS / name
    refuse_existing(path, request.force)

    from safetensors.torch import save

    from ofq_deploy.data import imagenet
    from ofq_deploy.data.datasets import folder_preprocessing
    from ofq_deploy.train.freeze import freeze as freeze_model
    from ofq_deploy.train.sources.official import load_official
    from ofq_deploy.train.sources.unpickle import read_checkpoint

    official = load_official(read_checkpoint(request.checkpoint, request.ema), request.weight_bits, request.act_bits)
    classes = len(official.latent["head.bias"])
    known = classes == imagenet.CLASSES == len(imagenet.names())
    labels = imagenet.names() if known else tuple(map(str, range(classes)))
    how = folder_preprocessing(official.base.image_size)
    frozen = freeze_model(official.model, official.quantization, how, labels)
    recipe = Recipe(name=name, data="", model=official.base, quantization=official.quantization)
    with replacing(path, request.force) as folder:
        folder.mkdir()
        (folder / "metrics.jsonl").touch()
        _fill_run(folder, recipe, save(official.model.state_dict()), save(official.latent), frozen, {})
    return stamped(ImportResult, request.line(), {"run": str(path)})


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
    from ofq_deploy.data import imagenet
    from ofq_deploy.data.datasets import load_dataset

    size = recipe.model.image_size
    data = load_dataset(recipe.data, size)
    if weights is None:
        return data
    from ofq_deploy.train.sources.timm_weights import channels_of, classes_of

    if channels_of(weights) != data.preprocessing.channels:
        raise ModelError(
            f"{recipe.init} takes images of {channels_of(weights)} channels, {recipe.data} has "
            f"{data.preprocessing.channels}; pass other weights or --data FOLDER"
        )
    if classes_of(weights) == imagenet.CLASSES and set(data.labels) <= {*imagenet.wnids(), *imagenet.names()}:
        return load_dataset(recipe.data, size, labels=imagenet.names())
    return data


def _device(name: str) -> str:
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise RecipeError(f"no device {name!r}; there are auto, cpu and cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise RecipeError("no CUDA device is available; use --device cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
