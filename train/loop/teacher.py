"""The float model that a student starts from and learns from: trained, found in a cache, or given."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from ofq_deploy.data.datasets import Dataset
from ofq_deploy.environment import versions
from ofq_deploy.files import replacing
from ofq_deploy.progress import Reporter
from ofq_deploy.recipe import Recipe
from ofq_deploy.train.architectures.registry import check_supported
from ofq_deploy.train.loop.engine import Phase, run_phases
from ofq_deploy.train.loop.losses import smoothed
from ofq_deploy.train.loop.schedule import warmup_cosine
from ofq_deploy.train.sources.models import build_model, load_weights
from ofq_deploy.train.sources.timm_weights import Weights, classes_of, load_pretrained


def float_teacher(
    recipe: Recipe,
    data: Dataset,
    weights: Weights | None,
    cache: Path,
    metrics: Path,
    device: str,
    report: Reporter,
) -> nn.Module:
    """The float model of a recipe: given, trained now, or found in `cache` under the hash of all that it depends on.

    weights: to start from; with a head for the data's classes they are the teacher as they are

    Raises ModelError for a network that has no quantized form, before anything is trained.
    """
    torch.manual_seed(recipe.seed)
    classes = len(data.labels)
    if weights is None:
        model = build_model(recipe.model, data.preprocessing.channels, classes)
    else:
        model, notes = load_pretrained(weights, recipe.model, classes)
        for note in notes:
            report.say(f"{recipe.init}: {note}")
        if classes_of(weights) == classes:
            names = ", ".join(data.labels[:3])
            report.say(
                f"{recipe.init}: its head is taken for the data's {classes} classes in their order ({names}, ...)"
            )
            return model
    check_supported(model)
    path = cache / f"{teacher_key(recipe, data, weights, device)}.safetensors"
    if path.is_file():
        report.say(f"teacher: {path}, trained before")
        load_weights(model, path)
        return model.eval()
    report.say(f"training the float teacher on {data.name}")
    run_phases(model, [teacher_phase(recipe)], recipe, data, metrics, device, report)
    with replacing(path, force=True) as temporary:
        temporary.write_bytes(save(model.state_dict()))
    return model


def teacher_phase(recipe: Recipe) -> Phase:
    """Cross-entropy with label smoothing, under the student's warm-up and cosine."""
    config = recipe.teacher
    rate = warmup_cosine(config.lr, recipe.train.warmup, recipe.train.final_lr)
    return Phase("teacher", config.epochs, rate, smoothed(config.label_smoothing))


def teacher_key(recipe: Recipe, data: Dataset, weights: Weights | None, device: str) -> str:
    """16 hexadecimal digits of everything that a trained teacher depends on."""
    sections = ("seed", "threads", "model", "augmentation", "teacher")
    decisive = {
        **{key: value for key, value in asdict(recipe).items() if key in sections},
        "train": {key: getattr(recipe.train, key) for key in ("batch_size", "weight_decay", "warmup", "final_lr")},
        "data": data.fingerprint,
        "init": hashlib.sha256(save(weights)).hexdigest() if weights else "",
        "torch": versions().get("torch"),
        "device": device,
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
