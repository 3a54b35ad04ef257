"""What `validate` does with golden data: a run is compared with what OFQ's official code computed."""

from pathlib import Path

from ofq_deploy.commands.requests import ValidateRequest
from ofq_deploy.errors import DataError
from ofq_deploy.progress import Reporter
from ofq_deploy.results.golden import GoldenResult
from ofq_deploy.results.record import stamped
from ofq_deploy.results.verdicts import validation_verdict
from ofq_deploy.runs.folder import load_run, newest_run


def validate_golden(request: ValidateRequest, golden: Path, report: Reporter) -> GoldenResult:
    """See ofq_deploy.api.validate; DataError for options of other comparisons."""
    from ofq_deploy.runtime_tests.proof.golden import compare_golden, load_golden
    from ofq_deploy.train.reference import load_student, weight_units

    alone = ValidateRequest(subject=request.subject, golden=golden, backend=request.backend, images=request.images)
    if request != alone:
        raise DataError("golden data is compared with the run alone; leave the options of other comparisons out")
    expected = load_golden(golden)
    run = newest_run() if request.subject is None else load_run(request.subject)
    frozen = run.frozen
    units = weight_units(load_student(run, frozen))
    parts = {"run": str(run.path), "golden": str(golden), **compare_golden(frozen, expected, units, report)}
    return stamped(GoldenResult, request.line(), parts | {"verdict": validation_verdict(parts)})
