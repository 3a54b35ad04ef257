"""What `inspect` does: describe the layers of a model, or of the model that a run would export."""

from pathlib import Path

from ofq_deploy.commands.build import build_model
from ofq_deploy.commands.requests import InspectRequest
from ofq_deploy.model.contents import contents
from ofq_deploy.model.file import describe
from ofq_deploy.model.names import lengthen
from ofq_deploy.results.models import InspectResult
from ofq_deploy.results.record import Table, stamped
from ofq_deploy.runs.folder import load_run, newest_run
from ofq_deploy.runs.subject import Subject, exported_models, find
from ofq_deploy.targets import DEFAULT


def inspect(request: InspectRequest) -> InspectResult:
    """See ofq_deploy.api.inspect."""
    path = request.subject if request.subject is not None else newest_run().path
    if not path.is_dir():
        parts = _of_model(find(path))
    else:
        newest = next(exported_models(path), None)
        parts = _of_run(path) if newest is None else _of_model(Subject(newest))
    return stamped(InspectResult, request.line(), parts)


def inspect_model(subject: Subject) -> InspectResult:
    """A model that is open already."""
    return stamped(InspectResult, InspectRequest(subject=subject.path).line(), _of_model(subject))


def _of_model(subject: Subject) -> Table:
    """With the ranges of its steps where its frozen file is found."""
    table = contents(subject.file.proto, subject.model, subject.frozen)
    return table | {"model": str(subject.path), "model_sha256": subject.file.sha256}


def _of_run(path: Path) -> Table:
    """The model that a run would export, from the graph: nothing is written."""
    from ofq_deploy.export.write import finish

    run = load_run(path)
    proto = finish(build_model(run, DEFAULT), path)
    file_bytes = proto.ByteSize()
    lengthen(proto)
    table = contents(proto, describe(proto, path, file_bytes), run.frozen)
    return table | {"model": f"{path} (not exported yet: as {DEFAULT.name})"}
