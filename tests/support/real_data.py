"""The folder of real models and images that OFQ_SHARED names; docs/data.md says what it holds and where to get it."""

import os
from pathlib import Path

import pytest


def real(path: str) -> Path:
    """A file or folder in there; where it is missing, the test that asks is skipped."""
    folder = os.environ.get("OFQ_SHARED")
    if not folder:
        pytest.skip("OFQ_SHARED is not set; docs/data.md says what to let it name")
    place = Path(folder).resolve() / path
    if not place.exists():
        pytest.skip(f"no {place}; docs/data.md says where to get it")
    return place
