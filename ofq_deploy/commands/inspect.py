"""What `inspect` does: describe the layers of a model, or of the model that a run would export."""

from pathlib import Path
from typing import Any

from ofq_deploy.commands.build import build_model
from ofq_deploy.model.contents import contents
from ofq_deploy.model.file import describe, lengthen
from ofq_deploy.model.frozen import load_frozen
from ofq_deploy.runs.folder import load_run, newest_run
from ofq_deploy.runs.subject import Subject, exported_models, find
from ofq_deploy.targets import DEFAULT


def inspect_subject(subject: str | Path | None) -> dict[str, Any]:
    """See ofq_deploy.api.inspect."""
    path = Path(subject) if subject is not None else newest_run().path
    if not path.is_dir():
        return inspect_model(find(path))
    newest = next(exported_models(path), None)
    return _inspect_run(path) if newest is None else inspect_model(Subject(newest))


def inspect_model(subject: Subject) -> dict[str, Any]:
    """A model file, with the ranges of its steps where its frozen file is found."""
    table = contents(subject.file.proto, subject.model, subject.frozen)
    return table | {"model": str(subject.path), "model_sha256": subject.file.sha256}


def _inspect_run(path: Path) -> dict[str, Any]:
    """The model that a run would export, from the graph: nothing is written."""
    from ofq_deploy.export.write import finish

    run = load_run(path)
    proto = finish(build_model(run, DEFAULT), path)
    file_bytes = proto.ByteSize()
    lengthen(proto, path)
    table = contents(proto, describe(proto, path, file_bytes), load_frozen(run.file("frozen.safetensors")))
    return table | {"model": f"{path} (not exported yet: as {DEFAULT.name})"}
