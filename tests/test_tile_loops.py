"""The object code of the AMX kernels: what only a disassembly shows.

A call or a `vzeroupper` between tile products, as an epilogue that was not inlined brings it, costs a third of the speed and changes no result.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "kernels/src/isa_amx.cpp"
FLAGS = "-std=c++17 -O3 -ffp-contract=off -fPIC -w -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mamx-tile -mamx-int8"
INSTRUCTION = re.compile(r"^\s+([0-9a-f]+):\s+(\S+)\s*(.*)$")

Function = list[tuple[int, str, str]]  # address, operation, operands


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Function]:
    compiler, objdump = shutil.which("c++"), shutil.which("objdump")
    if not compiler or not objdump:
        pytest.skip("needs a C++ compiler and objdump")
    compiled = tmp_path_factory.mktemp("amx") / "isa_amx.o"
    done = subprocess.run(
        [compiler, *FLAGS.split(), "-c", SOURCE, "-o", compiled], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"the compiler does not make AMX code: {done.stderr[:200]}")
    listing = subprocess.run(
        [objdump, "-d", "--no-show-raw-insn", compiled], capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, Function] = {}
    for line in listing.splitlines():
        if head := re.match(r"^[0-9a-f]+ <(.*)>:$", line):
            found[head[1]] = []
        elif match := INSTRUCTION.match(line):
            found[list(found)[-1]].append((int(match[1], 16), match[2], match[3]))
    return found


def successors(function: Function) -> list[list[int]]:
    """Of each instruction, the numbers of those that may come next inside the function."""
    place = {address: i for i, (address, _, _) in enumerate(function)}
    following = []
    for i, (_, operation, operands) in enumerate(function):
        target = re.match(r"([0-9a-f]+) <", operands) if operation.startswith("j") else None
        ends = operation.startswith(("ret", "jmp", "ud2"))
        following.append(
            ([] if ends or i + 1 == len(function) else [i + 1])
            + ([place[int(target[1], 16)]] if target and int(target[1], 16) in place else [])
        )
    return following


def loops(following: list[list[int]], nodes: set[int]) -> list[set[int]]:
    """The outermost loops among these instructions: those that can reach one another (strongly connected, by Tarjan)."""
    order: dict[int, int] = {}
    lowest: dict[int, int] = {}
    stack: list[int] = []
    found = []
    for root in sorted(nodes):
        path = [(root, iter(following[root]))] if root not in order else []
        while path:
            node, rest = path[-1]
            if node not in order:
                order[node] = lowest[node] = len(order)
                stack.append(node)
            step = next((step for step in rest if step in nodes), None)
            if step is None:
                path.pop()
                if path:
                    lowest[path[-1][0]] = min(lowest[path[-1][0]], lowest[node])
                if lowest[node] == order[node]:
                    at = stack.index(node)
                    component, stack[at:] = set(stack[at:]), []
                    found += [component] if len(component) > 1 or node in following[node] else []
            elif step not in order:
                path.append((step, iter(following[step])))
            elif step in stack:
                lowest[node] = min(lowest[node], order[step])
    return found


def inner_loops(following: list[list[int]], loop: set[int]) -> list[set[int]]:
    """The outermost loops inside a loop: what goes round without passing where it is entered."""
    entries = {step for node, steps in enumerate(following) if node not in loop for step in steps if step in loop}
    return loops(following, loop - entries)


def test_nothing_but_work_stands_in_loops_of_tile_products(functions: dict[str, Function]) -> None:
    checked = 0
    for name, function in functions.items():
        if not any(operation.startswith("tdp") for _, operation, _ in function):
            continue
        following = successors(function)
        outer = loops(following, set(range(len(function))))
        if "attention" in name:  # a turn is a tile of queries, which may end with copies for the proof
            outer = [inner for loop in outer for inner in inner_loops(following, loop)]
        for loop in outer:
            operations = {function[i][1] for i in loop}
            if any(operation.startswith("tdp") for operation in operations):
                assert not operations & {"call", "callq", "vzeroupper"}, name
                checked += 1

    assert checked >= 20  # two or more for each form of an epilogue, and those of attention


def test_tiles_are_configured_once_and_never_released(functions: dict[str, Function]) -> None:
    """Another library's products on the same thread may rely on the configuration that they find."""
    operations = [operation for function in functions.values() for _, operation, _ in function]

    assert operations.count("ldtilecfg") == 1
    assert "tilerelease" not in operations
