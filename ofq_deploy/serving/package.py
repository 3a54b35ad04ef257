"""Folders to serve a model from: the model, what it says of itself as plain files, and a manifest."""

import json
import platform
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from string import Template
from typing import Any

from ofq_deploy import __version__
from ofq_deploy.environment import environment
from ofq_deploy.errors import OutputError, UnsupportedByTarget
from ofq_deploy.files import refuse_existing, replacing, sha256
from ofq_deploy.kernels import needed_library
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.serving.servable import Servable, axes, read_servable
from ofq_deploy.serving.triton import Serving, choose_serving, config, plan_command

KINDS = ("triton", "ort")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
TEMPLATES = Path(__file__).parent / "templates"


def make_package(
    file: OnnxFile,
    kind: str,
    output: Path,
    line: str,
    *,
    name: str | None = None,
    backend: str | None = None,
    max_batch: int | None = None,
    threads: int | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write the folder and return its manifest with the key "package" added.

    kind: "triton" for a model repository, "ort" for a folder with a script for ONNX Runtime
    line: the command line that makes it again, for the manifest
    name: by default of the run folder or the file

    Raises OnnxFileError, UnsupportedByTarget and OutputError.
    """
    if kind not in KINDS:
        raise UnsupportedByTarget(f"no package for {kind!r}; there are {', '.join(KINDS)}")
    if kind == "ort" and (backend, max_batch, threads) != (None, None, None):
        raise UnsupportedByTarget("--backend, --max-batch and --threads belong to --for triton; leave them out")
    path = file.path
    refuse_existing(output, force)
    if output.resolve() in path.resolve().parents:
        raise OutputError(f"{output} holds the model itself; choose another place with -o")
    model = read_servable(file)
    title = _name(path) if name is None else name
    if not NAME.fullmatch(title):
        raise UnsupportedByTarget(f"{title!r} is no name for a model; use letters, digits, '_' and '-'")
    serving = None
    if kind == "triton":
        serving = choose_serving(model, title, backend, max_batch, threads or 0)
    elif not model.target.on_cpu:
        raise UnsupportedByTarget(
            f"{path} was made for {model.target.name}, not for ONNX Runtime on the CPU; export it with --target ort-cpu or portable"
        )
    if model.target.on_cpu:
        from ofq_deploy.runtime_tests.runners.ort import open_session

        open_session(path)
    with replacing(output, force) as folder:
        if serving is None:
            _fill_ort(folder, model, title)
        else:
            _fill_triton(folder, model, serving)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        manifest = {
            "schema": "ofq-deploy/package/1",
            "command": line,
            "kind": kind,
            "name": title,
            "model": {"target": model.target.name, "sha256": file.sha256, "frozen_sha256": model.frozen_sha256},
            "onnxruntime": f">={model.onnxruntime}",
            "files": {file.relative_to(folder).as_posix(): sha256(file) for file in files},
            "environment": environment(),
        }
        _write(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    return manifest | {"package": str(output)}


def _fill_ort(folder: Path, model: Servable, name: str) -> None:
    _fill_model(folder, folder, model)
    library = needed_library(model.path)
    packed = f"libofq_kernels{library.suffix}" if library else ""  # whatever it is called here
    if library is not None:
        shutil.copyfile(library, folder / packed)
    shutil.copyfile(TEMPLATES / "predict.py", folder / "predict.py")
    own = (
        ""
        if library is None
        else f"\n| `{packed}` | its fused operators (`ofq-kernels`), for {platform.system()} {platform.machine()} |"
    )
    _write(folder / "README.md", _fill_in("ort.md", model, name, library=own))


def _fill_triton(folder: Path, model: Servable, serving: Serving) -> None:
    own = folder / serving.name
    _fill_model(own, own / "1", model)
    _write(own / "config.pbtxt", config(model, serving))
    more = {
        "backend": serving.backend,
        "device": "GPU" if serving.gpu else "CPU",
        "batching": f"batches of up to {serving.max_batch}" if serving.max_batch else "one image at a time",
        "plan": plan_command(model, serving),
    }
    needs = _fill_in(f"triton_{serving.backend}.md", model, serving.name, **more)
    _write(folder / "README.md", _fill_in("triton.md", model, serving.name, **more, needs=needs))


def _fill_model(folder: Path, model_folder: Path, model: Servable) -> None:
    model_folder.mkdir(parents=True)
    shutil.copyfile(model.path, model_folder / "model.onnx")
    _write(folder / "labels.txt", "".join(f"{label}\n" for label in model.labels))
    _write(folder / "preprocess.json", json.dumps(asdict(model.preprocessing), indent=2) + "\n")


def _fill_in(template: str, model: Servable, name: str, **more: str) -> str:
    how = model.preprocessing
    return Template((TEMPLATES / template).read_text(encoding="utf-8")).substitute(
        more,
        name=name,
        version=__version__,
        target=model.target.name,
        classes=len(model.labels),
        opset=model.opset,
        onnxruntime=model.onnxruntime,
        image=model.image.name,
        image_shape=axes(model.image.shape),
        logits=model.logits.name,
        logits_shape=axes(model.logits.shape),
        colour="greyscale" if how.channels == 1 else "RGB",
        channels=how.channels,
        size=how.size,
        resize=how.resize,
        interpolation=how.interpolation,
        mean=", ".join(map(str, how.mean)),
        std=", ".join(map(str, how.std)),
    )


def _name(path: Path) -> str:
    """A file `model.<target>.onnx` is named after its run folder."""
    stem = path.name.removesuffix(".onnx")
    plain = path.resolve().parent.name if stem.split(".")[0] == "model" else stem
    return re.sub(r"[^A-Za-z0-9_-]+", "-", plain).strip("-") or "model"


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
