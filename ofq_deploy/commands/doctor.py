"""Which backends can run on this machine, and what the others need."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ofq_deploy.environment import CPU_FEATURES, cpu_flags, environment
from ofq_deploy.runtime_tests.runners.registry import BACKENDS, Backend


def examine() -> dict[str, Any]:
    """Environment, CPU features and backends; looks packages up without importing them."""
    flags = cpu_flags()
    vnni = any("vnni" in flag for flag in flags) or not flags
    saturates = "no VNNI: products of 8-bit codes with 8-bit weights (patch embedding, heads) may saturate"
    return {
        "warnings": [] if vnni else [saturates],
        "environment": environment(),
        "cpu": {name: {"present": name in flags, "means": means} for name, means in CPU_FEATURES.items()},
        "backends": {name: _state(backend) for name, backend in BACKENDS.items()},
    }


def _state(backend: Backend) -> dict[str, Any]:
    if find_spec(backend.package) is None:
        return {"ready": False, "why": f"package {backend.package} is not installed", "install": backend.install}
    if backend.on_gpu and not _has_nvidia_gpu():
        return {"ready": False, "why": "no NVIDIA GPU is visible", "install": backend.without_gpu}
    return {"ready": True, "why": "", "install": ""}


def _has_nvidia_gpu() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*"))
