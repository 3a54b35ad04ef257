"""The frozen file: everything that a model computes, as plain named arrays. After it nobody needs torch.

One safetensors file; its metadata has one entry, `ofq_deploy`, the header as JSON: the network as a list of nodes, whose
kinds tell which arrays there are and by which formula they are used (ofq_deploy.model.graph). Files of format 1 had tables
of quantizers and linears in its place; they are read by building the same list.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ofq_deploy.data.images import Preprocessing
from ofq_deploy.errors import FrozenFileError, OfqError
from ofq_deploy.files import replacing
from ofq_deploy.model.architecture import Architecture, Coding
from ofq_deploy.model.families import decode_architecture, encode_architecture
from ofq_deploy.model.graph import Graph, array_shapes, decode_graph, encode_graph
from ofq_deploy.model.grids import Grid, code_range
from ofq_deploy.model.nodes import Granularity, Linear, Quantize
from ofq_deploy.recipe import Quantization

FORMAT = 2
READ_FORMATS = (1, 2)
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Quantizer:
    """One activation quantizer with its steps: code = clip(round(x / step)).

    grid:   "signed" or "unsigned"
    step:   float32, shaped by the granularity
    folded: the linear layer before it already divides by the step: code = clip(round(x))
    """

    grid: Grid
    bits: int
    step: NDArray[np.float32]
    granularity: Granularity
    folded: bool

    @property
    def range(self) -> tuple[int, int]:
        return code_range(self.grid, self.bits)


@dataclass(frozen=True, slots=True)
class CodedLinear:
    """One linear layer on integers: out = (codes_in @ integers.T) * scale [* input step of the token] + bias.

    codes:  int8 [out, in], the trained codes
    grid:   "half" (integers are 2 * codes + 1) or "signed" (integers are codes)
    step:   float32 [out], real weight = integers * step
    scale:  float32 [out], or [parts, out] where equal parts of the input columns have scales of their own
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

    architecture: the sizes that the network was made from; the float model is made from them too
    graph:  the network
    hashes: sha256 of what it was frozen from, by file name
    arrays: name -> array; names are torch's paths
    """

    architecture: Architecture
    graph: Graph
    quantization: Quantization
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    hashes: dict[str, str]
    arrays: dict[str, Array] = field(repr=False)

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]

    def get(self, name: str) -> Array | None:
        """The array, or None where the model has none (shifts and biases)."""
        return self.arrays.get(name)

    @property
    def quantizers(self) -> dict[str, Quantize]:
        return self.graph.quantizers

    @property
    def linears(self) -> dict[str, Linear]:
        return self.graph.linears

    def quantizer(self, name: str) -> Quantizer:
        node = self.graph.quantizers[name]
        return Quantizer(node.grid, node.bits, self.arrays[f"{name}.step"], node.granularity, node.folded)

    def linear(self, name: str) -> CodedLinear:
        node, weight = self.graph.linears[name], f"{name}.weight"
        codes, step = self.arrays[f"{weight}.codes"], self.arrays[f"{weight}.step"]
        return CodedLinear(codes, node.grid, node.bits, step, self.arrays[f"{name}.scale"], self.get(f"{name}.bias"))


def save_frozen(frozen: Frozen, path: Path, force: bool = False) -> None:
    """Write the file; the same model gives the same bytes."""
    with replacing(path, force) as temporary:
        temporary.write_bytes(frozen_bytes(frozen))


def frozen_bytes(frozen: Frozen) -> bytes:
    from safetensors.numpy import save

    header = {
        "format": FORMAT,
        "architecture": encode_architecture(frozen.architecture),
        "graph": encode_graph(frozen.graph),
        "quantization": asdict(frozen.quantization),
        "preprocessing": asdict(frozen.preprocessing),
        "labels": frozen.labels,
        "hashes": frozen.hashes,
    }
    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
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
    if version not in READ_FORMATS:
        formats = " and ".join(map(str, READ_FORMATS))
        raise FrozenFileError(f"{path} has frozen format {version}, this version reads {formats}; freeze the run again")
    try:
        architecture = decode_architecture(header["architecture"])
        quantization = msgspec.convert(header["quantization"], Quantization)
        frozen = Frozen(
            architecture=architecture,
            graph=_graph_of_tables(architecture, quantization, header)
            if version == 1
            else decode_graph(header["graph"]),
            quantization=quantization,
            preprocessing=msgspec.convert(header["preprocessing"], Preprocessing),
            labels=msgspec.convert(header["labels"], tuple[str, ...]),
            hashes=msgspec.convert(header["hashes"], dict[str, str]),
            arrays=arrays,
        )
    except (KeyError, TypeError, ValueError, msgspec.ValidationError, OfqError) as error:
        raise FrozenFileError(f"{path} has no valid ofq_deploy header ({error!r}); freeze the run again") from error
    _check(frozen, str(path))
    return frozen


def _graph_of_tables(architecture: Architecture, quantization: Quantization, header: dict[str, Any]) -> Graph:
    """The network of a file of format 1, which had tables of quantizers and linears; ValueError where they are wrong."""
    tables = [msgspec.convert(header[kind], dict[str, Coding]) for kind in ("quantizers", "linears")]
    graph = architecture.graph(quantization, *tables)
    for name, node in graph.quantizers.items():
        if header["quantizers"][name] != {"grid": node.grid, "bits": node.bits, "folded": node.folded}:
            raise ValueError(f"the entry of {name} is {header['quantizers'][name]}")
    return graph


def _check(frozen: Frozen, path: str) -> None:
    baseline = frozen.architecture.float_graph()
    if (baseline.image, baseline.classes) != (frozen.graph.image, frozen.graph.classes):
        raise FrozenFileError(f"{path}: the architecture's sizes are not those of the nodes; freeze the run again")
    if len(frozen.labels) != frozen.graph.classes:
        raise FrozenFileError(
            f"{path} has {len(frozen.labels)} labels for {frozen.graph.classes} classes; freeze the run again"
        )
    shapes = {name: shape for node in frozen.graph.nodes for name, shape in array_shapes(node, frozen.graph).items()}
    missing, unknown = sorted(set(shapes) - set(frozen.arrays)), sorted(set(frozen.arrays) - set(shapes))
    if missing or unknown:
        what = f"lacks {', '.join(missing[:3])}" if missing else f"has unknown arrays {', '.join(unknown[:3])}"
        raise FrozenFileError(f"{path} {what}; freeze the run again")
    for name, array in frozen.arrays.items():
        wanted, dtype = shapes[name], np.dtype(np.int8 if name.endswith(".codes") else np.float32)
        if array.dtype != dtype or array.shape != wanted:
            raise FrozenFileError(
                f"{path}: {name} is {array.dtype} {array.shape}, expected {dtype} {wanted}; freeze the run again"
            )
        if dtype == np.float32 and not np.isfinite(array).all():
            raise FrozenFileError(f"{path}: {name} holds values that are not finite; train again")
        if name.endswith(".step") and not (array > 0).all():
            raise FrozenFileError(f"{path}: {name} holds steps that are not positive; train again")
    for name, linear in frozen.linears.items():
        low, high = code_range(linear.grid, linear.bits)
        codes = frozen.arrays[f"{name}.weight.codes"]
        if codes.min() < low or codes.max() > high:
            raise FrozenFileError(f"{path}: {name}.weight.codes leave the range {low}..{high}; freeze the run again")
