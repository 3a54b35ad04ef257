"""From what lies in a folder to its report and model cards."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from ofq_deploy.commands.inspect import inspect_model
from ofq_deploy.errors import DataError, OnnxFileError, OutputError, RunError
from ofq_deploy.files import refuse_existing, write_text
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.pages.card import card_path, refuse_other_card, write_card
from ofq_deploy.pages.report import SHOWN, render
from ofq_deploy.progress import Reporter
from ofq_deploy.results.record import Result, command_line, command_of, model_of, read_results, stamped
from ofq_deploy.runs.folder import newest_run
from ofq_deploy.runs.subject import Subject, exported_models


def report_folder(subject: Path | None, output: Path | None, force: bool, say: Reporter) -> dict[str, Any]:
    """See ofq_deploy.api.report."""
    folder = newest_run().path if subject is None else subject
    if not folder.is_dir():
        raise RunError(f"{folder} is no folder; expected a run folder or a folder with results of -o")
    page = output or folder / "report.html"
    refuse_existing(page, force)
    models = {file.path: file for file in exported_models(folder)}
    results = _current(_checked(folder), folder, models, say)
    if not any("verdict" in result for result in results):
        raise DataError(
            f"{folder} holds no result of validate or bench; make one with: ofq-deploy validate, ofq-deploy bench"
        )
    about: dict[Path, list[Result]] = {path: [] for path in sorted(models)}
    for result in results:
        about.get(Path(model_of(result)), []).append(result)
    cards = []
    for path, known in about.items():
        contents = _contents(models[path])
        if not any(command_of(result) == "inspect" for result in known):
            results.append(contents)
        if _refresh(models[path], contents, known, say):
            cards.append(str(card_path(path)))
    write_text(page, render(f"ofq-deploy report: {folder.resolve().name}", results), force)
    return {"report": str(page), "results": len(results), "cards": cards}


def _refresh(file: OnnxFile, contents: Result, results: list[Result], say: Reporter) -> bool:
    """Write a model's card anew; False where another file or a closed folder is in the way."""
    try:
        refuse_other_card(file.path, force=False)
        write_card(file, contents, results)
    except OutputError as error:
        say.say(str(error))
        return False
    return True


def write_page(path: Path, result: Result, force: bool) -> None:
    """The page about one result, and about the model's layers."""
    name = Path(model_of(result) or str(result.get("run", ""))).name
    model, shown = Path(model_of(result)), [result]
    with suppress(OnnxFileError):  # from elsewhere
        shown += [_contents(OnnxFile(model))] if model.is_file() else []
    write_text(path, render(f"ofq-deploy report: {name}", shown), force)


def _contents(file: OnnxFile) -> Result:
    """What `inspect` says of a model."""
    return stamped("inspect", command_line("inspect", {"subject": file.path}), inspect_model(Subject(file)))


def _checked(folder: Path) -> dict[Path, Result]:
    """The results of a folder that a report shows, each of which could be shown alone."""
    found = {}
    for file, result in read_results(folder).items():
        command, _, version = str(result["schema"]).removeprefix("ofq-deploy/").partition("/")
        if command not in SHOWN:
            continue
        if version != "1":
            raise DataError(f"{file} has schema {result['schema']}, this version reads ofq-deploy/{command}/1")
        try:
            render("", [result])
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
            raise DataError(
                f"{file} is no whole result of {command} ({error!r}); make it again, or remove it"
            ) from error
        found[file] = result
    return found


def _current(found: dict[Path, Result], folder: Path, models: dict[Path, OnnxFile], say: Reporter) -> list[Result]:
    """The results but for those about another file than the model of that name that lies here now, each with the path
    that the model has now.

    models: those that lie in the folder, by their path
    """
    results, models = [], dict(models)
    for file, result in found.items():
        model = folder / Path(model_of(result)).name
        measured = command_of(result) in ("bench", "bench-gpu")
        entry = result["model"] if measured else result
        digest = entry.get("sha256" if measured else "model_sha256")
        if model.is_file() and digest is not None:
            if digest != models.setdefault(model, OnnxFile(model)).sha256:
                say.say(f"{file} is about another {model.name} than the one beside it and is left out; make it again")
                continue
            entry["path" if measured else "model"] = str(model)
        results.append(result)
    return results
