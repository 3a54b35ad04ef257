"""All types of results, by the schema that names them."""

from typing import Any

import msgspec

from ofq_deploy.results.bench import BenchResult
from ofq_deploy.results.bench_gpu import BenchGpuResult
from ofq_deploy.results.fields import Result
from ofq_deploy.results.findings import CheckResult, LintResult
from ofq_deploy.results.foreign import ForeignResult
from ofq_deploy.results.golden import GoldenResult
from ofq_deploy.results.machine import DoctorResult, ReportResult
from ofq_deploy.results.models import (
    DemoResult,
    ExportResult,
    ImportResult,
    InspectResult,
    PackageResult,
    PredictResult,
    TrainResult,
)
from ofq_deploy.results.proof import ParityResult, ProofResult

KINDS: dict[str, tuple[type[Result], ...]] = {  # by the name of the schema
    "bench": (BenchResult,),
    "bench-gpu": (BenchGpuResult,),
    "check": (CheckResult,),
    "demo": (DemoResult,),
    "doctor": (DoctorResult,),
    "export": (ExportResult,),
    "import": (ImportResult,),
    "inspect": (InspectResult,),
    "lint": (LintResult,),
    "package": (PackageResult,),
    "parity": (ParityResult,),
    "predict": (PredictResult,),
    "report": (ReportResult,),
    "train": (TrainResult,),
    "validate": (ProofResult, GoldenResult, ForeignResult),
}


def decode(table: dict[str, Any]) -> Result:
    """The result that a JSON table holds; fields that its type does not have are passed over.

    Raises msgspec.ValidationError, which names the field, for a table that is no whole result of a schema of `KINDS`.
    """
    name = str(table.get("schema")).removeprefix("ofq-deploy/").partition("/")[0]
    if name not in KINDS:
        raise msgspec.ValidationError(f"no schema {table.get('schema')!r}")
    kind = KINDS[name][0]
    if kind is ProofResult:
        kind = GoldenResult if "golden" in table else ForeignResult if "reference" in table else ProofResult
    return msgspec.convert(table, kind)
