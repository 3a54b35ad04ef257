"""Finding what a command means when it is given little: the newest run, its newest model, a model's reference."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ofq_deploy.errors import OnnxFileError, RunError
from ofq_deploy.files import sha256
from ofq_deploy.model.frozen import Frozen, load_frozen
from ofq_deploy.runs.folder import RUNS, Run, load_run, newest_run

if TYPE_CHECKING:
    from ofq_deploy.model.file import ModelFile


@dataclass(frozen=True, slots=True)
class Subject:
    """A model with the frozen file that it was exported from and that file's run, where they were found."""

    model: "ModelFile"
    frozen: Frozen | None
    run: Run | None


def model_path(subject: str | Path | None, without: tuple[str, ...] = ("fp32",)) -> Path:
    """The model itself, or the newest model of a run folder (by default of the newest run) but for some targets."""
    path = Path(subject) if subject is not None else newest_run().path
    if not path.is_dir():
        return path
    models = exported_models(path, without)
    if not models:
        raise OnnxFileError(f"{path} holds no exported model; make one with: ofq-deploy export {path} --to onnx")
    return _newest(models)


def exported_models(folder: Path, without: tuple[str, ...] = ("fp32",)) -> list[Path]:
    """The models that `export` wrote into a folder, but for some targets."""
    from ofq_deploy.model.file import open_model

    found = []
    for file in folder.glob("[!.]*.onnx"):
        try:
            if open_model(file)[1].target not in without:
                found.append(file)
        except OnnxFileError:
            continue  # from elsewhere, or damaged: naming it shows what is wrong with it
    return found


def find(subject: str | Path | None, reference: Path | None = None, without: tuple[str, ...] = ("fp32",)) -> Subject:
    """A model, and the frozen file whose hash it names: in `reference` (a run folder or frozen file), else beside
    the model or under runs/.

    Raises OnnxFileError for a file that is no model of ours, RunError when `reference` is not its frozen file.
    """
    from ofq_deploy.model.file import open_model, reference_run

    path = model_path(subject, without)
    _, model = open_model(path)
    if model.target == "fp32":
        return Subject(model, None, None)
    if reference is None:
        folder = reference_run(model, [RUNS, path.parent.parent])
        if folder is None:
            return Subject(model, None, None)
        file = folder / "frozen.safetensors"
    else:
        file = reference / "frozen.safetensors" if reference.is_dir() else reference
    frozen = load_frozen(file)
    if sha256(file) != model.frozen_sha256:
        raise RunError(f"{path} was not exported from {file} (its metadata names another hash); pass the right --run")
    run = load_run(file.parent) if (file.parent / "manifest.json").is_file() else None
    return Subject(model, frozen, run)


def tensorrt_model(model: str | Path | None) -> Path:
    """The model itself, or the newest one in a run folder that was exported for TensorRT."""
    path = Path(model) if model is not None else newest_run().path
    if not path.is_dir():
        return path
    from ofq_deploy.model.file import open_model

    models = [file for file in exported_models(path) if open_model(file)[1].target == "tensorrt"]
    if not models:
        raise OnnxFileError(f"{path} holds no model for it; make one with: ofq-deploy export {path} --target tensorrt")
    return _newest(models)


def _newest(models: list[Path]) -> Path:
    return max(models, key=lambda file: (file.stat().st_mtime_ns, file.name))
