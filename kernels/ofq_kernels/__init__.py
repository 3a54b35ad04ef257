"""The library of fused integer operators (domain `ofq`) for ONNX Runtime: where it lies, and what it says of itself.

options = onnxruntime.SessionOptions()
options.register_custom_ops_library(str(ofq_kernels.library_path()))
"""

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["describe", "library_path"]

_NAME = {"win32": "ofq_kernels.dll", "darwin": "libofq_kernels.dylib"}.get(sys.platform, "libofq_kernels.so")


def library_path() -> Path:
    """The library's file; raises FileNotFoundError where the package holds none."""
    path = Path(__file__).resolve().parent / _NAME
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: install ofq-kernels with a C++ compiler or from a wheel")
    return path


def describe() -> dict[str, Any]:
    """What the library was built with and chose on this processor.

    version, domain, domain_version: of the library and of its operators
    chosen:  name of the kernels that run, None where OFQ_KERNELS asks for some that cannot
    error:   why none were chosen, or None
    choices: of all kernels, fastest first: name, available, why
    """
    function = ctypes.CDLL(str(library_path())).OfqKernelsDescribe
    function.restype = ctypes.c_char_p
    text = function()
    if text is None:
        raise MemoryError("the library of fused operators has no memory to describe itself")
    description: dict[str, Any] = json.loads(text)
    return description
