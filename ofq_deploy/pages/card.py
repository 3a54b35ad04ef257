"""The model card: what an exported model is, holds and was measured to do, as Markdown beside it."""

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ofq_deploy.errors import OutputError
from ofq_deploy.files import write_text
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.pages.html import percent, template
from ofq_deploy.results.record import Table as Result
from ofq_deploy.results.record import command_of
from ofq_deploy.runtime_tests.runners.registry import DEFAULT, backend_of
from ofq_deploy.targets import Target

MARKER = "<!-- model card, written by ofq-deploy: a new export or report replaces it -->"
TITLES = {"validate": "Proof and accuracy in {backend}", "parity": "{follower} against {leader}"}
TITLES |= {"bench": "Latency in {backend}", "bench-gpu": "Latency in {backend}"}
REACHED = {
    "test_top1": "top-1 on the test images",
    "validation_top1": "on the validation images",
    "teacher_test_top1": "of the float model on the test images",
}


def card_path(model: Path) -> Path:
    """Where the card of a model lies."""
    return model.with_name(f"{model.stem}.md")


def is_ours(path: Path) -> bool:
    """Whether a card may be written there: nothing is there, or a card that was written here."""
    if not path.exists():
        return True
    with suppress(OSError, ValueError):
        return path.read_text(encoding="utf-8").startswith(MARKER)
    return False


def refuse_other_card(model: Path, force: bool) -> None:
    """Raise OutputError when the place of a model's card is taken by another file."""
    path = card_path(model)
    if path == model:
        raise OutputError(f"{model} is the name of a model card; name the model {model.with_suffix('.onnx').name}")
    if not is_ours(path) and (path.is_dir() or not force):
        raise OutputError(
            f"{path} exists already and is no card of ours; pass --force to replace it or -o for another place"
        )


def write_card(file: OnnxFile, contents: Result, results: list[Result]) -> None:
    """Write the card of a model that lies in its run folder; see `card`."""
    text = card(file, contents, file.path.name, file.path.parent, results)
    write_text(card_path(file.path), text, force=True)


def card(file: OnnxFile, contents: Result, name: str, run: Path, results: list[Result]) -> str:
    """The card of a model that `export` wrote, from its file, its run's manifest and results about it.

    contents: what `inspect` says of it
    name:     what the file will be called
    """
    described = file.described
    manifest: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    return template("card.md").render(
        marker=MARKER,
        name=name,
        target=described.target,
        is_float=described.made_for.is_float,
        quantization=described.quantization,
        weight_bits=_bits(described.weight_widths),
        act_bits=_bits(described.act_widths),
        trained=bool(manifest.get("results")),
        contents=contents,
        kinds=sorted(contents["bytes_by_kind"].items(), key=lambda kind: -kind[1]),
        widths=_widths(contents["layers"]),
        preprocessing=described.preprocessing,
        labels=described.labels,
        run=_training(manifest),
        results=[_measured(result) for result in results if "verdict" in result],
        library=described.made_for.library,
        sha256=file.sha256,
        verify=_verify(name, described.made_for),
    )


def _widths(layers: Sequence[dict[str, Any]]) -> list[tuple[tuple[Any, ...], int]]:
    """Bits trained, stored and computed, the most frequent first, and how many layers have them."""
    return Counter((row["bits_trained"], row["bits_stored"], row["bits_computed"]) for row in layers).most_common()


def _training(manifest: dict[str, Any]) -> dict[str, Any] | None:
    """The run's name, its date, and what it reached; None without a manifest."""
    if not manifest:
        return None
    results = manifest.get("results") or {}
    reached = [f"{text} {percent(results[key])}" for key, text in REACHED.items() if key in results]
    return {"name": manifest.get("name"), "date": str(manifest.get("created"))[:10], "reached": reached}


def _measured(result: Result) -> dict[str, Any]:
    """A result with its title, its latencies, and the machine and runtime that it was made on."""
    command = command_of(result)
    return {
        "result": result,
        "title": TITLES[command].format(**result),
        "latencies": result["model"]["latency_ms"] if command in ("bench", "bench-gpu") else [],
        "machine": _machine(result),
    }


def _machine(result: Result) -> str:
    if "gpu" in result:
        return f"{result['gpu']['name']}, driver {result['gpu']['driver'] or 'unknown'}"
    environment = result["environment"]
    backend = backend_of(result.get("backend", DEFAULT.name)) or DEFAULT
    packages = environment["packages"]
    runtime = f"; {backend.package} {packages[backend.package]}" if backend.package in packages else ""
    return f"{environment['cpu']}, {environment['cores']} cores{runtime}"


def _verify(name: str, target: Target) -> str:
    if target.is_float:
        return f"ofq-deploy bench {name}"
    backend = f" --backend {target.only_on}" if target.only_on else ""
    return f"ofq-deploy validate {name} --run RUN_FOLDER{backend}"


def _bits(bits: set[int]) -> str:
    """What stands before "-bit"."""
    return f"{min(bits)}" if len(bits) == 1 else f"{min(bits)}- to {max(bits)}"
