"""Whether whatever our code names of TensorRT's Python module exists in both generations, by the real bindings.

    python tools/tensorrt_names.py                    # downloads the bindings of both generations, 4 MB, once
    python tools/tensorrt_names.py MODULE [SOURCE...] # JSON about one that is installed

The bindings need three libraries that do not come with them. Empty ones with the same entry points are enough to
import a binding and to ask it for its names; calls into them would do nothing. Exit code 1: a name is missing.
"""

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [ROOT / "runtime_tests" / "runners" / name for name in ("tensorrt.py", "tensorrt_build.py")]
WHEELS = ROOT / "build" / "tensorrt-bindings"
GENERATIONS = {"10": "10.16.1.11", "11": "11.4.0.106"}
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
STUB = """
void *createInferBuilder_INTERNAL(void) { return 0; }
void *createInferRefitter_INTERNAL(void) { return 0; }
void *createInferRuntime_INTERNAL(void) { return 0; }
void *createNvOnnxParser_INTERNAL(void) { return 0; }
void *createNvOnnxParserRefitter_INTERNAL(void) { return 0; }
void *getBuilderPluginRegistry(void) { return 0; }
void *getPluginRegistry(void) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
int initLibNvInferPlugins(void) { return 0; }
"""


class Uses:
    """Follows the objects of a module `trt` through a source file, by what its own documentation says that calls return.

    Variables are told apart by their last name only: `self._context` and `context` in one file mean the same thing.
    """

    def __init__(self, trt: object) -> None:
        self.trt = trt
        self.kinds: dict[str, str] = {}  # of variables; "" is the module itself
        self.used: set[str] = set()
        self.missing: set[str] = set()

    def read(self, source: str) -> None:
        tree, known = ast.parse(source), -1
        while known != len(self.kinds):  # until no variable is newly understood
            known = len(self.kinds)
            for node in ast.walk(tree):
                self.learn(node)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute | ast.Call):
                self.kind(node)

    def learn(self, node: ast.AST) -> None:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(target.elts, node.value.elts, strict=True))
                for name, value in pairs:
                    self.name(name, self.kind(value))
        elif isinstance(node, ast.comprehension | ast.For):
            self.name(node.target, self.kind(node.iter))

    def name(self, target: ast.expr, kind: str | None) -> None:
        last = getattr(target, "id", getattr(target, "attr", None))
        if kind and last:
            self.kinds[last.lstrip("_")] = kind

    def kind(self, node: ast.expr) -> str | None:
        """The class that an expression gives, "" for the module, None for anything else."""
        if isinstance(node, ast.Name):
            return "" if node.id == "trt" else self.kinds.get(node.id.lstrip("_"))
        if isinstance(node, ast.Attribute):
            owner = self.kind(node.value)
            if owner is None:
                return self.kinds.get(node.attr.lstrip("_"))
            self.find(owner, node.attr)
            return f"{owner}.{node.attr}".lstrip(".")
        if isinstance(node, ast.Call):
            return self.returned(node)
        if isinstance(node, ast.IfExp):
            return self.kind(node.body) or self.kind(node.orelse)
        if isinstance(node, ast.ListComp | ast.GeneratorExp):
            return self.kind(node.elt)
        return self.kind(node.value) if isinstance(node, ast.Subscript) else None

    def returned(self, call: ast.Call) -> str | None:
        name = self.kind(call.func) if isinstance(call.func, ast.Attribute) else None
        found = self.find("", name) if name else None
        if found is None or isinstance(found, type):
            return name if found is not None else None
        documented = getattr(found, "__doc__", None) or ""
        for keyword in call.keywords:
            if keyword.arg and f"{keyword.arg}:" not in documented and callable(found):
                self.missing.add(f"{name}({keyword.arg}=)")
        result = documented.partition("-> ")[2].split(maxsplit=1)[:1]
        last = re.split("[.:]", result[0])[-1] if result else ""
        names = (last, last.removeprefix("I"))  # the parser's classes are documented under their C++ names
        return next((name for name in names if isinstance(getattr(self.trt, name, None), type)), None)

    def find(self, owner: str, attribute: str) -> object | None:
        value: object | None = self.trt
        path = f"{owner}.{attribute}".lstrip(".")
        for part in path.split("."):
            value = getattr(value, part, None)
        self.used.add(path)
        if value is None:
            self.missing.add(path)
        return value


def main() -> int:
    if len(sys.argv) > 1:
        print(json.dumps(names(sys.argv[1], [Path(source) for source in sys.argv[2:]] or SOURCES)))
        return 0
    if sys.platform != "linux" or shutil.which("gcc") is None:
        print("skipped: needs Linux and gcc, to build the libraries that the bindings ask for")
        return 0
    return max(check(*generation) for generation in GENERATIONS.items())


def names(module: str, sources: list[Path]) -> dict[str, Any]:
    """The version of an installed module, the names that the sources use of it, and those that it does not have."""
    trt = importlib.import_module(module)
    uses = Uses(trt)
    for source in sources:
        uses.read(source.read_text(encoding="utf-8"))
    return {"version": trt.__version__, "used": sorted(uses.used), "missing": sorted(uses.missing)}


def check(major: str, version: str) -> int:
    wheel = downloaded(version)
    if wheel is None:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as content:
            content.extractall(folder)
        build_libraries(Path(folder), major)
        command = [sys.executable, __file__, "tensorrt_bindings"]
        environment = {**os.environ, "PYTHONPATH": folder, "LD_LIBRARY_PATH": folder}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    found = json.loads(done.stdout)
    missing = ", ".join(found["missing"])
    print(f"TensorRT {found['version']}: {len(found['used'])} names used, missing: {missing or 'none'}")
    return 1 if missing else 0


def downloaded(version: str) -> Path | None:
    """The bindings' wheel, from the folder of an earlier call or the package index; None, with a line, without one."""
    pattern = f"tensorrt_cu13_bindings-{version}-*.whl"
    if not list(WHEELS.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--retries", "0", "-d", str(WHEELS)]
        done = subprocess.run([*command, f"tensorrt-cu13-bindings=={version}"], capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip() or "pip says nothing").splitlines()[-1]
            print(f"skipped: the bindings {version} cannot be downloaded: {reason}")
            return None
    return next(WHEELS.glob(pattern))


def build_libraries(folder: Path, major: str) -> None:
    (folder / "stub.c").write_text(STUB)
    for name in LIBRARIES:
        library = f"lib{name}.so.{major}"
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", library, "stub.c"]
        subprocess.run(command, check=True, cwd=folder)


if __name__ == "__main__":
    raise SystemExit(main())
