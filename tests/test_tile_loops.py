"""The object code of the AMX kernels: what only a disassembly shows.

A call or a `vzeroupper` between tile products, as an epilogue that was not inlined brings it, costs a third of the speed and changes no result.
"""

import pytest

from tests.support.object_code import Function, compiled, loops, successors

FLAGS = "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mamx-tile -mamx-int8"


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Function]:
    return compiled("amx", FLAGS, tmp_path_factory.mktemp("amx"))


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
