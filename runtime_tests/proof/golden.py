"""A frozen model against golden data of OFQ's official code: weights, block 0's codes, every block, predictions.

The golden run is float32, the oracle float64: a code next to a threshold may round either way, and one such code
changes a block's output visibly. So a block that is fed the golden input must give the golden output to `TOLERANCE`,
or do so after flipping a few codes that lie next to a threshold, which are listed.
"""

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ofq_deploy.errors import DataError
from ofq_deploy.model.frozen import Frozen
from ofq_deploy.model.vit import Vit
from ofq_deploy.progress import Reporter
from ofq_deploy.runner import RUNTIME_TIE, TORCH_TIE
from ofq_deploy.runtime_tests.proof import oracle
from ofq_deploy.runtime_tests.proof.parity import TIE_SHARE, FloatParity, compare_codes, compare_floats

TOLERANCE = 5e-6
MOST_FLIPS = 8
STEP_ULP = 2
CODE_LIMIT = 511  # odd integers of 8 bits end at 255

# Golden names (code_*, step_*) of weights and of quantizers outside of the later blocks, and ours.
WEIGHTS = {
    "w_qk": "blocks.0.attn.z",
    "w_wv": "blocks.0.attn.v",
    "w_qkv": "blocks.0.attn.qkv",
    "w_proj": "blocks.0.attn.proj",
    "w_fc1": "blocks.0.mlp.fc1",
    "w_fc2": "blocks.0.mlp.fc2",
    "w_head": "head",
    "w_head_dist": "head_dist",
    "w_patch": "patch_embed",
}
ACTIVATIONS = {
    "image": "patch_embed.input",
    "x": "blocks.0.attn.input",
    "q": "blocks.0.attn.q",
    "k": "blocks.0.attn.k",
    "z": "blocks.0.attn.z",
    "v": "blocks.0.attn.v",
    "p": "blocks.0.attn.softmax",
    "proj_in": "blocks.0.attn.proj.input",
    "fc1_in": "blocks.0.mlp.fc1.input",
    "fc2_in": "blocks.0.mlp.fc2.input",
    "head_in": "head.input",
    "head_dist_in": "head_dist.input",
}
# Quantizers whose codes reach every row of a block's output; the others stay within the row of their token.
GLOBAL = ("attn.input", "attn.k", "attn.v", "attn.z")

Golden = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Flip:
    """One code that follows the golden run's rounding: `distance` is how far its value lay from the threshold."""

    operator: str
    index: tuple[int, ...]
    distance: float


@dataclass(frozen=True, slots=True)
class BlockMatch:
    """One block on the golden input of one image; `error` is what is left after the flips."""

    block: str
    image: int
    error: float
    flips: tuple[Flip, ...]

    @property
    def passed(self) -> bool:
        return self.error <= TOLERANCE


def load_golden(path: Path) -> Golden:
    """Read a golden file; nothing is unpickled.

    Raises DataError when it is missing, cut, or lacks images, blocks or logits.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            golden = {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise DataError(f"no golden file {path}") from error
    except (
        OSError,
        ValueError,
        TypeError,
        EOFError,
        AttributeError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise DataError(f"{path} is no whole .npz file ({error})") from error
    missing = [name for name in ("images", "blocks", "logits_f32") if name not in golden]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; expected a golden file of OFQ's official code")
    return golden


def compare_golden(
    frozen: Frozen, golden: Golden, weight_units: dict[str, NDArray[np.float64]], report: Reporter
) -> dict[str, Any]:
    """Everything that the golden file holds, compared; a JSON table with "passed" and "faults".

    The predictions of whole runs are counted and not judged: one flipped tie may change them rightly.

    weight_units: float64 [out, in] by linear: where each latent weight lies on the code axis
    Raises DataError, naming the array, when the golden file is of another architecture or form.
    """
    a = _sizes(frozen)
    _check(frozen, golden)
    weights = [_compare_weight(frozen, golden, key, name, weight_units) for key, name in _present(golden, WEIGHTS)]
    activations, floats = _compare_forced(frozen, golden)
    blocks = []
    with report.task("golden blocks", a.depth) as advance:
        for index in range(a.depth):
            blocks.append(_compare_block(frozen, golden, index, activations))
            advance()
    agreeing = _predictions(frozen, golden)
    faults = [f"{row['name']}: {row['verdict']}" for row in weights if row["verdict"] != "equal"]
    faults += [
        f"{row['operator']}: {row['mismatches']} codes differ beyond a tie" for row in activations if row["mismatches"]
    ]
    ties, compared = (sum(row[key] for row in activations) for key in ("ties", "compared"))
    if ties > max(1.0, TIE_SHARE * compared):
        faults.append(f"{ties} ties among {compared} activation codes are more than {TIE_SHARE:.2%}")
    faults += [f"{row.operator}: off by {row.error:.2g} of its largest value" for row in floats if not row.passed]
    for row in blocks:
        faults += [] if row["passed"] else [f"{row['block']}: output differs by {row['max_error']:.2g}"]
    return {
        "weights": weights,
        "activations": activations,
        "floats": [asdict(row) | {"passed": row.passed} for row in floats],
        "blocks": blocks,
        "images": len(golden["images"]),
        "same_prediction": agreeing,
        "passed": not faults,
        "faults": faults,
    }


def _sizes(frozen: Frozen) -> Vit:
    """OFQ's official code trains DeiT alone."""
    if not isinstance(frozen.architecture, Vit):
        raise DataError("golden data of OFQ's official code are of a DeiT, which this run's model is not")
    return frozen.architecture


def _check(frozen: Frozen, golden: Golden) -> None:
    """Every array that is compared must have the model's shape and fitting values; weight codes must be there."""
    if golden["images"].ndim != 4 or not len(golden["images"]):
        raise DataError(f"images of the golden file is {golden['images'].shape}, expected some images")
    expected = _shapes(frozen, len(golden["images"]))
    for name, values in golden.items():
        if name in ("images", "blocks", "logits_f32"):
            _check_values(name, values, expected[name], np.floating)
        elif name.startswith("code_"):
            if name not in expected:
                raise DataError(f"the golden file has {name}, which this form of the model does not have")
            shape = expected[name]
            if name == "code_w_patch" and values.ndim == 4:  # the kernel as it is, or flat
                values = values.reshape(len(values), -1)
            _check_values(name, values, shape, np.integer)
    weights = list(_present(golden, WEIGHTS))
    if not weights:
        raise DataError("the golden file has no weight codes (code_w_*): nothing would be compared")
    for key, _ in weights:
        if f"step_{key}" not in golden:
            raise DataError(f"the golden file has code_{key} and lacks step_{key}")
        rows = expected[f"code_{key}"][0]
        _check_values(f"step_{key}", golden[f"step_{key}"].reshape(-1), (rows,), np.floating)


def _check_values(name: str, values: NDArray[Any], shape: tuple[int, ...], kind: Any) -> None:
    if not np.issubdtype(values.dtype, kind):
        raise DataError(f"{name} of the golden file holds {values.dtype}, expected {kind.__name__} values")
    if values.shape != shape:
        raise DataError(f"{name} of the golden file is {values.shape}, the model needs {shape}: another architecture")
    if not np.isfinite(values).all() or (kind is np.integer and np.abs(values.astype(np.int64)).max() > CODE_LIMIT):
        raise DataError(f"{name} of the golden file holds values that are not finite, or no codes")


def _shapes(frozen: Frozen, images: int) -> dict[str, tuple[int, ...]]:
    """The arrays that a golden file of this model can hold."""
    a = _sizes(frozen)
    codes = {
        key: _layout_shape(key, frozen.graph.shapes[frozen.quantizers[name].output], frozen)
        for key, name in ACTIVATIONS.items()
        if name in frozen.quantizers
    }
    weights = {key: frozen.linear(name).codes.shape for key, name in WEIGHTS.items() if name in frozen.linears}
    if frozen.quantization.attention == "qk":
        weights["w_qkv"] = (3 * a.dim, a.dim)
        weights.pop("w_wv")
    return {
        "images": (images, *frozen.graph.image),
        "blocks": (a.depth + 1, images, a.tokens, a.dim),
        "logits_f32": (images, a.classes),
        **{f"code_{key}": (images, *shape) for key, shape in codes.items()},
        **{f"code_{key}": shape for key, shape in weights.items()},
    }


def _layout_shape(key: str, shape: tuple[int, ...], frozen: Frozen) -> tuple[int, ...]:
    """The shape of one image's codes in a golden file, where every token is computed; ours have the shape `shape`."""
    a = _sizes(frozen)
    if key in ("q", "k"):
        return (a.heads, a.tokens, a.head_dim)
    if key == "z":
        return (a.tokens, a.heads, a.dim)
    if key == "p":
        return (a.heads, a.tokens, a.tokens)
    return (a.tokens, *shape[1:]) if len(shape) == 2 else shape


def _present(golden: Golden, names: dict[str, str]) -> Iterator[tuple[str, str]]:
    for key, name in names.items():
        if f"code_{key}" in golden:
            yield key, name


def _compare_weight(
    frozen: Frozen, golden: Golden, key: str, name: str, weight_units: dict[str, NDArray[np.float64]]
) -> dict[str, Any]:
    parts = [name.replace("qkv", part) for part in "qkv"] if key == "w_qkv" else [name]
    linears = [frozen.linear(part) for part in parts]
    integers = np.concatenate([linear.integers for linear in linears])
    step = np.concatenate([linear.step for linear in linears])
    units = np.concatenate([weight_units[part] for part in parts])
    theirs, their_step = golden[f"code_{key}"].reshape(integers.shape), golden[f"step_{key}"].reshape(-1)
    if their_step.shape != step.shape:
        raise DataError(f"the golden step_{key} has {their_step.size} rows, the model has {step.size}")
    codes = theirs.astype(np.int64)
    if linears[0].grid == "half":
        codes = (codes - 1) // 2
    result = compare_codes(name, np.concatenate([linear.codes for linear in linears]), codes, units, RUNTIME_TIE)
    ulp = float((np.abs(step - their_step) / np.spacing(np.maximum(step, their_step))).max())
    verdict = "equal"
    if result.mismatches:
        rows = np.flatnonzero((integers != theirs).any(1))[:5].tolist()
        verdict = f"{result.mismatches} weight codes differ beyond a tie, in rows {rows}"
    elif not ulp <= STEP_ULP:
        verdict = f"steps differ by {ulp:.1f} ulp"
    counts = {"compared": result.compared, "differing": result.differing, "ties": result.ties}
    return {"name": name, **counts, "step_ulp": ulp, "verdict": verdict}


def _compare_forced(frozen: Frozen, golden: Golden) -> tuple[list[dict[str, Any]], list[FloatParity]]:
    """Teacher-forced: image quantizer, block 0 and heads, every operator fed the golden codes before it; and what
    the stem and the heads make of these codes.
    """
    forced: dict[str, NDArray[Any]] = {
        name: _layout(key, golden[f"code_{key}"]) for key, name in _present(golden, ACTIVATIONS)
    }
    trace = oracle.Trace(forced=dict(forced))
    first, last = (golden["blocks"][index].astype(np.float64) for index in (0, -1))
    network, end = frozen.graph, f"blocks.{_sizes(frozen).depth - 1}.output"
    for nodes, x in (
        (network.between("image", "embedding"), golden["images"].astype(np.float64)),
        (network.part("blocks.0"), first),
        (network.between(end, "logits"), last),
    ):
        oracle.run_nodes(frozen, nodes, {nodes[0].inputs[0]: x}, trace, all_rows=True)
    rows = []
    for name, codes in forced.items():
        result = compare_codes(name, codes.astype(np.int16), trace.codes[name], trace.units[name], TORCH_TIE)
        histogram = {str(difference): count for difference, count in result.histogram.items()}
        rows.append(asdict(result) | {"histogram": histogram, "mismatches": result.mismatches})
    floats = [
        compare_floats(name, value, trace.floats[name])
        for name, value in (("embedding", golden["blocks"][0]), ("logits", golden["logits_f32"]))
    ]
    return rows, floats


def _layout(key: str, codes: NDArray[Any]) -> NDArray[Any]:
    """Golden q, k [image, head, token, dim] and z [image, token, head, dim] as [image, token, width]."""
    if key in ("q", "k"):
        codes = codes.transpose(0, 2, 1, 3)
    return codes.reshape(*codes.shape[:2], -1) if key in ("q", "k", "z") else codes


def _compare_block(frozen: Frozen, golden: Golden, index: int, activations: list[dict[str, Any]]) -> dict[str, Any]:
    """All images together may follow the golden rounding of `MOST_FLIPS` codes."""
    name, matches = f"blocks.{index}", []
    budget = MOST_FLIPS
    for image in range(len(golden["images"])):
        x, expected = golden["blocks"][index][image : image + 1], golden["blocks"][index + 1][image]
        matches.append(match_block(frozen, name, x, expected, image, budget))
        budget -= len(matches[-1].flips)
    own = [row for row in activations if row["operator"].startswith(f"{name}.")]
    compared, differing, ties = (sum(row[key] for row in own) for key in ("compared", "differing", "ties"))
    passed = all(match.passed for match in matches)
    flips = [{"image": match.image, **asdict(flip)} for match in matches for flip in match.flips]
    return {
        "block": name,
        "codes_compared": compared,
        "codes_equal": compared - differing,
        "ties": ties,
        "max_error": max(match.error for match in matches),
        "flips": flips,
        "verdict": ("equal after flips" if flips else "equal") if passed else "differs",
        "passed": passed,
    }


def match_block(
    frozen: Frozen,
    name: str,
    x: NDArray[np.float32],
    expected: NDArray[np.float32],
    image: int = 0,
    most_flips: int = MOST_FLIPS,
) -> BlockMatch:
    """Run one block on x [1, tokens, dim]; where it misses `expected` [tokens, dim], try flips of near-tie codes.

    A flip is kept only if it mends rows of the output. Rows that are wrong alone are mended by codes of that token;
    when most rows are wrong, codes that every row reads are tried first.
    """
    flips: list[Flip] = []
    trace = oracle.Trace()
    errors = _row_errors(frozen, name, x, expected, trace)
    while errors.max() > TOLERANCE and len(flips) < most_flips:
        found = _best_flip(frozen, name, x, expected, trace, errors)
        if found is None:
            break
        flip, trace, errors = found
        flips.append(flip)
    return BlockMatch(name, image, float(errors.max()), tuple(flips))


def _row_errors(
    frozen: Frozen, name: str, x: NDArray[np.float32], expected: NDArray[np.float32], trace: oracle.Trace
) -> NDArray[np.float64]:
    nodes = frozen.graph.part(name)
    out = oracle.run_nodes(frozen, nodes, {nodes[0].inputs[0]: x.astype(np.float64)}, trace, all_rows=True)
    errors: NDArray[np.float64] = np.abs(out[0] - expected).max(-1)
    return errors


def _best_flip(
    frozen: Frozen,
    name: str,
    x: NDArray[np.float32],
    expected: NDArray[np.float32],
    trace: oracle.Trace,
    errors: NDArray[np.float64],
) -> tuple[Flip, oracle.Trace, NDArray[np.float64]] | None:
    """The nearest tie whose flip mends at least one row and spoils none."""
    wrong = errors > TOLERANCE
    for flip, code in _candidates(frozen, name, trace, wrong):
        flips = {key: list(values) for key, values in trace.flips.items()}
        flips.setdefault(flip.operator, []).append((flip.index, code))
        tried = oracle.Trace(flips=flips)
        made = _row_errors(frozen, name, x, expected, tried)
        if (made > TOLERANCE).sum() < wrong.sum():
            return flip, tried, made
    return None


def _candidates(frozen: Frozen, name: str, trace: oracle.Trace, wrong: NDArray[np.bool_]) -> Iterator[tuple[Flip, int]]:
    """Codes within TORCH_TIE of a threshold between two legal codes, the nearest first; at most 200."""
    found: list[tuple[bool, float, str, tuple[int, ...], int]] = []
    spread = wrong.mean() > 0.5
    for operator, units in trace.units.items():
        low, high = frozen.quantizer(operator).range
        threshold = np.floor(units) + 0.5
        near = np.abs(units - threshold) <= TORCH_TIE
        near &= (threshold > low) & (threshold < high)
        is_global = operator.endswith(GLOBAL)
        if not is_global:
            row = wrong[None, None, :, None] if units.ndim == 4 else wrong[None, :, None]
            near &= row
        for place in zip(*np.nonzero(near), strict=True):
            index = tuple(int(part) for part in place)
            code = int(trace.codes[operator][index])
            other = int(2 * threshold[index] - code)  # the code on the other side
            distance = float(abs(units[index] - threshold[index]))
            found.append((is_global != spread, distance, operator, index, other))
    for _, distance, operator, index, other in sorted(found)[:200]:
        yield Flip(operator, index, distance), other


def _predictions(frozen: Frozen, golden: Golden) -> int:
    logits = oracle.run(frozen, golden["images"]).floats["logits"]
    return int((logits.argmax(-1) == golden["logits_f32"].argmax(-1)).sum())
