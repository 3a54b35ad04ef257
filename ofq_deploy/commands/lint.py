"""What `lint` and `check` do: tell what keeps a model from integers, from its file or from an engine."""

from dataclasses import asdict
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from ofq_deploy.commands.requests import CheckRequest, LintRequest
from ofq_deploy.errors import UnsupportedByTarget
from ofq_deploy.results.findings import CheckResult, LintResult
from ofq_deploy.results.record import stamped
from ofq_deploy.runs.subject import model_file, model_for
from ofq_deploy.targets import TARGETS

if TYPE_CHECKING:
    from ofq_deploy.runtime_tests.lint.tensorrt_check import Check


def lint(request: LintRequest) -> LintResult:
    """See ofq_deploy.api.lint."""
    from ofq_deploy.runtime_tests.lint.rules import lint as find_faults

    file = model_file(request.model)
    stated = file.properties.get("target")
    if request.target is None and stated is None:
        raise UnsupportedByTarget(f"{file.path} does not say what it was made for; pass --target")
    return stamped(LintResult, request.line(), {"faults": find_faults(file, request.target or str(stated))})


def check(request: CheckRequest) -> CheckResult:
    """See ofq_deploy.api.check."""
    if request.target not in TARGETS or not TARGETS[request.target].check:
        known = ", ".join(entry.name for entry in TARGETS.values() if entry.check)
        raise UnsupportedByTarget(f"no check for target {request.target!r}; there is one for {known}")
    target = TARGETS[request.target]
    file = model_for(request.model, target)
    found: Check = resolve_name(target.check)(file)
    judged = {"verdict": found.verdict, "passed": found.passed}
    parts = {"model": str(file.path), "target": target.name, **judged, **asdict(found)}
    return stamped(CheckResult, request.line(), parts)
