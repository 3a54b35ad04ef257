"""What `validate` does with a model from elsewhere: it is compared with the float model that it was quantized from."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ofq_deploy.commands.requests import ValidateRequest
from ofq_deploy.data.classes import Classes, read_classes
from ofq_deploy.data.datasets import digits_preprocessing, folder_preprocessing, load_dataset
from ofq_deploy.data.images import Preprocessing, read_preprocessing
from ofq_deploy.errors import DataError, OnnxFileError
from ofq_deploy.model.file import ModelFile, OnnxFile
from ofq_deploy.progress import Reporter
from ofq_deploy.results.foreign import ForeignResult
from ofq_deploy.results.record import stamped

if TYPE_CHECKING:
    from ofq_deploy.runtime_tests.proof.accuracy import Accuracy

# Operators on exact inputs are off by 0.14 at most in DeiT-T made int8 by ONNX Runtime and NNCF (attention, whose
# softmax has one step for all heads), the gain of a channel by 0.11; a doubled or transposed weight by 1 or more.
TOLERANCE = 0.25


@dataclass(frozen=True, slots=True)
class Signature:
    """What a classifier takes and gives.

    batch: the only batch size it takes, or None
    """

    channels: int
    size: int
    classes: int
    batch: int | None


def validate_foreign(request: ValidateRequest, floats_path: Path, report: Reporter) -> ForeignResult:
    """What `validate` does with a model from elsewhere and the float model that it was quantized from."""
    from ofq_deploy.runs.subject import model_file
    from ofq_deploy.runtime_tests.proof.accuracy import measure_accuracy, paired

    reference = OnnxFile(floats_path)
    model = OnnxFile(model_file(request.subject).path, made_from=reference)
    data, backend, max_drop = request.data, request.backend, request.max_drop
    if data is None:
        raise DataError("a model from elsewhere does not name its data; pass --data NAME|PATH")
    signature, floats = _signature(model, "model"), _signature(reference, "reference")
    if model.sha256 == reference.sha256:
        raise OnnxFileError(f"{reference.path} is the model itself; pass the float model that it was quantized from")
    if (signature.channels, signature.size, signature.classes) != (floats.channels, floats.size, floats.classes):
        raise OnnxFileError(f"the reference {_told(floats)}, the model {_told(signature)}; expected the same")
    if signature.batch and floats.batch and signature.batch != floats.batch:
        raise OnnxFileError(
            f"the reference has the fixed batch size {floats.batch}, the model {signature.batch}; expected the same"
        )
    described = _described(model) or _described(reference)
    how, source = _preprocessing(request.preprocessing, described, signature, data)
    known = Classes.of(described.labels) if described else Classes.unnamed(signature.classes)
    known = read_classes(request.classes, known) if request.classes else known
    test = load_dataset(data, signature.size, how, known).test
    if max_drop is not None and not test.labelled:
        raise DataError(f"{data} has no labels, and --max-drop needs them; expected one folder of images per class")
    own = measure_accuracy(model, test, report, backend, signature.batch or 32)
    theirs = measure_accuracy(reference, test, report, backend, floats.batch or 32)
    result: dict[str, Any] = {
        "model": str(model.path),
        "reference": str(reference.path),
        "backend": backend,
        "data": data,
        "test_images": len(test),
        "preprocessing": how,
        "preprocessing_from": source,
        "first_batch_sha256": test.first_batch_sha256(),
        "accuracy": own.table(),
        "accuracy_reference": theirs.table(),
        "top1_runtime": own.top1,
        "top1_float": theirs.top1,
        "against_float": paired(own, theirs),
        "by_class": _by_class(own, theirs, known.labels),
    }
    allowed = TOLERANCE if request.tolerance is None else request.tolerance
    batch = signature.batch or floats.batch or 1
    result |= _executed(model, backend) | _tensors(
        model, reference, test.spread(request.images), batch, allowed, report
    )
    if own.top1 is not None and theirs.top1 is not None:
        result["drop_points"] = theirs.top1 - own.top1
    faults = []
    if (first := result["first_beyond_tolerance"]) is not None:
        faults.append(
            f"{first.name} is the first tensor off by more than {allowed:g}: by {first.error:.3g}, "
            f"the gain of one channel by {first.gain_error:.3g}"
        )
    if max_drop is not None and result["drop_points"] > max_drop:
        faults.append(f"top-1 drops by {result['drop_points']:.2f} points, allowed are {max_drop:g}")
    verdict = f"Failed: {'; '.join(faults)}."
    if not faults:
        verdict = "Passed: every operator computes what the reference's does, within the tolerance."
    result |= {"passed": not faults, "faults": faults, "verdict": verdict}
    return stamped(ForeignResult, request.line(), result)


def _signature(file: OnnxFile, role: str) -> Signature:
    """Raises OnnxFileError for anything but one float image in, channels first, and one row of logits per image out."""
    from ofq_deploy.runner import logits
    from ofq_deploy.runtime_tests.runners.registry import DEFAULT, open_runner
    from ofq_deploy.runtime_tests.speed.bench import image_shape

    channels, height, width = image_shape(file, role)
    if height != width or channels not in (1, 3):
        raise OnnxFileError(
            f"the {role} takes images {[channels, height, width]}; expected [channels, side, side], 1 or 3 channels first"
        )
    graph = file.proto.graph
    constants = {tensor.name for tensor in graph.initializer}
    image = next(value for value in graph.input if value.name not in constants)
    batch = image.type.tensor_type.shape.dim[0].dim_value or None
    with open_runner(DEFAULT.name, file) as runner:
        outputs = runner.metadata.outputs
        made = logits(runner, np.zeros((batch or 1, channels, height, width), dtype=np.float32))
    if len(outputs) != 1 or made.ndim != 2 or made.shape[1] < 2:
        shapes = f"{len(outputs)} outputs" if len(outputs) != 1 else f"an output {list(made.shape)}"
        raise OnnxFileError(f"the {role} gives {shapes}; expected one output, logits [batch, classes]")
    return Signature(channels, height, made.shape[1], batch)


def _told(signature: Signature) -> str:
    side = signature.size
    return f"takes images {[signature.channels, side, side]} and knows {signature.classes} classes"


def _described(file: OnnxFile) -> ModelFile | None:
    """What our own metadata says, where a quantizer left it in the file."""
    try:
        return file.described
    except OnnxFileError:
        return None


def _preprocessing(
    file: Path | None, described: ModelFile | None, signature: Signature, data: str
) -> tuple[Preprocessing, str]:
    """How images become inputs, and who says so."""
    if file is not None:
        how, source = read_preprocessing(file), str(file)
    elif described is not None:
        how, source = described.preprocessing, "the model's metadata"
    elif data == "digits":
        how, source = digits_preprocessing(signature.size), "default for digits"
    else:
        how, source = folder_preprocessing(signature.size), "default: DeiT's, as the model does not say"
    if (how.channels, how.size) != (signature.channels, signature.size):
        raise DataError(
            f"the preprocessing ({source}) makes images {[how.channels, how.size, how.size]}, the model "
            f"{_told(signature)}; pass the right one with --preprocessing FILE.json"
        )
    return how, source


def _by_class(own: "Accuracy", reference: "Accuracy", labels: tuple[str, ...]) -> list[dict[str, Any]]:
    from ofq_deploy.runtime_tests.proof.accuracy import by_class

    rows = zip(by_class(own, labels), by_class(reference, labels), strict=True)
    return [row | {"top1_reference": theirs["top1"]} for row, theirs in rows]


def _executed(model: OnnxFile, backend: str) -> dict[str, Any]:
    """What the runtime executes, and what keeps it from integers."""
    from ofq_deploy.runtime_tests.lint.rules import lint
    from ofq_deploy.runtime_tests.runners.registry import executed_operators, find_opening

    target, told = find_opening(backend)[0].rules_of, None
    if target:
        found = Counter(finding.rule for finding in lint(model, target))
        told = {"target": target, "findings": found.total(), "rules": dict(sorted(found.items()))}
    return {"executed": executed_operators(backend, model), "lint": told}


def _tensors(
    model: OnnxFile, reference: OnnxFile, images: NDArray[np.float32], batch: int, tolerance: float, report: Reporter
) -> dict[str, Any]:
    """Tensor by tensor in ONNX Runtime, whichever backend was measured."""
    from ofq_deploy.runtime_tests.proof.tensors import compare_tensors, half_quantized

    own = model.proto
    found = compare_tensors(own, reference.proto, images, report, batch)
    first = next((entry for entry in found if entry.exceeds(tolerance)), None)
    return {
        "half_quantized": half_quantized(own),
        "tolerance": tolerance,
        "images_compared": len(images),
        "tensors": found,
        "first_beyond_tolerance": first,
        "worst_tensor": max(found, key=lambda entry: max(entry.error, entry.gain_error)),
    }
