"""The proof that a model file computes what training computed.

1. Weights: the integers that the file holds, decoded as a runtime does, are the frozen ones, all of them. The other
   constants are those that an export of the frozen file has, bit for bit: a wrong one may be too small to move a code.
2. Operators: each one is fed the codes that the reference fed it; codes out are equal, or ties by one rule.
3. End to end: where free runs part, the first operator that differs is named, and must differ by ties only.
"""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ofq_deploy.model.file import OnnxFile
from ofq_deploy.model.frozen import Frozen
from ofq_deploy.progress import Reporter
from ofq_deploy.runner import Runner
from ofq_deploy.runtime_tests.proof.compare import (
    Divergence,
    compare_operators,
    count_differing,
    cut,
    first_divergences,
)
from ofq_deploy.runtime_tests.proof.oracle import Oracle
from ofq_deploy.runtime_tests.proof.parity import Parity
from ofq_deploy.runtime_tests.proof.tapped import open_tapped
from ofq_deploy.runtime_tests.runners.registry import levels

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True)
class WeightProof:
    """Weight codes read back from the file."""

    compared: int
    differing: int
    layers: tuple[str, ...]  # those with differing codes

    @property
    def passed(self) -> bool:
        return self.differing == 0


@dataclass(frozen=True, slots=True)
class ConstantProof:
    """Steps, scales, shifts, biases and norms in the file, beside those of a new export."""

    compared: int
    differing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FreeRun:
    """Free runs in the runtime beside the oracle's."""

    images: int
    divergences: tuple[Divergence, ...]
    levels_differing: int  # codes that differ between all optimizations and none, where the runtime can do without
    levels_compared: int

    @property
    def passed(self) -> bool:
        return self.levels_differing == 0 and all(divergence.is_tie for divergence in self.divergences)


@dataclass(frozen=True, slots=True)
class Proof:
    """All three parts; `images` went through the operators one by one."""

    images: int
    weights: WeightProof
    constants: ConstantProof
    operators: tuple[Parity, ...]  # the runtime's first
    free_run: FreeRun

    def faults(self) -> list[str]:
        """What failed, one line each; empty when the proof holds."""
        faults = [f"{name}.weight: stored codes differ from the frozen ones" for name in self.weights.layers]
        faults += [f"{name}: the stored constant is not the frozen file's" for name in self.constants.differing]
        faults += [f"{entry.follower}: {line}" for entry in self.operators for line in entry.faults()]
        faults += [
            f"free run: image {entry.image} leaves the oracle at {entry.operator}, and not by a tie"
            for entry in self.free_run.divergences
            if not entry.is_tie
        ][:5]
        if self.free_run.levels_differing:
            count = self.free_run.levels_differing
            faults.append(f"{count} codes differ between the runtime's optimization levels")
        return faults


def prove_weights(file: OnnxFile, frozen: Frozen) -> WeightProof:
    """Read every weight back as the file's target keeps it, and compare its integers."""
    compared = differing = 0
    layers = []
    for name, integers in file.described.made_for.load_reading()(file, frozen).integers().items():
        expected = frozen.linear(name).integers
        wrong = int((integers != expected).sum()) if integers.shape == expected.shape else expected.size
        compared, differing = compared + expected.size, differing + wrong
        layers += [name] if wrong else []
    return WeightProof(compared, differing, tuple(layers))


def prove_constants(file: OnnxFile, exported: "onnx.ModelProto") -> ConstantProof:
    """Compare the constants that the file shares, by name, with a new export for its target; but for weights' codes."""
    expected = {tensor.name: tensor for tensor in exported.graph.initializer}
    shared = [
        (tensor, expected[tensor.name])
        for tensor in file.proto.graph.initializer
        if tensor.name in expected and not tensor.name.endswith((".weight", ".weight.codes"))
    ]
    differing = tuple(own.name for own, other in shared if _bits(own) != _bits(other))
    return ConstantProof(len(shared), differing)


def _bits(tensor: "onnx.TensorProto") -> tuple[int, tuple[int, ...], bytes]:
    import onnx

    return tensor.data_type, tuple(tensor.dims), onnx.numpy_helper.to_array(tensor).tobytes()


def prove_operators(
    file: OnnxFile,
    frozen: Frozen,
    images: NDArray[np.float32],
    torch: Runner | None,
    report: Reporter,
    backend: str = "ort-cpu",
    batches: tuple[int, ...] = (1, 3),
) -> list[Parity]:
    """Feed every operator of the file, and of the oracle, the same codes; compare what comes out.

    images:  float32 [images, channels, size, size]
    torch:   whose codes are fed; without it the oracle's own
    batches: sizes to cut the images into, over and over

    Returns the runtime against the oracle and, with `torch`, torch against the oracle.
    """
    with open_tapped(backend, file, frozen) as runtime:
        return compare_operators(frozen, torch or Oracle(frozen), [runtime], images, report, batches)


def prove_free_run(
    file: OnnxFile,
    frozen: Frozen,
    images: NDArray[np.float32],
    report: Reporter,
    backend: str = "ort-cpu",
    batch: int = 32,
) -> FreeRun:
    """Run all images freely in the runtime, with and without its optimizer, and in the oracle."""
    divergences: list[Divergence] = []
    different = compared = 0
    pieces = list(cut(len(images), (batch,)))
    oracle = Oracle(frozen).metadata
    with ExitStack() as stack, report.task(f"free runs of {file.path.name}", len(pieces)) as advance:
        runtimes = [stack.enter_context(open_tapped(name, file, frozen)) for name in levels(backend)]
        for chosen in pieces:
            own, *others = (runtime.infer({"image": images[chosen]}) for runtime in runtimes)
            for other in others:
                counted = count_differing(own, other)
                different, compared = different + counted[0], compared + counted[1]
            found = first_divergences(frozen, runtimes[0].metadata, own, oracle, None, images[chosen])
            divergences += [replace(entry, image=chosen.start + entry.image) for entry in found]
            advance()
    return FreeRun(len(images), tuple(divergences), different, compared)
