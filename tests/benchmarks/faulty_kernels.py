"""A matrix product in good and in faulty variants: what the audit must let pass, and what it must see."""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from fastgan.kernels.variant import Variant


@triton.jit
def product_kernel(
    a,
    b,
    c,
    M,
    N,
    K,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
    BROKEN: tl.constexpr,
):
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    total = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        x = tl.load(a + m[:, None] * K + (start + k)[None, :], mask=(m[:, None] < M) & ((start + k)[None, :] < K))
        y = tl.load(b + (start + k)[:, None] * N + n[None, :], mask=((start + k)[:, None] < K) & (n[None, :] < N))
        total = tl.dot(x, y, total, input_precision=PRECISION)
    if BROKEN:
        tl.static_assert(False, "a planted compile error")
    tl.store(c + m[:, None] * N + n[None, :], total.to(c.dtype.element_ty), mask=(m[:, None] < M) & (n[None, :] < N))


def variant(
    label: str, dtype: str, tile: tuple[int, int, int], *, precision: str = "tf32", **options: object
) -> Variant:
    broken = options.pop("broken", False)
    return Variant(
        "product",
        "product_kernel",
        product_kernel,
        label,
        {"a": f"*{dtype}", "b": f"*{dtype}", "c": f"*{dtype}", "M": "i32", "N": "i32", "K": "i32"},
        {**dict(zip(("BM", "BN", "BK"), tile, strict=True)), "PRECISION": precision, "BROKEN": broken},
        frozenset("abcMNK"),
        **{"num_warps": 4, "num_stages": 2, "matrix_rows": tile[0], **options},  # type: ignore[arg-type]
    )


def variants(arch: int) -> Iterator[Variant]:
    yield variant("good bf16", "bf16", (64, 64, 32))
    yield variant("good tf32", "fp32", (64, 64, 32))
    yield variant("good ieee", "fp32", (64, 32, 16), precision="ieee")
    yield variant("too many registers", "bf16", (64, 64, 32), max_registers=16)
    yield variant("spilling", "bf16", (128, 256, 32))
    yield variant("too much shared memory", "bf16", (64, 256, 64), num_warps=8, num_stages=4)
    yield variant("no wgmma", "bf16", (32, 64, 32), matrix_rows=64)
    yield variant("broken", "bf16", (64, 64, 32), broken=True)
