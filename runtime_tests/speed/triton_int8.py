"""An int8 matrix product in Triton with the epilogue that a quantized layer needs. Imported where it runs only.

out = (a @ b^T) * column * row [+ bias], then optionally clip(round(out / step)) as int8. Sums are int32, the epilogue is
float32 in this order without fused multiply-adds, and division is rounded as IEEE says: codes equal the definition's.
"""

from typing import Any

import torch
import triton
import triton.language as tl

ROUNDER = 12582912.0  # 1.5 * 2**23: adding it leaves no fraction bits, so that the addition itself rounds half to even


@triton.jit  # type: ignore[untyped-decorator]
def _product(  # type: ignore[no-untyped-def]
    a, b, out, column, row, bias, step,
    M, N, K, HEADS,
    a_image, a_head, a_m, a_k, b_image, b_head, b_n, b_k, out_image, out_head, out_m, out_n,
    column_head, column_n, row_m, bias_head, bias_n, step_head, step_m, step_n, low, high,
    HAS_ROW: tl.constexpr, HAS_BIAS: tl.constexpr, QUANTIZE: tl.constexpr, ROUND: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    image, head = (tl.program_id(2) // HEADS).to(tl.int64), (tl.program_id(2) % HEADS).to(tl.int64)
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    left = a + image * a_image + head * a_head + m[:, None] * a_m
    right = b + image * b_image + head * b_head + n[None, :] * b_n
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for start in range(0, K, BLOCK_K):
        inside = start + k < K
        x = tl.load(left + (start + k)[None, :] * a_k, mask=(m[:, None] < M) & inside[None, :], other=0)
        y = tl.load(right + (start + k)[:, None] * b_k, mask=(n[None, :] < N) & inside[:, None], other=0)
        total = tl.dot(x, y, total, out_dtype=tl.int32)
    value = total.to(tl.float32) * tl.load(column + head * column_head + n * column_n, mask=n < N, other=0.0)[None, :]
    if HAS_ROW:
        value = value * tl.load(row + m * row_m, mask=m < M, other=0.0)[:, None]
    if HAS_BIAS:
        value = value + tl.load(bias + head * bias_head + n * bias_n, mask=n < N, other=0.0)[None, :]
    valid = (m[:, None] < M) & (n[None, :] < N)
    where = out + image * out_image + head * out_head + m[:, None] * out_m + n[None, :] * out_n
    if QUANTIZE:
        steps = step + head * step_head + m[:, None] * step_m + n[None, :] * step_n
        value = tl.div_rn(value, tl.load(steps, mask=valid, other=1.0))
        value = tl.minimum(tl.maximum(value, low), high)  # before rounding: the bounds are integers
        tl.store(where, ((value + ROUND) - ROUND).to(tl.int8), mask=valid)
    else:
        tl.store(where, value, mask=valid)


CONFIGS = [
    triton.Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}, num_warps=warps, num_stages=stages)
    for m, n, k, warps, stages in (
        (128, 128, 64, 8, 3),
        (128, 64, 64, 4, 4),
        (64, 128, 64, 4, 4),
        (64, 64, 64, 4, 4),
        (128, 128, 128, 8, 3),
        (32, 64, 128, 4, 4),
    )
]
_tuned = triton.autotune(CONFIGS, key=["M", "N", "K", "HEADS"])(_product)


@torch.library.custom_op("ofq_deploy::int8_product", mutates_args=())
def _launch(
    a: torch.Tensor,
    b: torch.Tensor,
    column: torch.Tensor,
    row: torch.Tensor | None,
    bias: torch.Tensor | None,
    step: torch.Tensor | None,
    low: int,
    high: int,
) -> torch.Tensor:
    out = _empty(a, b, step)
    images, heads, m, n = out.shape
    k = a.shape[3]
    a, b = a.expand(images, heads, m, k), b.expand(images, heads, n, k)
    columns, rows = column.expand(heads, n), column if row is None else row.expand(m)
    biases = columns if bias is None else bias.expand(heads, n)
    steps = columns[:, None] if step is None else step.expand(heads, m, n)
    arguments = (
        a, b, out, columns, rows, biases, steps,
        m, n, k, heads,
        *a.stride(), *b.stride(), *out.stride(),
        *columns.stride(), rows.stride(-1), *biases.stride(), *steps.stride(),
        float(low), float(high),
    )  # fmt: skip
    options: dict[str, Any] = {
        "HAS_ROW": row is not None,
        "HAS_BIAS": bias is not None,
        "QUANTIZE": step is not None,
        "ROUND": ROUNDER,
    }

    def grid(meta: dict[str, Any]) -> tuple[int, int, int]:
        return triton.cdiv(m, meta["BLOCK_M"]), triton.cdiv(n, meta["BLOCK_N"]), images * heads

    if a.is_cuda:
        _tuned[grid](*arguments, **options, enable_fp_fusion=False)
    else:  # Triton's interpreter, which tests use
        _product[grid](*arguments, **options, BLOCK_M=32, BLOCK_N=32, BLOCK_K=32)
    return out


@_launch.register_fake
def _(
    a: torch.Tensor,
    b: torch.Tensor,
    column: torch.Tensor,
    row: torch.Tensor | None,
    bias: torch.Tensor | None,
    step: torch.Tensor | None,
    low: int,
    high: int,
) -> torch.Tensor:
    return _empty(a, b, step)


def _empty(a: torch.Tensor, b: torch.Tensor, step: torch.Tensor | None) -> torch.Tensor:
    size = (a.shape[0], max(a.shape[1], b.shape[1]), a.shape[2], b.shape[2])
    return torch.empty(size, dtype=torch.float32 if step is None else torch.int8, device=a.device)


def product(
    a: torch.Tensor,
    b: torch.Tensor,
    column: torch.Tensor,
    row: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    step: torch.Tensor | None = None,
    limits: tuple[int, int] = (-128, 127),
) -> torch.Tensor:
    """What ofq_deploy.runtime_tests.speed.int8_block.product computes; fastest where k is contiguous in both operands."""
    return _launch(a, b, column, row, bias, step, *limits)
