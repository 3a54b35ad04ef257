"""Who may import whom: data flows one way, and heavy packages stay where they belong."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "timm", "onnx", "onnx_ir", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"}
FORBIDDEN = {
    "ofq_deploy": HEAVY - {"torch", "onnx"},
    "train": HEAVY - {"torch", "timm"} | {"ofq_deploy.export", "ofq_deploy.runtime_tests", "ofq_deploy.api"},
    "export": HEAVY - {"onnx", "onnx_ir"} | {"ofq_deploy.train", "ofq_deploy.runtime_tests", "ofq_deploy.api"},
    "runtime_tests": {"torch", "timm", "onnx_ir", "ofq_deploy.train", "ofq_deploy.export", "ofq_deploy.api"},
}
# Buffers, streams and int8 kernels on a GPU come from torch: these files of runtime_tests import it inside functions, or
# for annotations. The kernel, which Triton compiles from module level, is imported inside functions itself.
TORCH_ON_GPU = {f"runtime_tests/runners/{name}.py" for name in ("cuda", "tensorrt")}
TORCH_ON_GPU |= {f"runtime_tests/speed/{name}.py" for name in ("int8_block", "torch_cuda", "triton_int8")}
CALLABLE_PACKAGES = {"train/__init__.py", "export/__init__.py"}  # they forward a call to ofq_deploy.api
API = {"api.py", "demo.py", "model/file.py", "model/contents.py"}
API |= {
    f"{room}/{file.name}"
    for room in ("commands", "cli", "pages", "serving", "runs")
    for file in (ROOT / "ofq_deploy" / room).glob("*.py")
}  # the only core modules that use sub-packages, inside function bodies


def imported(path: Path, top_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def files(folder: str) -> list[Path]:
    """Modules; the templates are copied into packages and never imported."""
    return sorted(path for path in (ROOT / folder).rglob("*.py") if path.parent.name != "templates")


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_no_folder_imports_what_it_must_not(folder: str) -> None:
    broken = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files(folder)
        for name in imported(path)
        for package in FORBIDDEN[folder]
        if within(name, package)
        and not (str(path.relative_to(ROOT)) in CALLABLE_PACKAGES and within(name, "ofq_deploy.api"))
        and not (str(path.relative_to(ROOT)) in TORCH_ON_GPU and within(name, "torch"))
    ]

    assert broken == []


def test_core_imports_sub_packages_and_torch_only_in_function_bodies_of_the_api() -> None:
    packages = ("ofq_deploy.train", "ofq_deploy.export", "ofq_deploy.runtime_tests", "torch", "onnx")
    broken = [
        f"{path.name} imports {name}"
        for path in files("ofq_deploy")
        for name in imported(path, top_level=str(path.relative_to(ROOT / "ofq_deploy")) in API)
        if any(within(name, package) for package in packages)
    ]

    assert broken == []


def test_runtimes_are_imported_inside_functions() -> None:
    broken = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files("runtime_tests")
        if path.name != "triton_int8.py"
        for name in imported(path, top_level=True)
        if name.split(".")[0] in HEAVY
    ]

    assert broken == []
