"""Results as JSON objects: what each of them carries, where they are kept, how they are found again.

Every result names its schema (`ofq-deploy/<command>/1`, see ofq_deploy/schemas; `bench` has another one on GPUs), the
environment that it was made in and the command line that makes it again.
"""

import inspect
import json
import shlex
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from math import isfinite
from pathlib import Path
from typing import Any, ParamSpec

from ofq_deploy.environment import environment
from ofq_deploy.errors import OutputError
from ofq_deploy.files import write_text
from ofq_deploy.runs.folder import is_run

Result = dict[str, Any]
Arguments = ParamSpec("Arguments")
OPTIONS = {"batches": "batch"}  # parameters of the functions that are named otherwise on the command line
LISTS = ("affinity",)  # those that take all values at once, as 0,1


def stamped(command: str, line: str, result: Result) -> Result:
    """A result with its schema, the command's unless it names one, its environment and the command line that makes it
    again.
    """
    stamp = {"schema": result.get("schema", f"ofq-deploy/{command}/1"), "command": line}
    return stamp | {"environment": environment()} | result | stamp


def result_of(command: str) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """A decorator that stamps what a function returns, with the command line that does what the call did."""

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        signature = inspect.signature(function)

        @wraps(function)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            given = signature.bind(*args, **kwargs).arguments
            return stamped(command, command_line(command, given), function(*args, **kwargs))

        return call

    return decorate


def command_line(command: str, given: dict[str, Any]) -> str:
    """`ofq-deploy bench m.onnx --batch 1 --batch 8`: the first argument by place, the others by name."""
    words = ["ofq-deploy", command]
    for place, (name, value) in enumerate(given.items()):
        option = (
            [] if place == 0 and name in ("subject", "model") else [f"--{OPTIONS.get(name, name).replace('_', '-')}"]
        )
        values = list(value) if isinstance(value, (list, tuple, range)) else [value]
        if name in LISTS and len(values) > 1:
            values = [",".join(map(str, values))]
        for one in values:
            if one is True:
                words += option
            elif isinstance(one, (str, int, float, Path)) and one is not False:
                words += [*option, str(one)]
    return shlex.join(words)


def command_of(result: Result) -> str:
    """The command that made a result, or `bench-gpu`."""
    return str(result["schema"]).split("/")[1]


def model_of(result: Result) -> str:
    """The path of the model that a result is about, as its maker wrote it; empty when it is about none."""
    model = result.get("model", "")
    return str(model["path"] if isinstance(model, dict) else model)


def to_json(result: Result) -> str:
    """The text of a result; what is not finite is null, because JSON has no other word for it."""
    return json.dumps(_finite(result), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def keep(result: Result, root: Path = Path()) -> None:
    """Write a result of validate or bench beside its model, when that lies in a run folder, as
    `<model>.<validate or bench>.<backend>.json`. An earlier one is replaced; a folder that cannot be written keeps nothing.

    root: where the model's path begins, if it is a relative one
    """
    command = command_of(result)
    if command not in ("validate", "bench", "bench-gpu") or "backend" not in result:
        return
    model = root / model_of(result)
    if not is_run(model.parent):
        return
    name = f"{model.stem}.{command.removesuffix('-gpu')}.{result['backend']}.json"
    with suppress(OutputError):  # the result itself is printed all the same
        write_text(model.with_name(name), to_json(result), force=True)


def read_results(folder: Path) -> dict[Path, Result]:
    """The results that lie in a folder, by file; other JSON files are passed over."""
    found = {}
    for file in sorted(folder.glob("[!.]*.json")):
        with suppress(ValueError, OSError):
            result = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(result, dict) and str(result.get("schema")).startswith("ofq-deploy/"):
                found[file] = result
    return found
