"""What `export` does: from a run folder to a checked model file with its card."""

from pathlib import Path

from ofq_deploy.commands.build import build_model
from ofq_deploy.commands.inspect import inspect_model
from ofq_deploy.files import refuse_existing, replacing, write_text
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.pages.card import card, card_path, refuse_other_card
from ofq_deploy.runs.folder import load_run, newest_run
from ofq_deploy.runs.subject import Subject
from ofq_deploy.targets import find_target


def export_run(run: Path | None, target: str, opset: int | None, output: Path | None, force: bool) -> Path:
    """See ofq_deploy.api.export."""
    source = newest_run() if run is None else load_run(run)
    path = output or source.file(f"model.{target}.onnx")
    refuse_existing(path, force)
    refuse_other_card(path, force)
    model = build_model(source, find_target(target), opset)

    from ofq_deploy.export.write import write_checked
    from ofq_deploy.runtime_tests.runners.ort import open_session

    with replacing(path, force) as temporary:
        write_checked(model, temporary)
        open_session(temporary)
        file = OnnxFile(temporary)
        text = card(file, inspect_model(Subject(file, source.path)), path.name, source.path, [])
        write_text(card_path(path), text, force=True)
    return path
