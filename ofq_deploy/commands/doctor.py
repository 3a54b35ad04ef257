"""Which backends can run on this machine, and what the others need."""

from importlib.util import find_spec
from typing import Any

from ofq_deploy.environment import CPU_FEATURES, cpu_flags, environment

CHECK = "ofq-deploy check MODEL --target tensorrt builds engines without one"
BACKENDS = {
    "ort-cpu": ("onnxruntime", "pip install onnxruntime"),
    "openvino": ("openvino", "pip install 'ofq-deploy[openvino]'"),
    "tensorrt": ("tensorrt", "pip install 'ofq-deploy[tensorrt]' (from NVIDIA's own index)"),
    "tensorrt-rtx": ("tensorrt_rtx", "pip install 'ofq-deploy[tensorrt-rtx]'"),
    "torch-cuda": ("torch", "pip install torch"),
}
WITHOUT_GPU = {"tensorrt": CHECK, "tensorrt-rtx": CHECK, "torch-cuda": "use ort-cpu, or a machine with one"}


def examine() -> dict[str, Any]:
    """Environment, CPU features and backends; looks packages up without importing them."""
    flags = cpu_flags()
    vnni = any("vnni" in flag for flag in flags) or not flags
    saturates = "no VNNI: products of 8-bit codes with 8-bit weights (patch embedding, heads) may saturate"
    return {
        "warnings": [] if vnni else [saturates],
        "environment": environment(),
        "cpu": {name: {"present": name in flags, "means": means} for name, means in CPU_FEATURES.items()},
        "backends": {name: _backend(name, *needs) for name, needs in BACKENDS.items()},
    }


def _backend(name: str, module: str, install: str) -> dict[str, Any]:
    if find_spec(module) is None:
        return {"ready": False, "why": f"package {module} is not installed", "install": install}
    if name in WITHOUT_GPU and not _has_nvidia_gpu():
        return {"ready": False, "why": "no NVIDIA GPU is visible", "install": WITHOUT_GPU[name]}
    return {"ready": True, "why": "", "install": ""}


def _has_nvidia_gpu() -> bool:
    from pathlib import Path

    return any(Path("/dev").glob("nvidia[0-9]*"))
