"""The schemas of results, and whether a result is exactly what its schema promises."""

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from ofq_deploy.results.record import to_json

SCHEMAS = Path(__file__).resolve().parents[2] / "ofq_deploy" / "results" / "schemas"


def _closed(node: Any) -> Any:
    """A schema under which fields that it does not name are faults."""
    if isinstance(node, list):
        return [_closed(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    closed = {key: _closed(value) for key, value in node.items()}
    if isinstance(node.get("properties"), dict) and "required" in node:
        closed.setdefault("additionalProperties", False)
    return closed


def documents() -> dict[str, Any]:
    return {file.name: json.loads(file.read_text()) for file in SCHEMAS.glob("*.json")}


def check(result: dict[str, Any]) -> None:
    """Raise ValidationError unless a result, as it is written, is exactly what its schema promises."""
    closed = {name: _closed(document) for name, document in documents().items()}
    registry = Registry().with_resources([(name, Resource.from_contents(d)) for name, d in closed.items()])
    name = result["schema"].split("/")[1]
    Draft202012Validator(closed[f"{name}.schema.json"], registry=registry).validate(json.loads(to_json(result)))
