"""The object code of products in vector registers: sums that a compiler moves to memory cost half of the speed and change no result."""

import re
from pathlib import Path

import pytest

from tests.support.object_code import compiled, loops, successors

FLAGS = {
    "avx2": "-mavx2 -mfma",
    "avxvnni": "-mavx2 -mfma -mavxvnni",
    "avx512vnni": "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma",
}
PRODUCT = re.compile("sum_(bytes|words|in_registers|half)")
STORE = re.compile(r"v?mov[a-z0-9]* %[xyz]mm\d+,.*\(")


@pytest.mark.parametrize("name", FLAGS)
def test_sums_stay_in_registers(name: str, tmp_path: Path) -> None:
    checked = 0
    for function, code in compiled(name, FLAGS[name], tmp_path).items():
        if not PRODUCT.search(function):
            continue
        inside = loops(successors(code), set(range(len(code))))
        lines = [f"{code[i][1]} {code[i][2]}" for loop in inside for i in loop]
        assert any("vpmadd" in line or "vpdpbusd" in line for line in lines), function
        assert not [line for line in lines if STORE.match(line)], function
        checked += 1

    assert checked >= 3
