"""What `export` does: from a run folder to a checked model file with its card."""

from pathlib import Path
from typing import Any

from ofq_deploy.errors import UnsupportedByTarget
from ofq_deploy.files import refuse_existing, replacing, sha256, write_text
from ofq_deploy.model.frozen import load_frozen
from ofq_deploy.pages.card import card, card_path, refuse_other_card
from ofq_deploy.runs.folder import Run, load_run, newest_run

TARGET_NAMES = ("portable", "ort-cpu", "openvino", "tensorrt", "fp32")


def export_run(run: Path | None, target: str, opset: int | None, output: Path | None, force: bool) -> Path:
    """See ofq_deploy.api.export."""
    source = newest_run() if run is None else load_run(run)
    path = output or source.file(f"model.{target}.onnx")
    refuse_existing(path, force)
    refuse_other_card(path, force)
    model = build_model(source, target, opset)

    from ofq_deploy.export.write import write_checked
    from ofq_deploy.runtime_tests.runners.ort import open_session

    with replacing(path, force) as temporary:
        write_checked(model, temporary)
        open_session(temporary)
        write_text(card_path(path), card(temporary, path.name, source.path, []), force=True)
    return path


def build_model(source: Run, target: str, opset: int | None) -> Any:
    """The graph of a run for a target, or of its float model; UnsupportedByTarget for what there is not."""
    if target not in TARGET_NAMES:
        raise UnsupportedByTarget(f"no target {target!r}; there are {', '.join(TARGET_NAMES)}")
    file = source.file("frozen.safetensors")
    frozen = load_frozen(file)
    if target == "fp32":
        from ofq_deploy.export.fp32 import build_fp32

        return build_fp32(frozen, source.file("teacher.safetensors"), opset)
    from ofq_deploy.export.network import build
    from ofq_deploy.export.targets import TARGETS

    return build(frozen, TARGETS[target], opset, sha256(file))


def write_model(source: Run, target: str, path: Path) -> None:
    """A run's model for a target, checked, without a card."""
    from ofq_deploy.export.write import write_checked

    write_checked(build_model(source, target, None), path)
