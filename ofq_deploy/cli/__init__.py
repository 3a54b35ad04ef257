"""The command line. Heavy imports happen inside the commands, so that --help answers at once.

Exit codes: 0 done, 1 unexpected error, 2 bad input or usage, 3 it ran and the verdict is negative, 4 a backend
is missing.
"""

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from ofq_deploy.cli import machine, models, proofs, speed, training
from ofq_deploy.errors import OfqError

COMMANDS: dict[str, Callable[..., Any]] = {  # in the order of the help
    "demo": training.demo,
    "train": training.train,
    "import": training.import_checkpoint,
    "export": models.export,
    "validate": proofs.validate,
    "parity": proofs.parity,
    "predict": models.predict,
    "package": models.package,
    "bench": speed.bench,
    "report": speed.report,
    "lint": proofs.lint,
    "check": proofs.check,
    "inspect": models.inspect,
    "doctor": machine.doctor,
}

app = typer.Typer(
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    help="Low-bit vision transformers: train, export, prove and measure.",
)
for name, command in COMMANDS.items():
    app.command(name)(command)


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
    if version:
        from ofq_deploy import __version__
        from ofq_deploy.environment import versions

        found = " ".join(f"{name} {number}" for name, number in versions().items())
        typer.echo(f"ofq-deploy {__version__} ({found})")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
