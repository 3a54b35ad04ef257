"""The commands that judge a model: validate, parity, lint, check."""

from pathlib import Path
from typing import Annotated

import typer

from ofq_deploy.cli import texts
from ofq_deploy.cli.common import AsJson, Force, JsonFile, Page, Quiet, Subject, finish, refuse
from ofq_deploy.commands.requests import CheckRequest, LintRequest, ParityRequest, ValidateRequest
from ofq_deploy.progress import Reporter


def validate(
    subject: Subject = None,
    run: Annotated[Path | None, typer.Option(help="Run folder or frozen file that the model came from.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="digits, a folder, .csv or .parquet, or hf:NAME[:SPLIT] [default: the run's own]."),
    ] = None,
    backend: Annotated[
        str, typer.Option(help="Runtime to prove: ort-cpu, openvino or tensorrt.")
    ] = ValidateRequest.backend,
    max_drop: Annotated[
        float | None, typer.Option(min=0, help="Points of top-1 that may be lost against float.")
    ] = None,
    images: Annotated[
        int, typer.Option(min=1, help="Images for the operator-by-operator proof.")
    ] = ValidateRequest.images,
    golden: Annotated[Path | None, typer.Option(help="Compare a run with golden data of OFQ's official code.")] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Compare a model from elsewhere with this float ONNX model.")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            help="Names of the model's classes: one per line, or a .csv of index and any names (folders, ids)."
        ),
    ] = None,
    preprocessing: Annotated[
        Path | None,
        typer.Option(
            help="With --reference: JSON of size, resize, interpolation, mean, std [default: the model's, else DeiT's]."
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0, help="With --reference: allowed error of a tensor, RMS over RMS [default: 0.25]."),
    ] = None,
    page: Page = None,
    output: JsonFile = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Prove a model against its training, and measure its accuracy.

    Every operator must give training's codes. Exit 3 if one does not, or if --max-drop is exceeded.

    A model from elsewhere is compared with the float model that it was quantized from: accuracy, and tensor by tensor.

    The result of a model in a run folder is kept beside it, as MODEL.validate.BACKEND.json, for: ofq-deploy report

    Example: ofq-deploy validate runs/digits-w4a4 --max-drop 1

    Example: ofq-deploy validate int8.onnx --reference fp32.onnx --data imagenet/val --max-drop 1
    """
    from ofq_deploy.commands.validate import validate as prove

    refuse(output, force)
    refuse(page, force, output)
    request = ValidateRequest(
        subject=subject,
        run=run,
        data=data,
        backend=backend,
        max_drop=max_drop,
        images=images,
        golden=golden,
        reference=reference,
        classes=classes,
        preprocessing=preprocessing,
        tolerance=tolerance,
    )
    result = prove(request, Reporter(quiet))
    finish(result, texts.validation_text(result), as_json, output, force, page, passed=result.passed)


def parity(
    subject: Subject = None,
    leader: Annotated[
        str,
        typer.Option(help="Whose codes every operator is fed: torch, torch:float64, torch:cuda, oracle or a runtime."),
    ] = ParityRequest.leader,
    follower: Annotated[
        str,
        typer.Option(
            help="Who is compared: the same names; runtimes are ort-cpu, ort-cpu:plain (no optimizer), openvino, and "
            "ort-cpu@PYTHON (the ONNX Runtime of another interpreter)."
        ),
    ] = ParityRequest.follower,
    run: Annotated[Path | None, typer.Option(help="Run folder or frozen file that the model came from.")] = None,
    data: Annotated[str | None, typer.Option(help="As in validate [default: the run's own].")] = None,
    images: Annotated[int, typer.Option(min=1, help="Images to compare on.")] = ParityRequest.images,
    output: JsonFile = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare two runners of one model, operator by operator.

    Then both run freely. Exit 3 if they differ beyond rounding ties.

    Example: ofq-deploy parity --leader ort-cpu --follower ort-cpu:plain
    """
    from ofq_deploy.commands.parity import parity as compare

    refuse(output, force)
    request = ParityRequest(subject=subject, leader=leader, follower=follower, run=run, data=data, images=images)
    result = compare(request, Reporter(quiet))
    finish(result, texts.parity_text(result), as_json, output, force, passed=result.passed)


def lint(
    model: Subject = None,
    target: Annotated[
        str | None,
        typer.Option(help="ort-cpu, portable, openvino or tensorrt [default: what the model was exported for]."),
    ] = None,
    output: JsonFile = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """List what keeps a model from exact, fast integers on a target.

    Each with its cause and cure: what the runtime would refuse (hard), compute wrong (wrong) or not in integers (slow). A
    hint is a fault only elsewhere. Exit 3 if there is any finding.

    Example: ofq-deploy lint model.onnx --target tensorrt
    """
    from ofq_deploy.commands.lint import lint as run

    refuse(output, force)
    result = run(LintRequest(model=model, target=target))
    finish(result, texts.lint_text(result), as_json, output, force, passed=not result.faults)


def check(
    model: Subject = None,
    target: Annotated[str, typer.Option(help="tensorrt.")] = CheckRequest.target,
    output: JsonFile = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Build a TensorRT engine, and see which products are int8.

    Exit 3 if a quantized product is not. TensorRT-RTX builds without a GPU. The engine is thrown away: it belongs to a version and to kinds of GPU.

    A model that quantizes no product at all fails, too.

    Example: ofq-deploy check model.tensorrt.onnx --target tensorrt
    """
    from ofq_deploy.commands.lint import check as run

    refuse(output, force)
    result = run(CheckRequest(model=model, target=target))
    finish(result, texts.check_text(result), as_json, output, force, passed=result.passed)
