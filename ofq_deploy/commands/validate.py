"""What `validate` does: gather the witnesses, prove, measure, and pass a verdict."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ofq_deploy.commands.build import float_model
from ofq_deploy.commands.requests import ValidateRequest
from ofq_deploy.data.classes import Classes, read_classes
from ofq_deploy.data.datasets import Split, load_dataset
from ofq_deploy.errors import DataError, OnnxFileError, RunError, UnsupportedByTarget
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.model.frozen import Frozen
from ofq_deploy.progress import Reporter
from ofq_deploy.results.foreign import ForeignResult
from ofq_deploy.results.golden import GoldenResult
from ofq_deploy.results.proof import ProofResult
from ofq_deploy.results.record import stamped
from ofq_deploy.results.verdicts import validation_verdict
from ofq_deploy.runs.folder import Run
from ofq_deploy.runs.subject import Subject, find
from ofq_deploy.runtime_tests.runners.registry import BACKENDS, proves

if TYPE_CHECKING:
    from ofq_deploy.runtime_tests.proof.accuracy import Accuracy
    from ofq_deploy.runtime_tests.proof.proof import Proof

FREE_RUN_BUDGET = 2e9  # multiplications that the float64 oracle may spend on free runs (some seconds)


def validate(request: ValidateRequest, report: Reporter) -> ProofResult | GoldenResult | ForeignResult:
    """See ofq_deploy.api.validate; DataError for options of different comparisons."""
    if request.golden is not None:
        from ofq_deploy.commands.golden import validate_golden

        return validate_golden(request, request.golden, report)
    for option, value in (("--max-drop", request.max_drop), ("--tolerance", request.tolerance)):
        if value is not None and not value >= 0:  # as nothing exceeds a NaN
            raise DataError(f"{option} is {value:g}; expected a number from 0")
    if request.reference is not None:
        from ofq_deploy.commands.foreign import validate_foreign

        if request.run is not None:
            raise DataError("a model is compared with its --reference or proven by its --run; leave one out")
        return validate_foreign(request, request.reference, report)
    if request.preprocessing is not None or request.tolerance is not None:
        raise DataError("--preprocessing and --tolerance are for models from elsewhere; pass --reference FP32.onnx too")
    return validate_model(request, report)


def validate_model(request: ValidateRequest, report: Reporter) -> ProofResult:
    """What `validate` does with a model of ours."""
    from ofq_deploy.runtime_tests.proof.accuracy import by_class, measure_accuracy, paired

    backend, max_drop = request.backend, request.max_drop
    found = find(request.subject, request.run, lambda target: proves(backend, target))
    _refuse_foreign(found.file)
    frozen = frozen_of(found, backend)
    if max_drop is not None and found.run is None:
        raise RunError("--max-drop needs the run folder that the model came from; pass it with --run")
    if max_drop is not None and found.run is not None and not found.run.recipe.data:
        raise RunError(f"{found.run.path} was imported: it has no float model to drop from; leave --max-drop out")
    known = Classes.of(frozen.labels)
    known = read_classes(request.classes, known) if request.classes else known
    chosen, test = test_split(found, frozen, request.data, known)
    if max_drop is not None and not test.labelled:
        raise DataError(f"{chosen} has no labels, and --max-drop needs them; expected one folder of images per class")
    student = None
    if found.run is not None:
        from ofq_deploy.train.reference import load_student

        student = load_student(found.run, frozen)
    proof = _prove(found, frozen, student, test, request.images, backend, report)
    accuracy = measure_accuracy(found.file, test, report, backend)
    result = _summary(found, proof, accuracy, backend) | {"data": chosen, "test_images": len(test)}
    result |= {"preprocessing": frozen.preprocessing, "first_batch_sha256": test.first_batch_sha256()}
    result |= {"accuracy": accuracy.table(), "by_class": by_class(accuracy, known.labels)}
    faults = _metadata_faults(found, frozen) + proof.faults()
    if found.run is not None:
        result |= _agreement(student, test, accuracy, report)
        reference = _float_accuracy(found.run, test, report)
        result |= {"top1_float": reference.top1, "against_float": paired(accuracy, reference)}
        if accuracy.top1 is not None and reference.top1 is not None:
            result["drop_points"] = reference.top1 - accuracy.top1
        if max_drop is not None and result["drop_points"] > max_drop:
            faults.append(f"top-1 drops by {result['drop_points']:.2f} points, allowed are {max_drop:g}")
    result |= {"passed": not faults, "faults": faults}
    return stamped(ProofResult, request.line(), result | {"verdict": validation_verdict(result)})


def _refuse_foreign(file: OnnxFile) -> None:
    if not file.properties:
        raise OnnxFileError(
            f"{file.path} was not written by ofq-deploy export (it does not say where it comes from); to compare it with "
            "the float model that it was quantized from, pass that with --reference"
        )


def frozen_of(found: Subject, *backends: str) -> Frozen:
    """The frozen file that a model came from, which all of `backends` can prove it against; RunError, UnsupportedByTarget."""
    path, target = found.path, found.model.made_for
    if target.is_float:
        raise RunError(
            f"{path} is the float baseline: there is nothing to prove; measure it with: ofq-deploy bench; or, if something "
            "else quantized it, pass the float model with --reference"
        )
    if not all(proves(backend, target) for backend in backends):
        title = BACKENDS[target.only_on].title
        raise UnsupportedByTarget(f"{path} is made for {title}; prove it there with --backend {target.only_on}")
    if found.frozen is None:
        where = "beside it or under runs/"
        raise RunError(f"no frozen file with the hash that {path} names was found {where}; pass it with --run")
    return found.frozen


def test_split(found: Subject, frozen: Frozen, data: str | None, classes: Classes | None) -> tuple[str, Split]:
    """The named data, or the run's own, as the model wants it; DataError where neither is known.

    classes: the model's, under the names that the data has for them
    """
    chosen = data or (found.run.recipe.data if found.run else "")
    if not chosen:
        raise DataError("the run does not name its data; pass --data NAME|PATH")
    return chosen, load_dataset(chosen, frozen.graph.image[1], frozen.preprocessing, classes or frozen.labels).test


def _prove(
    found: Subject, frozen: Frozen, student: Any, test: Split, images: int, backend: str, report: Reporter
) -> "Proof":
    from ofq_deploy.runtime_tests.proof.proof import (
        Proof,
        prove_constants,
        prove_free_run,
        prove_operators,
        prove_weights,
    )

    file, batch = found.file, test.spread(images)
    weights, constants = prove_weights(file, frozen), prove_constants(file, _export_again(found, frozen))
    torch = None
    if student is not None:
        from ofq_deploy.train.witness import TorchRunner

        torch = TorchRunner(student)
    operators = prove_operators(file, frozen, batch, torch, report, backend)
    free = prove_free_run(
        file, frozen, test.images(range(_free_images(frozen, len(batch), len(test)))), report, backend
    )
    return Proof(len(batch), weights, constants, tuple(operators), free)


def _export_again(found: Subject, frozen: Frozen) -> Any:
    """What this version writes for the model's target and opset."""
    from ofq_deploy.export.network import build
    from ofq_deploy.export.write import to_proto

    opset = next(entry.version for entry in found.file.proto.opset_import if entry.domain == "")
    return to_proto(build(frozen, found.model.made_for, opset, found.model.frozen_sha256))


def _free_images(frozen: Frozen, least: int, most: int) -> int:
    return min(most, max(least, int(FREE_RUN_BUDGET / frozen.graph.macs())))


def _summary(found: Subject, proof: "Proof", accuracy: "Accuracy", backend: str) -> dict[str, Any]:
    weights, operators, free = proof.weights, proof.operators, proof.free_run
    return {
        "model": str(found.path),
        "model_sha256": found.file.sha256,
        "backend": backend,
        "target": found.model.target,
        "witnesses": [*(entry.follower for entry in operators), "oracle"],
        "weights": {"codes_compared": weights.compared, "codes_differing": weights.differing},
        "constants": {"compared": proof.constants.compared, "differing": list(proof.constants.differing)},
        "operators": [
            {
                "witness": entry.follower,
                "images": entry.images,
                "codes_compared": entry.compared,
                "codes_differing": entry.differing,
                "ties": entry.ties,
                "worst_float_error": entry.worst_float_error,
                "passed": entry.passed,
            }
            for entry in operators
        ],
        "parity": [entry.table() for entry in operators],
        "free_run": {
            "images": free.images,
            "divergences": free.divergences,
            "codes_between_optimization_levels": free.levels_compared,
            "codes_differing_between_levels": free.levels_differing,
        },
        "codes_compared": weights.compared + operators[0].compared,
        "codes_differing": weights.differing + operators[0].differing,
        "ties": operators[0].ties,
        "top1_runtime": accuracy.top1,
    }


def _metadata_faults(found: Subject, frozen: Frozen) -> list[str]:
    """What the model says of itself is what predict and packages rely on."""
    model = found.model
    pairs = {
        "labels": (model.labels, frozen.labels),
        "preprocessing": (model.preprocessing, frozen.preprocessing),
        "quantization": (model.quantization, asdict(frozen.quantization)),
    }
    return [
        f"{field}: the model's metadata says otherwise than the frozen file"
        for field, (own, reference) in pairs.items()
        if own != reference
    ]


def _agreement(student: Any, test: Split, accuracy: "Accuracy", report: Reporter) -> dict[str, Any]:
    """Runtime, torch float32 and torch float64 beside one another; the last two show the model's own noise."""
    import torch

    from ofq_deploy.train.reference import predict_classes

    single = predict_classes(student, test, torch.float32, report)
    double = predict_classes(student, test, torch.float64, report)
    return {
        **{
            name: 100 * float((predictions == test.classes).mean()) if test.labelled else None
            for name, predictions in (("top1_torch", single), ("top1_torch_float64", double))
        },
        "agreement": 100 * float((accuracy.predictions == single).mean()),
        "runtime_agrees_with_float64": int((accuracy.predictions == double).sum()),
        "float32_agrees_with_float64": int((single == double).sum()),
    }


def _float_accuracy(run: Run, test: Split, report: Reporter) -> "Accuracy":
    from ofq_deploy.runtime_tests.proof.accuracy import measure_accuracy

    with float_model(run) as file:
        return measure_accuracy(file, test, report, name="the float model")
