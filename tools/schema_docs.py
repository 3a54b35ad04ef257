"""Writes docs/schema.md from ofq_deploy/results/schemas: the fields of every result, as their descriptions tell them.

python tools/schema_docs.py
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SCHEMAS = ROOT / "ofq_deploy" / "results" / "schemas"
PAGE = ROOT / "docs" / "schema.md"
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

This page is made from the schemas: `python tools/schema_docs.py`.
"""


def page() -> str:
    """The text of docs/schema.md."""
    parts = [HEAD]
    for file in sorted(SCHEMAS.glob("*.json")):
        schema = json.loads(file.read_text(encoding="utf-8"))
        name = file.name.split(".")[0]
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
        meant = _resolved(value, schema)
        mark = "" if name in node["required"] else "?"
        words = value.get("description") or meant.get("description", "")
        kind = meant.get("type", "string" if "const" in meant else "object")
        yield f"| `{prefix}{name}`{mark} | {kind if isinstance(kind, str) else ' or '.join(kind)} | {words} |"
        inner = [(value, "")]
        inner += [(meant[key], end) for key, end in (("items", "[]"), ("additionalProperties", "{}")) if key in meant]
        for below, ending in inner:
            if isinstance(below, dict) and below.get("$ref") not in seen:
                yield from _fields(_resolved(below, schema), schema, f"{prefix}{name}{ending}.", seen)
                seen |= {below["$ref"]} if "$ref" in below else set()


def _resolved(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """What a reference to `$defs` points to; others stay."""
    target = node.get("$ref", "")
    return dict(schema["$defs"][target.split("/")[-1]]) if target.startswith("#/$defs/") else node


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
