"""The commands about model files: export, predict, package, inspect."""

from pathlib import Path
from typing import Annotated

import typer

from ofq_deploy.cli import texts
from ofq_deploy.cli.common import AsJson, Force, JsonFile, OutputFile, Quiet, Subject, finish, refuse
from ofq_deploy.commands.requests import ExportRequest, InspectRequest, PackageRequest, PredictRequest
from ofq_deploy.progress import Reporter


def export(
    run: Annotated[Path | None, typer.Argument(help="A run folder [default: the newest run].")] = None,
    to: Annotated[str, typer.Option(help="Format: onnx.")] = "onnx",
    target: Annotated[
        str,
        typer.Option(
            help="portable (standard operators), ort-cpu (ONNX Runtime's own), ort-ofq (fused ones, of the package ofq-kernels), "
            "openvino, tensorrt or fp32."
        ),
    ] = ExportRequest.target,
    opset: Annotated[int | None, typer.Option(help="ONNX opset [default: the lowest that holds the graph].")] = None,
    output: OutputFile = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write a run's model as ONNX, weights packed at their true width.

    Example: ofq-deploy export runs/digits-w4a4 --to onnx --target ort-cpu
    """
    from ofq_deploy.commands.export import export as write
    from ofq_deploy.errors import UnsupportedByTarget

    if to != "onnx":
        raise UnsupportedByTarget(f"no format {to!r}; there is onnx")
    result = write(ExportRequest(run=run, target=target, opset=opset, output=output, force=force))
    report = Reporter(quiet or as_json)
    report.say(f"{result.file_bytes:,} bytes, target {target}")
    if result.form:
        report.say(
            f"form: {result.form}" + (f"; faster in ort-ofq with {result.faster_form}" if result.faster_form else "")
        )
    finish(result, result.model, as_json)


def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    model: Annotated[Path | None, typer.Option(help="ONNX model or run folder [default: the newest run].")] = None,
    output: JsonFile = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Print the five likeliest labels of each image.

    By ONNX Runtime, without torch.

    Example: ofq-deploy predict seven.png --model runs/digits-w4a4/model.portable.onnx
    """
    from ofq_deploy.commands.predict import predict as run

    refuse(output, force)
    result = run(PredictRequest(images=tuple(images), model=model))
    finish(result, texts.prediction_text(result), as_json, output, force)


def package(
    kind: Annotated[str, typer.Option("--for", help="triton (a model repository) or ort (a folder with a script).")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to make.")],
    model: Subject = None,
    name: Annotated[str | None, typer.Option(help="Name of the model [default: its run folder or file].")] = None,
    backend: Annotated[
        str | None, typer.Option(help="Triton: onnxruntime or tensorrt [default: what the model was exported for].")
    ] = None,
    max_batch: Annotated[int | None, typer.Option(min=1, help="Triton: images run at once [default: 8].")] = None,
    threads: Annotated[int | None, typer.Option(min=0, help="Triton: CPU threads [default: one per core].")] = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write a folder to serve a model from.

    It holds the model, its labels and preprocessing, and instructions.

    Example: ofq-deploy package runs/digits-w4a4 --for ort -o served
    """
    from ofq_deploy.commands.package import package as run

    request = PackageRequest(
        model=model,
        kind=kind,
        output=output,
        name=name,
        backend=backend,
        max_batch=max_batch,
        threads=threads,
        force=force,
    )
    result = run(request)
    Reporter(quiet or as_json).say(f"{len(result.files)} files; {output / 'README.md'} says how to use them")
    finish(result, str(output), as_json)


def inspect(
    subject: Subject = None,
    output: JsonFile = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show each layer's bits trained, stored and computed.

    And its shape, bytes and activation steps.

    Example: ofq-deploy inspect runs/digits-w2a2
    """
    from ofq_deploy.commands.inspect import inspect as run

    refuse(output, force)
    result = run(InspectRequest(subject=subject))
    finish(result, "", as_json, output, force)
    if not as_json:
        texts.print_layers(result)
