"""The library of fused operators, the distribution `ofq-kernels`: which models need it, and where it is.

ONNX Runtime loads it for a session (`register_custom_ops_library`). docs/kernels.md defines the operators.
"""

import ctypes
import json
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ofq_deploy.errors import BackendMissing

if TYPE_CHECKING:
    import onnx

DOMAIN = "ofq"
VARIABLE = "OFQ_KERNELS_LIBRARY"  # names a library of one's own build
INSTALL = "pip install 'ofq-deploy[kernels]'"
OPSET_IMPORT = 8  # the field of ONNX's ModelProto
LONGEST = 64  # bytes of an opset import; all other fields are passed over


def needed_library(model: "Path | onnx.ModelProto") -> Path | None:
    """The library for a model that has fused operators, None for any other; BackendMissing where it is not installed."""
    return library_path() if has_fused_operators(model) else None


def library_path() -> Path:
    """The library that OFQ_KERNELS_LIBRARY names, or the installed one; BackendMissing without either."""
    if named := os.environ.get(VARIABLE):
        if not Path(named).is_file():
            raise BackendMissing(f"{VARIABLE} names {named}, which is no file; unset it, or name a built library")
        return Path(named)
    try:
        return Path(import_module("ofq_kernels").library_path())
    except ImportError as error:
        raise BackendMissing(f"the fused operators are not installed; install them with: {INSTALL}") from error
    except FileNotFoundError as error:  # a source tree that was never built
        raise BackendMissing(str(error)) from error


def describe_library() -> dict[str, Any]:
    """What the library says of itself (kernels/src/library.cpp): `chosen`, the instruction set that runs here, or None and `error`;
    `choices`, each with name, available and why. BackendMissing where it is not installed, OSError where it does not load.
    """
    function = ctypes.CDLL(str(library_path())).OfqKernelsDescribe
    function.restype = ctypes.c_char_p
    text = function()
    if text is None:
        raise OSError("the library of fused operators has no memory to describe itself")
    description: dict[str, Any] = json.loads(text)
    return description


def has_fused_operators(model: "Path | onnx.ModelProto") -> bool:
    """Whether a model imports the domain `ofq`.

    Of a file only the outermost fields are read: parsing it all would take longer than a runtime needs to load it. One that is
    missing or damaged imports nothing; who opens it says what is wrong.
    """
    if not isinstance(model, Path):
        return any(entry.domain == DOMAIN for entry in model.opset_import)
    encoded = b"\x0a" + bytes([len(DOMAIN)]) + DOMAIN.encode()  # field 1, a string
    try:
        with model.open("rb") as file:
            return any(encoded in entry for entry in _opset_imports(file))
    except (OSError, EOFError):
        return False


def _opset_imports(file: BinaryIO) -> Iterator[bytes]:
    """The encoded opset imports of an ONNX file; EOFError where it is cut, or no message of protobuf."""
    size = os.fstat(file.fileno()).st_size
    while file.tell() < size:
        key = _varint(file)
        field, kind = key >> 3, key & 7
        if kind == 0:
            _varint(file)
        elif kind == 2:
            length = _varint(file)
            if length > size - file.tell():
                raise EOFError
            if field == OPSET_IMPORT and length <= LONGEST:
                yield file.read(length)
            else:
                file.seek(length, os.SEEK_CUR)
        else:
            raise EOFError


def _varint(file: BinaryIO) -> int:
    """A number in groups of seven bits, lowest first."""
    value = shift = 0
    while True:
        (byte,) = file.read(1) or _end()
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value
        if shift > 63:
            raise EOFError


def _end() -> bytes:
    raise EOFError
