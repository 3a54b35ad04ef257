"""Which products of a model TensorRT computes in int8, by an engine that is built and thrown away."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ofq_deploy.errors import UnsupportedByTarget
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.runtime_tests.lint.findings import Model
from ofq_deploy.runtime_tests.lint.tensorrt_products import PRODUCTS, Operand, products
from ofq_deploy.runtime_tests.runners.executed import has_small_role
from ofq_deploy.runtime_tests.runners.tensorrt_build import build
from ofq_deploy.targets import FLOAT, TENSORRT

if TYPE_CHECKING:
    import onnx

    Product = tuple[onnx.NodeProto, Operand, Operand]

BATCHES = (1, 8, 64)  # smallest, usual and largest that the engine is built for


@dataclass(frozen=True, slots=True)
class Fault:
    """A product that should be computed in int8 and is not."""

    node: str
    operator: str
    cause: str


@dataclass(frozen=True, slots=True)
class Check:
    """What became of a model's products.

    expected:     products of the file whose operands are both dequantized
    int8:         those of them that an int8 product computes
    small:        float products that shifts need, one matrix-vector product for all keys of a head
    in_float:     names of all other products that are computed in float
    int8_gemms, float_gemms, dequantizing_gemms: layers, the last of them float products that read int8; the compiler
                  merges products of one input into one layer
    """

    package: str
    version: str
    batches: tuple[int, int, int]
    expected: int
    int8: int
    small: tuple[str, ...]
    in_float: tuple[str, ...]
    int8_gemms: int
    float_gemms: int
    dequantizing_gemms: int
    layers: int
    plan_bytes: int
    build_seconds: float
    warnings: tuple[str, ...]
    faults: tuple[Fault, ...]

    @property
    def passed(self) -> bool:
        return not self.faults and self.expected > 0

    @property
    def verdict(self) -> str:
        if self.faults:
            return f"{len(self.faults)} of the products that the file quantizes are not computed in int8"
        if not self.expected:
            return "the file quantizes no product"
        return f"all {self.expected} quantized products are computed in int8"


def check(file: OnnxFile) -> Check:
    """Build an engine of an ONNX model and read which of its products are int8.

    A fault is a product that reads quantized values and is not int8; in a file that was exported for TensorRT, every
    float product but the small ones. A file that quantizes no product does not pass either.

    Raises OnnxFileError and UnsupportedByTarget for a model that is refused, and when the builder does not list its
    layers; BackendMissing.
    """
    made_for = file.properties.get("target", "")
    if made_for not in ("", TENSORRT.name, FLOAT.name):
        raise UnsupportedByTarget(
            f"{file.path} was exported for {made_for}; export the run with --target {TENSORRT.name}"
        )
    start = time.perf_counter()
    engine = build(file, profile=BATCHES)
    seconds = time.perf_counter() - start
    if not engine.layers:
        raise UnsupportedByTarget(
            f"{engine.package} {engine.version} does not list the layers that it builds; use tensorrt_rtx in an "
            "environment without it, or on a GPU: ofq-deploy bench MODEL --backend tensorrt"
        )
    graph = Model(file)
    shared = {name for name, count in Counter(node.name for node in graph.file.nodes).items() if count > 1}
    gemms = [layer for layer in engine.layers if layer.is_product]
    in_int8 = {name for layer in gemms if layer.is_int8 for name in layer.origin} - shared
    found = list(products(graph))
    expected = [node.name for node, left, right in found if left.is_codes and right.is_codes]
    large = [product for product in found if product[0].name not in in_int8]
    return Check(
        package=engine.package,
        version=engine.version,
        batches=BATCHES,
        expected=len(expected),
        int8=sum(name in in_int8 for name in expected),
        small=tuple(node.name for node in graph.file.of_kind(*PRODUCTS) if has_small_role(node)),
        in_float=tuple(node.name for node, *_ in large),
        int8_gemms=sum(layer.is_int8 for layer in gemms),
        float_gemms=sum(not layer.is_int8 and not layer.dequantizes for layer in gemms),
        dequantizing_gemms=sum(layer.dequantizes for layer in gemms),
        layers=len(engine.layers),
        plan_bytes=len(engine.plan),
        build_seconds=round(seconds, 3),
        warnings=tuple(text for severity, text in engine.messages if severity == "WARNING"),
        faults=tuple(_faults(large, made_for, shared, {name for layer in engine.layers for name in layer.origin})),
    )


def _faults(large: "list[Product]", made_for: str, shared: set[str], built: set[str]) -> Iterator[Fault]:
    """shared: names that several nodes have; built: names that any layer has"""
    for node, left, right in large:
        between = [f"{found.op_type} {found.name}" for found in (left.between, right.between) if found]
        if node.name in shared and (left.codes or right.codes):
            cause = "another node has its name, by which layers tell what they compute; give every node its own"
        elif between:
            cause = f"{' and '.join(between)} between a DequantizeLinear and the product"
        elif left.is_codes and right.is_codes and node.name not in built:
            cause = "no layer computes it: nothing reads it, or another product is the same"
        elif left.codes and right.codes:
            cause = "both operands are quantized, in a form that has no int8 product (weights per input channel?)"
        elif left.codes or right.codes:
            cause = f"only its {'left' if left.codes else 'right'} operand is quantized"
        elif made_for == TENSORRT.name:
            cause = "neither operand is quantized"
        else:
            continue
        yield Fault(node.name, node.op_type, cause)
