"""A linear layer with its bias and activation in one launch, and the two launches of its backward pass.

    y  [M, N] = phi(x [M, K] W [N, K]^T + b [N])
    g  [M, N] = gy * phi'(saved)                  formed in the operand load, never stored
    gx [M, K] = g W
    gW [N, K] = g^T x,   gb [N] = sum over M of g  by the programs of the first K tile, in the same pass

Contract: bf16, fp16 or fp32, one dtype for all operands; x, W and gy by any strides, ``saved`` contiguous; outputs are
contiguous, in the operands' dtype, accumulated in fp32. fp32 operands are multiplied as PyTorch's TF32 setting says.
Any of M, N, K may be 0. Sums run in a fixed order, without atomics: the same operands give the same bits. Addresses
are int64 from the program's number on, so operands may have more than 2^31 elements.

Work, in elements and multiply-adds (s: 1 where the activation saves something, else 0):
    forward       reads MK + NK + N,        writes MN (2 MN with the pre-activation)   MNK
    input grad    reads (1 + s) MN + NK,    writes MK                                  MNK
    weight grad   reads (1 + s) MN + MK,    writes NK + N                              MNK
Operands are read once per tile across; programs run in groups, so that the rereads come from L2.

Registers a thread, the most of any variant on sm_80, 86, 89, 90, 100 and 120 (Triton 3.6.0 and 3.7.1), nothing spilled:
    tile                        forward   input grad   weight grad   capped at
    128x128, 16-bit / TF32    218 / 252    255 / 255     246 / 204         255
    128x64 (masked, 99 KB)            -    207 / 197     244 / 162         255
    64x64                     165 / 164    249 / 204     226 / 242         255
    32x32                     127 / 134    124 / 154     126 / 162   128 / 168
    64x64, 32x32 in IEEE      224 / 172    225 / 188     240 / 192         255
wgmma on sm_90 wherever the tile has 64 rows or more, save in IEEE fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels.activation import activate, times_derivative
from fastgan.kernels.launch import Launch
from fastgan.kernels.tile import GROUP, Config, Problem, Target, candidates, choose, regular, tile_of
from fastgan.kernels.variant import Variant


@triton.jit(do_not_specialize=["M"])
def linear_fwd_kernel(
    x, w, bias, y, pre, M, N, K, x_m, x_k, w_n, w_k, slope,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One [BM, BN] tile of y, and of the pre-activation where ``pre`` is given."""
    tile_m, tile_n = tile_of(tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(N, BN), GROUP)
    m = tile_m.to(tl.int64) * BM + tl.arange(0, BM)  # [BM]
    n = tile_n.to(tl.int64) * BN + tl.arange(0, BN)  # [BN]
    k = tl.arange(0, BK).to(tl.int64)  # [BK]
    x_tile = x + m[:, None] * x_m + k[None, :] * x_k  # [BM, BK]
    w_tile = w + k[:, None] * w_k + n[None, :] * w_n  # [BK, BN]
    depth = tl.cast(BK, tl.int64)

    total = tl.zeros([BM, BN], tl.float32)
    for done in range(0, K, BK):
        left = k < K - done
        a = tl.load(x_tile, mask=(m[:, None] < M) & left[None, :], other=0.0)
        b = tl.load(w_tile, mask=left[:, None] & (n[None, :] < N), other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
        x_tile += depth * x_k
        w_tile += depth * w_k

    if bias is not None:
        total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    at = m[:, None] * N + n[None, :]
    inside = (m[:, None] < M) & (n[None, :] < N)
    if pre is not None:
        tl.store(pre + at, total.to(pre.dtype.element_ty), mask=inside)
    tl.store(y + at, activate(total, slope, ACTIVATION).to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["M"])
def linear_bwd_input_kernel(
    gy, saved, w, gx, M, N, K, g_m, g_n, w_n, w_k, slope,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One [BM, BK] tile of gx."""
    tile_m, tile_k = tile_of(tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(K, BK), GROUP)
    m = tile_m.to(tl.int64) * BM + tl.arange(0, BM)  # [BM]
    k = tile_k.to(tl.int64) * BK + tl.arange(0, BK)  # [BK]
    n = tl.arange(0, BN).to(tl.int64)  # [BN]
    g_tile = gy + m[:, None] * g_m + n[None, :] * g_n  # [BM, BN]
    w_tile = w + n[:, None] * w_n + k[None, :] * w_k  # [BN, BK]
    if saved is not None:
        s_tile = saved + m[:, None] * N + n[None, :]  # [BM, BN]
    depth = tl.cast(BN, tl.int64)

    total = tl.zeros([BM, BK], tl.float32)
    for done in range(0, N, BN):
        left = n < N - done
        live = (m[:, None] < M) & left[None, :]
        g = tl.load(g_tile, mask=live, other=0.0)
        if saved is not None:
            g = times_derivative(g, tl.load(s_tile, mask=live, other=0.0), slope, ACTIVATION).to(g.dtype)
            s_tile += depth
        b = tl.load(w_tile, mask=left[:, None] & (k[None, :] < K), other=0.0)
        total = tl.dot(g, b, total, input_precision=PRECISION)
        g_tile += depth * g_n
        w_tile += depth * w_n

    inside = (m[:, None] < M) & (k[None, :] < K)
    tl.store(gx + m[:, None] * K + k[None, :], total.to(gx.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["M"])
def linear_bwd_weight_kernel(
    gy, saved, x, gw, gb, M, N, K, g_m, g_n, x_m, x_k, slope,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One [BN, BK] tile of gW; the first tile of a row also writes its BN elements of gb, where that is given."""
    tiles_k = tl.maximum(tl.cdiv(K, BK), 1)  # with K = 0 there is still a bias gradient to write
    tile_n, tile_k = tile_of(tl.program_id(0), tl.cdiv(N, BN), tiles_k, GROUP)
    n = tile_n.to(tl.int64) * BN + tl.arange(0, BN)  # [BN]
    k = tile_k.to(tl.int64) * BK + tl.arange(0, BK)  # [BK]
    m = tl.arange(0, BM).to(tl.int64)  # [BM]
    g_tile = gy + m[:, None] * g_m + n[None, :] * g_n  # [BM, BN]
    x_tile = x + m[:, None] * x_m + k[None, :] * x_k  # [BM, BK]
    if saved is not None:
        s_tile = saved + m[:, None] * N + n[None, :]  # [BM, BN]
    depth = tl.cast(BM, tl.int64)

    total = tl.zeros([BN, BK], tl.float32)
    column = tl.zeros([BN], tl.float32)
    for done in range(0, M, BM):
        left = m < M - done
        live = left[:, None] & (n[None, :] < N)
        g = tl.load(g_tile, mask=live, other=0.0)
        if saved is not None:
            g = times_derivative(g, tl.load(s_tile, mask=live, other=0.0), slope, ACTIVATION).to(g.dtype)
            s_tile += depth * N
        if gb is not None and tile_k == 0:
            column += tl.sum(g.to(tl.float32), axis=0)
        b = tl.load(x_tile, mask=left[:, None] & (k[None, :] < K), other=0.0)
        total = tl.dot(tl.trans(g), b, total, input_precision=PRECISION)
        g_tile += depth * g_m
        x_tile += depth * x_m

    inside = (n[:, None] < N) & (k[None, :] < K)
    tl.store(gw + n[:, None] * K + k[None, :], total.to(gw.dtype.element_ty), mask=inside)
    if gb is not None and tile_k == 0:
        tl.store(gb + n, column.to(gb.dtype.element_ty), mask=n < N)


def fwd_launch(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    y: Tensor,
    pre: Tensor | None,
    activation: str,
    slope: float,
    target: Target,
    config: Config | None = None,
) -> Launch:
    """Prepare y [M, N] = phi(x [M, K] w [N, K]^T + bias [N])."""
    (M, K), N = x.shape, w.shape[0]
    vectors = regular(x, w, y)
    tile = config or choose(Problem("linear_fwd", M, N, K, x.dtype.itemsize, target, vectors=vectors))
    arguments: dict[str, object] = {"x": x, "w": w, "bias": bias, "y": y, "pre": pre, "M": M, "N": N, "K": K}
    arguments |= {"x_m": x.stride(0), "x_k": x.stride(1), "w_n": w.stride(0), "w_k": w.stride(1), "slope": slope}
    constexprs: dict[str, object] = {"ACTIVATION": activation, "PRECISION": target.precision, "GROUP": GROUP}
    constexprs |= {"BM": tile.rows, "BN": tile.cols, "BK": tile.depth}
    return Launch(linear_fwd_kernel, arguments, constexprs, tile.programs(M, N), tile)


def bwd_input_launch(
    gy: Tensor,
    saved: Tensor | None,
    w: Tensor,
    gx: Tensor,
    activation: str,
    slope: float,
    target: Target,
    config: Config | None = None,
) -> Launch:
    """Prepare gx [M, K] = (gy [M, N] * phi'(saved [M, N])) w [N, K]."""
    (M, N), K = gy.shape, w.shape[1]
    masked, vectors = saved is not None, regular(gy, w)
    tile = config or choose(Problem("linear_bwd_input", M, K, N, gy.dtype.itemsize, target, masked, vectors))
    arguments: dict[str, object] = {"gy": gy, "saved": saved, "w": w, "gx": gx, "M": M, "N": N, "K": K}
    arguments |= {"g_m": gy.stride(0), "g_n": gy.stride(1), "w_n": w.stride(0), "w_k": w.stride(1), "slope": slope}
    constexprs: dict[str, object] = {"ACTIVATION": activation, "PRECISION": target.precision, "GROUP": GROUP}
    constexprs |= {"BM": tile.rows, "BK": tile.cols, "BN": tile.depth}
    return Launch(linear_bwd_input_kernel, arguments, constexprs, tile.programs(M, K), tile)


def bwd_weight_launch(
    gy: Tensor,
    saved: Tensor | None,
    x: Tensor,
    gw: Tensor,
    gb: Tensor | None,
    activation: str,
    slope: float,
    target: Target,
    config: Config | None = None,
) -> Launch:
    """Prepare gw [N, K] = (gy [M, N] * phi'(saved [M, N]))^T x [M, K], and gb [N] where it is given."""
    (M, N), K = gy.shape, x.shape[1]
    masked, vectors = saved is not None, regular(gy, x)
    tile = config or choose(Problem("linear_bwd_weight", N, K, M, gy.dtype.itemsize, target, masked, vectors))
    arguments: dict[str, object] = {"gy": gy, "saved": saved, "x": x, "gw": gw, "gb": gb, "M": M, "N": N, "K": K}
    arguments |= {"g_m": gy.stride(0), "g_n": gy.stride(1), "x_m": x.stride(0), "x_k": x.stride(1), "slope": slope}
    constexprs: dict[str, object] = {"ACTIVATION": activation, "PRECISION": target.precision, "GROUP": GROUP}
    constexprs |= {"BN": tile.rows, "BK": tile.cols, "BM": tile.depth}
    return Launch(linear_bwd_weight_kernel, arguments, constexprs, tile.programs(N, K), tile)


def linear_fwd(
    x: Tensor, w: Tensor, bias: Tensor | None, activation: str, slope: float, store_pre: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return phi(x [M, K] w [N, K]^T + bias [N]), and the pre-activation too where it is asked for."""
    y = x.new_empty(x.shape[0], w.shape[0])
    pre = torch.empty_like(y) if store_pre else None
    if y.numel():
        bias = None if bias is None else bias.contiguous()
        fwd_launch(x, w, bias, y, pre, activation, slope, Target.of(x)).run()
    return y, pre


def linear_bwd_input(gy: Tensor, saved: Tensor | None, w: Tensor, activation: str, slope: float) -> Tensor:
    """Return the gradient of x [M, K] from gy [M, N] and the saved output or pre-activation [M, N]."""
    gx = gy.new_empty(gy.shape[0], w.shape[1])
    if gx.numel():
        bwd_input_launch(gy, saved, w, gx, activation, slope, Target.of(gy)).run()
    return gx


def linear_bwd_weight(
    gy: Tensor, saved: Tensor | None, x: Tensor, activation: str, slope: float, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the gradient of w [N, K], and of the bias [N] where it is asked for, in the operands' dtype."""
    gw = gy.new_empty(gy.shape[1], x.shape[1])
    gb = gy.new_empty(gy.shape[1]) if with_bias else None
    if gy.shape[1]:  # with K = 0 there may still be a bias gradient
        bwd_weight_launch(gy, saved, x, gw, gb, activation, slope, Target.of(gy)).run()
    return gw, gb


@dataclass(frozen=True)
class _Case:
    """Operands that make compiled forms of their own: Triton folds sizes and strides of 1, and asks what 16 divides."""

    activation: str = "leaky_relu"
    slope: float = 0.2
    bias: bool = True
    x: str = "rows"
    w: str = "rows"
    gy: str = "rows"
    N: int = 256
    K: int = 512

    def __str__(self) -> str:
        told = (f"{field.name}={getattr(self, field.name)}" for field in fields(self)[1:])
        usual = {f"{field.name}={field.default}" for field in fields(self)}
        return " ".join([self.activation, *(text for text in told if text not in usual)])


_CASES = (
    *(_Case(activation) for activation in ("none", "relu", "leaky_relu", "tanh", "sigmoid")),
    _Case(slope=-0.2),
    _Case(bias=False),
    *(_Case(x=x, w=w, gy=x) for x, w in product(("rows", "columns"), repeat=2)),
    _Case(x="steps", w="steps", gy="steps"),
    _Case(gy="expanded"),
    *(_Case(N=N, K=K) for N, K in ((1, 512), (256, 1), (255, 512), (256, 511), (255, 511))),
)


def _meta(rows: int, cols: int, layout: str, dtype: torch.dtype) -> Tensor:
    """Build an operand without storage: contiguous along rows or columns, in steps of 2, or one element for all."""
    strides = {"rows": (cols, 1), "columns": (1, rows), "steps": (4 * cols, 2), "expanded": (0, 0)}[layout]
    return torch.empty_strided((rows, cols), strides, dtype=dtype, device="meta")


def _launches(case: _Case, dtype: torch.dtype, target: Target) -> Iterator[Launch]:
    """Yield what the dispatcher launches for such operands, in each tile that it may choose."""
    M, N, K, how = 1024, case.N, case.K, (case.activation, case.slope, target)
    x, w, gy = _meta(M, K, case.x, dtype), _meta(N, K, case.w, dtype), _meta(M, N, case.gy, dtype)
    y, gx, gw = (_meta(*size, "rows", dtype) for size in ((M, N), (M, K), (N, K)))
    bias = torch.empty(N, dtype=dtype, device="meta") if case.bias else None
    saved = None if case.activation == "none" else y
    masked, size = saved is not None, dtype.itemsize
    for tile in candidates(Problem("linear_fwd", M, N, K, size, target, vectors=regular(x, w, y))):
        yield fwd_launch(x, w, bias, y, y if case.slope < 0 else None, *how, tile)
    for tile in candidates(Problem("linear_bwd_input", M, K, N, size, target, masked, regular(gy, w))):
        yield bwd_input_launch(gy, saved, w, gx, *how, tile)
    for tile in candidates(Problem("linear_bwd_weight", N, K, M, size, target, masked, regular(gy, x))):
        yield bwd_weight_launch(gy, saved, x, gw, bias, *how, tile)


def variants(arch: int) -> Iterator[Variant]:
    """Yield every compiled form that the dispatcher can choose on compute capability arch / 10, each once."""
    seen = set()
    forms = ((torch.bfloat16, "tf32"), (torch.float16, "tf32"), (torch.float32, "tf32"), (torch.float32, "ieee"))
    for (dtype, precision), case in product(forms, _CASES):
        kind = precision if dtype == torch.float32 else str(dtype).removeprefix("torch.")
        for launch in _launches(case, dtype, Target(arch, precision)):
            rows = 0 if precision == "ieee" else launch.config.rows
            variant = launch.variant("linear", f"{kind} {case} {launch.config}", rows)
            form = repr((variant.kernel, variant.signature, variant.constexprs, variant.divisible, launch.config))
            if form not in seen:
                seen.add(form)
                yield variant
