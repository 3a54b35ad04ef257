"""Every command's result is what its schema says, field by field, and the page about the schemas is theirs."""

import json
import runpy
import subprocess
import sys
from dataclasses import fields
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from ofq_deploy import api
from ofq_deploy.commands.requests import BenchRequest, DemoRequest, PackageRequest, Request, ValidateRequest
from ofq_deploy.results.kinds import KINDS
from ofq_deploy.results.record import to_json
from tests.support.schemas import SCHEMAS, check, documents

ROOT = Path(__file__).resolve().parent.parent


def _typed(*words: object, cwd: Path, code: int = 0) -> dict[str, Any]:
    command = [sys.executable, "-m", "ofq_deploy", *map(str, words), "--json", "--quiet"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def validation(portable_model: Path) -> dict[str, Any]:
    return api.validate(portable_model, images=4)


@pytest.mark.parametrize("name", [file.name for file in SCHEMAS.glob("*.json")])
def test_the_schema_files_are_valid(name: str) -> None:
    Draft202012Validator.check_schema(documents()[name])


def test_validate(validation: dict[str, Any]) -> None:
    check(validation)

    assert validation["schema"] == "ofq-deploy/validate/1"
    assert {row["follower"] for row in validation["parity"]} == {"ort-cpu", "torch"}


@pytest.mark.parametrize("baseline", [True, False])
def test_bench(baseline: bool, portable_model: Path, tmp_path: Path) -> None:
    model = portable_model
    if not baseline:  # without its run there is nothing to compare with
        model = tmp_path / "alone" / "below" / "model.onnx"
        model.parent.mkdir(parents=True)
        model.write_bytes(portable_model.read_bytes())
    result = api.bench(model, seconds=0.0, batches=[1, 2], profile=baseline)
    check(result)

    assert ("speedup" in result and bool(result["speedup"])) is baseline


def test_bench_without_cpu_times(portable_model: Path) -> None:
    result = api.bench(portable_model, seconds=0.0, threads=2)
    check(result)

    assert result["speedup"][0]["cpu_time"] is None


@pytest.mark.parametrize("target", ["portable", "fp32"])
def test_inspect(target: str, tiny_run: Path, tmp_path: Path) -> None:
    check(api.inspect(api.export(tiny_run, target=target, output=tmp_path / "model.onnx")))


def test_inspect_of_a_run_without_models(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for file in tiny_run.iterdir():
        if file.suffix != ".onnx" and file.is_file():
            (run / file.name).write_bytes(file.read_bytes())

    check(api.inspect(run))


@pytest.mark.parametrize(
    "words",
    [
        ["export", "RUN", "-o", "model.onnx"],
        ["predict", str(ROOT / "docs" / "images" / "seven.png"), "--model", "MODEL"],
        ["lint", "MODEL"],
        ["doctor"],
        ["bench", "MODEL", "--seconds", "0"],
        ["parity", "MODEL", "--images", "2"],
        ["package", "MODEL", "--for", "ort", "-o", "served"],
    ],
    ids=lambda words: words[0],
)
def test_what_the_other_commands_print(words: list[str], tiny_run: Path, portable_model: Path, tmp_path: Path) -> None:
    typed = [{"RUN": str(tiny_run), "MODEL": str(portable_model)}.get(word, word) for word in words]
    result = _typed(*typed, cwd=tmp_path)
    check(result)

    assert result["schema"] == f"ofq-deploy/{words[0]}/1"
    assert result["command"] == " ".join(["ofq-deploy", *typed, "--json", "--quiet"])


def test_lint_with_faults_and_train(ort_model: Path, tiny_settings: dict[str, Any], tmp_path: Path) -> None:
    check(_typed("lint", ort_model, "--target", "portable", cwd=tmp_path, code=3))
    settings = tiny_settings | {"teacher.epochs": 0, "train.epochs": 0, "cga.epochs": 0}
    check(_typed("train", *(f"--set={key}={value}" for key, value in settings.items()), cwd=tmp_path))


def test_a_field_that_is_not_described_is_a_fault(validation: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        check(validation | {"undescribed": 1})
    with pytest.raises(ValidationError):
        check({key: value for key, value in validation.items() if key != "verdict"})


def test_schemas_and_page_are_made_from_the_types() -> None:
    tool = runpy.run_path(str(ROOT / "tools" / "schema_docs.py"))
    texts = {name: json.dumps(schema, indent=2) + "\n" for name, schema in tool["documents"]().items()}

    assert {file.name: file.read_text() for file in SCHEMAS.glob("*.json")} == texts, "run: python tools/schema_docs.py"
    assert (ROOT / "docs" / "schema.md").read_text() == tool["page"](), "run: python tools/schema_docs.py"


def test_every_field_is_described() -> None:
    def silent(node: Any, path: str) -> list[str]:
        if isinstance(node, list):
            return [found for entry in node for found in silent(entry, path)]
        if not isinstance(node, dict):
            return []
        own = [f"{path}.{name}" for name, value in node.get("properties", {}).items() if not value.get("description")]
        return own + [found for key, value in node.items() for found in silent(value, f"{path}.{key}")]

    assert [found for name, document in documents().items() for found in silent(document, name)] == []


def test_every_command_has_a_schema() -> None:
    from ofq_deploy.cli import COMMANDS

    assert set(COMMANDS) == set(KINDS) - {"bench-gpu"}


# The command line in a result.


def test_a_call_from_python_names_the_command_that_does_the_same(portable_model: Path) -> None:
    result = api.bench(portable_model, batches=(1, 2), seconds=0.0, threads=1)

    assert result["command"] == f"ofq-deploy bench {portable_model} --batch 1 --batch 2 --seconds 0.0"


def test_command_lines_are_quoted_and_leave_out_what_was_not_asked() -> None:
    subject, place = Path("a b.onnx"), Path("served")
    lines = {
        ValidateRequest(subject=subject, max_drop=1.5): "validate 'a b.onnx' --max-drop 1.5",
        ValidateRequest(run=Path("r")): "validate --run r",
        BenchRequest(seconds=1.0, profile=True): "bench --seconds 1.0 --profile",
        BenchRequest(batches=(1, 2), affinity=(0, 2)): "bench --batch 1 --batch 2 --affinity 0,2",
        BenchRequest(threads=0): "bench --threads 0",
        PackageRequest(model=subject, kind="ort", output=place, force=True): "package 'a b.onnx' --for ort -o served",
        DemoRequest(): "demo",
        DemoRequest(output=Path("x")): "demo -o x",
    }

    assert {request: request.line() for request in lines} == {key: f"ofq-deploy {line}" for key, line in lines.items()}


@pytest.mark.parametrize("kind", Request.__subclasses__(), ids=lambda kind: kind.command)
def test_python_and_command_line_have_the_defaults_of_the_request(kind: type[Request]) -> None:
    """What is no field of it is how the result is told."""
    from ofq_deploy.cli import COMMANDS

    expected = {field.name: field.default for field in fields(kind)}
    for function in (COMMANDS[kind.command], getattr(api, COMMANDS[kind.command].__name__, None)):
        given = {} if function is None else {name: p.default for name, p in signature(function).parameters.items()}
        given |= {"batches": given["batch"] or (1,)} if "batch" in given else {}
        given |= {"affinity": given["affinity"] or ()} if "affinity" in given else {}
        shared = {
            name: default for name, default in given.items() if name in expected and default is not Parameter.empty
        }
        if kind is DemoRequest:
            shared.pop("output", None)
        assert shared == {name: expected[name] for name in shared}


def test_numbers_that_json_does_not_have_become_null() -> None:
    table = {"tolerance": float("inf"), "tensors": [float("nan"), (1.5, "x")]}

    assert json.loads(to_json(table)) == {"tolerance": None, "tensors": [None, [1.5, "x"]]}
