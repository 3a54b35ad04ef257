"""The float model that a student starts from and learns from: trained, found in a cache, or given."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from ofq_deploy.data.datasets import Dataset
from ofq_deploy.environment import versions
from ofq_deploy.files import replacing
from ofq_deploy.progress import Reporter
from ofq_deploy.recipe import Recipe
from ofq_deploy.train.loop import train_teacher
from ofq_deploy.train.models import build_model, load_weights
from ofq_deploy.train.pretrained import Weights, classes_of, load_pretrained


def float_teacher(
    recipe: Recipe,
    data: Dataset,
    weights: Weights | None,
    cache: Path,
    metrics: Path,
    device: str,
    report: Reporter,
) -> Any:
    """The float model of a recipe: given, trained now, or found in `cache` under the hash of all that it depends on.

    weights: to start from; with a head for the data's classes they are the teacher as they are
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
    own = ("seed", "threads", "model", "augmentation", "teacher")
    decisive = {
        **{key: value for key, value in asdict(recipe).items() if key in own},
        "train": {key: getattr(recipe.train, key) for key in ("batch_size", "weight_decay", "warmup", "final_lr")},
        "data": data.fingerprint,
        "init": hashlib.sha256(save(weights)).hexdigest() if weights else "",
        "torch": versions().get("torch"),
        "device": device,
    }
    key = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
    path = cache / f"{key}.safetensors"
    if path.is_file():
        report.say(f"teacher: {path}, trained before")
        load_weights(model, path)
        return model.eval()
    report.say(f"training the float teacher on {data.name}")
    train_teacher(model, recipe, data, metrics, device, report)
    with replacing(path, force=True) as temporary:
        temporary.write_bytes(save(model.state_dict()))
    return model.eval()
