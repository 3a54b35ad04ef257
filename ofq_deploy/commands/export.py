"""What `export` does: from a run folder to a checked model file with its card."""

import msgspec

from ofq_deploy.commands.build import build_model
from ofq_deploy.commands.inspect import inspect_model
from ofq_deploy.commands.requests import ExportRequest
from ofq_deploy.files import refuse_existing, replacing, write_text
from ofq_deploy.model.file import OnnxFile
from ofq_deploy.pages.card import card, card_path, refuse_other_card
from ofq_deploy.recipe import Quantization
from ofq_deploy.results.models import ExportResult
from ofq_deploy.results.record import stamped
from ofq_deploy.runs.folder import load_run, newest_run
from ofq_deploy.runs.subject import Subject
from ofq_deploy.targets import find_target

# By how much q and k apart and a step per tensor run faster in ort-ofq than the form with QKR, or with token steps: DeiT-T to DeiT-S,
# benchmarks/results/cpu_peers_ofq.json.
GAINS = {(True, True): "1.3 to 1.5", (True, False): "1.2 to 1.5", (False, True): "1.1"}


def export(request: ExportRequest) -> ExportResult:
    """See ofq_deploy.api.export."""
    source = newest_run() if request.run is None else load_run(request.run)
    path = request.output or source.file(f"model.{request.target}.onnx")
    refuse_existing(path, request.force)
    refuse_other_card(path, request.force)
    model = build_model(source, find_target(request.target), request.opset)

    from ofq_deploy.export.write import write_checked
    from ofq_deploy.runtime_tests.runners.ort import open_session

    with replacing(path, request.force) as temporary:
        write_checked(model, temporary)
        open_session(temporary)
        file = OnnxFile(temporary)
        contents = msgspec.to_builtins(inspect_model(Subject(file, source.path)))
        text = card(file, contents, path.name, source.path, [])
        write_text(card_path(path), text, force=True)
    form, faster = ("", "") if find_target(request.target).is_float else forms(source.frozen.quantization)
    parts = {"model": str(path), "target": request.target, "file_bytes": path.stat().st_size}
    parts |= {"form": form, "faster_form": faster}
    return stamped(ExportResult, request.line(), parts)


def forms(quantization: Quantization) -> tuple[str, str]:
    """What form a run has, and by which choices training would give one that runs faster; "" where it has that already."""
    is_joint, by_token = quantization.attention == "qkr", quantization.act_step == "token"
    form = ", ".join(
        (
            "QKR" if is_joint else "q and k apart",
            "a step per token" if by_token else "a step per tensor",
            "shifts" if quantization.shifts else "no shifts",
        )
    )
    options = [*(["--attention qk"] if is_joint else []), *(["--act-step tensor"] if by_token else [])]
    return form, f"{' '.join(options)}: {GAINS[is_joint, by_token]} times as fast" if options else ""
