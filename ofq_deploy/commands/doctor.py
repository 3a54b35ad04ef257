"""Which backends can run on this machine, and what the others need."""

from importlib.util import find_spec
from pathlib import Path

from ofq_deploy.commands.requests import DoctorRequest
from ofq_deploy.environment import CPU_FEATURES, cpu_flags
from ofq_deploy.errors import BackendMissing
from ofq_deploy.kernels import INSTALL, describe_library
from ofq_deploy.results.machine import CpuFeature, DoctorResult, FusedKernels, Readiness
from ofq_deploy.results.record import stamped
from ofq_deploy.runtime_tests.runners.registry import BACKENDS, Backend


def examine() -> DoctorResult:
    """Environment, CPU features and backends; looks packages up without importing them."""
    flags = cpu_flags()
    vnni = any("vnni" in flag for flag in flags) or not flags
    saturates = "no VNNI: products of 8-bit codes with 8-bit weights (patch embedding, heads) may saturate"
    parts = {
        "warnings": [] if vnni else [saturates],
        "cpu": {name: CpuFeature(present=name in flags, means=means) for name, means in CPU_FEATURES.items()},
        "backends": {name: _state(backend) for name, backend in BACKENDS.items()},
        "kernels": _kernels(),
    }
    return stamped(DoctorResult, DoctorRequest().line(), parts)


def _state(backend: Backend) -> Readiness:
    if find_spec(backend.package) is None:
        return Readiness(ready=False, why=f"package {backend.package} is not installed", install=backend.install)
    if backend.on_gpu and not _has_nvidia_gpu():
        return Readiness(ready=False, why="no NVIDIA GPU is visible", install=backend.without_gpu)
    return Readiness(ready=True, why="", install="")


def _kernels() -> FusedKernels:
    try:
        said = describe_library()
    except (BackendMissing, OSError, AttributeError) as error:
        return FusedKernels(ready=False, why=str(error), install=INSTALL)
    choices = {choice["name"]: "" if choice["available"] else choice["why"] for choice in said["choices"]}
    chosen = said["chosen"] or ""
    return FusedKernels(ready=bool(chosen), why=said["error"] or "", install="", chosen=chosen, choices=choices)


def _has_nvidia_gpu() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*"))
