"""Reading exported ONNX files: what they say of themselves, their taps, and the codes they hold."""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ofq_deploy.data.images import Preprocessing
from ofq_deploy.errors import OnnxFileError
from ofq_deploy.files import sha256
from ofq_deploy.model.grids import recipe_bits
from ofq_deploy.model.names import lengthen
from ofq_deploy.runner import FORCED
from ofq_deploy.targets import TARGETS, Target

if TYPE_CHECKING:
    import onnx

PREFIX = "ofq_deploy."  # of the keys of our metadata


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What an ONNX model that this project exported says of itself.

    frozen_sha256: the frozen file that it was made from, empty for the float baseline
    bits:          by "weights" and "activations", layers and quantizers with other bits than `quantization` gives them
    """

    path: Path
    file_bytes: int
    target: str
    frozen_sha256: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    quantization: dict[str, Any]
    bits: dict[str, dict[str, int]]

    def weight_bits(self, name: str) -> int:
        """Bits of the weights of a linear; 32 in a float model."""
        return self._bits("weights", "weight_bits", name)

    def act_bits(self, name: str) -> int:
        """Bits of the codes of a quantizer; 32 in a float model."""
        return self._bits("activations", "act_bits", name)

    def _bits(self, kind: str, key: str, name: str) -> int:
        if not self.quantization:
            return 32
        return self.bits.get(kind, {}).get(name) or recipe_bits(name, int(self.quantization[key]))

    @property
    def weight_widths(self) -> set[int]:
        """Bits of weights in the blocks: the recipe's, and those that depart from them; 8 in a float model."""
        return {self.quantization.get("weight_bits", 8), *self.bits.get("weights", {}).values()}

    @property
    def act_widths(self) -> set[int]:
        """The same of activation codes."""
        return {self.quantization.get("act_bits", 8), *self.bits.get("activations", {}).values()}

    @property
    def made_for(self) -> Target:
        return TARGETS[self.target]


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file. It is parsed once and hashed once, when somebody first asks.

    made_from: the model whose metadata tells the names, where the file has lost its own
    """

    path: Path
    made_from: "OnnxFile | None" = None

    @cached_property
    def proto(self) -> "onnx.ModelProto":
        """The file, every name in its long form; many read it, so nobody changes it. See `read_model`."""
        return read_model(self.path, None if self.made_from is None else self.made_from.proto)

    @cached_property
    def described(self) -> ModelFile:
        """What it says of itself; OnnxFileError also for files from elsewhere."""
        return describe(self.proto, self.path, self.path.stat().st_size)

    @cached_property
    def sha256(self) -> str:
        return sha256(self.path)

    @property
    def properties(self) -> dict[str, str]:
        """The metadata of a file of ours; empty for files from elsewhere."""
        return _properties(self.proto)


def read_model(path: Path, made_from: "onnx.ModelProto | None" = None) -> "onnx.ModelProto":
    """Parse an ONNX file, every name in its long form; OnnxFileError when it is missing or cut.

    made_from: the model whose metadata tells the names, where the file has lost its own

    Nodes without a name get that of their first output.
    """
    model = parse_model(path)
    try:
        lengthen(model, made_from)
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise OnnxFileError(f"{path} has names that do not fit its metadata ({error}); export it again") from error
    return model


def parse_model(path: Path) -> "onnx.ModelProto":
    """An ONNX file as it is; OnnxFileError when it is missing or cut."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, format="protobuf")  # else a name like model.json would decide
    except FileNotFoundError as error:
        raise OnnxFileError(f"no model {path}; make one with: ofq-deploy export --to onnx") from error
    except IsADirectoryError as error:
        raise OnnxFileError(f"{path} is a folder, expected an .onnx file") from error
    except (DecodeError, OSError, onnx.checker.ValidationError) as error:
        raise OnnxFileError(f"{path} is no ONNX file, or is cut ({error}); export it again") from error
    if not model.graph.node:
        raise OnnxFileError(f"{path} holds no ONNX graph; export it again")
    return model


def _properties(model: "onnx.ModelProto") -> dict[str, str]:
    entries = ((entry.key, entry.value) for entry in model.metadata_props if entry.key.startswith(PREFIX))
    return {key.removeprefix(PREFIX): value for key, value in entries}


def describe(model: "onnx.ModelProto", path: Path, file_bytes: int) -> ModelFile:
    """What the metadata of a model that `ofq-deploy export` wrote says; OnnxFileError for models from elsewhere."""
    properties = _properties(model)
    try:
        how = json.loads(properties["preprocessing"])
        described = ModelFile(
            path=path,
            file_bytes=file_bytes,
            target=properties["target"],
            frozen_sha256=properties["frozen_sha256"],
            labels=tuple(json.loads(properties["labels"])),
            preprocessing=Preprocessing(**{**how, "mean": tuple(how["mean"]), "std": tuple(how["std"])}),
            quantization=json.loads(properties["quantization"]),
            bits=json.loads(properties.get("bits", "{}")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise OnnxFileError(
            f"{path} was not written by ofq-deploy export (metadata lacks {error}); export it again"
        ) from error
    if described.target not in TARGETS:
        raise OnnxFileError(f"{path} names the target {described.target!r}; export it again")
    return described


def reference_run(model: ModelFile, roots: Iterable[Path]) -> Path | None:
    """The folder of the frozen file that the model names: the model's own folder, or one or two levels below a root."""
    below = (folder for root in roots for pattern in ("*/", "*/*/") for folder in sorted(root.glob(pattern)))
    for folder in (model.path.parent, *below):
        frozen = folder / "frozen.safetensors"
        with suppress(OSError):  # a folder that may not be read is not the one
            if frozen.is_file() and sha256(frozen) == model.frozen_sha256:
                return folder
    return None


def with_outputs(model: "onnx.ModelProto", names: Iterable[str]) -> "onnx.ModelProto":
    """A copy that gives more of its values as outputs."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {output.name for output in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    return copy


def force(model: "onnx.ModelProto", values: dict[str, NDArray[Any]]) -> None:
    """Let everything behind a value read a new graph input `<value>/forced`, of that dtype and shape, instead."""
    import onnx

    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name in values:
                node.input[index] = name + FORCED
    for name, value in values.items():
        dtype = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        shape = ["batch", *value.shape[1:]]
        model.graph.input.append(onnx.helper.make_tensor_value_info(name + FORCED, dtype, shape))


def static_values(nodes: Iterable["onnx.NodeProto"], constants: Iterable[str]) -> set[str]:
    """Names of the values that depend on `constants` alone, themselves included.

    nodes: in the order of the graph
    """
    static = set(constants)
    for node in nodes:
        if all(name in static for name in node.input if name):
            static.update(node.output)
    return static


def decoder(model: "onnx.ModelProto", names: list[str]) -> "onnx.ModelProto":
    """A model without inputs whose outputs are the constants `names`, decoded by the file's own nodes."""
    import onnx

    inputs = {value.name for value in model.graph.input}
    known = static_values(model.graph.node, {tensor.name for tensor in model.graph.initializer} - inputs)
    nodes = [node for node in model.graph.node if known.issuperset(node.output)]
    missing = [name for name in names if name not in known]
    if missing:
        raise OnnxFileError(f"the model holds no constant {missing[0]}; export it again")
    initializers = [tensor for tensor in model.graph.initializer if tensor.name not in inputs]
    stored = {tensor.name for tensor in initializers}
    # A graph output must come from a node: constants that are stored as they are pass through Identity.
    plain = [onnx.helper.make_node("Identity", [name], [f"{name}/decoded"]) for name in names if name in stored]
    outputs = [onnx.ValueInfoProto(name=f"{name}/decoded" if name in stored else name) for name in names]
    graph = onnx.helper.make_graph([*nodes, *plain], "decoder", [], outputs, initializers)
    domains = {"", *(node.domain for node in nodes)}  # others may need a library that has nothing to decode
    opsets = [entry for entry in model.opset_import if entry.domain in domains]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version)
