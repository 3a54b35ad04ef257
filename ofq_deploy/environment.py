"""What a result was measured on."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "timm",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "numpy",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "ofq-kernels",
)

# What decides the speed and the exactness of 8-bit products on x86.
CPU_FEATURES = {
    "avx2": "integer vectors",
    "avx512f": "wide vectors",
    "avx512_vnni": "8-bit products with 32-bit sums: fast and exact",
    "avx_vnni": "the same on narrow vectors",
    "amx_int8": "8-bit matrix tiles",
    "avx512_bf16": "bfloat16 products",
}


def versions() -> dict[str, str]:
    """Installed versions of the packages that matter; nothing is imported."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_flags() -> list[str]:
    """The CPU features of `CPU_FEATURES` that this machine reports; empty where it does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return []
    present = {flag for line in text.splitlines() if line.startswith("flags") for flag in line.split(":")[1].split()}
    return [flag for flag in CPU_FEATURES if flag in present]


def environment() -> dict[str, Any]:
    """Versions, CPU and operating system as a JSON table."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cpu_flags": cpu_flags(),
        "cores": os.cpu_count(),
        "packages": versions(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
