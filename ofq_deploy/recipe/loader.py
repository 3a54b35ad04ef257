"""Recipes from TOML and from tables, changed by dotted keys, and as TOML again."""

import difflib
import json
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from ofq_deploy.errors import RecipeError
from ofq_deploy.recipe.types import Recipe, taken

BUILT_IN = Path(__file__).parent / "built_in"
DEFAULT = "digits-w4a4"


def load_recipe(source: str | Path) -> Recipe:
    """The built-in recipe of that name, or the recipe in a TOML file.

    Raises RecipeError for a name that does not exist, TOML that does not parse, unknown keys (naming the
    nearest known one) and values of a wrong type or outside their range.
    """
    path = Path(source)
    if path.suffix != ".toml":
        path = BUILT_IN / f"{source}.toml"
        if not path.is_file():
            raise RecipeError(
                f"no recipe {str(source)!r}; built in: {', '.join(built_in_names())}; or give a .toml file"
            )
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read recipe {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not TOML: {error}") from error
    return recipe_from_table({"name": path.stem, **table})


def built_in_names() -> list[str]:
    return sorted(path.stem for path in BUILT_IN.glob("*.toml"))


def recipe_from_table(table: dict[str, Any]) -> Recipe:
    """A recipe from nested tables, every key checked; RecipeError says which is wrong."""
    if "name" not in table:
        raise RecipeError("recipe key 'name' is missing; it names the folder of the run")
    recipe: Recipe = _section(Recipe, table, "")
    return recipe


def override(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """The recipe with dotted keys replaced, all at once: {"train.epochs": 1, "seed": 3}.

    Values may be strings, as typed on a command line. Raises RecipeError as `load_recipe` does.
    """
    table = asdict(recipe)
    for key, value in changes.items():
        section: type = Recipe
        values = table
        *sections, last = key.split(".")
        for name in sections:
            hint = _hint(section, name, key)
            if not is_dataclass(hint):
                raise RecipeError(f"recipe key {key!r} does not exist: {name!r} has no keys below it")
            section, values = hint, values[name]  # type: ignore[assignment]
        hint = _hint(section, last, key)
        if is_dataclass(hint):
            raise RecipeError(f"recipe key {key!r} is a section; name one of its keys, as {key}.{fields(hint)[0].name}")
        values[last] = _typed(value, hint)
    return recipe_from_table(table)


def dump_toml(recipe: Recipe) -> str:
    """The recipe as TOML that `load_recipe` reads back to an equal recipe."""
    table = asdict(recipe)
    lines = [f"{key} = {_toml(value)}" for key, value in table.items() if not isinstance(value, dict)]
    for section, values in table.items():
        if isinstance(values, dict):
            lines += ["", f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):  # TOML's basic strings escape as JSON's do, and DEL too
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _section(section: type, table: dict[str, Any], prefix: str) -> Any:
    values = {}
    for name, value in table.items():
        key = prefix + name
        hint = _hint(section, name, key)
        if not is_dataclass(hint):
            values[name] = taken(value, hint, key)
        elif isinstance(value, dict):
            values[name] = _section(hint, value, f"{key}.")  # type: ignore[arg-type]
        else:
            raise RecipeError(f"recipe key {key!r} is a section, got the value {value!r}")
    return section(**values)


def _hint(section: type, name: str, key: str) -> Any:
    """The annotation of a key, as `taken` reads it."""
    hints = get_type_hints(section, include_extras=True)
    if name not in hints:
        (nearest,) = difflib.get_close_matches(key, _keys(Recipe, ""), n=1, cutoff=0.0)
        raise RecipeError(f"unknown recipe key {key!r}; the nearest known key is {nearest!r}")
    return hints[name]


def _keys(section: type, prefix: str) -> Iterator[str]:
    """Every dotted key and section."""
    for name, hint in get_type_hints(section).items():
        yield prefix + name
        if is_dataclass(hint):
            yield from _keys(hint, f"{prefix}{name}.")  # type: ignore[arg-type]


def _typed(value: Any, hint: Any) -> Any:
    """A command line's string in the kind that the key has, whatever its bounds; anything else as it is."""
    kind = getattr(hint, "__origin__", hint)
    if not isinstance(value, str) or kind not in (bool, int, float):
        return value
    if kind is bool:
        return {"true": True, "false": False}.get(value.lower(), value)
    try:
        return kind(value)
    except ValueError:
        return value
