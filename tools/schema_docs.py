"""Writes the JSON Schema of every result, and docs/schema.md, from the types in ofq_deploy/results.

python tools/schema_docs.py
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from ofq_deploy.results.fields import Environment
from ofq_deploy.results.kinds import KINDS

ROOT = Path(__file__).resolve().parent.parent
SCHEMAS = ROOT / "ofq_deploy" / "results" / "schemas"
PAGE = ROOT / "docs" / "schema.md"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
ENVIRONMENT = "environment.schema.json"
COMMON = ("schema", "command", "environment")
HEAD = """\
# Results as JSON

Every command prints one JSON object with `--json`, and writes it with `-o`. Each names its schema, as
`"schema": "ofq-deploy/bench/1"`: the file `ofq_deploy/results/schemas/bench.schema.json` (JSON Schema, draft 2020-12), which comes
with the package. Beside it every result carries `command`, the command line that makes it again (a call from Python gives
the line that does the same), and `environment`. A number counts up when a field changes its meaning or goes; new fields
do not count.

`validate` and `bench` keep the result of a model in a run folder beside it, as `<model>.validate.<backend>.json` and
`<model>.bench.<backend>.json`; `ofq-deploy report` reads them, and any results written into one folder with `-o`.
`model_sha256` tells whether a result is about the file that lies there now.

Percent are 0 to 100, times are milliseconds, sizes bytes, unless a field says otherwise. `?` marks fields that may be
absent; what has been told once, as the fields of `model` for `baseline`, is not told again. A *tie* is a code off by one whose exact value lies at a rounding threshold ([exactness](exactness.md)).

This page and the schemas are made from the types in `ofq_deploy/results`: `python tools/schema_docs.py`.
"""


def documents() -> dict[str, dict[str, Any]]:
    """The schemas by the names of their files."""
    made = {f"{name}.schema.json": _document(f"{name}.schema.json", name) for name in sorted(KINDS)}
    return made | {ENVIRONMENT: _head(ENVIRONMENT, msgspec.json.schema(Environment)["$defs"]["Environment"])}


def _document(file: str, name: str) -> dict[str, Any]:
    """The schema of one command's results: an object, or one of several kinds."""
    kinds = KINDS[name]
    references, parts = msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}")
    for kind in kinds:
        tag = {"const": kind.__struct_config__.tag, "description": "name and version of this schema"}
        properties = parts[kind.__name__]["properties"]
        properties |= {"schema": tag, "environment": properties["environment"] | {"$ref": ENVIRONMENT}}
    parts = {key: _untitled(part) for key, part in parts.items() if key != "Environment"}
    if len(kinds) > 1:
        body = {"title": f"Result of ofq-deploy {name}", "oneOf": list(references)}
    else:
        body = parts.pop(kinds[0].__name__)
    return _head(file, body | ({"$defs": parts} if parts else {}))


def _head(file: str, body: dict[str, Any]) -> dict[str, Any]:
    """A schema as a file of its own, whose title is the type's sentence."""
    title = body.pop("description", body.get("title")).removesuffix(".")
    return {"$schema": DIALECT, "$id": file, **body, "title": title}


def _untitled(part: dict[str, Any]) -> dict[str, Any]:
    """Names of types say nothing to readers of JSON."""
    return {key: value for key, value in part.items() if key != "title"}


def page() -> str:
    """The text of docs/schema.md."""
    parts = [HEAD]
    for file, schema in sorted(documents().items()):
        name = file.split(".")[0]
        parts.append(f"## {name}\n\n{schema['title']}.\n")
        for variant in schema.get("oneOf", [schema]):
            if "$ref" in variant:
                variant = _resolved(variant, schema)
                parts.append(f"### {name}: {variant['description']}\n")
            lines = [line for line in _fields(variant, schema, "", set()) if line.split("`")[1] not in COMMON]
            parts.append("| field | type | meaning |\n|---|---|---|\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _fields(node: dict[str, Any], schema: dict[str, Any], prefix: str, seen: set[str]) -> Iterator[str]:
    """A row for each property below a node; lists are marked by [], tables with free names by {}. What `seen` tells of
    is not told again.
    """
    for name, value in node.get("properties", {}).items():
        mark = "" if name in node["required"] else "?"
        choices = value.get("anyOf", [value])
        kinds = [_resolved(choice, schema).get("type", "string") for choice in choices]  # constants are texts
        yield f"| `{prefix}{name}`{mark} | {' or '.join(kinds)} | {value['description']} |"
        for choice in choices:
            for below, ending in (
                (choice, ""),
                (choice.get("items"), "[]"),
                (choice.get("additionalProperties"), "{}"),
            ):
                if isinstance(below, dict) and below.get("$ref") not in seen:
                    yield from _fields(_resolved(below, schema), schema, f"{prefix}{name}{ending}.", seen)
                    seen |= {below["$ref"]} if "$ref" in below else set()


def _resolved(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """What a reference to `$defs` points to; others stay."""
    target = node.get("$ref", "")
    return dict(schema["$defs"][target.split("/")[-1]]) if target.startswith("#/$defs/") else node


if __name__ == "__main__":
    for name, schema in documents().items():
        (SCHEMAS / name).write_text(json.dumps(schema, indent=2) + "\n", encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
