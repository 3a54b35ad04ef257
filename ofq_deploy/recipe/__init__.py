"""Recipes: everything that decides how a model is trained, as frozen dataclasses and as TOML."""

import difflib
import json
import tomllib
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ofq_deploy.errors import RecipeError
from ofq_deploy.model.grids import MAX_BITS, MIN_BITS

BUILT_IN = Path(__file__).parent / "built_in"
DEFAULT = "digits-w4a4"


@dataclass(frozen=True, slots=True)
class Quantization:
    """What is quantized and how. Patch embedding and heads always have 8 bits (OFQ section 4)."""

    weight_bits: int = 4
    act_bits: int = 4
    attention: Literal["qkr", "qk"] = "qkr"  # one quantized product of Wq and Wk, or q and k apart
    act_step: Literal["token", "tensor"] = "token"
    weights: Literal["statsq", "lsq"] = "statsq"
    shifts: bool = True  # learned shifts before and after each activation quantizer
    key_bias: bool = True  # under QKR: keep the query bias as a key term (the official code drops it)

    def __post_init__(self) -> None:
        for name in ("weight_bits", "act_bits"):
            bits = getattr(self, name)
            if not MIN_BITS <= bits <= MAX_BITS:
                raise RecipeError(f"quantization.{name} is {bits}; quantizers exist for {MIN_BITS} to {MAX_BITS} bits")

    @property
    def label(self) -> str:
        """W4A4 and the like."""
        return f"W{self.weight_bits}A{self.act_bits}"


@dataclass(frozen=True, slots=True)
class Model:
    """A timm VisionTransformer; the sizes count for `deit_nano` and `deit`, other names are timm's own."""

    name: str = "deit_nano"
    distilled: bool = True
    image_size: int = 16
    patch_size: int = 4
    dim: int = 64
    depth: int = 4
    heads: int = 4

    def __post_init__(self) -> None:
        for key in ("image_size", "patch_size", "dim", "depth", "heads"):
            if not 1 <= getattr(self, key) <= 4096:
                raise RecipeError(f"recipe key 'model.{key}' is {getattr(self, key)}; it takes a number from 1 to 4096")
        if self.image_size % self.patch_size:
            raise RecipeError(
                f"recipe key 'model.patch_size' is {self.patch_size}, which does not divide {self.image_size}"
            )
        if self.dim % self.heads:
            raise RecipeError(f"recipe key 'model.heads' is {self.heads}, which does not divide model.dim {self.dim}")


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Random affine maps of the training images, drawn anew for each image and epoch."""

    rotation: float = 0.17  # radians, either way
    scale: float = 0.1  # share, either way
    shift: float = 0.0625  # share of the image side, either way
    flip: bool = False  # mirror half of the images
    crop: float = 1.0  # smallest share of the area that a random crop keeps (of any aspect from 3/4 to 4/3); 1 for none


@dataclass(frozen=True, slots=True)
class Teacher:
    """The float model that the student starts from and learns from."""

    epochs: int = 60
    lr: float = 2e-3
    label_smoothing: float = 0.1


@dataclass(frozen=True, slots=True)
class Training:
    """Quantization-aware training: AdamW, linear warm-up, then a cosine, per step."""

    epochs: int = 36
    batch_size: int = 64  # also the constant batch in LSQ's gradient scale
    lr: float = 2e-3
    final_lr: float = 0.01  # where the cosine ends, as a share of lr
    weight_decay: float = 0.05  # of weights with two or more axes
    warmup: float = 0.05  # share of the steps
    calibration_images: int = 256


@dataclass(frozen=True, slots=True)
class Annealing:
    """Confidence-guided annealing (OFQ section 4.3): only weights near a threshold still move."""

    enabled: bool = True
    epochs: int = 5
    lr: float = 4e-5
    boundary_range: float = 0.005  # half width of the moving zone, in codes
    qk: Literal["free", "mask"] = "free"  # under QKR: let Wq and Wk train on, as the official code does, or mask


@dataclass(frozen=True, slots=True)
class Recipe:
    name: str
    data: str = "digits"
    init: str = ""  # weights of a timm ViT or DeiT (.safetensors, .pth) that replace the trained float teacher
    seed: int = 0
    threads: int = 1
    model: Model = field(default_factory=Model)
    quantization: Quantization = field(default_factory=Quantization)
    augmentation: Augmentation = field(default_factory=Augmentation)
    teacher: Teacher = field(default_factory=Teacher)
    train: Training = field(default_factory=Training)
    cga: Annealing = field(default_factory=Annealing)

    def __post_init__(self) -> None:
        if not self.name or self.name.startswith(".") or any(mark in self.name for mark in "/\\\0"):
            raise RecipeError(f"recipe key 'name' is {self.name!r}; it names a folder: no separators, no leading dot")
        for key, value, most in (("seed", self.seed, 2**31), ("threads", self.threads, 1024)):
            if value > most:
                raise RecipeError(f"recipe key {key!r} is {value}; it takes a number up to {most}")
        for key, count in (
            ("train.batch_size", self.train.batch_size),
            ("train.calibration_images", self.train.calibration_images),
        ):
            if count < 1:
                raise RecipeError(f"recipe key {key!r} is {count}; it takes a number from 1 up")
        for key, share in (
            ("teacher.label_smoothing", self.teacher.label_smoothing),
            ("train.warmup", self.train.warmup),
            ("train.final_lr", self.train.final_lr),
            ("augmentation.crop", self.augmentation.crop),
        ):
            if share > 1:
                raise RecipeError(f"recipe key {key!r} is {share}; it takes a share from 0 to 1")
        if self.cga.enabled and self.cga.qk == "mask" and self.quantization.weights != "statsq":
            raise RecipeError("recipe key 'cga.qk' is 'mask', which needs quantization.weights = 'statsq'")


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
    recipe: Recipe = _build(Recipe, table, "")
    return recipe


def override(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """The recipe with dotted keys replaced: {"train.epochs": 1, "seed": 3}.

    Values may be strings, as typed on a command line. Raises RecipeError as `load_recipe` does.
    """
    for key, value in changes.items():
        recipe = _override_one(recipe, key, key.split("."), value)
    return recipe


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


def _override_one(owner: Any, full: str, parts: list[str], value: Any) -> Any:
    head, rest = parts[0], parts[1:]
    hint = _known(type(owner), head, full)
    current = getattr(owner, head)
    if is_dataclass(current):
        if not rest:
            raise RecipeError(
                f"recipe key {full!r} is a section; name one of its keys, as {full}.{fields(current)[0].name}"
            )
        return replace(owner, **{head: _override_one(current, full, rest, value)})
    if rest:
        raise RecipeError(f"recipe key {full!r} does not exist: {head!r} has no keys below it")
    return replace(owner, **{head: _value(hint, _parsed(hint, value), full)})


def _build(cls: type, table: dict[str, Any], prefix: str) -> Any:
    values = {}
    for key, value in table.items():
        hint = _known(cls, key, prefix + key)
        if is_dataclass(hint):
            if not isinstance(value, dict):
                raise RecipeError(f"recipe key {prefix + key!r} is a section, got the value {value!r}")
            values[key] = _build(hint, value, f"{prefix}{key}.")  # type: ignore[arg-type]
        else:
            values[key] = _value(hint, value, prefix + key)
    return cls(**values)


def _known(cls: type, key: str, full: str) -> Any:
    hints = get_type_hints(cls)
    if key not in hints:
        near = difflib.get_close_matches(full, _all_keys(Recipe, ""), n=1, cutoff=0.0)
        raise RecipeError(f"unknown recipe key {full!r}; the nearest known key is {near[0]!r}")
    return hints[key]


def _all_keys(cls: type, prefix: str) -> list[str]:
    """Every dotted key and section."""
    keys = []
    for key, hint in get_type_hints(cls).items():
        keys += [prefix + key, *(_all_keys(hint, f"{prefix}{key}.") if is_dataclass(hint) else [])]  # type: ignore[arg-type]
    return keys


def _parsed(hint: Any, value: Any) -> Any:
    """A command line string in the type that the key has; anything else as it is."""
    if not isinstance(value, str) or hint is str or get_origin(hint) is Literal:
        return value
    if hint is bool:
        return {"true": True, "false": False}.get(value.lower(), value)
    try:
        return hint(value)
    except ValueError:
        return value


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _value(hint: Any, value: Any, key: str) -> Any:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise RecipeError(f"recipe key {key!r} is {value!r}; it takes {' or '.join(map(repr, get_args(hint)))}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise RecipeError(f"recipe key {key!r} is {value!r}; it takes {_KINDS[hint]}")
    if hint in (int, float) and not 0 <= value < float("inf"):
        raise RecipeError(f"recipe key {key!r} is {value!r}; it takes a finite number from 0 up")
    return value
