"""From what lies in a folder to its report and model cards."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from ofq_deploy.commands.inspect import inspect_model
from ofq_deploy.commands.requests import ReportRequest
from ofq_deploy.errors import DataError, OnnxFileError, OutputError, RunError
from ofq_deploy.files import refuse_existing, write_text
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.pages.card import card_path, refuse_other_card, write_card
from ofq_deploy.pages.report import SHOWN, render
from ofq_deploy.progress import Reporter
from ofq_deploy.results.fields import Result
from ofq_deploy.results.golden import GoldenResult
from ofq_deploy.results.machine import ReportResult
from ofq_deploy.results.models import InspectResult
from ofq_deploy.results.record import model_file, moved, read_results, stamped
from ofq_deploy.runs.folder import newest_run
from ofq_deploy.runs.subject import Subject, exported_models


def report(request: ReportRequest, say: Reporter) -> ReportResult:
    """See ofq_deploy.api.report."""
    folder = newest_run().path if request.subject is None else request.subject
    if not folder.is_dir():
        raise RunError(f"{folder} is no folder; expected a run folder or a folder with results of -o")
    path = request.output or folder / "report.html"
    refuse_existing(path, request.force)
    models = {file.path: file for file in exported_models(folder)}
    results = _current(read_results(folder, SHOWN), folder, models, say)
    if all(isinstance(result, InspectResult) for result in results):
        raise DataError(
            f"{folder} holds no result of validate or bench; make one with: ofq-deploy validate, ofq-deploy bench"
        )
    about: dict[Path, list[Result]] = {model: [] for model in sorted(models)}
    for result in results:
        about.get(Path(model_file(result)[0]), []).append(result)
    cards = []
    for model, known in about.items():
        contents = inspect_model(Subject(models[model]))
        if not any(isinstance(result, InspectResult) for result in known):
            results.append(contents)
        if _refresh(models[model], contents, known, say):
            cards.append(str(card_path(model)))
    write_text(path, page(f"ofq-deploy report: {folder.resolve().name}", results), request.force)
    return stamped(ReportResult, request.line(), {"report": str(path), "results": len(results), "cards": cards})


def page(title: str, results: Sequence[Result], note: str = "") -> str:
    """The HTML page about some results."""
    return render(title, [msgspec.to_builtins(result) for result in results], note)


def update_card(file: OnnxFile, contents: InspectResult, results: Sequence[Result]) -> None:
    """Write the card of a model that lies in its run folder."""
    write_card(file, msgspec.to_builtins(contents), [msgspec.to_builtins(result) for result in results])


def _refresh(file: OnnxFile, contents: InspectResult, results: list[Result], say: Reporter) -> bool:
    """Write a model's card anew; False where another file or a closed folder is in the way."""
    try:
        refuse_other_card(file.path, force=False)
        update_card(file, contents, results)
    except OutputError as error:
        say.say(str(error))
        return False
    return True


def write_page(path: Path, result: Result, force: bool) -> None:
    """The page about one result, and about the model's layers."""
    model, shown = Path(model_file(result)[0]), [result]
    name = Path(result.run).name if isinstance(result, GoldenResult) else model.name
    with suppress(OnnxFileError):  # from elsewhere
        shown += [inspect_model(Subject(OnnxFile(model)))] if model.is_file() else []
    write_text(path, page(f"ofq-deploy report: {name}", shown), force)


def _current(found: dict[Path, Result], folder: Path, models: dict[Path, OnnxFile], say: Reporter) -> list[Result]:
    """The results but for those about another file than the model of that name that lies here now, each with the path
    that the model has now.

    models: those that lie in the folder, by their path
    """
    results, models = [], dict(models)
    for file, result in found.items():
        path, digest = model_file(result)
        model = folder / Path(path).name
        if model.is_file() and digest is not None:
            if digest != models.setdefault(model, OnnxFile(model)).sha256:
                say.say(f"{file} is about another {model.name} than the one beside it and is left out; make it again")
                continue
            result = moved(result, str(model))
        results.append(result)
    return results
