"""Whatever our code names of TensorRT's Python module exists in both generations, by the real bindings.

The bindings need three libraries that do not come with them. Empty ones with the same entry points are enough to
import a binding and to ask it for its names; calls into them would do nothing.
"""

import ast
import json
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [ROOT / "runtime_tests" / "runners" / name for name in ("tensorrt.py", "tensorrt_build.py")]
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


def main(module: str, sources: list[str]) -> None:
    """Run in a process of its own, where the binding finds its libraries."""
    trt = __import__(module)
    uses = Uses(trt)
    for source in sources:
        uses.read(Path(source).read_text(encoding="utf-8"))
    print(json.dumps({"version": trt.__version__, "used": sorted(uses.used), "missing": sorted(uses.missing)}))


def examine(module: str, environment: dict[str, str], sources: list[Path]) -> dict[str, object]:
    command = [sys.executable, __file__, module, *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module", params=GENERATIONS)
def binding(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    """A generation's version, and the environment in which its binding imports."""
    major, version = request.param, GENERATIONS[request.param]
    if sys.platform != "linux" or shutil.which("gcc") is None:
        pytest.skip("needs Linux and gcc, to build the libraries that the bindings ask for")
    cache = request.config.cache
    assert cache is not None
    wheels = cache.mkdir("tensorrt-bindings")
    pattern = f"tensorrt_cu13_bindings-{version}-*.whl"
    if not list(wheels.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--retries", "0", "-d", str(wheels)]
        done = subprocess.run([*command, f"tensorrt-cu13-bindings=={version}"], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"the bindings {version} cannot be downloaded: {(done.stderr.strip() or '-').splitlines()[-1]}")
    folder = tmp_path_factory.mktemp(f"bindings{major}")
    with zipfile.ZipFile(next(wheels.glob(pattern))) as wheel:
        wheel.extractall(folder)
    (folder / "stub.c").write_text(STUB)
    for name in LIBRARIES:
        library = f"lib{name}.so.{major}"
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", str(folder / library), "stub.c"]
        subprocess.run(command, check=True, cwd=folder)
    return version, {"PYTHONPATH": str(folder), "LD_LIBRARY_PATH": str(folder)}


def test_every_name_that_we_use_exists(binding: tuple[str, dict[str, str]]) -> None:
    version, environment = binding

    found = examine("tensorrt_bindings", environment, SOURCES)

    assert found["version"] == version
    assert found["missing"] == []
    assert {  # one of each kind of object: what is not followed is not checked
        "Builder.create_network",
        "BuilderFlag.TF32",
        "IBuilderConfig.set_timing_cache",
        "ICudaEngine.create_engine_inspector",
        "ICudaEngine.device_memory_size_v2",
        "EngineInspector.get_engine_information",
        "IExecutionContext.execute_async_v3",
        "IExecutionContext.infer_shapes",
        "IOptimizationProfile.set_shape",
        "INetworkDefinition.get_input",
        "ITensor.shape",
        "ITimingCache.serialize",
        "OnnxParser.parse",
        "ParserError.desc",
        "Runtime.deserialize_cuda_engine",
        "TensorIOMode.INPUT",
    } <= set(found["used"])  # type: ignore[arg-type]


def test_a_name_that_only_one_generation_has_is_found(binding: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    version, environment = binding
    source = tmp_path / "source.py"
    source.write_text(
        "builder = trt.Builder(log)\nconfig = builder.create_builder_config()\n"
        "config.set_flag(trt.BuilderFlag.INT8)\nconfig.set_timing_cache(cache, ignore_nothing=True)\n"
        "builder.create_builder_config().int8_calibrator = None\n"
    )

    missing = examine("tensorrt_bindings", environment, [source])["missing"]

    gone = ["BuilderFlag.INT8", "IBuilderConfig.int8_calibrator"] if version.startswith("11") else []
    assert missing == [*gone, "IBuilderConfig.set_timing_cache(ignore_nothing=)"]


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_every_name_exists_in_tensorrt_rtx_too() -> None:
    assert examine("tensorrt_rtx", {}, SOURCES)["missing"] == []


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
