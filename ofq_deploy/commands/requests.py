"""What each command is asked: one type a command, for the command line, for Python and for what does the work.

The first field is given by place, the others are options.
"""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from ofq_deploy.recipe import Recipe


OPTIONS = {"batches": "--batch", "kind": "--for", "output": "-o", "overrides": "--set"}  # those not called as the field
JOINED = ("affinity",)  # fields whose values are all given at once, as 0,1


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a command is asked."""

    command: ClassVar[str]
    has_place: ClassVar[bool] = True

    def line(self) -> str:
        """`ofq-deploy bench m.onnx --batch 1 --batch 8`: the command line that asks the same; defaults are left out."""
        words = ["ofq-deploy", self.command]
        for index, each in enumerate(fields(self)):
            value = getattr(self, each.name)
            if value == each.default or each.name == "force":
                continue
            by_place = self.has_place and index == 0
            option = [] if by_place else [OPTIONS.get(each.name, f"--{each.name.replace('_', '-')}")]
            for text in _texts(value, each.name in JOINED):
                words += [*option, *text]
        return shlex.join(words)


def _texts(value: Any, joined: bool) -> Iterator[list[str]]:
    """What follows an option, each time that it is given: nothing after a flag."""
    if value is True:
        yield []
    elif isinstance(value, dict):
        yield from ([f"{key}={entry}"] for key, entry in value.items())
    elif isinstance(value, tuple):
        yield from [[",".join(map(str, value))]] if joined else [[str(entry)] for entry in value]
    elif isinstance(value, (str, int, float, Path)):
        yield [str(value)]


@dataclass(frozen=True, kw_only=True)
class DemoRequest(Request):
    """Train two small models, export, prove, bench and report them.

    seed: of both students and their teacher
    """

    command = "demo"
    has_place = False
    output: Path = Path("runs/demo")
    seed: int = 0
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainRequest(Request):
    """Train a quantized model by a recipe, into a run folder (by default runs/<recipe name>).

    overrides: dotted recipe keys, as {"train.epochs": 1}
    device:    "auto", "cpu" or "cuda"
    """

    command = "train"
    recipe: "str | Path | Recipe" = "digits-w4a4"
    output: Path | None = None
    overrides: dict[str, Any] | None = None
    device: str = "auto"
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class ImportRequest(Request):
    """Turn a checkpoint of OFQ's official code into a run folder (by default runs/<file name>).

    weight_bits, act_bits: where the file does not say
    ema: take the moving average of the weights
    """

    command = "import"
    checkpoint: Path
    weight_bits: int | None = None
    act_bits: int | None = None
    ema: bool = False
    output: Path | None = None
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class ExportRequest(Request):
    """Write the ONNX model of a run (by default the newest).

    target: "portable", "ort-cpu", "ort-ofq", "openvino", "tensorrt", or "fp32" for the float model that the run started from
    opset:  by default the lowest that holds the graph
    output: by default model.<target>.onnx in the run folder
    """

    command = "export"
    run: Path | None = None
    target: str = "portable"
    opset: int | None = None
    output: Path | None = None
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class ValidateRequest(Request):
    """Prove a model against the training that it came from, and measure its accuracy; see ofq_deploy.api.validate."""

    command = "validate"
    subject: Path | None = None
    run: Path | None = None
    data: str | None = None
    backend: str = "ort-cpu"
    max_drop: float | None = None
    images: int = 16
    golden: Path | None = None
    reference: Path | None = None
    classes: Path | None = None
    preprocessing: Path | None = None
    tolerance: float | None = None


@dataclass(frozen=True, kw_only=True)
class ParityRequest(Request):
    """Compare two runners of one model, code by code; see ofq_deploy.api.parity for their names."""

    command = "parity"
    subject: Path | None = None
    leader: str = "torch"
    follower: str = "ort-cpu"
    run: Path | None = None
    data: str | None = None
    images: int = 16


@dataclass(frozen=True, kw_only=True)
class PredictRequest(Request):
    """The likeliest labels of some image files, by a model or the newest model of a run folder."""

    command = "predict"
    images: tuple[Path, ...]
    model: Path | None = None


@dataclass(frozen=True, kw_only=True)
class PackageRequest(Request):
    """Write a folder to serve a model from (by default the newest of the newest run).

    kind:      "triton" for a model repository of NVIDIA's Triton Inference Server, "ort" for a folder with a script
    name:      of the model, by default of its run folder or file
    backend:   of Triton, "onnxruntime" or "tensorrt"; by default the one that the model was exported for
    max_batch: images that Triton may run at once, by default 8
    threads:   of one operator on the CPU in Triton, by default one per core
    """

    command = "package"
    model: Path | None = None
    kind: str
    output: Path
    name: str | None = None
    backend: str | None = None
    max_batch: int | None = None
    threads: int | None = None
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class BenchRequest(Request):
    """Measure a model (by default the newest of the newest run), interleaved with a baseline.

    batches:  sizes to measure at
    threads:  0 for one per core, or for one for each CPU of `affinity`
    seconds:  at each batch size
    baseline: an ONNX file; by default the float model of the run that the model came from
    profile:  add the time of every operator, by kind and by role (ort-cpu)
    affinity: numbers of the CPUs to stay on
    """

    command = "bench"
    model: Path | None = None
    backend: str = "ort-cpu"
    batches: tuple[int, ...] = (1,)
    threads: int = 1
    seconds: float = 3.0
    baseline: Path | None = None
    profile: bool = False
    affinity: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ReportRequest(Request):
    """Write one HTML page about all results in a folder (by default the newest run) and the models that lie there.

    output: by default report.html in that folder
    """

    command = "report"
    subject: Path | None = None
    output: Path | None = None
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class LintRequest(Request):
    """What keeps a model from exact and fast integer arithmetic on a target (by default the one it was made for)."""

    command = "lint"
    model: Path | None = None
    target: str | None = None


@dataclass(frozen=True, kw_only=True)
class CheckRequest(Request):
    """Build an engine of a model, and tell which products are int8 there."""

    command = "check"
    model: Path | None = None
    target: str = "tensorrt"


@dataclass(frozen=True, kw_only=True)
class InspectRequest(Request):
    """The layers of a model, or of the model that a run would export."""

    command = "inspect"
    subject: Path | None = None


@dataclass(frozen=True, kw_only=True)
class DoctorRequest(Request):
    """What can run here."""

    command = "doctor"
    has_place = False
