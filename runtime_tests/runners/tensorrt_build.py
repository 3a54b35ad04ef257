"""Engines of TensorRT or TensorRT-RTX from ONNX, and the layers that the compiler chose.

One code path for tensorrt 10 and 11 and tensorrt_rtx. TensorRT-RTX builds without a GPU; neither executes without one.
"""

import importlib
import re
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from ofq_deploy.errors import BackendMissing, OnnxFileError, UnsupportedByTarget
from ofq_deploy.model.file import OnnxFile

PACKAGES = ("tensorrt", "tensorrt_rtx")
LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w*), Inputs: \[(?P<inputs>.*?)\]"
    r"(?:, Constants: \[(?P<constants>.*?)\])?, Outputs: \[(?P<outputs>.*)\].*?"
    r", TacticName: (?P<tactic>.*?), StreamId: \d+, Metadata: ?(?P<origin>.*)"
)
DTYPE = re.compile(r"Datatype: (\w+)")
ORIGIN = re.compile(r"\[ONNX Layer: ([^\x1f]*)\]")
PRODUCT = re.compile(r"gemm|correlation|conv|matmul|matrix_?multiply|runtime_fusion", re.IGNORECASE)
FUSED_ATTENTION = re.compile(r"gemm_mha|fmha|_mha_", re.IGNORECASE)
INT8_KERNEL = re.compile(r"i8i8|imma|i16832|int8|_s8(?:_|$)", re.IGNORECASE)
GENERATED = "runtime_fusion"  # a float product, whatever its operands are stored as
CUDA_COMPLAINT = "[checkMacros.cpp::catchCudaError"  # of a missing driver, behind whatever is wrong with the file
UINT8_WARNING = "with UINT8 zero_point only on DLA"  # it goes on with int8, and other numbers


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of an engine. Data types are TensorRT's names, like `Int8` and `Float`.

    kind:   "gemm" and "correlation" are library products, "runtime_fusion" is a generated float product with what
            stands before or after it (as dequantizing), "kgen" a generated elementwise or reducing kernel
    origin: names of the ONNX nodes that it computes, whole or in part
    tactic: the kernel; TensorRT-RTX leaves that of a product to the GPU that runs it
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    origin: tuple[str, ...]
    tactic: str

    @property
    def is_attention(self) -> bool:
        """Both products and the softmax between them, in one kernel."""
        return not PRODUCT.search(self.kind) and bool(FUSED_ATTENTION.search(f"{self.kind} {self.name} {self.tactic}"))

    @property
    def is_product(self) -> bool:
        return bool(PRODUCT.search(self.kind)) or self.is_attention

    @property
    def is_int8(self) -> bool:
        """Of a product: it multiplies int8 by int8, as its operands tell or the name of its kernel."""
        operands = (self.inputs + self.constants).count("Int8")
        enough = operands >= (1 if self.is_attention else 2) or bool(INT8_KERNEL.search(self.tactic))
        return enough and self.kind != GENERATED

    @property
    def dequantizes(self) -> bool:
        """Of a product: it multiplies floats that it makes of int8."""
        return self.kind == GENERATED and "Int8" in self.inputs + self.constants


@dataclass(frozen=True, slots=True)
class Engine:
    """A serialized engine; its bytes differ from build to build.

    messages:     severity and text of the builder's warnings and errors
    timing_cache: for the next build with the same version and GPU; TensorRT-RTX has none
    """

    plan: bytes
    layers: tuple[Layer, ...]
    messages: tuple[tuple[str, str], ...]
    timing_cache: bytes | None
    package: str
    version: str


def load() -> ModuleType:
    """The module `tensorrt`, or else `tensorrt_rtx`; BackendMissing without either."""
    for name in PACKAGES:
        try:
            return importlib.import_module(name)
        except ImportError:  # of its libraries, too: the bindings install without them
            continue
    raise BackendMissing(
        "neither tensorrt nor tensorrt_rtx can be imported; install the second, which builds engines without a GPU, "
        "with: pip install 'ofq-deploy[tensorrt-rtx]'"
    )


@cache
def logger() -> Any:
    """The one logger of this process, which TensorRT insists on; `records` lists (severity, text)."""
    trt = load()

    class Logger(trt.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.records: list[tuple[str, str]] = []

        def log(self, severity: Any, text: str) -> None:
            self.records.append((severity.name, text))

    return Logger()


def build(
    model: OnnxFile | bytes,
    *,
    profile: tuple[int, int, int] | None = None,
    timing_cache: bytes | None = None,
    optimization_level: int | None = None,
) -> Engine:
    """The engine of an ONNX model, a file or its bytes, in the types that the model states (no TF32).

    profile: smallest, usual and largest batch size, where the model leaves it open

    Raises OnnxFileError for what the parser refuses, UnsupportedByTarget for what the builder refuses, both with
    the node, and BackendMissing.
    """
    trt, log = load(), logger()
    where = str(model.path) if isinstance(model, OnnxFile) else "the model"
    # Not the file's own bytes: it leaves out the nodes' names and shortens the values'.
    content = model.proto.SerializeToString() if isinstance(model, OnnxFile) else model
    log.records.clear()
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # how its bindings say that CUDA does not start
        raise BackendMissing(
            f"{trt.__name__} builds on a GPU only, and finds none; remove it and install tensorrt_rtx, which builds "
            "without, with: pip install 'ofq-deploy[tensorrt-rtx]'"
        ) from error
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # 11 knows no other networks
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(content):
        raise OnnxFileError(f"{where} cannot be read by {trt.__name__}: {_refusal(parser)}")
    _refuse_uint8(where, log.records)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)
    if optimization_level is not None:
        config.builder_optimization_level = optimization_level
    _add_profile(where, builder, network, config, profile)
    cached = trt.__name__ == "tensorrt"
    if cached:
        config.set_timing_cache(config.create_timing_cache(timing_cache or b""), ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise UnsupportedByTarget(f"{trt.__name__} cannot build an engine of {where}: {_first_error(log.records)}")
    return Engine(
        plan=bytes(plan),
        layers=parse_layers(next((text for _, text in log.records if text.startswith("Layers:")), "")),
        messages=tuple(record for record in log.records if record[0] not in ("INFO", "VERBOSE")),
        timing_cache=bytes(config.get_timing_cache().serialize()) if cached else None,
        package=trt.__name__,
        version=trt.__version__,
    )


def parse_layers(record: str) -> tuple[Layer, ...]:
    """The layers in the builder's verbose record that starts with `Layers:`."""
    found = (LAYER.fullmatch(line) for line in record.splitlines()[1:])
    return tuple(
        Layer(
            name=match["name"],
            kind=match["kind"],
            inputs=tuple(DTYPE.findall(match["inputs"])),
            constants=tuple(DTYPE.findall(match["constants"] or "")),
            outputs=tuple(DTYPE.findall(match["outputs"])),
            origin=tuple(ORIGIN.findall(match["origin"])),
            tactic=match["tactic"],
        )
        for match in found
        if match
    )


def _add_profile(where: str, builder: Any, network: Any, config: Any, batches: tuple[int, int, int] | None) -> None:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    free = [value for value in inputs if -1 in tuple(value.shape)]
    if not free:
        return
    if any(-1 in tuple(value.shape)[1:] for value in free):
        raise UnsupportedByTarget(f"{where} leaves more than the batch size open; fix the other axes")
    if batches is None:
        raise UnsupportedByTarget(f"{where} leaves its batch size open; say which ones the engine is for")
    profile = builder.create_optimization_profile()
    for value in free:
        profile.set_shape(value.name, *((batch, *tuple(value.shape)[1:]) for batch in batches))
    config.add_optimization_profile(profile)


def _refusal(parser: Any) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    texts = [f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors[:3]]
    return " ".join("; ".join(text.partition(CUDA_COMPLAINT)[0].strip() for text in texts).split())


def _refuse_uint8(where: str, records: list[tuple[str, str]]) -> None:
    node = ""
    for severity, text in records:
        if text.startswith("Parsing node: "):
            node = text.removeprefix("Parsing node: ")
        if severity == "WARNING" and UINT8_WARNING in text:
            raise UnsupportedByTarget(
                f"{where} quantizes to uint8 at {node}, which TensorRT silently replaces by int8; write an int8 zero "
                "point of 0 (ofq-deploy export --target tensorrt does)"
            )


def _first_error(records: list[tuple[str, str]]) -> str:
    texts = [text for severity, text in records if severity in ("ERROR", "INTERNAL_ERROR")]
    return " ".join(texts[0].split()) if texts else "it did not say why"
