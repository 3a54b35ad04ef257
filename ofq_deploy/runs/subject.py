"""What a command is about: a model file, the frozen file it was exported from and that file's run, opened once."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ofq_deploy.errors import OnnxFileError, RunError
from ofq_deploy.files import sha256
from ofq_deploy.model.file import ModelFile, OnnxFile, reference_run
from ofq_deploy.model.frozen import Frozen, load_frozen
from ofq_deploy.runs.folder import RUNS, Run, load_run, newest_run
from ofq_deploy.targets import Target

FROZEN = "frozen.safetensors"
Wanted = Callable[[Target], bool]


def is_quantized(target: Target) -> bool:
    return not target.is_float


@dataclass(frozen=True)
class Subject:
    """A model, and where it came from; every part is looked for when somebody first asks, and kept.

    reference: a run folder or frozen file, where the model's own is not to be looked for
    """

    file: OnnxFile
    reference: Path | None = None

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def model(self) -> ModelFile:
        """What the file says of itself; OnnxFileError for a file that is no model of ours."""
        return self.file.described

    @cached_property
    def _origin(self) -> tuple[Path, Frozen] | None:
        """The frozen file whose hash the model names; RunError when `reference` is another one."""
        if self.model.made_for.is_float:
            return None
        if self.reference is None:
            folder = reference_run(self.model, [RUNS, self.path.parent.parent])
            return None if folder is None else (folder, load_frozen(folder / FROZEN))
        file = self.reference / FROZEN if self.reference.is_dir() else self.reference
        frozen = load_frozen(file)
        if sha256(file) != self.model.frozen_sha256:
            raise RunError(
                f"{self.path} was not exported from {file} (its metadata names another hash); pass the right --run"
            )
        return file.parent, frozen

    @property
    def frozen(self) -> Frozen | None:
        """The frozen file that the model was exported from; None where it is not found, and for float models."""
        return None if self._origin is None else self._origin[1]

    @cached_property
    def run(self) -> Run | None:
        """The run folder that the frozen file lies in, checked; None where it lies alone."""
        if self._origin is None or not (self._origin[0] / "manifest.json").is_file():
            return None
        return load_run(self._origin[0])


def find(subject: str | Path | None, reference: Path | None = None, wanted: Wanted = is_quantized) -> Subject:
    """A model, named or the newest that is wanted of a run folder, by default of the newest run."""
    return Subject(model_file(subject, wanted), reference)


def model_file(subject: str | Path | None, wanted: Wanted = is_quantized) -> OnnxFile:
    """The model itself, or the newest model of a run folder (by default of the newest run) that is wanted."""
    path = Path(subject) if subject is not None else newest_run().path
    if not path.is_dir():
        return OnnxFile(path)
    newest = next(exported_models(path, wanted), None)
    if newest is None:
        raise OnnxFileError(f"{path} holds no exported model; make one with: ofq-deploy export {path} --to onnx")
    return newest


def model_for(subject: str | Path | None, target: Target) -> OnnxFile:
    """The model itself, whatever it was made for, or the newest model for a target in a run folder."""
    path = Path(subject) if subject is not None else newest_run().path
    if not path.is_dir():
        return OnnxFile(path)
    newest = next(exported_models(path, lambda made_for: made_for == target), None)
    if newest is None:
        raise OnnxFileError(
            f"{path} holds no model for it; make one with: ofq-deploy export {path} --target {target.name}"
        )
    return newest


def exported_models(folder: Path, wanted: Wanted = is_quantized) -> Iterator[OnnxFile]:
    """The models that `export` wrote into a folder for the targets that are wanted, newest first."""
    for path in sorted(folder.glob("[!.]*.onnx"), key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True):
        file = OnnxFile(path)
        try:
            if wanted(file.described.made_for):
                yield file
        except OnnxFileError:
            continue  # from elsewhere, or damaged: naming it shows what is wrong with it
