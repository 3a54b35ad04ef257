"""The library of fused operators: which models need it, where it is found, and what is said where it is not."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import onnx
import pytest
from onnx import TensorProto, helper

from ofq_deploy import api, kernels
from ofq_deploy.commands.doctor import examine
from ofq_deploy.errors import BackendMissing
from ofq_deploy.kernels import VARIABLE, has_fused_operators, library_path, needed_library
from ofq_deploy.runtime_tests.runners.ort import open_session


def model(*domains: str) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "graph", values[:1], values[1:])
    opsets = [helper.make_opsetid(domain, 20 if domain == "" else 1) for domain in ("", *domains)]
    made = helper.make_model(graph, opset_imports=opsets, producer_name="of\x0a\x03ofq")
    made.doc_string = "\x42\x03ofq" * 100  # bytes that look like a field of their own
    return made


@pytest.mark.parametrize(
    ("domains", "expected"),
    [((), False), (("ofq",), True), (("com.microsoft",), False), (("com.microsoft", "ofq"), True), (("ofqx",), False)],
)
def test_a_model_that_imports_the_domain_needs_the_library(
    domains: tuple[str, ...], expected: bool, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model(*domains), path)

    assert has_fused_operators(model(*domains)) is expected
    assert has_fused_operators(path) is expected


def test_what_is_no_model_needs_nothing(tmp_path: Path) -> None:
    whole = model("ofq").SerializeToString()
    path = tmp_path / "model.onnx"
    for content in (b"", b"\xff" * 40, b"\x42\xff", b"PK\x03\x04 no model", whole[:5], whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert not has_fused_operators(path), content
    assert not has_fused_operators(tmp_path / "missing.onnx")
    assert not has_fused_operators(tmp_path)


def test_the_variable_names_a_library_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "libofq_kernels.so"
    monkeypatch.setenv(VARIABLE, str(library))
    with pytest.raises(BackendMissing, match=f"{VARIABLE} names .*libofq_kernels.so, which is no file"):
        library_path()
    assert not examine().kernels.ready

    library.write_bytes(b"")
    assert needed_library(model("ofq")) == library
    assert needed_library(model()) is None
    assert not examine().kernels.ready  # an empty file is no library


def test_the_installed_package_says_where_its_library_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("ofq_kernels")
    package.library_path = lambda: tmp_path / "x.so"  # type: ignore[attr-defined]
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, "ofq_kernels", package)

    assert library_path() == tmp_path / "x.so"


def test_a_package_without_its_library_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise FileNotFoundError("x.so is missing: install ofq-kernels from a wheel")

    package = ModuleType("ofq_kernels")
    package.library_path = nowhere  # type: ignore[attr-defined]
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, "ofq_kernels", package)

    with pytest.raises(BackendMissing, match=r"^x\.so is missing: install ofq-kernels from a wheel$"):
        library_path()


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setitem(sys.modules, "ofq_kernels", None)  # importing it fails


def test_a_missing_library_is_told_in_one_line(absent: None, tmp_path: Path) -> None:
    onnx.save(model("ofq"), tmp_path / "model.onnx")
    with pytest.raises(
        BackendMissing, match=r"are not installed; install them with: pip install 'ofq-deploy\[kernels\]'$"
    ):
        open_session(tmp_path / "model.onnx")
    doctor = examine().kernels

    assert (doctor.ready, doctor.install) == (False, kernels.INSTALL)
    open_session(model())  # others need none


def test_without_the_library_export_writes_nothing(absent: None, tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendMissing, match="the fused operators are not installed"):
        api.export(tiny_run, target="ort-ofq", output=tmp_path / "model.onnx")

    assert list(tmp_path.iterdir()) == []


def test_a_library_that_is_none_is_told_of(tmp_path: Path) -> None:
    """In a process of its own, whose environment names it."""
    (tmp_path / "libofq_kernels.so").write_bytes(b"no library")
    onnx.save(model("ofq"), tmp_path / "model.onnx")
    code = f"import ofq_deploy.runtime_tests.runners.ort as o, pathlib; o.open_session(pathlib.Path({str(tmp_path / 'model.onnx')!r}))"
    environment = {VARIABLE: str(tmp_path / "libofq_kernels.so"), "PATH": "/usr/bin", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    assert "OnnxFileError" in done.stderr.splitlines()[-1]
    assert "libofq_kernels.so" in done.stderr.splitlines()[-1]
