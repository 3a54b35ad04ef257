"""What `validate --golden` tells: a run beside what OFQ's official code computed."""

from typing import Annotated

from msgspec import Struct

from ofq_deploy.results.fields import Count, Result, about
from ofq_deploy.results.proof import CodeParity, FloatError


class GoldenWeights(Struct, frozen=True, kw_only=True):
    """Weights of one linear layer."""

    name: Annotated[str, about("layer")]
    compared: Annotated[Count, about("codes")]
    differing: Annotated[Count, about("codes that differ")]
    ties: Annotated[Count, about("ties among them")]
    step_ulp: Annotated[float, about("difference of the steps in units in the last place")]
    verdict: Annotated[str, about('"equal", or what differs')]


class GoldenCodes(CodeParity, frozen=True, kw_only=True):
    """Codes of one quantizer."""

    mismatches: Annotated[Count, about("codes beyond a tie")]


class GoldenFloats(FloatError, frozen=True, kw_only=True):
    """One float tensor."""

    passed: Annotated[bool, about("within the tolerance")]


class Flip(Struct, frozen=True, kw_only=True):
    """A code that follows the golden run's rounding."""

    image: Annotated[Count, about("index")]
    operator: Annotated[str, about("name")]
    index: Annotated[list[int], about("place of the code")]
    distance: Annotated[float, about("from the threshold, in codes")]


class GoldenBlock(Struct, frozen=True, kw_only=True):
    """One block, fed the golden input."""

    block: Annotated[str, about("name")]
    codes_compared: Annotated[Count, about("codes of its operators")]
    codes_equal: Annotated[Count, about("of them equal")]
    ties: Annotated[Count, about("ties among the others")]
    max_error: Annotated[float | None, about("what is left after the flips")]
    flips: Annotated[list[Flip], about("codes that follow the golden run's rounding")]
    verdict: Annotated[str, about("in words")]
    passed: Annotated[bool, about("equal after the listed flips")]


class GoldenResult(Result, frozen=True, kw_only=True, tag="ofq-deploy/validate/1"):
    """A run against what OFQ's official code computed."""

    verdict: Annotated[str, about("the conclusion in one sentence")]
    run: Annotated[str, about("run folder")]
    golden: Annotated[str, about("file of golden data")]
    weights: Annotated[list[GoldenWeights], about("weights by linear layer")]
    activations: Annotated[list[GoldenCodes], about("codes by quantizer")]
    floats: Annotated[list[GoldenFloats], about("float tensors")]
    blocks: Annotated[list[GoldenBlock], about("blocks fed the golden input")]
    images: Annotated[Count, about("images")]
    same_prediction: Annotated[Count, about("images")]
    passed: Annotated[bool, about("the verdict; false ends the command with exit code 3")]
    faults: Annotated[list[str], about("what failed, a sentence each")]
