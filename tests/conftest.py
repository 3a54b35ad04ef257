"""Hypothesis profiles, and one tiny trained run with its exported models, shared by all tests."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from ofq_deploy import api

# Tiny models, and a test process per core: more threads would only wait for one another. Read by child processes too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ |= {"PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1"}  # no test downloads

# No deadline in either: the first example of a test pays for importing torch.
settings.register_profile("dev", max_examples=25, deadline=None)
settings.register_profile("ci", max_examples=200, derandomize=True, deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(scope="session")
def tiny_settings() -> dict[str, Any]:
    """Overrides of the default recipe (W4A4, QKR, a step per token) that train in a few seconds."""
    return {"teacher.epochs": 1, "train.epochs": 1, "cga.epochs": 1, "model.depth": 2}


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_settings: dict[str, Any]) -> Path:
    """A run folder. Tests that change it work on a copy (shutil.copytree)."""
    return api.train(output=tmp_path_factory.mktemp("tiny") / "runs" / "tiny", overrides=tiny_settings, device="cpu")


@pytest.fixture(scope="session")
def portable_model(tiny_run: Path) -> Path:
    return api.export(tiny_run, target="portable")


@pytest.fixture(scope="session")
def ort_model(tiny_run: Path) -> Path:
    return api.export(tiny_run, target="ort-cpu")
