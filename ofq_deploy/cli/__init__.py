"""The command line. Heavy imports happen inside the commands, so that --help answers at once.

Exit codes: 0 done, 1 unexpected error, 2 bad input or usage, 3 it ran and the verdict is negative, 4 a backend
is missing.
"""

import json
import shlex
import sys
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer

from ofq_deploy.cli import texts
from ofq_deploy.errors import OfqError

NEGATIVE = 3

app = typer.Typer(
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    help="Low-bit vision transformers: train, export, prove and measure.",
)

OutputFolder = Annotated[Path | None, typer.Option("-o", "--output", help="Folder to make.")]
OutputFile = Annotated[Path | None, typer.Option("-o", "--output", help="File to write.")]
JsonFile = Annotated[Path | None, typer.Option("-o", "--output", help="Write the JSON object to this file too.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
Page = Annotated[Path | None, typer.Option("--report", help="Write an HTML page about the result.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No messages and no progress.")]
Subject = Annotated[Path | None, typer.Argument(help="An ONNX model or a run folder [default: the newest run].")]

_command = ContextVar("command", default="")  # the one that runs


def main() -> None:
    """Run the command line; every error that a user can cause is one line and an exit code."""
    try:
        code = app(standalone_mode=False, prog_name="ofq-deploy")
    except OfqError as error:
        code = _complain(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = _complain("interrupted", 130)
    except Exception as error:
        if not hasattr(error, "format_message"):  # not one of the parser's usage errors
            raise
        code = _complain(f"{error.format_message().rstrip('.')}; see ofq-deploy --help", 2)
    raise SystemExit(code)


def _complain(message: str, code: int) -> int:
    print("ofq-deploy: " + " ".join(message.split()), file=sys.stderr)
    return code


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print versions and exit.")] = False,
) -> None:
    _command.set(context.invoked_subcommand or "")
    if version:
        from ofq_deploy import __version__
        from ofq_deploy.environment import versions

        found = " ".join(f"{name} {number}" for name, number in versions().items())
        typer.echo(f"ofq-deploy {__version__} ({found})")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def demo(
    output: OutputFolder = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of both students and their teacher.")] = 0,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train two small models, export, prove, bench and report them.

    A float teacher, a W4A4 and a W2A2 student of the handwritten digits that scikit-learn ships; a few minutes on two cores.

    Example: ofq-deploy demo -o runs/demo
    """
    from ofq_deploy.demo import run_demo

    summary = run_demo(output or Path("runs/demo"), seed, force, _reporter(quiet))
    lines = [
        f"{m['name']}: top-1 {m['top1_runtime']:.2f} % (torch {m['top1_torch']:.2f} %), "
        f"{m['codes_differing']} of {m['codes_compared']:,} codes differ ({m['ties']} ties), {m['file_bytes']:,} bytes"
        for m in summary["models"]
    ]
    _finish(
        summary,
        "\n".join([*lines, f"report: {output or Path('runs/demo')}/report.html"]),
        as_json,
        None,
        False,
    )
    raise typer.Exit(0 if summary["passed"] else NEGATIVE)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A built-in recipe or a TOML file.")] = "digits-w4a4",
    data: Annotated[str | None, typer.Option(help="digits, a folder with train/ and val/, or hf:NAME.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
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
    from ofq_deploy import api

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
    run = api.train(recipe, output=output, overrides=overrides, device=device, force=force, report=_reporter(quiet))
    results = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["results"]
    _finish({"run": str(run), **results}, str(run), as_json, None, False)


@app.command("import")
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
    from ofq_deploy import api
    from ofq_deploy.errors import UnsupportedByTarget

    if source != "ofq":
        raise UnsupportedByTarget(f"no checkpoint layout {source!r}; there is ofq")
    run = api.import_checkpoint(
        checkpoint, weight_bits=weight_bits, act_bits=act_bits, ema=ema, output=output, force=force
    )
    _reporter(quiet or as_json).say(f"next: ofq-deploy export {run} --to onnx")
    _finish({"run": str(run)}, str(run), as_json, None, False)


@app.command()
def export(
    run: Annotated[Path | None, typer.Argument(help="A run folder [default: the newest run].")] = None,
    to: Annotated[str, typer.Option(help="Format: onnx.")] = "onnx",
    target: Annotated[
        str, typer.Option(help="portable (standard operators), ort-cpu (fastest there), openvino, tensorrt or fp32.")
    ] = "portable",
    opset: Annotated[int | None, typer.Option(help="ONNX opset [default: the lowest that holds the graph].")] = None,
    output: OutputFile = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write a run's model as ONNX, weights packed at their true width.

    Example: ofq-deploy export runs/digits-w4a4 --to onnx --target ort-cpu
    """
    from ofq_deploy import api
    from ofq_deploy.errors import UnsupportedByTarget

    if to != "onnx":
        raise UnsupportedByTarget(f"no format {to!r}; there is onnx")
    path = api.export(run, target=target, opset=opset, output=output, force=force)
    size = path.stat().st_size
    _reporter(quiet or as_json).say(f"{size:,} bytes, target {target}")
    _finish({"model": str(path), "target": target, "file_bytes": size}, str(path), as_json, None, False)


@app.command()
def validate(
    subject: Subject = None,
    run: Annotated[Path | None, typer.Option(help="Run folder or frozen file that the model came from.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="digits, a folder, .csv or .parquet, or hf:NAME[:SPLIT] [default: the run's own]."),
    ] = None,
    backend: Annotated[str, typer.Option(help="Runtime to prove: ort-cpu, openvino or tensorrt.")] = "ort-cpu",
    max_drop: Annotated[
        float | None, typer.Option(min=0, help="Points of top-1 that may be lost against float.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Images for the operator-by-operator proof.")] = 16,
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
    from ofq_deploy import api

    _refuse(output, force)
    _refuse(page, force, output)
    result = api.validate(
        subject,
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
        report=_reporter(quiet),
    )
    show = texts.golden_text if golden else texts.foreign_text if reference else texts.validation_text
    text = show(result)
    _finish(result, text, as_json, output, force, page)
    raise typer.Exit(0 if result["passed"] else NEGATIVE)


@app.command()
def parity(
    subject: Subject = None,
    leader: Annotated[
        str,
        typer.Option(help="Whose codes every operator is fed: torch, torch:float64, torch:cuda, oracle or a runtime."),
    ] = "torch",
    follower: Annotated[
        str,
        typer.Option(
            help="Who is compared: the same names; runtimes are ort-cpu, ort-cpu:plain (no optimizer), openvino, and "
            "ort-cpu@PYTHON (the ONNX Runtime of another interpreter)."
        ),
    ] = "ort-cpu",
    run: Annotated[Path | None, typer.Option(help="Run folder or frozen file that the model came from.")] = None,
    data: Annotated[str | None, typer.Option(help="As in validate [default: the run's own].")] = None,
    images: Annotated[int, typer.Option(min=1, help="Images to compare on.")] = 16,
    output: JsonFile = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare two runners of one model, operator by operator.

    Then both run freely. Exit 3 if they differ beyond rounding ties.

    Example: ofq-deploy parity --leader ort-cpu --follower ort-cpu:plain
    """
    from ofq_deploy import api

    _refuse(output, force)
    result = api.parity(
        subject, leader=leader, follower=follower, run=run, data=data, images=images, report=_reporter(quiet)
    )
    _finish(result, texts.parity_text(result), as_json, output, force)
    raise typer.Exit(0 if result["passed"] else NEGATIVE)


@app.command()
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
    from ofq_deploy import api

    _refuse(output, force)
    found = api.predict(images, model=model)
    lines = [
        f"{row['image']}: " + ", ".join(f"{best['label']} {100 * best['probability']:.1f} %" for best in row["top5"])
        for row in found
    ]
    _finish({"predictions": found}, "\n".join(lines), as_json, output, force)


@app.command()
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
    from ofq_deploy import api

    result = api.package(
        model, kind=kind, output=output, name=name, backend=backend, max_batch=max_batch, threads=threads, force=force
    )
    _reporter(quiet or as_json).say(f"{len(result['files'])} files; {output / 'README.md'} says how to use them")
    _finish(result, str(output), as_json, None, False)


@app.command()
def bench(
    model: Subject = None,
    backend: Annotated[
        str, typer.Option(help="Runtime: ort-cpu, openvino, tensorrt, torch-cuda (docs/gpu.md).")
    ] = "ort-cpu",
    batch: Annotated[
        list[int] | None, typer.Option(min=1, max=65536, help="Batch size; may be given again [default: 1].")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0 for one per core.")] = 1,
    seconds: Annotated[float, typer.Option(min=0, max=86400, help="Time per batch size.")] = 3.0,
    baseline: Annotated[
        Path | None, typer.Option(help="ONNX file to compare with [default: the run's float model].")
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Where the time goes, by operator and role.")] = False,
    affinity: Annotated[
        str | None, typer.Option(metavar="CPU,...", help="CPUs to stay on, as 0,1 [default: all that are allowed].")
    ] = None,
    page: Page = None,
    output: JsonFile = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure a model's speed, in turn with a float baseline.

    Latency, load time, memory, arithmetic and executed operators. A speed-up is the ratio of median wall times with a 95 % interval; where that is wide, it says so.

    The result of a model in a run folder is kept beside it, as MODEL.bench.BACKEND.json, for: ofq-deploy report

    Example: ofq-deploy bench --backend ort-cpu --batch 1 --batch 8 --threads 1
    """
    from ofq_deploy import api

    _refuse(output, force)
    cpus = [] if affinity is None else affinity.split(",")
    if not all(cpu.isdecimal() for cpu in cpus):
        raise typer.BadParameter(f"{affinity!r} is no list of CPU numbers, such as 0,1", param_hint="--affinity")
    _refuse(page, force, output)
    result = api.bench(
        model,
        backend=backend,
        batches=batch or [1],
        threads=threads,
        seconds=seconds,
        baseline=baseline,
        profile=profile,
        affinity=map(int, cpus),
        report=_reporter(quiet),
    )
    text = texts.gpu_bench_text(result) if "gpu" in result else texts.bench_text(result)
    _finish(result, text, as_json, output, force, page)
    raise typer.Exit(0 if result.get("passed", True) else NEGATIVE)


@app.command()
def report(
    subject: Annotated[
        Path | None, typer.Argument(metavar="[RUN|FOLDER]", help="A folder with results [default: the newest run].")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="HTML file to write [default: report.html in the folder].")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write one HTML page about all results in a folder.

    It tells of the models there too, whose cards are brought up to date. Results are those that validate and bench kept in a run folder, or wrote with -o.

    Example: ofq-deploy report runs/digits-w4a4 -o report.html
    """
    from ofq_deploy import api

    result = api.report(subject, output=output, force=force, report=_reporter(quiet))
    _finish(result, result["report"], as_json, None, False)


@app.command()
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
    from ofq_deploy import api

    _refuse(output, force)
    faults = api.lint(model, target=target)
    lines = [
        f"{row['kind']} {row['rule']}: {row['operator']} {row['node']}: {row['cause']}; {row['cure']}" for row in faults
    ]
    _finish({"faults": faults}, "\n".join(lines) or "clean", as_json, output, force)
    raise typer.Exit(NEGATIVE if faults else 0)


@app.command()
def check(
    model: Subject = None,
    target: Annotated[str, typer.Option(help="tensorrt.")] = "tensorrt",
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
    from ofq_deploy import api

    _refuse(output, force)
    result = api.check(model, target=target)
    _finish(result, texts.check_text(result), as_json, output, force)
    raise typer.Exit(0 if result["passed"] else NEGATIVE)


@app.command()
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
    from ofq_deploy import api

    _refuse(output, force)
    result = api.inspect(subject)
    _finish(result, "", as_json, output, force)
    if not as_json:
        texts.print_layers(result)


@app.command()
def doctor(
    output: JsonFile = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show versions, CPU features and which backends can run here.

    Example: ofq-deploy doctor --json
    """
    from ofq_deploy.commands.doctor import examine

    _refuse(output, force)
    result = examine()
    packages = result["environment"]["packages"]
    lines = [f"{name:14} {number}" for name, number in packages.items()]
    lines += [
        f"cpu {name}: {'yes' if entry['present'] else 'no'} ({entry['means']})" for name, entry in result["cpu"].items()
    ]
    lines += [
        f"backend {name}: {'ready' if b['ready'] else b['why'] + '; ' + b['install']}"
        for name, b in result["backends"].items()
    ]
    lines += [f"warning: {warning}" for warning in result["warnings"]]
    _finish(result, "\n".join(lines), as_json, output, force)


def _reporter(quiet: bool) -> Any:
    from ofq_deploy.progress import Reporter

    return Reporter(quiet)


def _refuse(output: Path | None, force: bool, other: Path | None = None) -> None:
    """Refuse an output that is in the way, before the work is done; `other`: the command's other output."""
    if output is not None:
        if other is not None and output.resolve() == other.resolve():
            raise typer.BadParameter(f"{output} cannot hold the page and the JSON object", param_hint="--report")
        from ofq_deploy.files import refuse_existing

        refuse_existing(output, force)


def _finish(
    result: dict[str, Any], text: str, as_json: bool, output: Path | None, force: bool, page: Path | None = None
) -> None:
    """The result as JSON or text on stdout, as JSON in a file, as a page, and kept with its run."""
    from ofq_deploy.results.record import keep, stamped, to_json

    result = stamped(_command.get(), shlex.join(["ofq-deploy", *sys.argv[1:]]), result)
    document = to_json(result)
    if output is not None:
        from ofq_deploy.files import write_text

        write_text(output, document, force)
    keep(result)
    if page is not None:
        from ofq_deploy.commands.report import write_page

        write_page(page, result, force)
    if as_json or text:
        typer.echo(document.rstrip() if as_json else text)
