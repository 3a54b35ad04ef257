"""The library of fused operators as ONNX Runtime and Python see it: its table of functions, its symbols, its package, its runs."""

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ofq_deploy.kernels import library_path
from tests.support import fused_nodes
from tests.support.fused_nodes import Fused
from tests.support.kernels import needs_kernels

ROOT = Path(__file__).resolve().parent.parent
HEADER = (ROOT / "kernels" / "src" / "ort.h").read_text()
INDICES = {name: int(index) for index, name in re.findall(r"^  X\((\d+), (\w+),", HEADER, re.MULTILINE)}
ALL = [fused_nodes.patches, fused_nodes.layer_norm, fused_nodes.linear, fused_nodes.thresholds, fused_nodes.linear_add]
ALL += [fused_nodes.linear_head, fused_nodes.attention, fused_nodes.tabled_attention]


def in_child(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: what is wrong here ends it."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables)


# The runtime's functions, by the indices of ort.h. What takes a kernel's node or a run's context is proven by the nodes below.
TABLE = """
import ctypes, glob, json, onnxruntime, os
indices = json.loads(os.environ["INDICES"])
folder = os.path.dirname(onnxruntime.__file__) + "/capi/"
runtime = ctypes.CDLL((glob.glob(folder + "libonnxruntime.so*") + glob.glob(folder + "libonnxruntime.*dylib"))[0])
runtime.OrtGetApiBase.restype = ctypes.POINTER(ctypes.c_void_p)
get_api = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_uint32)(runtime.OrtGetApiBase()[0])
table = get_api(int(os.environ["VERSION"]))
void, text, integer, size, i64 = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_int64
ref = ctypes.byref

def call(name, result, *arguments):
    kinds = [type(argument) if hasattr(argument, "value") else void for argument in arguments]
    return ctypes.CFUNCTYPE(result, *kinds)(table[indices[name]])(*arguments)

status = void(call("CreateStatus", void, integer(2), text(b"what is wrong")))
assert call("GetErrorCode", integer, status) == 2
assert call("GetErrorMessage", text, status) == b"what is wrong"
call("ReleaseStatus", None, status)

info, kind, rank, dims = void(), integer(), size(), (i64 * 3)(4, 5, 6)
names, read, back = (text * 3)(b"batch", b"", b""), (text * 3)(), (i64 * 3)()
assert call("CreateTensorTypeAndShapeInfo", void, ref(info)) is None
assert call("SetTensorElementType", void, info, integer(2)) is None
assert call("SetDimensions", void, info, dims, size(3)) is None
assert call("SetSymbolicDimensions", void, info, names, size(3)) is None
assert call("GetTensorElementType", void, info, ref(kind)) is None
assert call("GetDimensionsCount", void, info, ref(rank)) is None
assert call("GetDimensions", void, info, back, size(3)) is None
assert call("GetSymbolicDimensions", void, info, read, size(3)) is None
assert (kind.value, rank.value, list(back), read[0]) == (2, 3, [4, 5, 6], b"batch")
call("ReleaseTensorTypeAndShapeInfo", None, info)

domain = void()
assert call("CreateCustomOpDomain", void, text(b"ofq.test"), ref(domain)) is None and domain.value
"""


def test_functions_lie_where_the_header_says() -> None:
    (version,) = re.findall(r"ORT_VERSION = (\d+);", HEADER)
    done = in_child(TABLE, INDICES=json.dumps(INDICES), VERSION=version)

    assert done.returncode == 0, done.stderr
    assert list(INDICES.values()) == sorted(INDICES.values())


@needs_kernels
def test_only_two_functions_are_visible() -> None:
    if shutil.which("nm") is None or sys.platform != "linux":
        pytest.skip("needs nm, and symbols as Linux has them")
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", str(library_path())], capture_output=True, text=True, check=True
    )

    assert {line.split()[-1] for line in listed.stdout.splitlines()} == {"RegisterCustomOps", "OfqKernelsDescribe"}


@needs_kernels
def test_the_library_needs_no_other_but_those_of_c() -> None:
    if shutil.which("readelf") is None or sys.platform != "linux":
        pytest.skip("needs readelf, and libraries as Linux has them")
    listed = subprocess.run(["readelf", "-d", str(library_path())], capture_output=True, text=True, check=True).stdout

    assert {name.split(".")[0] for name in re.findall(r"NEEDED.*\[(.*)\]", listed)} <= {
        "libc",
        "libm",
        "ld-linux-x86-64",
    }


def described() -> dict[str, object]:
    """In a process of its own, because kernels are chosen once."""
    code = "from ctypes import *; import sys; f = CDLL(sys.argv[1]).OfqKernelsDescribe; f.restype = c_char_p; print(f().decode())"
    done = subprocess.run([sys.executable, "-c", code, str(library_path())], capture_output=True, text=True, check=True)
    told: dict[str, object] = json.loads(done.stdout)
    return told


@needs_kernels
def test_it_describes_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OFQ_KERNELS", raising=False)
    told = described()
    choices = {choice["name"]: choice for choice in told["choices"]}  # type: ignore[attr-defined]

    assert (told["domain"], told["domain_version"], told["error"]) == ("ofq", 1, None)
    assert choices["plain"]["available"]
    assert told["chosen"] == next(name for name, choice in choices.items() if choice["available"])
    assert all(choice["available"] == (choice["why"] == "can run here") for choice in choices.values())


@needs_kernels
def test_kernels_are_forced_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFQ_KERNELS", "plain")
    assert described()["chosen"] == "plain"

    monkeypatch.setenv("OFQ_KERNELS", "fast")
    told = described()
    assert told["chosen"] is None
    assert str(told["error"]).startswith("OFQ_KERNELS=fast is unknown, expected one of ")
    done = in_child("from tests.support.fused_nodes import linear; linear().run()")
    assert done.stderr.strip().splitlines()[-1].endswith(f"ofq.Linear '{fused_nodes.NAME}': {told['error']}")


@needs_kernels
@pytest.mark.parametrize("make", ALL)
def test_all_kernels_give_the_same_bits(make: Callable[[], Fused], monkeypatch: pytest.MonkeyPatch) -> None:
    told = described()
    names = [choice["name"] for choice in told["choices"] if choice["available"]]  # type: ignore[attr-defined]
    code = f"""
import hashlib
from tests.support.fused_nodes import {make.__name__}
print(hashlib.sha256(b"".join(output.tobytes() for output in {make.__name__}().read())).hexdigest())
"""
    found = {name: in_child(code, OFQ_KERNELS=name) for name in names}

    assert {name: done.returncode for name, done in found.items()} == dict.fromkeys(names, 0)
    assert len({done.stdout for done in found.values()}) == 1


@needs_kernels
@pytest.mark.parametrize("make", ALL)
def test_shapes_are_known_before_the_first_run(make: Callable[[], Fused]) -> None:
    """With a symbolic batch, a fixed one, and none: a runtime that knows no shapes computes as well."""
    node = make()
    expected, shapes = node.read(), [output.shape for output in node.run()]
    symbolic, fixed = (node.session(batch=batch) for batch in ("batch", 2))

    assert symbolic.get_outputs()[0].shape == ["batch", *shapes[0][1:]]
    assert fixed.get_outputs()[0].shape == list(shapes[0])
    for session in (symbolic, fixed):
        for found, wanted in zip(node.read(session), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


@needs_kernels
@pytest.mark.parametrize("make", ALL)
def test_no_images_give_no_outputs(make: Callable[[], Fused]) -> None:
    node = make()
    outputs = node.with_fed(**{name: value[:0] for name, value in node.fed.items()}).run()

    assert [output.shape for output in outputs] == [(0, *output.shape[1:]) for output in node.run()]


@needs_kernels
@pytest.mark.parametrize("make", ALL)
def test_an_image_does_not_see_its_neighbours(make: Callable[[], Fused]) -> None:
    node = make()
    for place in range(2):
        alone = node.with_fed(**{name: value[place : place + 1] for name, value in node.fed.items()})
        for found, both in zip(alone.read(), node.read(), strict=True):
            np.testing.assert_array_equal(found[0], both[place])


@needs_kernels
@pytest.mark.parametrize(
    "make", [fused_nodes.layer_norm, fused_nodes.linear, fused_nodes.linear_add, fused_nodes.attention]
)
def test_more_tiles_than_are_read_change_nothing(make: Callable[[], Fused]) -> None:
    node = make()
    more = {
        name: np.pad(value, [(0, 0), (0, 3), (0, 0), (0, 0)]) for name, value in node.fed.items() if name != "forced"
    }

    for found, expected in zip(node.with_fed(**more).read(), node.read(), strict=True):
        np.testing.assert_array_equal(found, expected)


@needs_kernels
def test_one_residual_serves_all_images() -> None:
    node = fused_nodes.linear_add()
    shared = node.fed["residual"][:1]
    found = node.with_fed(residual=shared).read()
    expected = node.with_fed(residual=np.concatenate([shared, shared])).read()

    np.testing.assert_array_equal(found, expected)


@needs_kernels
def test_probabilities_are_given_whether_or_not_others_are_forced() -> None:
    forced = fused_nodes.attention()
    free = forced.with_fed(forced=None)
    codes, probabilities = free.read()
    again, own = free.with_fed(forced=probabilities).read()

    np.testing.assert_array_equal(own, probabilities)
    np.testing.assert_array_equal(forced.read()[1], probabilities)
    np.testing.assert_array_equal(again, codes)
    assert (forced.read()[0] != codes).any()


@needs_kernels
def test_sessions_share_kernels_between_threads() -> None:
    node = fused_nodes.attention()
    expected, session, differing = node.read(), node.session(threads=2), []

    def work() -> None:
        for _ in range(20):
            for found, wanted in zip(node.read(session), expected, strict=True):
                if (found != wanted).any():
                    differing.append(found)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert differing == []


@needs_kernels
def test_sessions_leave_no_memory_behind() -> None:
    """By the peak of the process, which sessions raise by their weights and kernels while they live."""
    code = """
import resource
from tests.support.fused_nodes import *
node = linear()
node = node.with_attributes(inputs=1024, width=1024, heads=1).with_constants(
    weight=planes(1024, 1024), scale=floats(0, 1024), bias=floats(1, 1024), shift=None, out_reciprocal=None)
node = node.with_fed(codes=codes(1, TOKENS, 1024))
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for i in range(60):
    node.run()
    attention().run()
    if i == 9: first = peak()
print((peak() - first) * 1024)
"""
    done = in_child(code)

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 15 * 2**20  # 50 sessions of 1 MiB of weights each


def test_the_package_is_what_the_project_asks_for() -> None:
    own = tomllib.loads((ROOT / "kernels" / "pyproject.toml").read_text())
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert [own["project"]["name"]] == whole["optional-dependencies"]["kernels"]
    assert own["project"]["license"] == whole["license"]
    assert own["project"]["requires-python"] == whole["requires-python"]
    assert (ROOT / "kernels" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert own["tool"]["scikit-build"]["wheel"]["py-api"] == "py3"
    version = own["tool"]["scikit-build"]["metadata"]["version"]
    assert re.search(version["regex"], (ROOT / "kernels" / version["input"]).read_text())["value"] == whole["version"]


@needs_kernels
def test_the_python_package_finds_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "kernels" / "ofq_kernels", tmp_path / "ofq_kernels")
    code = "import ctypes, ofq_kernels; print(ofq_kernels.library_path()); ctypes.CDLL(str(ofq_kernels.library_path()))"
    bare = in_child(code, PYTHONPATH=str(tmp_path))
    assert "FileNotFoundError" in bare.stderr
    assert "is missing: install ofq-kernels with a C++ compiler or from a wheel" in bare.stderr

    name = {"win32": "ofq_kernels.dll", "darwin": "libofq_kernels.dylib"}.get(sys.platform, "libofq_kernels.so")
    shutil.copy(library_path(), tmp_path / "ofq_kernels" / name)
    done = in_child(code, PYTHONPATH=str(tmp_path))
    assert done.stdout.splitlines() == [str(tmp_path / "ofq_kernels" / name)], done.stderr


@needs_kernels
def test_an_old_runtime_is_told_what_it_lacks() -> None:
    """A runtime that offers no table of our version, played by Python: what it gets back is a status, not success."""
    said: list[tuple[int, bytes]] = []
    status = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)(
        lambda code, message: said.append((code, message)) or 4711  # type: ignore[func-returns-value]
    )
    table = (ctypes.c_void_p * 300)(ctypes.cast(status, ctypes.c_void_p))
    get_api = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)(
        lambda version: ctypes.addressof(table) if version < 18 else 0
    )
    version = ctypes.create_string_buffer(b"1.17.3")
    get_version = ctypes.CFUNCTYPE(ctypes.c_void_p)(lambda: ctypes.addressof(version))
    base = (ctypes.c_void_p * 2)(ctypes.cast(get_api, ctypes.c_void_p), ctypes.cast(get_version, ctypes.c_void_p))
    register = ctypes.CDLL(str(library_path())).RegisterCustomOps
    register.restype = ctypes.c_void_p

    assert register(None, ctypes.byref(base)) == 4711
    assert said == [(1, b"ofq_kernels needs ONNX Runtime 1.18 or newer, this is 1.17.3")]
