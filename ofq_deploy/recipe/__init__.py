"""Recipes: everything that decides how a model is trained, as frozen dataclasses and as TOML."""

from ofq_deploy.recipe.loader import (
    DEFAULT,
    built_in_names,
    dump_toml,
    load_recipe,
    override,
    recipe_from_table,
)
from ofq_deploy.recipe.types import Annealing, Augmentation, Model, Quantization, Recipe, Teacher, Training

__all__ = [
    "DEFAULT",
    "Annealing",
    "Augmentation",
    "Model",
    "Quantization",
    "Recipe",
    "Teacher",
    "Training",
    "built_in_names",
    "dump_toml",
    "load_recipe",
    "override",
    "recipe_from_table",
]
