"""What `validate --reference` tells: a model from elsewhere beside its float model."""

from typing import Annotated

from msgspec import UNSET, Struct, UnsetType

from ofq_deploy.results.accuracy import Accuracy, ClassAccuracy, Paired, Preprocessing
from ofq_deploy.results.bench import Executed
from ofq_deploy.results.fields import Count, Percent, Result, about


class ClassAccuracies(ClassAccuracy, frozen=True, kw_only=True):
    """Accuracy of both models on the images of one class."""

    top1_reference: Annotated[Percent, about("percent right, the reference")]


class LintSummary(Struct, frozen=True, kw_only=True):
    """Faults that lint finds for the runtime."""

    target: Annotated[str, about("whose rules")]
    findings: Annotated[Count, about("faults")]
    rules: Annotated[dict[str, int], about("faults by rule")]


class AllExecuted(Executed, frozen=True, kw_only=True):
    """Operators of the graph that the runtime executes, the products in float by name."""

    float_nodes: Annotated[list[str], about("names of the products in float")]


class HalfQuantized(Struct, frozen=True, kw_only=True):
    """A product with one quantized operand."""

    node: Annotated[str, about("product")]
    tensor: Annotated[str, about("its operand in float")]


class TensorError(Struct, frozen=True, kw_only=True):
    """One tensor."""

    name: Annotated[str, about("in the reference")]
    error: Annotated[float | None, about("root mean square of the difference over that of the reference")]
    gain_error: Annotated[float | None, about("largest error of a channel's gain")]


class ForeignResult(Result, frozen=True, kw_only=True, tag="ofq-deploy/validate/1"):
    """A model from elsewhere against the float model that it was quantized from."""

    model: Annotated[str, about("path of the ONNX file")]
    reference: Annotated[str, about("path of the float model")]
    backend: Annotated[str, about("runtime of the accuracies")]
    data: Annotated[str, about("the data set")]
    test_images: Annotated[Count, about("test images")]
    preprocessing: Annotated[Preprocessing, about("how images become inputs")]
    preprocessing_from: Annotated[str, about("who said so")]
    first_batch_sha256: Annotated[str, about("hex digest of the first batch of prepared images")]
    accuracy: Annotated[Accuracy, about("of the model")]
    accuracy_reference: Annotated[Accuracy, about("of the reference")]
    top1_runtime: Annotated[Percent | None, about("percent, the model; null without labels")]
    top1_float: Annotated[Percent | None, about("percent, the reference; null without labels")]
    against_float: Annotated[Paired, about("both on the same images")]
    by_class: Annotated[list[ClassAccuracies], about("classes that occur; empty without labels")]
    executed: Annotated[AllExecuted, about("the optimized graph")]
    lint: Annotated[
        LintSummary | None,
        about("faults that lint finds for the runtime, in all and by rule; null where it has no rules"),
    ]
    half_quantized: Annotated[list[HalfQuantized], about("products with one quantized operand")]
    tolerance: Annotated[float, about("largest error allowed")]
    images_compared: Annotated[Count, about("images")]
    tensors: Annotated[list[TensorError], about("tensors compared, in the order of the graph")]
    first_beyond_tolerance: Annotated[TensorError | None, about("first tensor whose error is beyond the tolerance")]
    worst_tensor: Annotated[TensorError, about("the tensor with the largest error")]
    drop_points: Annotated[float | UnsetType, about("points of top-1 lost against the reference")] = UNSET
    passed: Annotated[bool, about("the verdict; false ends the command with exit code 3")]
    faults: Annotated[list[str], about("what failed, a sentence each")]
    verdict: Annotated[str, about("the conclusion in one sentence")]
