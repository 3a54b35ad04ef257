"""The proof that a model file computes what training computed.

1. Weights: the codes that the file's own decoder yields in ONNX Runtime are the frozen codes, all of them.
2. Operators: each one is fed the codes that the reference fed it; codes out are equal, or ties by one rule.
3. End to end: where free runs part, the first operator that differs is named, and must differ by ties only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ofq_deploy.frozen import Frozen
from ofq_deploy.progress import Reporter
from ofq_deploy.runtime_tests import oracle
from ofq_deploy.runtime_tests.model_file import FORCED, decoder, open_model, with_forced_taps, with_taps
from ofq_deploy.runtime_tests.ort import open_session, run_all
from ofq_deploy.runtime_tests.parity import (
    RUNTIME_TIE,
    TIE_SHARE,
    TORCH_TIE,
    CodeParity,
    FloatParity,
    compare_codes,
    compare_floats,
)

Arrays = dict[str, NDArray[Any]]


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
class OperatorProof:
    """Teacher-forced operators of one witness against the oracle."""

    witness: str
    codes: tuple[CodeParity, ...]
    floats: tuple[FloatParity, ...]

    @property
    def compared(self) -> int:
        return sum(result.compared for result in self.codes)

    @property
    def differing(self) -> int:
        return sum(result.differing for result in self.codes)

    @property
    def ties(self) -> int:
        return sum(result.ties for result in self.codes)

    @property
    def passed(self) -> bool:
        few = self.ties <= max(1.0, TIE_SHARE * self.compared)
        return self.differing == self.ties and few and all(result.passed for result in self.floats)

    def faults(self) -> list[str]:
        """What failed, by operator, one line each."""
        lines = [
            f"{r.operator}: {r.mismatches} of {r.compared} codes differ beyond a tie (worst {r.worst:.3g} codes away)"
            for r in self.codes
            if r.mismatches
        ]
        lines += [
            f"{r.operator}: float output off by {r.error:.2g} of its largest value" for r in self.floats if not r.passed
        ]
        if not lines and not self.passed:
            lines.append(f"{self.ties} ties among {self.compared} codes are more than {TIE_SHARE:.2%}")
        return lines


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first operator at which a free run of one image leaves the oracle's."""

    image: int
    operator: str
    differing: int
    is_tie: bool


@dataclass(frozen=True, slots=True)
class FreeRun:
    """Free runs in ONNX Runtime beside the oracle's."""

    images: int
    divergences: tuple[Divergence, ...]
    levels_differing: int  # codes that differ between all optimizations and none
    levels_compared: int

    @property
    def passed(self) -> bool:
        return self.levels_differing == 0 and all(divergence.is_tie for divergence in self.divergences)


@dataclass(frozen=True, slots=True)
class Proof:
    """All three parts; `images` went through the operators one by one."""

    images: int
    weights: WeightProof
    operators: tuple[OperatorProof, ...]  # the runtime's first
    free_run: FreeRun

    def faults(self) -> list[str]:
        """What failed, one line each; empty when the proof holds."""
        faults = [f"{name}.weight: stored codes differ from the frozen ones" for name in self.weights.layers]
        faults += [f"{entry.witness}: {line}" for entry in self.operators for line in entry.faults()]
        faults += [
            f"free run: image {entry.image} leaves the oracle at {entry.operator}, and not by a tie"
            for entry in self.free_run.divergences
            if not entry.is_tie
        ][:5]
        if self.free_run.levels_differing:
            count = self.free_run.levels_differing
            faults.append(f"{count} codes differ between ONNX Runtime's optimization levels")
        return faults


def prove_weights(path: Path, frozen: Frozen) -> WeightProof:
    """Read every weight code back through the file's own decoder, executed by ONNX Runtime."""
    model, _ = open_model(path)
    parts = {name: _weight_parts(frozen, name) for name in frozen.linears}
    names = [part for own in parts.values() for part in own]
    decoded = run_all(open_session(decoder(model, names)), {})
    decoded = {name.removesuffix("/decoded"): value for name, value in decoded.items()}
    compared = differing = 0
    layers = []
    for name, own in parts.items():
        linear = frozen.linear(name)
        integers = np.concatenate([decoded[part] for part in own]).T.astype(np.int16)
        wide = linear.grid == "half" and linear.bits == 8  # kept as codes: the integers need 9 bits
        wrong = int((integers != (linear.codes if wide else linear.integers)).sum())
        compared, differing = compared + integers.size, differing + wrong
        layers += [name] if wrong else []
    return WeightProof(compared, differing, tuple(layers))


def _weight_parts(frozen: Frozen, name: str) -> list[str]:
    """The patch embedding keeps one matrix per image step."""
    parts = frozen[f"{name}.scale"].shape[0] if name == "patch_embed" else 1
    return [f"{name}.weight"] if parts == 1 else [f"{name}.{part}.weight" for part in range(parts)]


def prove_operators(
    path: Path,
    frozen: Frozen,
    images: NDArray[np.float32],
    fed: Arrays | None,
    report: Reporter,
    batches: tuple[int, ...] = (1, 3),
) -> list[OperatorProof]:
    """Feed every operator of the file, and of the oracle, the same codes; compare what comes out.

    images:  float32 [images, channels, size, size]
    fed:     codes and floats by tap that torch computed for these images; without them the oracle's own
    batches: sizes to cut the images into, over and over

    Returns the runtime against the oracle and, with `fed`, torch against the oracle.
    """
    model, _ = open_model(path)
    session, dtypes = None, _tap_dtypes(path)
    ours: list[OperatorProof] = []
    torchs: list[OperatorProof] = []
    pieces = list(_cut(len(images), batches))
    with report.task(f"operators of {path.name}", len(pieces)) as advance:
        for chosen in pieces:
            batch = images[chosen]
            if fed is None:
                free = oracle.run(frozen, batch)
                given: Arrays = {**free.codes, **free.floats}
            else:
                given = {name: value[chosen] for name, value in fed.items()}
            expected = oracle.run(frozen, batch, given)
            feeds = {
                _tap(name): _to_graph(frozen, name, value, dtypes) for name, value in given.items() if name != "logits"
            }
            session = session or open_session(with_forced_taps(model, feeds), threads=1)
            outputs = run_all(session, {"image": batch, **{name + FORCED: value for name, value in feeds.items()}})
            ours.append(_compare("ort-cpu", frozen, outputs, expected, RUNTIME_TIE))
            if fed is not None:
                torchs.append(_compare("torch", frozen, given, expected, TORCH_TIE))
            advance()
    return [_merge(proofs) for proofs in (ours, torchs) if proofs]


def prove_free_run(
    path: Path, frozen: Frozen, images: NDArray[np.float32], report: Reporter, batch: int = 32
) -> FreeRun:
    """Run all images freely in ONNX Runtime, with and without its optimizer, and in the oracle."""
    model, _ = open_model(path)
    tapped = with_taps(model)
    optimized, plain = open_session(tapped, threads=1), open_session(tapped, threads=1, optimize=False)
    divergences: list[Divergence] = []
    different = compared = 0
    pieces = list(_cut(len(images), (batch,)))
    with report.task(f"free runs of {path.name}", len(pieces)) as advance:
        for chosen in pieces:
            outputs, other = (run_all(session, {"image": images[chosen]}) for session in (optimized, plain))
            codes = [name for name in outputs if name.endswith(".codes")]
            different += sum(int((outputs[name] != other[name]).sum()) for name in codes)
            compared += sum(outputs[name].size for name in codes)
            expected = oracle.run(frozen, images[chosen])
            for image in range(chosen.stop - chosen.start):
                found = _first_divergence(frozen, outputs, expected, image, chosen.start)
                divergences += [found] if found else []
            advance()
    return FreeRun(len(images), tuple(divergences), different, compared)


def _first_divergence(
    frozen: Frozen, outputs: Arrays, expected: oracle.Trace, image: int, offset: int
) -> Divergence | None:
    for name, codes in expected.codes.items():  # in the order of the network
        made = _from_graph(frozen, name, outputs[_tap(name)][image])
        result = compare_codes(name, made, codes[image], expected.units[name][image], RUNTIME_TIE)
        if result.differing:
            return Divergence(offset + image, name, result.differing, result.mismatches == 0)
    return None


def _compare(witness: str, frozen: Frozen, outputs: Arrays, expected: oracle.Trace, tie: float) -> OperatorProof:
    is_graph = witness == "ort-cpu"
    codes = tuple(
        compare_codes(
            name,
            _from_graph(frozen, name, outputs[_tap(name)]) if is_graph else outputs[name],
            values,
            expected.units[name],
            tie,
        )
        for name, values in expected.codes.items()
    )
    floats = tuple(compare_floats(name, outputs[name], value) for name, value in expected.floats.items())
    return OperatorProof(witness, codes, floats)


def _merge(proofs: list[OperatorProof]) -> OperatorProof:
    """One proof over several batches."""
    codes = tuple(
        CodeParity(
            same[0].operator,
            sum(r.compared for r in same),
            sum(r.differing for r in same),
            sum(r.ties for r in same),
            max(r.worst for r in same),
        )
        for same in zip(*(proof.codes for proof in proofs), strict=True)
    )
    floats = tuple(
        FloatParity(same[0].operator, float(np.max([r.error for r in same])))
        for same in zip(*(proof.floats for proof in proofs), strict=True)
    )
    return OperatorProof(proofs[0].witness, codes, floats)


def _cut(count: int, sizes: tuple[int, ...]) -> Iterator[slice]:
    start, turn = 0, 0
    while start < count:
        stop = min(start + sizes[turn % len(sizes)], count)
        yield slice(start, stop)
        start, turn = stop, turn + 1


def _tap(name: str) -> str:
    """The graph's name of a tap: codes carry a suffix, floats do not."""
    is_float = name in ("embedding", "logits") or name.endswith((".middle", ".output"))
    return name if is_float else f"{name}.codes"


def _tap_dtypes(path: Path) -> dict[str, np.dtype[Any]]:
    model, _ = open_model(path)
    kinds = {"tensor(uint8)": np.uint8, "tensor(int8)": np.int8, "tensor(float)": np.float32}
    return {value.name: np.dtype(kinds[value.type]) for value in open_session(with_taps(model)).get_outputs()}


def _to_graph(frozen: Frozen, name: str, value: NDArray[Any], dtypes: dict[str, np.dtype[Any]]) -> NDArray[Any]:
    """Codes as the graph carries them."""
    dtype = dtypes[_tap(name)]
    offset = _offset(frozen, name, dtype)
    return np.ascontiguousarray(value + offset if offset else value, dtype=dtype)


def _from_graph(frozen: Frozen, name: str, value: NDArray[Any]) -> NDArray[np.int16]:
    return value.astype(np.int16) - np.int16(_offset(frozen, name, value.dtype))


def _offset(frozen: Frozen, name: str, dtype: np.dtype[Any]) -> int:
    """What is added to codes that the graph's type does not hold: signed ones in uint8, unsigned 8-bit ones in int8."""
    if dtype == np.float32:
        return 0
    low, high = frozen.quantizer(name).range
    return -low if dtype == np.uint8 else min(0, 127 - high)
