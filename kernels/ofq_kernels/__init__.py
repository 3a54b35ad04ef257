"""The library of fused integer operators (domain `ofq`) for ONNX Runtime: where it lies.

options = onnxruntime.SessionOptions()
options.register_custom_ops_library(str(ofq_kernels.library_path()))
"""

import sys
from pathlib import Path

__all__ = ["library_path"]

_NAME = {"win32": "ofq_kernels.dll", "darwin": "libofq_kernels.dylib"}.get(sys.platform, "libofq_kernels.so")


def library_path() -> Path:
    """The library's file; raises FileNotFoundError where the package holds none."""
    path = Path(__file__).resolve().parent / _NAME
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: install ofq-kernels with a C++ compiler or from a wheel")
    return path
