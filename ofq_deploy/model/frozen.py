"""The frozen file: everything that a model computes, as plain named arrays. After it nobody needs torch.

One safetensors file; its metadata has one entry, `ofq_deploy`, the header as JSON. docs/architecture.md lists
every array with its shape and the formula that uses it.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ofq_deploy.data.images import Preprocessing
from ofq_deploy.errors import FrozenFileError, OfqError
from ofq_deploy.files import replacing
from ofq_deploy.model.grids import MAX_BITS, MIN_BITS, Grid, code_range
from ofq_deploy.recipe import Quantization

FORMAT = 1
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Architecture:
    """A pre-norm vision transformer."""

    image_size: int
    channels: int
    patch_size: int
    dim: int
    depth: int
    heads: int
    hidden: int
    classes: int
    prefix: int  # tokens that the heads read: 1, or 2 with distillation
    key_bias: bool  # under QKR: the query bias lives on as a key term
    epsilon: float  # of every LayerNorm

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def tokens(self) -> int:
        return self.prefix + self.patches

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


@dataclass(frozen=True, slots=True)
class Quantizer:
    """One activation quantizer: code = clip(round(x / step)).

    grid:   "signed" or "unsigned"
    step:   float32, [1], or one per channel [dim] / [channels], or per token [tokens] / [tokens, heads]
    folded: the linear layer before it already divides by the step: code = clip(round(x))
    """

    grid: Grid
    bits: int
    step: NDArray[np.float32]
    folded: bool

    @property
    def range(self) -> tuple[int, int]:
        return code_range(self.grid, self.bits)


@dataclass(frozen=True, slots=True)
class Linear:
    """One linear layer on integers: out = (codes_in @ integers.T) * scale [* input step of the token] + bias.

    codes:  int8 [out, in], the trained codes
    grid:   "half" (integers are 2 * codes + 1) or "signed" (integers are codes)
    step:   float32 [out], real weight = integers * step
    scale:  float32 [out]; for the patch embedding [channels or 1, out], by input channel
    bias:   float32 [out], or None
    """

    codes: NDArray[np.int8]
    grid: Grid
    bits: int
    step: NDArray[np.float32]
    scale: NDArray[np.float32]
    bias: NDArray[np.float32] | None

    @property
    def integers(self) -> NDArray[np.int16]:
        """int16 [out, in], what the activation codes are multiplied with."""
        codes = self.codes.astype(np.int16)
        return 2 * codes + 1 if self.grid == "half" else codes


@dataclass(frozen=True, slots=True)
class Frozen:
    """A frozen model.

    quantizers: name -> {"grid", "bits", "folded"}; linears: name -> {"grid", "bits"}
    hashes:     sha256 of what it was frozen from, by file name
    arrays:     name -> array; names are torch's paths
    """

    architecture: Architecture
    quantization: Quantization
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    quantizers: dict[str, dict[str, Any]]
    linears: dict[str, dict[str, Any]]
    hashes: dict[str, str]
    arrays: dict[str, Array] = field(repr=False)

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]

    def get(self, name: str) -> Array | None:
        """The array, or None where the model has none (shifts and biases)."""
        return self.arrays.get(name)

    def quantizer(self, name: str) -> Quantizer:
        return Quantizer(step=self.arrays[f"{name}.step"], **self.quantizers[name])

    def linear(self, name: str) -> Linear:
        weight, scale = f"{name}.weight", self.arrays[f"{name}.scale"]
        codes, step = self.arrays[f"{weight}.codes"], self.arrays[f"{weight}.step"]
        return Linear(codes=codes, step=step, scale=scale, bias=self.get(f"{name}.bias"), **self.linears[name])

    @property
    def blocks(self) -> list[str]:
        return [f"blocks.{index}" for index in range(self.architecture.depth)]

    @property
    def heads(self) -> list[str]:
        return ["head", "head_dist"][: self.architecture.prefix]


def save_frozen(frozen: Frozen, path: Path, force: bool = False) -> None:
    """Write the file; the same model gives the same bytes."""
    with replacing(path, force) as temporary:
        temporary.write_bytes(frozen_bytes(frozen))


def frozen_bytes(frozen: Frozen) -> bytes:
    from safetensors.numpy import save

    header = {key: value for key, value in asdict(frozen).items() if key != "arrays"}
    text = json.dumps({"format": FORMAT, **header}, sort_keys=True)
    arrays = {name: np.ascontiguousarray(frozen.arrays[name]) for name in sorted(frozen.arrays)}
    return save(arrays, metadata={"ofq_deploy": text})


def frozen_hash(frozen: Frozen) -> str:
    """sha256 of the frozen file, which exported models name in their metadata."""
    return hashlib.sha256(frozen_bytes(frozen)).hexdigest()


def load_frozen(path: str | Path) -> Frozen:
    """Read a frozen file (safetensors: nothing is executed).

    Raises FrozenFileError when it is missing, cut, of another format version, or when an array is missing, has
    a wrong shape or dtype, holds a code outside its grid, or a number that is not finite.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise FrozenFileError(f"no frozen file {path}; make one with: ofq-deploy train") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise FrozenFileError(f"{path} is not a whole safetensors file ({error}); freeze the run again") from error
    try:
        header = json.loads(metadata["ofq_deploy"])
        version = header.pop("format")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FrozenFileError(f"{path} has no ofq_deploy header ({error!r}); freeze the run again") from error
    if version != FORMAT:
        raise FrozenFileError(f"{path} has frozen format {version}, this version reads {FORMAT}; freeze the run again")
    try:
        how = header["preprocessing"]
        frozen = Frozen(
            architecture=Architecture(**header["architecture"]),
            quantization=Quantization(**header["quantization"]),
            preprocessing=Preprocessing(**{**how, "mean": tuple(how["mean"]), "std": tuple(how["std"])}),
            labels=tuple(header["labels"]),
            quantizers=header["quantizers"],
            linears=header["linears"],
            hashes=dict(header["hashes"]),
            arrays=arrays,
        )
    except (KeyError, TypeError, ValueError, AttributeError, OfqError) as error:
        raise FrozenFileError(f"{path} has no valid ofq_deploy header ({error!r}); freeze the run again") from error
    _check(frozen, str(path))
    return frozen


def _check(frozen: Frozen, path: str) -> None:
    _check_header(frozen, path)
    shapes = _shapes(frozen)
    missing = sorted(name for name, (_, needed) in shapes.items() if needed and name not in frozen.arrays)
    unknown = sorted(set(frozen.arrays) - set(shapes))
    if missing or unknown:
        what = f"lacks {', '.join(missing[:3])}" if missing else f"has unknown arrays {', '.join(unknown[:3])}"
        raise FrozenFileError(f"{path} {what}; freeze the run again")
    for name, array in frozen.arrays.items():
        allowed, dtype = shapes[name][0], np.int8 if name.endswith(".codes") else np.float32
        if array.dtype != dtype or array.shape not in allowed:
            wanted = " or ".join(map(str, allowed))
            raise FrozenFileError(
                f"{path}: {name} is {array.dtype} {array.shape}, expected {np.dtype(dtype)} {wanted}; "
                "freeze the run again"
            )
        if dtype == np.float32 and not np.isfinite(array).all():
            raise FrozenFileError(f"{path}: {name} holds values that are not finite; train again")
        if name.endswith(".step") and not (array > 0).all():
            raise FrozenFileError(f"{path}: {name} holds steps that are not positive; train again")
    for name in frozen.linears:
        linear = frozen.linear(name)
        low, high = code_range(linear.grid, linear.bits)
        if linear.codes.min() < low or linear.codes.max() > high:
            raise FrozenFileError(f"{path}: {name}.weight.codes leave the range {low}..{high}; freeze the run again")


def _check_header(frozen: Frozen, path: str) -> None:
    """Sizes that fit together, and the quantizers and linears that the architecture calls for."""
    a = frozen.architecture
    sizes = (a.image_size, a.channels, a.patch_size, a.dim, a.depth, a.heads, a.hidden, a.classes)
    whole = all(type(size) is int and size > 0 for size in sizes) and a.prefix in (1, 2) and a.epsilon > 0
    if not whole or a.image_size % a.patch_size or a.dim % a.heads or len(frozen.labels) != a.classes:
        raise FrozenFileError(f"{path}: the architecture's sizes do not fit together ({a}); freeze the run again")
    projections = ("z", "v") if frozen.quantization.attention == "qkr" else ("q", "k", "v")
    linears, quantizers = {"patch_embed", *frozen.heads}, {"patch_embed.input", *(f"{h}.input" for h in frozen.heads)}
    for block in frozen.blocks:
        layers = {f"{block}.attn.proj", f"{block}.mlp.fc1", f"{block}.mlp.fc2"}
        coded = {f"{block}.attn.{name}" for name in projections}
        linears |= layers | coded
        quantizers |= coded | {f"{name}.input" for name in layers} | {f"{block}.attn.input", f"{block}.attn.softmax"}
    for kind, wanted, found in (
        ("linears", linears, set(frozen.linears)),
        ("quantizers", quantizers, set(frozen.quantizers)),
    ):
        wrong = sorted(wanted ^ found)
        if wrong:
            raise FrozenFileError(
                f"{path}: the header's {kind} lack or add {', '.join(wrong[:3])}; freeze the run again"
            )
    entries = [(name, entry, ("half", "signed"), {"grid", "bits"}) for name, entry in frozen.linears.items()]
    entries += [
        (name, entry, ("signed", "unsigned"), {"grid", "bits", "folded"}) for name, entry in frozen.quantizers.items()
    ]
    for name, entry, grids, keys in entries:
        good = set(entry) == keys and entry["grid"] in grids and entry["bits"] in range(MIN_BITS, MAX_BITS + 1)
        if not good or type(entry.get("folded", False)) is not bool:
            raise FrozenFileError(f"{path}: the header's entry of {name} is {entry}; freeze the run again")


def _shapes(frozen: Frozen) -> dict[str, tuple[list[tuple[int, ...]], bool]]:
    """Every array that the header calls for: its allowed shapes, and whether it must be there."""
    a, qkr = frozen.architecture, frozen.quantization.attention == "qkr"
    pixels, shifts = a.channels * a.patch_size**2, frozen.quantization.shifts
    shapes: dict[str, tuple[list[tuple[int, ...]], bool]] = {
        "tokens": ([(a.prefix, a.dim)], True),
        "norm.weight": ([(a.dim,)], True),
        "norm.bias": ([(a.dim,)], True),
        "patch_embed.position": ([(a.patches, a.dim)], True),
        "patch_embed.input.before": ([(a.image_size, a.image_size)], shifts),
    }

    def add_linear(name: str, out: int, into: int) -> None:
        shapes[f"{name}.weight.codes"] = ([(out, into)], True)
        shapes[f"{name}.weight.step"] = ([(out,)], True)
        shapes[f"{name}.scale"] = ([(out,)], True)
        shapes[f"{name}.bias"] = ([(out,)], True)

    def add_step(name: str, *others: tuple[int, ...]) -> None:
        shapes[f"{name}.step"] = ([(1,), *others], True)

    add_linear("patch_embed", a.dim, pixels)
    del shapes["patch_embed.bias"]  # it is in patch_embed.position
    shapes["patch_embed.scale"] = ([(1, a.dim), (a.channels, a.dim)], True)
    add_step("patch_embed.input", (a.channels,))
    for block in frozen.blocks:
        for norm in ("norm1", "norm2"):
            shapes[f"{block}.{norm}.weight"] = ([(a.dim,)], True)
            shapes[f"{block}.{norm}.bias"] = ([(a.dim,)], True)
        attn, mlp = f"{block}.attn", f"{block}.mlp"
        for name in ("v", "proj") if qkr else ("q", "k", "v", "proj"):
            add_linear(f"{attn}.{name}", a.dim, a.dim)
        for name in ("input", "softmax", "proj.input") if qkr else ("input", "q", "k", "softmax", "proj.input"):
            add_step(f"{attn}.{name}", (a.tokens,))
        shapes[f"{attn}.v.step"] = ([(a.dim,)], True)
        if qkr:
            add_linear(f"{attn}.z", a.heads * a.dim, a.dim)
            add_step(f"{attn}.z", (a.tokens, a.heads))
            if a.key_bias:
                shapes[f"{attn}.scores.key_bias"] = ([(a.heads, a.dim)], True)
        keys = (1, a.dim) if qkr else (a.heads, a.head_dim)
        shapes[f"{attn}.scores.scale"] = ([(1,), (a.tokens,), (a.tokens, a.heads)], True)
        shapes[f"{attn}.scores.key_shift"] = ([keys], shifts)
        shapes[f"{attn}.context.scale"] = ([(a.dim,)], True)
        shapes[f"{attn}.context.row_sum"] = ([(a.dim,)], shifts)
        shapes[f"{attn}.context.bias"] = ([(a.dim,)], shifts)
        add_linear(f"{mlp}.fc1", a.hidden, a.dim)
        add_linear(f"{mlp}.fc2", a.dim, a.hidden)
        add_step(f"{mlp}.fc1.input", (a.tokens,))
        add_step(f"{mlp}.fc2.input", (a.tokens,))
        shapes[f"{mlp}.fc2.input.before"] = ([(a.hidden,)], shifts)
    for head in frozen.heads:
        add_linear(head, a.classes, a.dim)
        add_step(f"{head}.input")
        shapes[f"{head}.input.before"] = ([(a.dim,)], shifts)
    return shapes
