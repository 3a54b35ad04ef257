"""The targets: what `export` makes model files for.

Light records: nothing heavy is imported before it is needed. What does the work is named as "module:object" and resolved
when somebody asks. To add a target, add a record; nothing else compares names.
"""

from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from ofq_deploy.errors import UnsupportedByTarget

if TYPE_CHECKING:
    from ofq_deploy.export.network import Integers
    from ofq_deploy.export.targets.protocol import TargetOperators
    from ofq_deploy.runtime_tests.lint.findings import Rule
    from ofq_deploy.runtime_tests.proof.reading import Reading


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of model file.

    operators:     the class that turns integer products into nodes; empty for the float model, which has none
    lowering:      the class that walks the network and emits them
    reading:       the class that tells the proof where taps and weights are in its files
    rules:         what keeps a model from integers there, a tuple of lint's rules; empty where there are none
    check:         OnnxFile -> Check, which builds what the runtime would run; empty where there is none
    packs_weights: weights lie at their true width, behind nodes that the runtime folds
    only_on:       the one backend that computes it as it is meant; empty for any that opens ONNX files
    on_cpu:        ONNX Runtime serves it on a CPU as it is
    library:       the distribution whose operators its files need in ONNX Runtime (ofq_deploy/kernels.py finds it)
    triton:        Triton's backends that read it, by default the first
    """

    name: str
    operators: str = ""
    lowering: str = "ofq_deploy.export.network:Integers"
    reading: str = "ofq_deploy.runtime_tests.proof.reading:Reading"
    rules: str = ""
    check: str = ""
    packs_weights: bool = True
    only_on: str = ""
    on_cpu: bool = False
    library: str = ""
    triton: tuple[str, ...] = ()

    @property
    def is_float(self) -> bool:
        return not self.operators

    def load_operators(self) -> "TargetOperators":
        """Imports onnx_ir."""
        operators: TargetOperators = resolve_name(self.operators)()
        return operators

    def load_lowering(self) -> "type[Integers]":
        """Imports onnx_ir."""
        lowering: type[Integers] = resolve_name(self.lowering)
        return lowering

    def load_reading(self) -> "type[Reading]":
        reading: type[Reading] = resolve_name(self.reading)
        return reading

    def load_rules(self) -> "tuple[Rule, ...]":
        rules: tuple[Rule, ...] = resolve_name(self.rules)
        return rules


_OPERATORS, _RULES = "ofq_deploy.export.targets", "ofq_deploy.runtime_tests.lint"
PORTABLE = Target(
    "portable",
    operators=f"{_OPERATORS}.portable:Portable",
    rules=f"{_RULES}.rules:PORTABLE",
    on_cpu=True,
    triton=("onnxruntime",),
)
ORT_CPU = Target(
    "ort-cpu",
    operators=f"{_OPERATORS}.ort_cpu:OrtCpu",
    rules=f"{_RULES}.rules:ORT_CPU",
    on_cpu=True,
    triton=("onnxruntime",),
)
ORT_OFQ = Target(
    "ort-ofq",
    operators=f"{_OPERATORS}.ort_ofq:OrtOfq",
    lowering="ofq_deploy.export.fused:Fused",
    reading="ofq_deploy.runtime_tests.proof.fused:FusedReading",
    rules=f"{_RULES}.rules:ORT_OFQ",
    only_on="ort-cpu",
    on_cpu=True,
    library="ofq-kernels",
)
OPENVINO = Target(
    "openvino",
    operators=f"{_OPERATORS}.openvino:OpenVino",
    rules=f"{_RULES}.rules:OPENVINO",
    only_on="openvino",
)
TENSORRT = Target(
    "tensorrt",
    operators=f"{_OPERATORS}.tensorrt:TensorRt",
    rules=f"{_RULES}.rules:TENSORRT",
    check=f"{_RULES}.tensorrt_check:check",
    packs_weights=False,  # its parser takes no 2-bit constants, and decodes 4-bit ones for every image
    triton=("tensorrt", "onnxruntime"),
)
FLOAT = Target("fp32", on_cpu=True, triton=("onnxruntime", "tensorrt"))
DEFAULT = PORTABLE
TARGETS = {target.name: target for target in (PORTABLE, ORT_CPU, ORT_OFQ, OPENVINO, TENSORRT, FLOAT)}


def find_target(name: str) -> Target:
    """The target of that name, or UnsupportedByTarget."""
    if name not in TARGETS:
        raise UnsupportedByTarget(f"no target {name!r}; there are {', '.join(TARGETS)}")
    return TARGETS[name]
