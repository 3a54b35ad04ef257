"""What commands share: options of one meaning, refusals before the work, and the end."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ofq_deploy.results.fields import Result

NEGATIVE = 3  # the exit code of a verdict

OutputFolder = Annotated[Path | None, typer.Option("-o", "--output", help="Folder to make.")]
OutputFile = Annotated[Path | None, typer.Option("-o", "--output", help="File to write.")]
JsonFile = Annotated[Path | None, typer.Option("-o", "--output", help="Write the JSON object to this file too.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
Page = Annotated[Path | None, typer.Option("--report", help="Write an HTML page about the result.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No messages and no progress.")]
Subject = Annotated[Path | None, typer.Argument(help="An ONNX model or a run folder [default: the newest run].")]


def refuse(output: Path | None, force: bool, other: Path | None = None) -> None:
    """Refuse an output that is in the way, before the work is done; `other`: the command's other output."""
    if output is not None:
        if other is not None and output.resolve() == other.resolve():
            raise typer.BadParameter(f"{output} cannot hold the page and the JSON object", param_hint="--report")
        from ofq_deploy.files import refuse_existing

        refuse_existing(output, force)


def finish(
    result: "Result",
    text: str,
    as_json: bool,
    output: Path | None = None,
    force: bool = False,
    page: Path | None = None,
    *,
    passed: bool = True,
) -> None:
    """The result as JSON or text on stdout, as JSON in a file, as a page, and kept with its run, as made by what was
    typed; then the exit code of its verdict.
    """
    import msgspec

    from ofq_deploy.results.record import keep, to_json

    result = msgspec.structs.replace(result, command=shlex.join(["ofq-deploy", *sys.argv[1:]]))
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
    if not passed:
        raise typer.Exit(NEGATIVE)
