"""The library of fused operators, which is not everywhere."""

import pytest

from ofq_deploy.errors import BackendMissing
from ofq_deploy.kernels import library_path
from ofq_deploy.targets import TARGETS, Target


def _missing() -> str:
    try:
        library_path()
    except BackendMissing as error:
        return str(error)
    return ""


MISSING = _missing()
needs_kernels = pytest.mark.skipif(bool(MISSING), reason=MISSING)


def provable_targets() -> list[Target]:
    """Those whose files can be run here and compared with the oracle, code by code."""
    return [target for target in TARGETS.values() if not target.is_float and not (target.library and MISSING)]
