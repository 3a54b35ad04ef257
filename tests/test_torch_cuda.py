"""Int8 products and blocks in torch and Triton: exact before they are timed, whatever they are timed on."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec import convert, structs

from ofq_deploy import api
from ofq_deploy.cli.speed_texts import gpu_bench_text
from ofq_deploy.errors import UnsupportedByTarget
from ofq_deploy.model.frozen import Frozen, load_frozen
from ofq_deploy.model.graph import Graph
from ofq_deploy.pages.report import render
from ofq_deploy.progress import Reporter
from ofq_deploy.recipe import load_recipe, override
from ofq_deploy.results.bench_gpu import BenchGpuResult
from ofq_deploy.runtime_tests.runners import cuda
from ofq_deploy.runtime_tests.speed import torch_cuda
from ofq_deploy.runtime_tests.speed.int8_block import Block, check_block, check_int8, product
from ofq_deploy.runtime_tests.speed.rounds import Protocol, wall_timer
from ofq_deploy.runtime_tests.speed.torch_cuda import Lane, bench_torch_cuda, block_products, compiled_block
from tests.support.models import sizes
from tests.support.schemas import check

QUICK = Protocol(warm_up_calls=1, warm_up_seconds=0, rounds=1, samples=1, calls=2)
CPU = Lane("cpu", wall_timer)
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


@pytest.fixture(scope="module")
def frozen(tiny_run: Path) -> Frozen:
    """qkr, a step per token"""
    return load_frozen(tiny_run / "frozen.safetensors")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, tiny_settings: dict[str, Any]) -> Frozen:
    """Plain attention, a step per tensor"""
    recipe = override(load_recipe("digits-w4a4"), tiny_settings)
    recipe = replace(recipe, quantization=replace(recipe.quantization, attention="qk", act_step="tensor"))
    run = api.train(recipe, output=tmp_path_factory.mktemp("runs") / "qk", device="cpu")
    return load_frozen(run / "frozen.safetensors")


@pytest.fixture(params=["frozen", "other"])
def either(request: pytest.FixtureRequest) -> Frozen:
    return request.getfixturevalue(request.param)


lengths = st.integers(1, 40)


@given(
    lengths, lengths, lengths, st.integers(1, 3), st.integers(1, 3), st.booleans(), st.booleans(), st.integers(0, 99)
)
def test_a_product_is_exact(
    m: int, n: int, k: int, images: int, heads: int, shared: bool, coded: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    images = 1 if shared else images
    a = rng.integers(-128, 128, (images, 1 if shared else heads, m, k), dtype=np.int8)
    b = rng.integers(-128, 128, (images, heads, n, k), dtype=np.int8)
    column, row, bias = (rng.random(size, dtype=np.float32) for size in ((heads, n), m, (heads, n)))
    step = rng.random((1, m, 1), dtype=np.float32) + np.float32(0.5)
    total = (a.astype(np.int64) @ b.astype(np.int64).swapaxes(2, 3)).astype(np.float32)
    expected = total * column[:, None] * row[:, None] + bias[:, None]
    if coded:
        expected = np.clip(np.rint(expected / step), -8, 7)

    given = [torch.from_numpy(array) for array in (a, b, column, row, bias)]
    ours = product(*given, torch.from_numpy(step) if coded else None, (-8, 7))  # type: ignore[call-arg, arg-type]

    assert ours.dtype == (torch.int8 if coded else torch.float32)
    np.testing.assert_array_equal(ours.numpy(), expected)


def values(frozen: Frozen, images: int) -> torch.Tensor:
    a = sizes(frozen)
    return torch.from_numpy(np.random.default_rng(0).standard_normal((images, a.tokens, a.dim), dtype=np.float32))


def test_a_block_computes_the_oracles_codes(either: Frozen) -> None:
    for name in (f"blocks.{index}" for index in range(sizes(either).depth)):
        judged = check_block(Block(either, name, 3, product, "cpu"), values(either, 3))

        assert {row.operator for row in judged} == {key for key in either.quantizers if key.startswith(f"{name}.")}
        assert sum(row.mismatches for row in judged) == 0
        assert sum(row.compared for row in judged) > 30_000


@pytest.mark.parametrize(
    "name",
    ["attn.v.weight.codes", "mlp.fc1.bias", "attn.context.scale", "attn.scores.key_shift", "attn.context.row_sum"],
)
def test_a_wrong_block_is_found(either: Frozen, name: str) -> None:
    array = either[f"blocks.0.{name}"]
    damaged = array + 5 * (np.arange(array.shape[-1]) % 2).astype(array.dtype)
    block = Block(replace(either, arrays={**either.arrays, f"blocks.0.{name}": damaged}), "blocks.0", 2, product, "cpu")
    block.frozen = either

    judged = check_block(block, values(either, 2))

    assert sum(row.mismatches for row in judged) > 0


def test_a_block_compiles_whole(either: Frozen) -> None:
    block = Block(either, "blocks.0", 2, product, "cpu")
    with torch.no_grad():
        compiled, reason = compiled_block(block, values(either, 2), backend="aot_eager")

    assert (compiled is not None, reason) == (True, "")


def test_a_block_that_compiles_to_something_else_is_not_timed(frozen: Frozen) -> None:
    calls = iter([1.0, 2.0, 3.0])
    block = lambda x: x * next(calls)  # noqa: E731 - it computes something else every time

    compiled, reason = compiled_block(block, torch.ones(4), backend="eager")

    assert compiled is None
    assert reason


def test_the_products_are_the_models(frozen: Frozen, other: Frozen) -> None:
    a = sizes(frozen)
    shapes = {shape.name: shape for shape in block_products(frozen)}

    assert (shapes["attn.z"].n, shapes["attn.z"].k) == (a.heads * a.dim, a.dim)
    assert (shapes["attn.scores"].left, shapes["attn.scores"].right, shapes["attn.scores"].k) == (1, a.heads, a.dim)
    assert (shapes["mlp.fc2"].m, shapes["mlp.fc2"].n, shapes["mlp.fc2"].k) == (a.tokens, a.dim, a.hidden)
    assert {"attn.q", "attn.k", "attn.v"} < {shape.name for shape in block_products(other)}
    assert "attn.z" not in {shape.name for shape in block_products(other)}


def test_bench_times_what_is_exact(either: Frozen) -> None:
    result = bench_torch_cuda(either, (1, 2), Reporter(True), QUICK, CPU)

    assert result["passed"]
    assert result["faults"] == []
    assert len(result["products"]) == 2 * len(block_products(either))
    for row in result["products"]:
        int8 = {name for name in row["latency_ms"] if name.startswith("torch._int_mm")}
        assert int8 == ({"torch._int_mm to float32", "torch._int_mm to int8"} if row["constant"] else set())
        assert {"float16", "bfloat16"} < row["latency_ms"].keys() or not row["constant"]
        assert row["skipped"] == ({} if row["constant"] else {"torch._int_mm": "torch has no batched int8 product"})
        assert row["speedup"].keys() == int8
    assert [row["batch"] for row in result["speedup"]] == [1, 2]
    assert [row["form"] for row in result["model"]["latency_ms"]] == ["torch._int_mm"] * 2
    assert result["verdict"].endswith("not TensorRT")
    json.dumps(result)


def test_what_the_command_tells_of_it(tiny_run: Path, ort_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the bench of the processor, told as one of a GPU."""
    gpu = {"name": "NVIDIA H100", "capability": "9.0", "driver": "", "uuid": "GPU-0"}
    monkeypatch.setattr(cuda, "gpu", lambda otherwise: cuda.Gpu(**gpu))

    def on_the_cpu(frozen: Frozen, batches: tuple[int, ...], report: Reporter, *_: object) -> dict[str, Any]:
        return bench_torch_cuda(frozen, batches, report, QUICK, CPU) | {"gpu": gpu}

    monkeypatch.setattr(torch_cuda, "bench_torch_cuda", on_the_cpu)
    result = api.bench(ort_model, backend="torch-cuda", batches=(1, 2))
    check(result)
    page = render("title", [result])

    assert result["schema"] == "ofq-deploy/bench-gpu/1"
    assert result["model"]["path"] == str(ort_model)
    assert gpu_bench_text(convert(result, BenchGpuResult)).startswith(
        f"{ort_model} on NVIDIA H100, compute capability 9.0, driver unknown\n"
    )
    assert "Speed in torch-cuda on a GPU" in page
    assert all(f"{row['p50']:.3f}" in page for role in ("model", "baseline") for row in result[role]["latency_ms"])


@pytest.mark.parametrize("wrong", ["codes", "sums"])
def test_what_is_not_exact_is_a_fault_and_is_not_timed(
    frozen: Frozen, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    def damaged(*arguments: Any) -> torch.Tensor:
        out = product(*arguments)
        if out.dtype == (torch.int8 if wrong == "codes" else torch.float32):
            out[..., 0, 0] += 1
        return out

    monkeypatch.setattr(torch_cuda, "product", damaged)

    result = bench_torch_cuda(frozen, (1,), Reporter(True), QUICK, CPU)

    assert not result["passed"]
    assert result["verdict"].startswith(f"Failed: {result['faults'][0]}; ")
    form = {"codes": "int8", "sums": "float32"}[wrong]
    assert f"torch._int_mm to {form} of mlp.fc1 at batch 1 differs from exact integers" in result["faults"]
    if wrong == "codes":
        assert "torch._int_mm of a block at batch 1 codes differ from the oracle's" in result["faults"]
    timed = {name for row in result["products"] for name in row["latency_ms"]}
    assert f"torch._int_mm to {form}" not in timed


def test_codes_beyond_int8_are_refused(frozen: Frozen) -> None:
    nodes = [
        structs.replace(node, bits=8) if node.output == "blocks.0.attn.softmax.codes" else node
        for node in frozen.graph.nodes
    ]
    wide = replace(frozen, graph=Graph(tuple(nodes)))

    with pytest.raises(UnsupportedByTarget, match=r"blocks\.0\.attn\.softmax has codes beyond int8.*at most 7 bits"):
        check_int8(wide)


def test_refusals_of_the_gpu_are_told_before_it_is_asked() -> None:
    refusal = partial(torch_cuda._refusal, device="cuda")
    shape = torch_cuda.Shape("attn.v", 1, 1, 197, 192, 192, True)

    assert refusal(shape, 197) == ""
    assert "more than 16 rows" in refusal(shape, 16)
    assert "8 divides" in refusal(replace(shape, k=190), 197)


# Triton's kernel: in its interpreter, and compiled for GPUs that are not here.

INTERPRETED = """
import sys, torch
from ofq_deploy.model.frozen import load_frozen
from ofq_deploy.runtime_tests.speed import int8_block
from ofq_deploy.runtime_tests.speed.triton_int8 import product

generator = torch.Generator().manual_seed(0)
def codes(*size):
    return torch.randint(-128, 128, size, dtype=torch.int8, generator=generator)
def positive(*size):
    return torch.rand(size, generator=generator) + 0.01

for images, left, right, m, n, k in ((1, 1, 1, 70, 33, 64), (2, 1, 3, 37, 41, 50), (2, 3, 3, 19, 16, 19)):
    a, b = codes(images, left, m, k), codes(images, right, n, k)
    column, row, bias = positive(right, n), positive(m), positive(right, n)
    for step in (None, positive(1, m, 1), positive(right, m, 1)):
        arguments = (a, b, column, row, bias, step, (-8, 7))
        assert torch.equal(product(*arguments), int8_block.product(*arguments)), (m, n, k)
        strided = (a, b.transpose(2, 3).contiguous().transpose(2, 3), column, None, None, step, (-8, 7))
        assert torch.equal(product(*strided), int8_block.product(*strided)), (m, n, k)

frozen = load_frozen(sys.argv[1])
block = int8_block.Block(frozen, "blocks.0", 2, product, "cpu")
x = torch.randn(2, frozen.architecture.tokens, frozen.architecture.dim, generator=generator)
judged = int8_block.check_block(block, x)
assert sum(row.mismatches for row in judged) == 0 < sum(row.compared for row in judged)
"""

COMPILED = """
import json, re
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ofq_deploy.runtime_tests.speed import triton_int8

names = triton_int8._product.arg_names
pointers = {"a": "*i8", "b": "*i8", "out": "*i8", **dict.fromkeys(("column", "row", "bias", "step"), "*fp32")}
sizes = {**dict.fromkeys(("low", "high"), "fp32"), **dict.fromkeys(("M", "N", "K", "HEADS"), "i32")}
ones = dict.fromkeys(("a_k", "b_k", "out_n", "column_n", "row_m", "bias_n", "step_m"), 1)
block = dict(HAS_ROW=True, HAS_BIAS=True, QUANTIZE=True, ROUND=triton_int8.ROUNDER, BLOCK_M=128, BLOCK_N=128, BLOCK_K=64)
constants = {**ones, **block}
signature = {n: "constexpr" if n in constants else {**pointers, **sizes}.get(n, "i32") for n in names}
aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n in pointers or (n[:2] in ("a_", "b_") and n not in ones)}
options = {"num_warps": 8, "num_stages": 3, "enable_fp_fusion": False}
found = {}
for capability in (80, 90):
    source = ASTSource(fn=triton_int8._product, signature=signature, constexprs=constants, attrs=aligned)
    ptx = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["ptx"]
    found[capability] = sorted(set(re.findall(r"mma[._][\\w.]*|div\\.\\w+\\.f32|fma\\.\\w+\\.f32", ptx)))
print(json.dumps(found))
"""


def triton_says(program: str, *arguments: str, **variables: str) -> str:
    environment = {**os.environ, **variables}
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@needs_triton
def test_the_kernel_is_exact_in_the_interpreter(tiny_run: Path) -> None:
    triton_says(INTERPRETED, str(tiny_run / "frozen.safetensors"), TRITON_INTERPRET="1")


@needs_triton
def test_the_kernel_compiles_to_integer_tensor_cores(tmp_path: Path) -> None:
    """int32 sums of int8 products, IEEE division, and no multiply-add that would round once instead of twice."""
    found = json.loads(triton_says(COMPILED, TRITON_CACHE_DIR=str(tmp_path)))

    assert any(name.startswith("mma.sync") and ".s32.s8.s8.s32" in name for name in found["80"])
    assert any("mma_async.sync" in name and name.endswith(".s32.s8.s8") for name in found["90"])
    for names in found.values():
        assert {name for name in names if name.startswith(("div", "fma"))} == {"div.rn.f32"}
