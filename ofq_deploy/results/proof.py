"""What `validate` and `parity` tell: codes of a model's operators beside those of its training."""

from typing import Annotated, Any

from msgspec import UNSET, Struct, UnsetType

from ofq_deploy.results.accuracy import Accuracy, ClassAccuracy, Paired, Preprocessing
from ofq_deploy.results.fields import Count, Digest, Histogram, Percent, Result, about


class Witness(Struct, frozen=True, kw_only=True):
    """A runner as it tells of itself."""

    backend: Annotated[str, about("its name")]
    runtime: Annotated[str, about("package and version")]
    device: Annotated[str, about("cpu, or the GPU's name")]
    settings: Annotated[dict[str, Any], about("threads and whatever else changes speed or rounding")]
    tie: Annotated[float, about("how close to a threshold, in codes, it may round the other way than float64")]


class Witnesses(Struct, frozen=True, kw_only=True):
    """Both runners."""

    leader: Annotated[Witness, about("the leader")]
    follower: Annotated[Witness, about("the follower")]


class CodeParity(Struct, frozen=True, kw_only=True):
    """One operator's codes."""

    operator: Annotated[str, about("name")]
    compared: Annotated[Count, about("codes")]
    differing: Annotated[Count, about("codes that differ")]
    ties: Annotated[Count, about("ties among them")]
    worst: Annotated[
        float | None,
        about(
            "largest distance of a differing code's value to the threshold, in codes; null when off by more than one"
        ),
    ]
    histogram: Annotated[
        Histogram,
        about("how many codes differ by how many steps, by difference with its sign; equal ones are left out"),
    ]


class FloatError(Struct, frozen=True, kw_only=True):
    """One float tensor."""

    operator: Annotated[str, about("name")]
    error: Annotated[float | None, about("largest difference over the largest magnitude; null when not finite")]


class Parity(Struct, frozen=True, kw_only=True):
    """All operators of one runner compared with another's, both fed the same codes."""

    leader: Annotated[str, about("whose codes both were fed")]
    reference: Annotated[str, about("whom the follower is compared with")]
    follower: Annotated[str, about("who is compared")]
    images: Annotated[Count, about("images")]
    passed: Annotated[bool, about("whether all differences are ties, and few; and floats agree")]
    codes_compared: Annotated[Count, about("codes")]
    codes_differing: Annotated[Count, about("codes that differ")]
    ties: Annotated[Count, about("those of them that are off by one at a rounding threshold")]
    worst_float_error: Annotated[
        float | None, about("largest difference of a float tensor over its largest magnitude; null when not finite")
    ]
    histogram: Annotated[
        Histogram,
        about("how many codes differ by how many steps, by difference with its sign; equal ones are left out"),
    ]
    first_divergence: Annotated[
        str | None, about("first operator, in the order of the network, with a difference beyond a tie")
    ]
    operators: Annotated[list[CodeParity], about("the operators in the order of the network")]
    floats: Annotated[list[FloatError], about("float tensors")]
    faults: Annotated[list[str], about("what failed, a sentence each")]


class Divergence(Struct, frozen=True, kw_only=True):
    """An image whose codes part."""

    image: Annotated[Count, about("index")]
    operator: Annotated[str, about("the first that differs")]
    differing: Annotated[Count, about("codes")]
    is_tie: Annotated[bool, about("whether all of them are ties")]


class FreeRuns(Struct, frozen=True, kw_only=True):
    """Free runs of the same images."""

    images: Annotated[Count, about("images")]
    divergences: Annotated[list[Divergence], about("images whose codes part")]


class ParityResult(Result, frozen=True, kw_only=True, tag="ofq-deploy/parity/1"):
    """Result of ofq-deploy parity."""

    verdict: Annotated[str, about("the conclusion in one sentence")]
    model: Annotated[str, about("path of the ONNX file")]
    model_sha256: Annotated[Digest, about("hex digest of the model file")]
    leader: Annotated[str, about("whose codes the operators were fed")]
    follower: Annotated[str, about("who is compared")]
    runners: Annotated[Witnesses, about("what computed")]
    images: Annotated[Count, about("images")]
    parity: Annotated[list[Parity], about("who was compared with whom, operator by operator")]
    free_run: Annotated[FreeRuns, about("free runs of the same images")]
    passed: Annotated[bool, about("the verdict; false ends the command with exit code 3")]
    faults: Annotated[list[str], about("what failed, a sentence each")]


class StoredWeights(Struct, frozen=True, kw_only=True):
    """Weight codes read back from a file."""

    codes_compared: Annotated[Count, about("codes")]
    codes_differing: Annotated[Count, about("codes that are not the frozen ones")]


class StoredConstants(Struct, frozen=True, kw_only=True):
    """Constants in a file beside a new export's."""

    compared: Annotated[Count, about("constants that both have")]
    differing: Annotated[list[str], about("names of those that are not equal bit for bit")]


class WitnessTotals(Struct, frozen=True, kw_only=True):
    """Totals of a comparison."""

    witness: Annotated[str, about("the follower")]
    images: Annotated[Count, about("images")]
    codes_compared: Annotated[Count, about("codes")]
    codes_differing: Annotated[Count, about("codes that differ")]
    ties: Annotated[Count, about("ties among them")]
    worst_float_error: Annotated[float | None, about("see parity")]
    passed: Annotated[bool, about("see parity")]


class FreeRun(FreeRuns, frozen=True, kw_only=True):
    """Whole images without feeding in between."""

    codes_between_optimization_levels: Annotated[
        Count, about("codes compared between all optimizations of the runtime and none")
    ]
    codes_differing_between_levels: Annotated[Count, about("codes that differ between them")]


class ProofResult(Result, frozen=True, kw_only=True, tag="ofq-deploy/validate/1"):
    """A model against the training that it came from."""

    verdict: Annotated[str, about("the conclusion in one sentence")]
    model: Annotated[str, about("path of the ONNX file")]
    model_sha256: Annotated[Digest, about("hex digest of the model file")]
    backend: Annotated[str, about("runtime of the proof")]
    target: Annotated[str, about("what the model was exported for")]
    witnesses: Annotated[list[str], about("who computed the codes that were compared")]
    weights: Annotated[StoredWeights, about("weight codes read back from the file")]
    constants: Annotated[
        StoredConstants,
        about("steps, scales, shifts, biases and norms in the file beside a new export of the frozen file"),
    ]
    operators: Annotated[list[WitnessTotals], about("totals of `parity`, one entry each")]
    parity: Annotated[list[Parity], about("who was compared with whom, operator by operator")]
    free_run: Annotated[FreeRun, about("whole images without feeding in between")]
    codes_compared: Annotated[Count, about("weight codes, and codes of the runtime's operators")]
    codes_differing: Annotated[Count, about("of them differ")]
    ties: Annotated[Count, about("of these are ties")]
    top1_runtime: Annotated[Percent | None, about("percent, in the runtime; null without labels")]
    data: Annotated[str, about("the data set")]
    test_images: Annotated[Count, about("test images")]
    preprocessing: Annotated[Preprocessing, about("how images become inputs")]
    first_batch_sha256: Annotated[str, about("hex digest of the first batch of prepared images")]
    accuracy: Annotated[Accuracy, about("accuracy on labelled images, throughput on all")]
    by_class: Annotated[list[ClassAccuracy], about("classes that occur; empty without labels")]
    top1_torch: Annotated[Percent | UnsetType | None, about("percent, torch in float32")] = UNSET
    top1_torch_float64: Annotated[Percent | UnsetType | None, about("percent, torch in float64")] = UNSET
    agreement: Annotated[
        Percent | UnsetType, about("percent of images with the same prediction in the runtime and in torch")
    ] = UNSET
    runtime_agrees_with_float64: Annotated[Count | UnsetType, about("images")] = UNSET
    float32_agrees_with_float64: Annotated[Count | UnsetType, about("images")] = UNSET
    top1_float: Annotated[Percent | UnsetType | None, about("percent, the float model of the run")] = UNSET
    against_float: Annotated[Paired | UnsetType, about("the model and the run's float model on the same images")] = (
        UNSET
    )
    drop_points: Annotated[float | UnsetType, about("points of top-1 lost against the float model")] = UNSET
    passed: Annotated[bool, about("the verdict; false ends the command with exit code 3")]
    faults: Annotated[list[str], about("what failed, a sentence each")]
