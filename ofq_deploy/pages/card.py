"""The model card: what an exported model is, holds and was measured to do, as Markdown beside it."""

import json
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from ofq_deploy.data.images import Preprocessing
from ofq_deploy.errors import OutputError
from ofq_deploy.files import sha256, write_text
from ofq_deploy.results.record import Result, command_of

MARKER = "<!-- model card, written by ofq-deploy: a new export or report replaces it -->"
HEADINGS = {"validate": "Proof and accuracy in {backend}", "parity": "{follower} against {leader}"}
USAGE = """\
import numpy as np, onnxruntime
from PIL import Image, ImageOps

image = ImageOps.exif_transpose(Image.open("image.png")).convert("{mode}")
sides = [int({resize} * side / min(image.size)) for side in image.size]
image = image.resize(sides, Image.Resampling.{filter})
left, top = round((image.width - {size}) / 2), round((image.height - {size}) / 2)
x = np.float32(image.crop((left, top, left + {size}, top + {size}))).reshape({size}, {size}, {channels}) / 255
x = ((x - np.float32({mean})) / np.float32({std})).transpose(2, 0, 1)[None]
print(onnxruntime.InferenceSession("{name}").run(None, {{"image": x}})[0].argmax(-1))
"""


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


def write_card(model: Path, results: list[Result]) -> None:
    """Write the card of a model that lies in its run folder; `results` about it are told too."""
    write_text(card_path(model), card(model, model.name, model.parent, results), force=True)


def card(model: Path, name: str, run: Path, results: list[Result]) -> str:
    """The card of a model that `export` wrote, from its file, its run's manifest and results about it.

    name: what the file will be called
    """
    from ofq_deploy import api
    from ofq_deploy.model.file import open_model

    described = open_model(model)[1]
    manifest: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    parts = [
        MARKER,
        f"# {name}",
        _what(described.target, described.quantization, trained=bool(manifest.get("results"))),
        _contents(api.inspect(model)),
        _inputs(described.preprocessing, described.labels),
        _training(manifest),
        *(_measured(result) for result in results),
        _limits(described.target),
        _usage(name, described.preprocessing),
        f"## Verify\n\nsha256 `{sha256(model)}`\n\n```\n{_verify(name, described.target)}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _what(target: str, quantization: dict[str, Any], trained: bool) -> str:
    if target == "fp32" and not trained:
        return "A vision transformer in float32: an imported checkpoint's latent weights, which nobody trained to be used so."
    if target == "fp32":
        return "A vision transformer in float32: the model that a quantized one of the same run started from."
    q = quantization
    weights = {"statsq": "StatsQ", "lsq": "LSQ"}.get(q["weights"], q["weights"])
    attention = "query-key reparameterization" if q["attention"] == "qkr" else "queries and keys quantized apart"
    return (
        f"A vision transformer for image classification with {q['weight_bits']}-bit weights and {q['act_bits']}-bit "
        f"activations, as integer ONNX for the target `{target}`. Method: OFQ (Liu et al., ICML 2023): {weights} weights, "
        f"{attention}, activation steps per {q['act_step']}."
    )


def _contents(contents: Result) -> str:
    widths = Counter((row["bits_trained"], row["bits_stored"], row["bits_computed"]) for row in contents["layers"])
    rows = [f"| {count} | {' | '.join(map(str, bits))} |" for bits, count in widths.most_common()]
    kinds = sorted(contents["bytes_by_kind"].items(), key=lambda item: -item[1])
    return "\n".join(
        [
            f"## Contents\n\n{contents['file_bytes']:,} bytes: {', '.join(f'{kind} {size:,}' for kind, size in kinds)}.\n",
            "| layers | bits trained | bits stored | bits computed |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def _inputs(how: Preprocessing, labels: tuple[str, ...]) -> str:
    colour = "greyscale" if how.channels == 1 else "RGB"
    return (
        f"## Input and output\n\nInput `image`, float32 [batch, {how.channels}, {how.size}, {how.size}]: {colour}, the "
        f"shorter side resized to {how.resize} ({how.interpolation}), centre square of {how.size}, scaled to 0..1, mean "
        f"{list(how.mean)}, standard deviation {list(how.std)}. Output `logits`, float32 [batch, {len(labels)}]; the "
        f"{len(labels)} labels are in the file's metadata (`ofq_deploy.labels`)."
    )


def _training(manifest: dict[str, Any]) -> str:
    results = manifest.get("results") or {}
    names = {"test_top1": "top-1 on the test images", "validation_top1": "on the validation images"}
    names |= {"teacher_test_top1": "of the float model on the test images"}
    found = [f"{text} {results[key]:.2f} %" for key, text in names.items() if key in results]
    if not manifest:
        return ""
    made = f"Run `{manifest.get('name')}`, made {str(manifest.get('created'))[:10]}; the recipe is in `recipe.toml`"
    return f"## Training\n\n{made}. In torch: {', '.join(found)}." if found else f"## Training\n\n{made}."


def _measured(result: Result) -> str:
    if "verdict" not in result:
        return ""
    command, environment = command_of(result), result["environment"]
    measured = command in ("bench", "bench-gpu")
    kind = f"Latency in {result['backend']}" if measured else HEADINGS[command].format(**result)
    lines = [f"## {kind}\n\n{result['verdict']}"]
    if "accuracy" in result and "top1" in result["accuracy"]:
        low, high = result["accuracy"]["top1_interval"]
        lines.append(
            f"Top-1 on {result['accuracy']['images']:,} test images of {result['data']}: {result['accuracy']['top1']:.2f} % "
            f"({low:.1f} to {high:.1f} with 95 % confidence)."
        )
    lines += [
        f"Batch {row['batch']}: median {row['p50']:.3f} ms, p90 {row['p90']:.3f}, p99 {row['p99']:.3f}."
        for row in (result["model"]["latency_ms"] if measured else [])
    ]
    machine = f"{environment['cpu']}, {environment['cores']} cores"
    packages = environment["packages"]
    used = "openvino" if result.get("backend") == "openvino" else "onnxruntime"
    runtime = f"; {used} {packages[used]}" if used in packages else ""
    if "gpu" in result:
        machine, runtime = result["gpu"]["name"], f", driver {result['gpu']['driver'] or 'unknown'}"
    return "\n\n".join([*lines, f"On {machine}{runtime}. `{result['command']}`"])


def _limits(target: str) -> str:
    text = "It tells the labels above apart in images like those that it was trained on. On others, and for decisions "
    text += "about people, nothing is known about it; measure it on your own images first."
    if target != "fp32":
        text += " Exact means that the integer codes are training's, but for rounding ties at a threshold; on CPUs "
        text += "without VNNI products of 8-bit codes with 8-bit weights can saturate."
    return f"## Intended use and limits\n\n{text}"


def _usage(name: str, how: Preprocessing) -> str:
    mode, channels = ("L", 1) if how.channels == 1 else ("RGB", 3)
    code = USAGE.format(
        name=name,
        mode=mode,
        channels=channels,
        filter=how.interpolation.upper(),
        size=how.size,
        resize=how.resize,
        mean=list(how.mean),
        std=list(how.std),
    )
    return f"## Run it\n\n```python\n{code}```"


def _verify(name: str, target: str) -> str:
    if target == "fp32":
        return f"ofq-deploy bench {name}"
    backend = " --backend openvino" if target == "openvino" else ""
    return f"ofq-deploy validate {name} --run RUN_FOLDER{backend}"
