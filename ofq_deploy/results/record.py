"""Results as JSON: what each of them carries, where they are kept, how they are found again.

Every result names its schema (`ofq-deploy/<command>/1`, see ofq_deploy/results/schemas; `bench` has another one on GPUs), the
environment that it was made in and the command line that makes it again.
"""

import json
from collections.abc import Collection
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ofq_deploy.environment import environment
from ofq_deploy.errors import DataError, OutputError
from ofq_deploy.files import write_text
from ofq_deploy.results.bench import BenchResult
from ofq_deploy.results.bench_gpu import BenchGpuResult
from ofq_deploy.results.fields import Result
from ofq_deploy.results.foreign import ForeignResult
from ofq_deploy.results.kinds import decode
from ofq_deploy.results.models import InspectResult
from ofq_deploy.results.proof import ParityResult, ProofResult
from ofq_deploy.runs.folder import is_run

Table = dict[str, Any]  # a result as a JSON object
Kind = TypeVar("Kind", bound=Result)

VERSION = "1"  # of every schema


def stamped(kind: type[Kind], command: str, parts: Table) -> Kind:
    """A result of the command line `command`, made here, from its other fields: tables, dataclasses and plain values."""
    stamp = {"command": command, "environment": environment()}
    return msgspec.convert(stamp | parts, kind, from_attributes=True)


def command_of(table: Table) -> str:
    """The command that made a result, or `bench-gpu`."""
    return str(table["schema"]).split("/")[1]


def model_of(table: Table) -> str:
    """The path of the model that a result is about, as its maker wrote it; empty when it is about none."""
    model = table.get("model", "")
    return str(model["path"] if isinstance(model, dict) else model)


def model_file(result: Result) -> tuple[str, str | None]:
    """The path of the model that a result is about, as its maker wrote it, and its sha256 where the result tells it;
    an empty path when it is about none.
    """
    if isinstance(result, (BenchResult, BenchGpuResult)):
        return result.model.path, result.model.sha256 or None
    if isinstance(result, (ProofResult, ParityResult, InspectResult)):
        return result.model, result.model_sha256 or None
    return (result.model, None) if isinstance(result, ForeignResult) else ("", None)


def moved(result: Kind, path: str) -> Kind:
    """A result that `model_file` finds a path in, with another one."""
    model: Any = path
    if isinstance(result, (BenchResult, BenchGpuResult)):
        model = msgspec.structs.replace(result.model, path=path)
    return msgspec.structs.replace(result, model=model)


def to_json(result: Result | Table) -> str:
    """The text of a result; what is not finite is null, because JSON has no other word for it."""
    return json.dumps(_finite(msgspec.to_builtins(result)), indent=2, allow_nan=False) + "\n"


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
    if not isinstance(result, (ProofResult, ForeignResult, BenchResult, BenchGpuResult)):
        return
    model = root / model_file(result)[0]
    if not is_run(model.parent):
        return
    name = f"{model.stem}.{result.schema_name.removesuffix('-gpu')}.{result.backend}.json"
    with suppress(OutputError):  # the result itself is printed all the same
        write_text(model.with_name(name), to_json(result), force=True)


def read_results(folder: Path, names: Collection[str]) -> dict[Path, Result]:
    """The results that lie in a folder, by file, of the schemas with these names; other JSON files are passed over.

    Raises DataError for a result of another version, and for one that lacks what its schema promises.
    """
    found = {}
    for file in sorted(folder.glob("[!.]*.json")):
        try:
            table = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, OSError):
            continue
        if not isinstance(table, dict) or not str(table.get("schema")).startswith("ofq-deploy/"):
            continue
        name, _, version = str(table["schema"]).removeprefix("ofq-deploy/").partition("/")
        if name not in names:
            continue
        if version != VERSION:
            raise DataError(f"{file} has schema {table['schema']}, this version reads ofq-deploy/{name}/{VERSION}")
        try:
            found[file] = decode(table)
        except msgspec.ValidationError as error:
            raise DataError(f"{file} is no whole result of {name} ({error}); make it again, or remove it") from error
    return found
