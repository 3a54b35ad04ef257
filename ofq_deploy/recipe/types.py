"""The types of a recipe. An annotation says what a key takes and in which words that is told."""

import sys
from dataclasses import dataclass, field, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from ofq_deploy.errors import RecipeError
from ofq_deploy.model.grids import MAX_BITS, MIN_BITS

FROM_ZERO = "a finite number from 0 up"
Count = Annotated[int, Meta(ge=0, description=FROM_ZERO)]
Some = Annotated[int, Meta(ge=1, description="a number from 1 up")]
Side = Annotated[int, Meta(ge=1, le=4096, description="a number from 1 to 4096")]
Seed = Annotated[int, Meta(ge=0, le=2**31, description=f"{FROM_ZERO} to {2**31}")]
Threads = Annotated[int, Meta(ge=0, le=1024, description=f"{FROM_ZERO} to 1024")]
Amount = Annotated[float, Meta(ge=0, le=sys.float_info.max, description=FROM_ZERO)]
Share = Annotated[float, Meta(ge=0, le=1, description="a share from 0 to 1")]
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


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
        _check(self, "quantization.")
        for name, bits in (("weight_bits", self.weight_bits), ("act_bits", self.act_bits)):
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
    image_size: Side = 16
    patch_size: Side = 4
    dim: Side = 64
    depth: Side = 4
    heads: Side = 4
    layer_scale: Amount = 0.0  # where LayerScale's factors start; 0 for a model without
    registers: Count = 0  # tokens beside the class token that no head reads
    class_position: bool = True  # the class token has a position of its own; without it registers have none either
    pool: Literal["token", "avg"] = "token"  # "avg": no class token, the head reads the normalised mean of the patches

    def __post_init__(self) -> None:
        _check(self, "model.")
        if self.image_size % self.patch_size:
            raise RecipeError(
                f"recipe key 'model.patch_size' is {self.patch_size}, which does not divide {self.image_size}"
            )
        if self.dim % self.heads:
            raise RecipeError(f"recipe key 'model.heads' is {self.heads}, which does not divide model.dim {self.dim}")
        if self.distilled and (self.registers or not self.class_position or self.pool == "avg"):
            raise RecipeError(
                "recipe keys 'model.registers', 'model.class_position' and 'model.pool' are for models without "
                "distillation; add model.distilled = false"
            )


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Random affine maps of the training images, drawn anew for each image and epoch."""

    rotation: Amount = 0.17  # radians, either way
    scale: Amount = 0.1  # share, either way
    shift: Amount = 0.0625  # share of the image side, either way
    flip: bool = False  # mirror half of the images
    crop: Share = 1.0  # smallest share of the area that a random crop keeps (of any aspect from 3/4 to 4/3); 1 for none


@dataclass(frozen=True, slots=True)
class Teacher:
    """The float model that the student starts from and learns from."""

    epochs: Count = 60
    lr: Amount = 2e-3
    label_smoothing: Share = 0.1


@dataclass(frozen=True, slots=True)
class Training:
    """Quantization-aware training: AdamW, linear warm-up, then a cosine, per step."""

    epochs: Count = 36
    batch_size: Some = 64  # also the constant batch in LSQ's gradient scale
    lr: Amount = 2e-3
    final_lr: Share = 0.01  # where the cosine ends, as a share of lr
    weight_decay: Amount = 0.05  # of weights with two or more axes
    warmup: Share = 0.05  # share of the steps
    calibration_images: Some = 256


@dataclass(frozen=True, slots=True)
class Annealing:
    """Confidence-guided annealing (OFQ section 4.3): only weights near a threshold still move."""

    enabled: bool = True
    epochs: Count = 5
    lr: Amount = 4e-5
    boundary_range: Amount = 0.005  # half width of the moving zone, in codes
    qk: Literal["free", "mask"] = "free"  # under QKR: let Wq and Wk train on, as the official code does, or mask


@dataclass(frozen=True, slots=True)
class Recipe:
    """One training. Raises RecipeError for a value that its key does not take, naming both."""

    name: str
    data: str = "digits"
    init: str = ""  # weights of a timm ViT or DeiT (.safetensors, .pth) that replace the trained float teacher
    seed: Seed = 0
    threads: Threads = 1
    model: Model = field(default_factory=Model)
    quantization: Quantization = field(default_factory=Quantization)
    augmentation: Augmentation = field(default_factory=Augmentation)
    teacher: Teacher = field(default_factory=Teacher)
    train: Training = field(default_factory=Training)
    cga: Annealing = field(default_factory=Annealing)

    def __post_init__(self) -> None:
        _check(self, "")
        if not self.name or self.name.startswith(".") or any(mark in self.name for mark in "/\\\0"):
            raise RecipeError(f"recipe key 'name' is {self.name!r}; it names a folder: no separators, no leading dot")
        if self.cga.enabled and self.cga.qk == "mask" and self.quantization.weights != "statsq":
            raise RecipeError("recipe key 'cga.qk' is 'mask', which needs quantization.weights = 'statsq'")


def taken(value: Any, hint: Any, key: str) -> Any:
    """The value as the key's annotation takes it, whole numbers as floats where it asks for floats.

    Raises RecipeError.
    """
    try:
        return msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        raise RecipeError(f"recipe key {key!r} is {value!r}; it takes {_cure(value, hint)}") from error


def _cure(value: Any, hint: Any) -> str:
    """What a key takes: of a wrong number its bounds, of anything else its kind."""
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    kind, *bounds = get_args(hint) or (hint,)
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return KINDS[kind]
    return str(bounds[0].description)


def _check(part: Any, prefix: str) -> None:
    """Hold a recipe or a section of it, however it was made, against its annotations."""
    for key, hint in get_type_hints(type(part), include_extras=True).items():
        value = getattr(part, key)
        if is_dataclass(hint):
            _check(value, f"{prefix}{key}.")
        else:
            taken(value, hint, prefix + key)
