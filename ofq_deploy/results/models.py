"""What the commands tell that make models, look into them and use them."""

from typing import Annotated, Any

from msgspec import UNSET, Struct, UnsetType

from ofq_deploy.results.fields import Count, Digest, Fraction, Percent, Result, about


class TrainResult(Result, frozen=True, kw_only=True, tag="ofq-deploy/train/1"):
    """Result of ofq-deploy train."""

    run: Annotated[str, about("run folder")]
    teacher_test_top1: Annotated[Percent, about("percent, the float model on the test images")]
    validation_top1: Annotated[Percent, about("percent on the validation images")]
    test_top1: Annotated[Percent, about("percent on the test images")]


class ImportResult(Result, frozen=True, kw_only=True, tag="ofq-deploy/import/1"):
    """Result of ofq-deploy import."""

    run: Annotated[str, about("run folder")]


class ExportResult(Result, frozen=True, kw_only=True, tag="ofq-deploy/export/1"):
    """Result of ofq-deploy export."""

    model: Annotated[str, about("path of the ONNX file")]
    target: Annotated[str, about("what it was made for")]
    file_bytes: Annotated[Count, about("bytes")]
    form: Annotated[str, about("attention, steps and shifts of the run; empty for the float model")]
    faster_form: Annotated[str, about("the choices that run faster, and how much; empty where there are none")]


class PackedModel(Struct, frozen=True, kw_only=True):
    """The model in a package."""

    target: Annotated[str, about("what it was exported for")]
    sha256: Annotated[Digest, about("hex digest of the model file")]
    frozen_sha256: Annotated[str, about("hex digest of its frozen file; empty for the float model")]


class PackageResult(Result, frozen=True, kw_only=True, tag="ofq-deploy/package/1"):
    """Result of ofq-deploy package, and its manifest.json."""

    kind: Annotated[str, about("triton or ort")]
    name: Annotated[str, about("of the model")]
    model: Annotated[PackedModel, about("the model packed")]
    onnxruntime: Annotated[str, about("versions that run it")]
    files: Annotated[dict[str, str], about("hex digests by path")]
    package: Annotated[str | UnsetType, about("folder written; not in manifest.json")] = UNSET


class Likely(Struct, frozen=True, kw_only=True):
    """A label with its probability."""

    label: Annotated[str, about("label")]
    probability: Annotated[Fraction, about("0 to 1")]


class Prediction(Struct, frozen=True, kw_only=True):
    """The likeliest labels of an image."""

    image: Annotated[str, about("path")]
    top5: Annotated[list[Likely], about("the likeliest labels, best first")]


class PredictResult(Result, frozen=True, kw_only=True, tag="ofq-deploy/predict/1"):
    """Result of ofq-deploy predict."""

    predictions: Annotated[list[Prediction], about("by image")]


class Layer(Struct, frozen=True, kw_only=True):
    """A linear layer at three widths."""

    name: Annotated[str, about("layer")]
    shape: Annotated[list[int] | None, about("[out, in]; null when the file does not tell")]
    bits_trained: Annotated[Count, about("bits a weight, by the recipe")]
    bits_stored: Annotated[float | None, about("bytes in the file x 8 / weights")]
    bits_computed: Annotated[Count, about("bits of the runtime's product")]
    bytes: Annotated[Count, about("of the weights in the file")]
    act_bits: Annotated[int | None, about("bits of the input's codes")]
    step_range: Annotated[list[float] | None, about("smallest and largest step of the input")]


class InspectResult(Result, frozen=True, kw_only=True, tag="ofq-deploy/inspect/1"):
    """Result of ofq-deploy inspect."""

    target: Annotated[str, about("what it was exported for")]
    quantization: Annotated[dict[str, Any], about("the recipe's table of that name")]
    file_bytes: Annotated[Count, about("bytes")]
    bytes_by_kind: Annotated[dict[str, Count], about("where the bytes are")]
    layers: Annotated[list[Layer], about("linear layers")]
    model: Annotated[str, about("path of the ONNX file, or the run folder and a word when it was not exported yet")]
    model_sha256: Annotated[Digest | UnsetType, about("hex digest of the model file")] = UNSET


class Student(Struct, frozen=True, kw_only=True):
    """One of the demo's models."""

    name: Annotated[str, about("recipe")]
    weight_bits: Annotated[Count, about("bits")]
    act_bits: Annotated[Count, about("bits")]
    top1_torch: Annotated[Percent, about("percent")]
    top1_runtime: Annotated[Percent, about("percent")]
    agreement: Annotated[Percent, about("percent of images with the same prediction")]
    codes_compared: Annotated[Count, about("codes")]
    codes_differing: Annotated[Count, about("of them differ")]
    ties: Annotated[Count, about("of these are ties")]
    file_bytes: Annotated[Count, about("bytes")]
    latency_ms_p50: Annotated[float, about("median at batch 1, ms")]
    model: Annotated[str, about("path in the demo's folder")]


class DemoResult(Result, frozen=True, kw_only=True, tag="ofq-deploy/demo/1"):
    """Result of ofq-deploy demo, and its summary.json."""

    passed: Annotated[bool, about("whether all models are proven")]
    seed: Annotated[Count, about("of teacher and students")]
    float_top1: Annotated[Percent, about("percent, the float model")]
    float_file_bytes: Annotated[Count, about("bytes")]
    models: Annotated[list[Student], about("the students")]
