"""From what lies in a folder to its report and model cards."""

from pathlib import Path
from typing import Any

from ofq_deploy.errors import DataError, OnnxFileError, OutputError, RunError
from ofq_deploy.files import refuse_existing, sha256, write_text
from ofq_deploy.progress import Reporter
from ofq_deploy.report import render
from ofq_deploy.results import Result, model_of, read_results
from ofq_deploy.runs import newest_run

READ = ("validate", "bench", "inspect")
MAKE = "make results with: ofq-deploy validate, ofq-deploy bench"


def report_folder(subject: Path | None, output: Path | None, force: bool, say: Reporter) -> dict[str, Any]:
    """See ofq_deploy.api.report."""
    from ofq_deploy.card import card_path, is_ours, write_card
    from ofq_deploy.lookup import exported_models

    folder = newest_run().path if subject is None else subject
    if not folder.is_dir():
        raise RunError(f"{folder} is no folder; expected a run folder or a folder with results of -o")
    path = output or folder / "report.html"
    refuse_existing(path, force)
    models = sorted(exported_models(folder, without=()))
    results = _current(_checked(folder), folder, say)
    if not results:
        raise DataError(f"{folder} holds no result of validate or bench; {MAKE}")
    own: dict[Path, list[Result]] = {model: [] for model in models}
    for result in results:
        own.get(folder / Path(model_of(result)).name, []).append(result)
    cards = []
    for model, known in own.items():
        if known and not any(_command(result) == "inspect" for result in known):
            results += _contents(model)
        if not is_ours(card_path(model)):
            say.say(f"{card_path(model)} was not written by ofq-deploy and is left as it is")
            continue
        try:
            write_card(model, known)
            cards.append(str(card_path(model)))
        except OutputError as error:
            say.say(str(error))
    write_text(path, render(f"ofq-deploy report: {folder.resolve().name}", results), force)
    return {"report": str(path), "results": len(results), "cards": cards}


def write_page(path: Path, result: Result, force: bool) -> None:
    """The page about one result, and about the model's layers."""
    name = Path(model_of(result) or str(result.get("run", ""))).name
    write_text(path, render(f"ofq-deploy report: {name}", [result, *_contents(Path(model_of(result)))]), force)


def _command(result: Result) -> str:
    return str(result["schema"]).split("/")[1]


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
        if command not in READ:
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
    """The results but for those about an earlier file of a model's name, each with the model's name as it is now."""
    results = []
    for file, result in found.items():
        model = folder / Path(model_of(result) or ".").name
        if model.is_file():
            about = result["model"]["sha256"] if _command(result) == "bench" else result["model_sha256"]
            if about != sha256(model):
                say.say(f"{file} is about an earlier {model.name} and is left out; make it again")
                continue
            if _command(result) == "bench":
                result["model"]["path"] = str(model)
            else:
                result["model"] = str(model)
        results.append(result)
    return results
