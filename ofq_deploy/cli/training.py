"""The commands that make run folders: demo, train, import."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ofq_deploy.cli.common import AsJson, Force, OutputFolder, Quiet, finish
from ofq_deploy.commands.requests import DemoRequest, ImportRequest, TrainRequest
from ofq_deploy.progress import Reporter


def demo(
    output: OutputFolder = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of both students and their teacher.")] = DemoRequest.seed,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train two small models, export, prove, bench and report them.

    A float teacher, a W4A4 and a W2A2 student of the handwritten digits that scikit-learn ships; a few minutes on two cores.

    Example: ofq-deploy demo -o runs/demo
    """
    from ofq_deploy.demo import run_demo

    request = DemoRequest(output=output or DemoRequest.output, seed=seed, force=force)
    summary = run_demo(request, Reporter(quiet))
    lines = [
        f"{m.name}: top-1 {m.top1_runtime:.2f} % (torch {m.top1_torch:.2f} %), "
        f"{m.codes_differing} of {m.codes_compared:,} codes differ ({m.ties} ties), {m.file_bytes:,} bytes"
        for m in summary.models
    ]
    text = "\n".join([*lines, f"report: {request.output}/report.html"])
    finish(summary, text, as_json, passed=summary.passed)


def train(
    recipe: Annotated[str, typer.Argument(help="A built-in recipe or a TOML file.")] = "digits-w4a4",
    data: Annotated[str | None, typer.Option(help="digits, a folder with train/ and val/, or hf:NAME.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = TrainRequest.device,
    weight_bits: Annotated[int | None, typer.Option(help="2 to 8.")] = None,
    act_bits: Annotated[int | None, typer.Option(help="2 to 8.")] = None,
    attention: Annotated[str | None, typer.Option(help="qkr (reparameterized) or qk (apart).")] = None,
    init: Annotated[
        Path | None, typer.Option(help="Start from weights of a timm ViT or DeiT: .safetensors or .pth.")
    ] = None,
    act_step: Annotated[str | None, typer.Option(help="Activation steps per token or per tensor.")] = None,
    weights: Annotated[str | None, typer.Option(help="Weight quantizer: statsq or lsq.")] = None,
    cga: Annotated[bool | None, typer.Option("--cga/--no-cga", help="Confidence-guided annealing at the end.")] = None,
    epochs: Annotated[int | None, typer.Option(min=0, help="Epochs of quantized training.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Decides everything random.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any recipe key, as train.lr=1e-3.")
    ] = None,
    output: OutputFolder = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a quantized model by a recipe, into a run folder.

    Example: ofq-deploy train digits-w2a2 --attention qk --epochs 10 -o runs/mine
    """
    from ofq_deploy.commands.train import train as run

    named = {
        "data": data,
        "quantization.weight_bits": weight_bits,
        "quantization.act_bits": act_bits,
        "quantization.attention": attention,
        "quantization.act_step": act_step,
        "init": str(init) if init else None,
        "quantization.weights": weights,
        "cga.enabled": cga,
        "train.epochs": epochs,
        "seed": seed,
    }
    overrides: dict[str, Any] = {key: value for key, value in named.items() if value is not None}
    for setting in settings or []:
        key, separator, value = setting.partition("=")
        if not separator:
            raise typer.BadParameter(f"{setting!r} is not KEY=VALUE", param_hint="--set")
        overrides[key] = value
    request = TrainRequest(recipe=recipe, output=output, overrides=overrides, device=device, force=force)
    result = run(request, Reporter(quiet))
    finish(result, result.run, as_json)


def import_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help="A .pth or .pth.tar file.")],
    source: Annotated[str, typer.Option("--from", help="Layout: ofq (OFQ's official code).")] = "ofq",
    weight_bits: Annotated[int | None, typer.Option(help="2 to 8, where the file does not say.")] = None,
    act_bits: Annotated[int | None, typer.Option(help="2 to 8, where the file does not say.")] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Take the moving average of the weights.")] = False,
    output: OutputFolder = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Turn a checkpoint of OFQ's official code into a run folder.

    Nothing in the file is executed: it is read as tensors and plain settings, in a process of its own.

    Example: ofq-deploy import deit_t_w4a4.pth.tar --from ofq -o runs/deit-t
    """
    from ofq_deploy.commands.train import import_checkpoint as run
    from ofq_deploy.errors import UnsupportedByTarget

    if source != "ofq":
        raise UnsupportedByTarget(f"no checkpoint layout {source!r}; there is ofq")
    request = ImportRequest(
        checkpoint=checkpoint, weight_bits=weight_bits, act_bits=act_bits, ema=ema, output=output, force=force
    )
    result = run(request)
    Reporter(quiet or as_json).say(f"next: ofq-deploy export {result.run} --to onnx")
    finish(result, result.run, as_json)
