"""Object code as a compiler makes it from one of the kernels' sources, and the loops in it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "kernels/src"
FLAGS = "-std=c++17 -O3 -ffp-contract=off -fPIC -w"  # those of kernels/CMakeLists.txt, less what warns
INSTRUCTION = re.compile(r"^\s+([0-9a-f]+):\s+(\S+)\s*(.*)$")

Function = list[tuple[int, str, str]]  # address, operation, operands


def compiled(name: str, flags: str, folder: Path) -> dict[str, Function]:
    """The functions of isa_<name>.cpp, compiled with these flags of its own; skips where the tools for it are missing."""
    compiler, objdump = shutil.which("c++"), shutil.which("objdump")
    if not compiler or not objdump:
        pytest.skip("needs a C++ compiler and objdump")
    code = folder / f"{name}.o"
    command = [compiler, *FLAGS.split(), *flags.split(), "-c", f"{SOURCES}/isa_{name}.cpp", "-o", str(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the compiler does not make code for {name}: {done.stderr[:200]}")
    listing = subprocess.run(
        [objdump, "-d", "--no-show-raw-insn", code], capture_output=True, text=True, check=True
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
