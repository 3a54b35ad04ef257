"""Who may import whom: rooms, through which data flows one way, and the rooms that heavy packages belong to."""

import ast
import re
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from ofq_deploy.runtime_tests.runners.registry import BACKENDS
from ofq_deploy.targets import TARGETS

ROOT = Path(__file__).resolve().parent.parent
BASE = {"package", "errors", "files", "progress", "environment", "runner", "targets", "kernels", "grids"}
# Every room, and the rooms that it may import, at module level or inside functions.
ROOMS: dict[str, set[str]] = {
    # Modules of the core that are no folder. `grids`, the legal codes, is what recipes and models have in common.
    **{name: set() for name in ("package", "errors", "progress", "runner", "environment", "grids")},
    "files": {"errors"},
    "targets": {"errors"},
    "kernels": {"errors"},
    # From data and recipe to a frozen model, and to its run.
    "data": BASE,
    "recipe": BASE,
    "model": BASE | {"data", "recipe"},
    "runs": BASE | {"data", "recipe", "model"},
    "train": BASE | {"data", "recipe", "model", "runs"},
    # From a frozen model to files, and what runtimes make of them.
    "export": BASE | {"model"},
    "runners": BASE | {"model"},
    "lint": BASE | {"model", "runners"},
    "proof": BASE | {"data", "model", "runners"},
    "speed": BASE | {"data", "model", "runners", "proof"},
    # From what was found to pages and packages.
    "results": BASE | {"recipe", "runs"},
    "pages": BASE | {"model", "runs", "runners", "results"},
    "serving": BASE | {"data", "model", "runners"},
}
WORK = set(ROOMS)
ROOMS["commands"] = WORK
ROOMS["api"] = WORK | {"commands"}
ROOMS["demo"] = WORK | {"commands", "api"}
ROOMS["cli"] = WORK | {"commands", "api", "demo"}
ROOMS["__main__"] = {"cli"}
# ofq_deploy.train(...) and ofq_deploy.export(...) are functions and packages at once: they forward a call (decision 3).
CALLABLE_PACKAGES = {("ofq_deploy.train", "ofq_deploy.api"), ("ofq_deploy.export", "ofq_deploy.api")}
LOADED_LATE = {"train", "export", "lint", "proof", "speed"}  # heavy or large: others import them inside functions
# A heavy package, and the rooms that may import it inside functions.
HEAVY = {
    "torch": {"train", "commands", "runners", "speed"},
    "timm": {"train"},
    "onnx": {"model", "export", "runners", "lint", "proof", "speed", "serving"},
    "onnx_ir": {"export"},
    "onnxruntime": {"runners", "speed"},
    "openvino": {"runners"},
    "tensorrt": set(),  # by its name, from tensorrt_build
    "tensorrt_rtx": set(),
}
AT_MODULE_LEVEL = {"train": {"torch", "timm"}, "export": {"onnx", "onnx_ir"}}
TRITON_KERNEL = "ofq_deploy.runtime_tests.speed.triton_int8"  # compiled from module level, and loaded late itself
# Buffers, streams and int8 kernels on a GPU come from torch.
TORCH_ON_GPU = {f"ofq_deploy.runtime_tests.runners.{name}" for name in ("cuda", "tensorrt")}
TORCH_ON_GPU |= {f"ofq_deploy.runtime_tests.speed.{name}" for name in ("int8_block", "torch_cuda", "triton_int8")}


def modules() -> dict[str, Path]:
    """By their import names; the templates are copied into packages and never imported."""
    found = {}
    for folder in ("ofq_deploy", "train", "export", "runtime_tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "templates" not in path.parts:
                parts = path.relative_to(ROOT).with_suffix("").parts
                parts = parts if folder == "ofq_deploy" else ("ofq_deploy", *parts)
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path: Path) -> list[tuple[str, bool]]:
    """Full names of what a module imports, whether at module level; names for annotations alone are left out."""
    tree = ast.parse(path.read_text())
    annotations = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) not in annotations:
            if isinstance(node, ast.Import):
                found += [(alias.name, node in tree.body) for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                found += [(f"{node.module}.{alias.name}", node in tree.body) for alias in node.names]
    return found


def own_imports(name: str) -> set[tuple[str, bool]]:
    """The modules of this project that one of them imports; but for the doors that are stated above."""
    found = set()
    for imported, at_module_level in imports(MODULES[name]):
        module = imported if imported in MODULES else imported.rpartition(".")[0]
        if module in MODULES and (name, module) not in CALLABLE_PACKAGES:
            found.add((module, at_module_level))
    return found


def room(name: str) -> str:
    """`ofq_deploy.runtime_tests.proof.compare` is in `proof`."""
    _, *parts = name.split(".")
    if parts[:1] == ["runtime_tests"]:
        return parts[1] if len(parts) > 1 else "package"
    if parts == ["model", "grids"]:
        return "grids"
    return parts[0] if parts else "package"


def test_rooms_import_what_the_table_allows_and_nothing_else() -> None:
    broken = [
        f"{name} imports {imported}"
        for name in MODULES
        for imported, _ in own_imports(name)
        if room(imported) not in ROOMS[room(name)] | {room(name)}
    ]

    assert broken == []


def test_every_room_of_the_table_is_there() -> None:
    assert set(ROOMS) == {room(name) for name in MODULES}


def test_data_flows_one_way_between_rooms() -> None:
    TopologicalSorter(ROOMS).prepare()  # CycleError names the circle


def test_no_modules_import_one_another_in_a_circle() -> None:
    graph = {name: {imported for imported, _ in own_imports(name)} for name in MODULES}

    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_heavy_rooms_are_imported_inside_functions() -> None:
    broken = [
        f"{name} imports {imported}"
        for name in MODULES
        for imported, at_module_level in own_imports(name)
        if at_module_level and room(imported) in LOADED_LATE - {room(name)} and room(name) not in LOADED_LATE
    ]

    assert broken == []


def test_heavy_packages_stay_in_their_rooms() -> None:
    broken = []
    for name, path in MODULES.items():
        for imported, at_module_level in imports(path):
            package = imported.split(".")[0]
            allowed = room(name) in HEAVY.get(package, {room(name)})
            if at_module_level and package in HEAVY and name != TRITON_KERNEL:
                allowed = package in AT_MODULE_LEVEL.get(room(name), set())
            if package == "torch" and ".runtime_tests." in name:
                allowed &= name in TORCH_ON_GPU
            if not allowed:
                broken.append(f"{name} imports {imported}")

    assert broken == []


# Where the names of targets and backends may decide something.
REGISTRIES = {"ofq_deploy.targets", "ofq_deploy.runtime_tests.runners.registry"}
ONE_RUNTIME = re.compile(
    r"\.(runners\.(ort|openvino|tensorrt)|export\.targets\.|lint\.tensorrt|speed\.(tensorrt|torch_cuda))"
)
DECIDING = ("startswith", "endswith", "removeprefix", "removesuffix", "replace", "get")
TRITON = "ofq_deploy.serving.triton"  # its keys are the names of Triton's own backends


def decisive_names(path: Path) -> list[str]:
    """Targets' and backends' names that a module compares with something, or looks something up by."""
    names, found = {*TARGETS, *BACKENDS}, defaultdict(list)
    for node in ast.walk(ast.parse(path.read_text())):
        parts: list[ast.expr | None] = []
        if isinstance(node, ast.Compare):
            for operand in (node.left, *node.comparators):
                parts += operand.elts if isinstance(operand, (ast.Tuple, ast.List, ast.Set)) else [operand]
        elif isinstance(node, ast.Dict):
            parts += node.keys
        elif isinstance(node, ast.MatchValue):
            parts.append(node.value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in DECIDING:
            parts += node.args[:1]
        for part in parts:
            if isinstance(part, ast.Constant) and part.value in names:
                found[str(part.value)].append(part.lineno)
    return [f"{path.relative_to(ROOT)}:{line} {name!r}" for name, lines in found.items() for line in lines]


def test_only_the_registries_and_a_runtimes_own_file_compare_names() -> None:
    exempt = {name for name in MODULES if name in REGISTRIES or ONE_RUNTIME.search(name)} | {TRITON}
    broken = [place for name, path in MODULES.items() if name not in exempt for place in decisive_names(path)]
    templates = [path for path in (ROOT / "ofq_deploy" / "pages").rglob("*.*") if path.parent.name == "templates"]
    compared = re.compile(r"(?:==|!=|\bin) *[(\[]?[\"'](?:" + "|".join({*TARGETS, *BACKENDS}) + r")[\"']")
    broken += [f"{path.name}: {match[0]}" for path in templates for match in compared.finditer(path.read_text())]

    assert templates
    assert broken == []


@pytest.mark.parametrize(
    "line",
    [
        'if target == "fp32": pass',
        'if target in ("portable", "ort-cpu"): pass',
        'x = {"openvino": 1}[backend]',
        'if backend.startswith("ort-cpu"): pass',
    ],
)
def test_a_compared_name_is_found(line: str) -> None:
    path = ROOT / "tests" / "a_line.py"  # never written: the text is what is read

    class Text(type(path)):  # type: ignore[misc]
        def read_text(self, *_: object, **__: object) -> str:
            return line

    assert len(decisive_names(Text(path))) >= 1
