"""Recipes: TOML that reads back, overrides, and errors that name the key and what it takes."""

import dataclasses
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofq_deploy import api
from ofq_deploy.errors import OfqError, RecipeError
from ofq_deploy.recipe import (
    Annealing,
    Augmentation,
    Model,
    Quantization,
    Recipe,
    Teacher,
    Training,
    built_in_names,
    dump_toml,
    load_recipe,
    override,
    recipe_from_table,
)
from ofq_deploy.recipe.loader import _keys

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
counts = st.integers(0, 10**6)
rates = st.floats(0, 1e6, allow_nan=False)
bits = st.integers(2, 8)
names = st.text(st.characters(exclude_characters="/\\\0", exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: not text.startswith(".")
)
recipes = st.builds(
    Recipe,
    name=names,
    data=texts,
    seed=counts,
    threads=st.integers(0, 1024),
    model=st.builds(Model, name=texts, distilled=st.booleans(), dim=st.integers(1, 99).map(lambda size: 4 * size)),
    quantization=st.builds(
        Quantization,
        weight_bits=bits,
        act_bits=bits,
        attention=st.sampled_from(["qkr", "qk"]),
        act_step=st.sampled_from(["token", "tensor"]),
        weights=st.sampled_from(["statsq", "lsq"]),
        shifts=st.booleans(),
    ),
    augmentation=st.builds(Augmentation, rotation=rates, flip=st.booleans()),
    teacher=st.builds(Teacher, epochs=counts, lr=rates),
    train=st.builds(Training, epochs=counts, lr=rates, warmup=st.floats(0, 1)),
    cga=st.builds(Annealing, enabled=st.booleans(), boundary_range=rates, qk=st.just("free")),
)


@given(recipe=recipes)
def test_toml_reads_back_to_an_equal_recipe(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(dump_toml(recipe), encoding="utf-8")

    assert recipe == load_recipe(path)


def test_built_in_recipes_load_by_name() -> None:
    found = {name: load_recipe(name) for name in built_in_names()}

    assert {"digits-w4a4", "digits-w2a2"} <= set(found)
    assert all(recipe.name == name for name, recipe in found.items())
    assert found["digits-w4a4"].quantization.label == "W4A4"
    assert found["digits-w2a2"].quantization.label == "W2A2"
    assert {name: recipe.data for name, recipe in found.items() if recipe.data != "digits"} == {"finetune": "FOLDER"}


def test_a_file_without_a_name_is_named_after_itself(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("seed = 3\n[train]\nlr = 1\n", encoding="utf-8")
    recipe = load_recipe(path)

    assert (recipe.name, recipe.seed, recipe.train.lr) == ("mine", 3, 1.0)
    assert isinstance(recipe.train.lr, float)


@pytest.mark.parametrize(
    ("key", "given_value", "expected"),
    [
        ("train.epochs", "7", 7),
        ("train.epochs", 7, 7),
        ("train.lr", "1e-3", 1e-3),
        ("train.lr", "1", 1.0),
        ("train.lr", 1, 1.0),
        ("cga.enabled", "false", False),
        ("cga.enabled", "True", True),
        ("cga.enabled", False, False),
        ("quantization.attention", "qk", "qk"),
        ("quantization.weight_bits", "2", 2),
        ("data", "some/folder", "some/folder"),
        ("data", "17", "17"),
        ("seed", "0", 0),
    ],
)
def test_an_override_changes_one_key_and_keeps_its_type(key: str, given_value: Any, expected: Any) -> None:
    before = load_recipe("digits-w4a4")
    after = override(before, {key: given_value})
    found: Any = after
    for part in key.split("."):
        found = getattr(found, part)

    assert expected == found
    assert type(expected) is type(found)
    section = key.split(".")[0]
    others = [field.name for field in dataclasses.fields(Recipe) if field.name != section]
    assert [getattr(before, name) for name in others] == [getattr(after, name) for name in others]


def test_overrides_apply_together_and_leave_the_original_alone() -> None:
    before = load_recipe("digits-w4a4")
    after = override(before, {"train.epochs": "1", "train.lr": "0.5", "seed": 9})

    assert (after.train.epochs, after.train.lr, after.seed) == (1, 0.5, 9)
    assert (before.train.epochs, before.train.lr, before.seed) == (36, 2e-3, 0)
    assert after.train.batch_size == before.train.batch_size


def test_overrides_that_need_one_another_apply_together() -> None:
    """Neither 63 channels nor 3 heads alone fit the 4 heads and 64 channels of before."""
    after = override(load_recipe("digits-w4a4"), {"model.dim": "63", "model.heads": "3"})

    assert (after.model.dim, after.model.heads) == (63, 3)


@pytest.mark.parametrize(
    ("unknown", "nearest"),
    [
        ("train.epoch", "train.epochs"),
        ("train.learning", "train.lr"),
        ("quantization.weight_bit", "quantization.weight_bits"),
        ("quantisation.act_bits", "quantization.act_bits"),
        ("cga.boundary", "cga.boundary_range"),
        ("modell", "model"),
        ("sead", "seed"),
    ],
)
def test_an_unknown_key_names_the_nearest_one(unknown: str, nearest: str, tmp_path: Path) -> None:
    expected = f"unknown recipe key {unknown!r}; the nearest known key is {nearest!r}"
    path = tmp_path / "recipe.toml"
    path.write_text(f"{unknown} = 1\n", encoding="utf-8")
    with pytest.raises(RecipeError) as overridden:
        override(load_recipe("digits-w4a4"), {unknown: "1"})

    assert expected == str(overridden.value)
    if "." not in unknown or unknown.split(".")[0] in ("train", "quantization", "cga"):
        with pytest.raises(RecipeError) as loaded:
            load_recipe(path)
        assert expected == str(loaded.value)


@given(key=texts)
def test_no_unknown_key_is_ever_accepted(key: str) -> None:
    recipe = load_recipe("digits-w4a4")
    known = {field.name for field in dataclasses.fields(Recipe)}
    if key.split(".")[0] in known:
        return
    with pytest.raises(RecipeError, match="the nearest known key is"):
        override(recipe, {key: "1"})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.epochs", "1.5", "recipe key 'train.epochs' is '1.5'; it takes"),
        ("train.epochs", 1.5, "recipe key 'train.epochs' is 1.5; it takes"),
        ("train.epochs", True, "recipe key 'train.epochs' is True; it takes"),
        ("train.epochs", "many", "recipe key 'train.epochs' is 'many'; it takes"),
        ("train.lr", "fast", "recipe key 'train.lr' is 'fast'; it takes"),
        ("train.lr", False, "recipe key 'train.lr' is False; it takes"),
        ("train.lr", None, "recipe key 'train.lr' is None; it takes"),
        ("cga.enabled", "maybe", "recipe key 'cga.enabled' is 'maybe'; it takes"),
        ("cga.enabled", 1, "recipe key 'cga.enabled' is 1; it takes"),
        ("data", 3, "recipe key 'data' is 3; it takes"),
        ("seed", [1], "recipe key 'seed' is [1]; it takes"),
        ("quantization.attention", "both", "recipe key 'quantization.attention' is 'both'; it takes 'qkr' or 'qk'"),
        ("quantization.act_step", "row", "recipe key 'quantization.act_step' is 'row'; it takes 'token' or 'tensor'"),
        ("quantization.weights", 4, "recipe key 'quantization.weights' is 4; it takes 'statsq' or 'lsq'"),
        ("cga.qk", "", "recipe key 'cga.qk' is ''; it takes 'free' or 'mask'"),
        ("quantization.weight_bits", "1", "quantization.weight_bits is 1; quantizers exist for 2 to 8 bits"),
        ("quantization.weight_bits", 9, "quantization.weight_bits is 9; quantizers exist for 2 to 8 bits"),
        ("quantization.act_bits", 0, "quantization.act_bits is 0; quantizers exist for 2 to 8 bits"),
        ("train.epochs", "-1", "recipe key 'train.epochs' is -1; it takes a finite number from 0 up"),
        ("train.lr", "nan", "recipe key 'train.lr' is nan; it takes a finite number from 0 up"),
        ("train.lr", "inf", "recipe key 'train.lr' is inf; it takes a finite number from 0 up"),
        ("train.lr", "-inf", "recipe key 'train.lr' is -inf; it takes a finite number from 0 up"),
        ("teacher.lr", -0.1, "recipe key 'teacher.lr' is -0.1; it takes a finite number from 0 up"),
        ("seed", -3, "recipe key 'seed' is -3; it takes a finite number from 0 up"),
    ],
)
def test_a_wrong_value_is_refused_by_name(key: str, value: Any, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        override(load_recipe("digits-w4a4"), {key: value})

    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[train]\nlr = nan", "recipe key 'train.lr' is nan; it takes a finite number from 0 up"),
        ("[train]\nlr = inf", "recipe key 'train.lr' is inf; it takes a finite number from 0 up"),
        ("[train]\nlr = '1e-3'", "recipe key 'train.lr' is '1e-3'; it takes"),
        ("[quantization]\nweight_bits = 1", "quantization.weight_bits is 1; quantizers exist for 2 to 8 bits"),
        ("[quantization]\nact_bits = 9", "quantization.act_bits is 9; quantizers exist for 2 to 8 bits"),
        ("train = 3", "recipe key 'train' is a section, got the value 3"),
        ("train = [1]", "recipe key 'train' is a section, got the value [1]"),
        ("[seed]\nx = 1", "recipe key 'seed' is {'x': 1}; it takes"),
        ("[quantization.attention]\nx = 1", "recipe key 'quantization.attention' is {'x': 1}; it takes 'qkr' or 'qk'"),
    ],
)
def test_a_wrong_value_in_a_file_is_refused_by_name(toml: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(toml, encoding="utf-8")
    with pytest.raises(RecipeError) as error:
        load_recipe(path)

    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Quantization(weight_bits=1), "quantization.weight_bits is 1; quantizers exist for 2 to 8 bits"),
        (
            lambda: Quantization(weights="linear"),  # type: ignore[arg-type]
            "recipe key 'quantization.weights' is 'linear'; it takes 'statsq' or 'lsq'",
        ),
        (lambda: Model(depth=0), "recipe key 'model.depth' is 0; it takes a number from 1 to 4096"),
        (lambda: Recipe("x", seed=2**31 + 1), "recipe key 'seed' is 2147483649; it takes a finite number from 0 up to"),
        (lambda: Recipe("x", threads=-1), "recipe key 'threads' is -1; it takes a finite number from 0 up to 1024"),
        (
            lambda: Recipe("x", train=Training(batch_size=0)),
            "recipe key 'train.batch_size' is 0; it takes a number from",
        ),
        (
            lambda: Recipe("x", train=Training(warmup=1.5)),
            "recipe key 'train.warmup' is 1.5; it takes a share from 0 to 1",
        ),
        (lambda: Recipe("x", teacher=Teacher(lr=-1.0)), "recipe key 'teacher.lr' is -1.0; it takes a finite number"),
        (
            lambda: Recipe("x", augmentation=Augmentation(crop=2)),
            "recipe key 'augmentation.crop' is 2; it takes a share",
        ),
    ],
)
def test_a_recipe_made_in_python_is_held_against_the_same_bounds(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        build()

    assert str(error.value).startswith(message)


def test_every_key_says_what_it_takes() -> None:
    recipe = load_recipe("digits-w4a4")
    keys = [key for key in _keys(Recipe, "") if key not in {field.name for field in dataclasses.fields(Recipe)}]
    for key in [*keys, "name", "data", "init", "seed", "threads"]:
        for value in (None, dataclasses, datetime.date(2020, 1, 1), -1):
            with pytest.raises(RecipeError, match=rf"{key}'? is .*; (it takes|quantizers exist for) \S+"):
                override(recipe, {key: value})


def test_sections_and_keys_are_told_apart() -> None:
    recipe = load_recipe("digits-w4a4")
    with pytest.raises(RecipeError) as section:
        override(recipe, {"train": "3"})
    with pytest.raises(RecipeError) as key:
        override(recipe, {"train.epochs.more": "3"})

    assert str(section.value) == "recipe key 'train' is a section; name one of its keys, as train.epochs"
    assert str(key.value) == "recipe key 'train.epochs.more' does not exist: 'epochs' has no keys below it"


def test_a_source_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    broken, binary = tmp_path / "broken.toml", tmp_path / "binary.toml"
    broken.write_text("seed = = 3", encoding="utf-8")
    binary.write_bytes(b"\xff\xfe\x00name")
    messages = []
    for source in ("digits-w9a9", tmp_path / "absent.toml", broken, binary, tmp_path):
        with pytest.raises(RecipeError) as error:
            load_recipe(source)
        messages.append(str(error.value))

    assert messages[0].startswith("no recipe 'digits-w9a9'; built in: digits-w2a2, digits-w4a4")
    assert messages[0].endswith("or give a .toml file")
    assert f"cannot read recipe {tmp_path / 'absent.toml'}: No such file or directory" == messages[1]
    assert messages[2].startswith(f"{broken} is not TOML: ")
    assert messages[3].startswith(f"{binary} is not TOML: ")
    assert messages[4].startswith(f"no recipe {str(tmp_path)!r}")
    assert all("\n" not in message for message in messages)


def test_a_table_without_a_name_or_with_an_unknown_section_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"unknown recipe key 'optimizer'; the nearest known key is '[a-z_.]+'"):
        recipe_from_table({"name": "x", "optimizer": {"lr": 1.0}})
    with pytest.raises(RecipeError, match="recipe key 'name' is missing"):
        recipe_from_table({"seed": 1})

    assert Recipe(name="x") == recipe_from_table({"name": "x"})


@pytest.mark.parametrize(
    "settings",
    [
        {"train.batch_size": 0},
        {"train.calibration_images": 0},
        {"train.warmup": 1.5},
        {"model.name": "vit_of_nobody"},
        {"model.dim": 63},
        {"model.heads": 0},
        {"model.heads": 3},
        {"model.depth": 0},
        {"model.patch_size": 0},
        {"model.patch_size": 5},
        {"model.image_size": 0},
        {"seed": 10**20},
        {"threads": 10**10},
        {"name": ""},
        {"name": "../elsewhere"},
    ],
    ids=lambda settings: ",".join(f"{key}={value}" for key, value in settings.items()),
)
def test_values_that_cannot_train_are_refused_before_anything_is_written(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = {"teacher.epochs": 0, "train.epochs": 0, "cga.epochs": 0, "train.calibration_images": 8}
    with pytest.raises(OfqError) as error:
        api.train(overrides=tiny | settings, device="cpu")

    assert "\n" not in str(error.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
