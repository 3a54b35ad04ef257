"""From what lies in a folder to its report and model cards."""

from pathlib import Path
from typing import Any

from ofq_deploy.errors import DataError, OnnxFileError, OutputError, RunError
from ofq_deploy.files import refuse_existing, sha256, write_text
from ofq_deploy.pages.card import card_path, refuse_other_card, write_card
from ofq_deploy.pages.report import SHOWN, render
from ofq_deploy.progress import Reporter
from ofq_deploy.results.record import Result, command_of, model_of, read_results
from ofq_deploy.runs.folder import newest_run


def report_folder(subject: Path | None, output: Path | None, force: bool, say: Reporter) -> dict[str, Any]:
    """See ofq_deploy.api.report."""
    from ofq_deploy.runs.subject import exported_models

    folder = newest_run().path if subject is None else subject
    if not folder.is_dir():
        raise RunError(f"{folder} is no folder; expected a run folder or a folder with results of -o")
    path = output or folder / "report.html"
    refuse_existing(path, force)
    results = _current(_checked(folder), folder, say)
    if not any("verdict" in result for result in results):
        raise DataError(
            f"{folder} holds no result of validate or bench; make one with: ofq-deploy validate, ofq-deploy bench"
        )
    about: dict[Path, list[Result]] = {model: [] for model in sorted(exported_models(folder))}
    for result in results:
        about.get(Path(model_of(result)), []).append(result)
    for model, known in about.items():
        if not any(command_of(result) == "inspect" for result in known):
            results += _contents(model)
    cards = [str(card_path(model)) for model, known in about.items() if _refresh(model, known, say)]
    write_text(path, render(f"ofq-deploy report: {folder.resolve().name}", results), force)
    return {"report": str(path), "results": len(results), "cards": cards}


def _refresh(model: Path, results: list[Result], say: Reporter) -> bool:
    """Write a model's card anew; False where another file or a closed folder is in the way."""
    try:
        refuse_other_card(model, force=False)
        write_card(model, results)
    except OutputError as error:
        say.say(str(error))
        return False
    return True


def write_page(path: Path, result: Result, force: bool) -> None:
    """The page about one result, and about the model's layers."""
    name = Path(model_of(result) or str(result.get("run", ""))).name
    write_text(path, render(f"ofq-deploy report: {name}", [result, *_contents(Path(model_of(result)))]), force)


def _contents(model: Path) -> list[Result]:
    """What `inspect` says of a model; nothing for files from elsewhere."""
    from ofq_deploy import api

    try:
        return [api.inspect(model)] if model.is_file() else []
    except OnnxFileError:
        return []


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


def _current(found: dict[Path, Result], folder: Path, say: Reporter) -> list[Result]:
    """The results but for those about another file than the model of that name that lies here now, each with the path
    that the model has now.
    """
    results = []
    for file, result in found.items():
        model = folder / Path(model_of(result)).name
        measured = command_of(result) in ("bench", "bench-gpu")
        entry = result["model"] if measured else result
        digest = entry.get("sha256" if measured else "model_sha256")
        if model.is_file() and digest is not None:
            if digest != sha256(model):
                say.say(f"{file} is about another {model.name} than the one beside it and is left out; make it again")
                continue
            entry["path" if measured else "model"] = str(model)
        results.append(result)
    return results
