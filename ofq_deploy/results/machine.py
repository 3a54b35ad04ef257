"""What `doctor` and `report` tell."""

from typing import Annotated

from msgspec import Struct

from ofq_deploy.results.fields import Count, Result, about


class CpuFeature(Struct, frozen=True, kw_only=True):
    """A feature of processors."""

    present: Annotated[bool, about("here")]
    means: Annotated[str, about("what it is good for")]


class Readiness(Struct, frozen=True, kw_only=True):
    """Whether a runtime can run here."""

    ready: Annotated[bool, about("whether it can run here")]
    why: Annotated[str, about("why not")]
    install: Annotated[str, about("what to do")]


class FusedKernels(Readiness, frozen=True):
    """The library of fused operators, and by which instructions it computes."""

    chosen: Annotated[str, about("the instruction set that runs here; empty where none does")] = ""
    choices: Annotated[dict[str, str], about("instruction sets, fastest first: why one cannot run here, or empty")] = {}


class DoctorResult(Result, frozen=True, kw_only=True, tag="ofq-deploy/doctor/1"):
    """Result of ofq-deploy doctor."""

    warnings: Annotated[list[str], about("what is missing here, a sentence each")]
    cpu: Annotated[dict[str, CpuFeature], about("features that matter")]
    backends: Annotated[dict[str, Readiness], about("runtimes")]
    kernels: Annotated[FusedKernels, about("the library of fused operators, for models of the target ort-ofq")]


class ReportResult(Result, frozen=True, kw_only=True, tag="ofq-deploy/report/1"):
    """Result of ofq-deploy report."""

    report: Annotated[str, about("path of the page")]
    results: Annotated[Count, about("results shown")]
    cards: Annotated[list[str], about("model cards written")]
