"""Every ingredient of the training loop does something: losses, decay, schedule, augmentation, methods, the teacher's cache."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofq_deploy.data.datasets import Dataset, Split
from ofq_deploy.data.images import Preprocessing
from ofq_deploy.errors import ModelError
from ofq_deploy.progress import Reporter
from ofq_deploy.recipe import Annealing, Augmentation, Model, Quantization, Recipe, Teacher, Training
from ofq_deploy.train.convert import calibrate, convert
from ofq_deploy.train.evaluation import predictions, top1
from ofq_deploy.train.loop import engine, teacher
from ofq_deploy.train.loop.augment import augment
from ofq_deploy.train.loop.batches import epoch_batches, fixed_choice, fixed_part
from ofq_deploy.train.loop.engine import Phase, parameter_groups, run_phases
from ofq_deploy.train.loop.losses import distilled, smoothed
from ofq_deploy.train.loop.schedule import constant, warmup_cosine
from ofq_deploy.train.loop.student import student_phases, train_student
from ofq_deploy.train.loop.teacher import float_teacher, teacher_key, teacher_phase
from ofq_deploy.train.methods.annealing import ConfidenceGuided
from ofq_deploy.train.methods.method import Method
from tests.support.models import random_images, small_vit

CLASSES = torch.tensor([0, 1, 2, 3])
NO_AUGMENTATION = Augmentation(rotation=0.0, scale=0.0, shift=0.0)


def split(count: int, seed: int) -> Split:
    images = random_images(count, seed=seed).numpy()
    return Split(np.arange(count) % 7, lambda index: images[index])


@pytest.fixture
def data() -> Dataset:
    labels, how = tuple("abcdefg"), Preprocessing(16, 16, "bilinear", (0.5,), (0.25,))
    return Dataset("noise", "0", labels, how, split(20, 0), split(6, 1), split(6, 2))


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(
        "tiny",
        model=Model("deit", distilled=True, image_size=16, patch_size=4, dim=16, depth=1, heads=2),
        teacher=Teacher(epochs=2, lr=3e-3, label_smoothing=0.2),
        train=Training(epochs=3, batch_size=8, lr=2e-3, final_lr=0.1, warmup=0.4, calibration_images=5),
        cga=Annealing(epochs=1, lr=1e-3, boundary_range=0.05),
    )


class Recorder(Method):
    """Ordinary training that keeps every step's learning rates, loss and trained parameters."""

    def __init__(self) -> None:
        self.starts, self.rates, self.losses = 0, list[float](), list[float]()

    def start(self, model: nn.Module) -> None:
        self.starts += 1

    def loss(self, model: nn.Module, loss: Tensor) -> Tensor:
        self.losses.append(loss.item())
        return loss

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Mapping[str, float]:
        assert model.training
        (rate,) = {group["lr"] for group in optimizer.param_groups}
        self.rates.append(rate)
        super().step(model, optimizer)
        return {"half": 0.5, "count": float(len(self.rates))}


def run(model: nn.Module, phases: list[Phase], recipe: Recipe, data: Dataset, folder: Path) -> list[dict[str, Any]]:
    """Train, and read back what the metrics say."""
    run_phases(model, phases, recipe, data, folder / "metrics.jsonl", "cpu", Reporter())
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# Losses


@pytest.mark.parametrize("with_head", [True, False])
def test_the_student_learns_from_labels_and_from_the_teachers_class_head(with_head: bool) -> None:
    model, taught_by, images = small_vit(with_head), small_vit(distilled=True, depth=2), random_images()
    tokens, target = model.forward_features(images), taught_by.forward_features(images)
    last = model.head_dist(tokens[:, 1]) if with_head else model.head(tokens[:, 0])
    soft = -(taught_by.head(target[:, 0]).softmax(-1) * last.log_softmax(-1)).sum(-1).mean()
    hard = -model.head(tokens[:, 0]).log_softmax(-1)[range(4), CLASSES].mean()

    torch.testing.assert_close(distilled(taught_by)(model, images, CLASSES), hard + soft)


def test_the_students_phases_distil_from_the_teacher_and_leave_it_alone(recipe: Recipe) -> None:
    model, taught_by, images = small_vit(distilled=True), small_vit(distilled=True, depth=2), random_images()
    for phase in student_phases(taught_by, recipe):
        loss = phase.loss(model, images, CLASSES)
        loss.backward()

        torch.testing.assert_close(loss, distilled(taught_by)(model, images, CLASSES))
    assert all(parameter.grad is None for parameter in taught_by.parameters())
    assert model.head_dist.weight.grad.any()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_teacher_learns_smoothed_labels_with_all_its_heads(recipe: Recipe, smoothing: float) -> None:
    model, images = small_vit(distilled=True), random_images()
    recipe = replace(recipe, teacher=replace(recipe.teacher, label_smoothing=smoothing))
    tokens = model.forward_features(images)
    target = (1 - smoothing) * F.one_hot(CLASSES, 7) + smoothing / 7
    heads = [model.head(tokens[:, 0]), model.head_dist(tokens[:, 1])]
    expected = sum(-(target * logits.log_softmax(-1)).sum(-1).mean() for logits in heads) / 2

    torch.testing.assert_close(teacher_phase(recipe).loss(model, images, CLASSES), expected)


# The optimizer


def test_weight_matrices_decay_and_nothing_else(recipe: Recipe, data: Dataset, tmp_path: Path) -> None:
    student, _ = convert(small_vit(distilled=True), Quantization(weights="lsq"))
    calibrate(student, random_images())
    before = {name: parameter.detach().clone() for name, parameter in student.named_parameters()}

    def no_gradient(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
        return torch.stack([(0 * parameter).sum() for parameter in model.parameters()]).sum()

    recipe = replace(recipe, train=replace(recipe.train, weight_decay=0.5))
    run(student, [Phase("decay", 1, constant(0.1), no_gradient)], recipe, data, tmp_path)
    matrices = {"head.weight", "head_dist.weight", "patch_embed.proj.weight"}
    matrices |= {f"blocks.0.{name}.weight" for name in ("attn.value", "attn.proj", "mlp.fc1", "mlp.fc2")}
    matrices |= {"blocks.0.attn.query", "blocks.0.attn.key"}

    for name, parameter in student.named_parameters():  # two steps of 5 %
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95**2 if name in matrices else 1.0))


def test_the_groups_hold_every_parameter_once() -> None:
    for model in (small_vit(distilled=True), convert(small_vit(), Quantization(attention="qk"))[0]):
        decayed, rest = parameter_groups(model, 0.05)

        assert (decayed["weight_decay"], rest["weight_decay"]) == (0.05, 0.0)
        assert sorted(map(id, model.parameters())) == sorted(map(id, [*decayed["params"], *rest["params"]]))


# The schedule


def test_the_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    rate = warmup_cosine(peak=2.0, warmup=0.2, final=0.1)

    assert [rate(step, 20) for step in range(4)] == [0.5, 1.0, 1.5, 2.0]
    assert rate(4, 20) == 2.0
    assert rate(12, 20) == pytest.approx(2 * (0.1 + 0.9 / 2))
    assert rate(20, 20) == pytest.approx(0.2)
    assert rate(8, 20) == pytest.approx(2 * (0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2))


def test_every_step_runs_at_its_rate(recipe: Recipe, data: Dataset, tmp_path: Path) -> None:
    model, recorder = small_vit(), Recorder()
    phase = Phase("quantized", 3, warmup_cosine(2e-3, 0.4, 0.1), smoothed(0.0), recorder)
    rows = run(model, [phase], recipe, data, tmp_path)

    assert not model.training
    assert recorder.rates == [warmup_cosine(2e-3, 0.4, 0.1)(step, 6) for step in range(6)]
    assert len(set(recorder.rates)) >= 5  # the peak counts twice
    assert [row["learning_rate"] for row in rows] == recorder.rates[1::2]


def test_the_phases_follow_the_recipe(recipe: Recipe) -> None:
    quantized, annealing = student_phases(small_vit(), recipe)
    expected = {"quantized": warmup_cosine(2e-3, 0.4, 0.1), "teacher": warmup_cosine(3e-3, 0.4, 0.1)}

    for phase in (quantized, teacher_phase(recipe)):
        assert [phase.rate(step, 10) for step in range(10)] == [expected[phase.name](step, 10) for step in range(10)]
    assert {annealing.rate(step, 10) for step in range(10)} == {1e-3}
    assert (quantized.epochs, annealing.epochs, teacher_phase(recipe).epochs) == (3, 1, 2)
    assert isinstance(annealing.method, ConfidenceGuided)
    assert type(quantized.method) is type(teacher_phase(recipe).method) is Method
    assert len(student_phases(small_vit(), replace(recipe, cga=replace(recipe.cga, enabled=False)))) == 1


# What a step sees


def test_an_epoch_is_a_seeded_order_of_augmented_images(data: Dataset) -> None:
    config = Augmentation(flip=True, crop=0.5)
    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(20, generator=generator)[:16].numpy().reshape(2, 8)
    seen = list(epoch_batches(data.train, 8, config, 3, "cpu"))

    assert len(seen) == 2
    for chosen, (images, classes) in zip(order, seen, strict=True):
        raw = torch.from_numpy(data.train.images(chosen))

        assert (chosen % 7).tolist() == classes.tolist()
        assert torch.equal(augment(raw, config, generator), images)
        assert not torch.allclose(raw, images, atol=0.1)


def test_without_augmentation_a_step_sees_the_images(data: Dataset) -> None:
    (images, classes), _ = epoch_batches(data.train, 8, NO_AUGMENTATION, 3, "cpu")
    chosen = [_index(data, image) for image in images]

    torch.testing.assert_close(images, torch.from_numpy(data.train.images(np.array(chosen))))
    assert len(set(chosen)) == 8
    assert [index % 7 for index in chosen] == classes.tolist()


def _index(data: Dataset, image: Tensor) -> int:
    """Of the training image that is nearest."""
    distances = [(torch.from_numpy(data.train.load(index)) - image).abs().max().item() for index in range(20)]
    return int(np.argmin(distances))


@pytest.mark.parametrize(
    ("config", "like"),
    [
        ({"rotation": math.pi}, None),
        ({"scale": 0.5}, None),
        ({"shift": 0.25}, None),
        ({"crop": 0.3}, None),
        ({"flip": True}, "mirrored"),
    ],
)
def test_every_augmentation_changes_images(config: dict[str, Any], like: str | None) -> None:
    images = torch.linspace(-1, 1, 16).expand(8, 1, 16, 16) + torch.linspace(0, 3, 16)[:, None]
    changed = augment(images, replace(NO_AUGMENTATION, **config), torch.Generator().manual_seed(0))
    differ = [not torch.allclose(before, after, atol=1e-3) for before, after in zip(images, changed, strict=True)]

    assert len({tuple(image.flatten().tolist()) for image in changed}) > 1  # each by its own draw
    if like == "mirrored":
        assert 0 < sum(differ) < 8
        assert all(torch.allclose(after, images[0].flip(-1), atol=1e-3) for after in changed[differ])
    else:
        assert all(differ)


def test_the_loop_augments_as_the_recipe_says(recipe: Recipe, data: Dataset, tmp_path: Path) -> None:
    seen: dict[str, list[Tensor]] = {"plain": [], "rich": []}

    def keep(name: str) -> Phase:
        def loss(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
            seen[name].append(images)
            return smoothed(0.0)(model, images, classes)

        return Phase(name, 2, constant(0.0), loss)

    run(
        small_vit(),
        [keep("plain"), replace(keep("plain"), epochs=1)],
        replace(recipe, augmentation=NO_AUGMENTATION),
        data,
        tmp_path,
    )
    run(small_vit(), [keep("rich"), replace(keep("rich"), epochs=1)], recipe, data, tmp_path)

    assert len(seen["plain"]) == 6
    for first, second in ((0, 2), (0, 4), (2, 4)):  # another order in every epoch, of every phase
        assert not torch.allclose(seen["plain"][first], seen["plain"][second], atol=1e-3)
    for plain, rich in zip(seen["plain"], seen["rich"], strict=True):
        assert not torch.allclose(plain, rich, atol=0.1)


@pytest.mark.parametrize("change", [{"seed": 1}, {}])
def test_the_order_comes_from_the_recipes_seed(
    recipe: Recipe, data: Dataset, tmp_path: Path, change: dict[str, Any]
) -> None:
    weights = []
    for chosen in (recipe, replace(recipe, **change)):
        model = small_vit()
        run(model, [Phase("quantized", 1, constant(1e-3), smoothed(0.0))], chosen, data, tmp_path)
        weights.append(model.head.weight)

    assert torch.equal(*weights) == (not change)


def test_a_fixed_choice_is_always_the_same(data: Dataset) -> None:
    part = fixed_part(data.train, 5)

    assert fixed_choice(data.train, 5).tolist() == fixed_choice(data.train, 20)[:5].tolist()
    assert part.classes.tolist() == data.train.classes[fixed_choice(data.train, 5)].tolist()
    assert np.array_equal(part.load(2), data.train.load(int(fixed_choice(data.train, 5)[2])))
    assert fixed_part(data.train, 20) is data.train


# Phases and methods


def test_a_method_starts_adds_to_the_loss_steps_and_is_logged(recipe: Recipe, data: Dataset, tmp_path: Path) -> None:
    class Damped(Recorder):
        """A penalty on the head, as later methods put on weights."""

        def loss(self, model: nn.Module, loss: Tensor) -> Tensor:
            return super().loss(model, loss) + 100 * model.head.weight.square().sum()

    plain, damped = Recorder(), Damped()
    norms = []
    for method in (plain, damped):
        model = small_vit()
        rows = run(model, [Phase("quantized", 2, constant(1e-2), smoothed(0.0), method)], recipe, data, tmp_path)
        norms.append(model.head.weight.norm())

    assert norms[1] < norms[0]
    assert damped.starts == plain.starts == 1
    assert rows[0]["phase"] == "quantized"
    assert (rows[2]["half"], rows[2]["count"], rows[3]["count"]) == (0.5, 1.5, 3.5)  # means over an epoch
    assert rows[2]["loss"] > rows[0]["loss"]  # with the penalty
    assert [row["epoch"] for row in rows] == [0, 1, 0, 1]


def test_the_first_loss_is_that_of_the_untrained_model(recipe: Recipe, data: Dataset, tmp_path: Path) -> None:
    model, recorder = small_vit(), Recorder()
    batch = next(epoch_batches(data.train, 8, recipe.augmentation, recipe.seed * 1_000_003, "cpu"))
    expected = smoothed(0.0)(model, *batch).item()
    rows = run(model, [Phase("quantized", 1, constant(1e-2), smoothed(0.0), recorder)], recipe, data, tmp_path)

    assert recorder.losses[0] == pytest.approx(expected)
    assert rows[0]["loss"] == pytest.approx(np.mean(recorder.losses), abs=1e-6)
    assert rows[0]["validation_top1"] == pytest.approx(top1(model, data.validation), abs=1e-3)


def test_a_students_run_trains_and_anneals(recipe: Recipe, data: Dataset, tmp_path: Path) -> None:
    recipe = replace(recipe, augmentation=NO_AUGMENTATION, train=replace(recipe.train, epochs=12, lr=5e-3))
    metrics, taught_by = tmp_path / "metrics.jsonl", small_vit(distilled=True, dim=16)
    before = {name: value.clone() for name, value in taught_by.state_dict().items()}
    student = train_student(taught_by, recipe, data, metrics, "cpu", Reporter())
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]

    assert [row["phase"] for row in rows] == ["quantized"] * 12 + ["annealing"]
    assert ["trainable_share" in row for row in rows] == [False] * 12 + [True]
    assert rows[11]["loss"] < 0.95 * rows[0]["loss"]
    assert not student.training
    assert all(torch.equal(value, before[name]) for name, value in taught_by.state_dict().items())


def test_the_student_is_calibrated_on_the_fixed_choice(recipe: Recipe, data: Dataset, tmp_path: Path) -> None:
    recipe = replace(recipe, train=replace(recipe.train, epochs=0), cga=replace(recipe.cga, enabled=False))
    taught_by = small_vit(distilled=True, dim=16)
    expected, _ = convert(taught_by, recipe.quantization, recipe.train.batch_size)
    calibrate(expected, torch.from_numpy(data.train.images(fixed_choice(data.train, 5))))
    student = train_student(taught_by, recipe, data, tmp_path / "metrics.jsonl", "cpu", Reporter())

    for name, value in student.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name
    assert student.head.input.gradient_scale == expected.head.input.gradient_scale


def test_top1_counts_what_is_predicted(data: Dataset) -> None:
    model = small_vit()
    predicted = np.concatenate(list(predictions(model, data.train, 3)))
    with torch.no_grad():
        expected = model(torch.from_numpy(data.train.images(range(20)))).argmax(-1).numpy()

    assert predicted.tolist() == expected.tolist()
    assert top1(model, data.train) == pytest.approx(100 * (expected == data.train.classes).mean())


# The teacher and its cache


def test_the_key_names_everything_that_a_teacher_depends_on(
    recipe: Recipe, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {"head.weight": torch.zeros(2)}
    keys = {"as it is": teacher_key(recipe, data, None, "cpu")}
    changes: list[tuple[str, Any]] = [
        ("seed", 1),
        ("threads", 2),
        ("model", replace(recipe.model, depth=2)),
        ("augmentation", Augmentation(flip=True)),
        ("teacher", replace(recipe.teacher, epochs=3)),
        *((f"train.{key}", replace(recipe.train, **{key: value})) for key, value in CHANGES_OF_TRAINING.items()),
    ]
    for name, value in changes:
        section = name.split(".")[0]
        keys[name] = teacher_key(replace(recipe, **{section: value}), data, None, "cpu")
    keys["data"] = teacher_key(recipe, replace(data, fingerprint="1"), None, "cpu")
    keys["weights"] = teacher_key(recipe, data, weights, "cpu")
    keys["other weights"] = teacher_key(recipe, data, {"head.weight": torch.ones(2)}, "cpu")
    keys["device"] = teacher_key(recipe, data, None, "cuda")
    monkeypatch.setattr(teacher, "versions", lambda: {"torch": "another"})
    keys["torch"] = teacher_key(recipe, data, None, "cpu")

    assert len(keys) == len(set(keys.values()))


CHANGES_OF_TRAINING: dict[str, Any] = {"batch_size": 9, "weight_decay": 0.1, "warmup": 0.3, "final_lr": 0.2}


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"quantization": Quantization(2, 2)},
        {"cga": Annealing(enabled=False)},
        {"train": {"epochs": 9, "lr": 0.1, "calibration_images": 9}},
    ],
    ids=str,
)
def test_students_of_one_teacher_share_its_key(recipe: Recipe, data: Dataset, change: dict[str, Any]) -> None:
    change = {key: replace(recipe.train, **value) if key == "train" else value for key, value in change.items()}

    assert teacher_key(recipe, data, None, "cpu") == teacher_key(replace(recipe, **change), data, None, "cpu")


def test_a_teacher_is_trained_once(
    recipe: Recipe, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(chosen: Recipe) -> nn.Module:
        return float_teacher(chosen, data, None, tmp_path / "cache", tmp_path / "metrics.jsonl", "cpu", Reporter())

    first = make(recipe)
    monkeypatch.setattr(engine, "_run_epoch", lambda *_: pytest.fail("it trains again"))
    second = make(replace(recipe, quantization=Quantization(2, 2)))

    assert not first.training
    assert not second.training
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    assert len(list((tmp_path / "cache").iterdir())) == 1
    with pytest.raises(pytest.fail.Exception, match="trains again"):
        make(replace(recipe, seed=1))


def test_a_teacher_without_epochs_is_ready_to_teach(recipe: Recipe, data: Dataset, tmp_path: Path) -> None:
    recipe = replace(recipe, teacher=replace(recipe.teacher, epochs=0))

    assert not float_teacher(recipe, data, None, tmp_path, tmp_path / "metrics", "cpu", Reporter()).training


def test_a_network_without_a_quantized_form_is_refused_before_its_teacher_is_trained(
    recipe: Recipe, data: Dataset, tmp_path: Path
) -> None:
    recipe = replace(recipe, model=replace(recipe.model, name="vit_tiny_r_s16_p8_224", image_size=32, patch_size=8))

    with pytest.raises(ModelError, match="a convolutional stem"):
        float_teacher(recipe, data, None, tmp_path, tmp_path / "metrics.jsonl", "cpu", Reporter())
    assert not (tmp_path / "metrics.jsonl").exists()
