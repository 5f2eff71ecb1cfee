"""A linear layer of concatenated inputs, read where they lie: nothing is concatenated, and no embedding is gathered.

    y  [M, N] = phi([x0 | x1 | x2] W [N, K0 + K1 + K2]^T + b [N])
    gW [N, K0 + K1 + K2] = [g^T x0 | g^T x1 | g^T x2],   gb [N] = sum over M of g,   g [M, N] = gy * phi'(saved)
    the gradient of a part is g W[:, its columns]: ``linear_bwd_input`` on that view

Contract: one to three parts. A part is its values [M, K], or a table [V, K] with an index [M] (int32 or int64), which
stands for table[index]. An index outside the table reads nothing: it makes its row of y NaN and adds 0 to gW. bf16,
fp16 or fp32, one dtype for all operands; parts, indices, W and gy by any strides, 0 included, ``saved`` contiguous;
outputs are contiguous, in the operands' dtype, accumulated in fp32. fp32 operands are multiplied as PyTorch's TF32
setting says. Any size may be 0. A reduction is shared by several programs where there are few tiles (of each part its
share); sums are added in a fixed order, without atomics: the same operands give the same bits. Addresses are int64 from
the program's number on, so operands may have more than 2^31 elements.

Work, in elements and multiply-adds, K the sum over the parts (s: 1 where the activation saves something, else 0):
    forward       reads MK + NK + N,        writes MN (2 MN with the pre-activation)   MNK
    weight grad   reads (1 + s) MN + MK,    writes NK + N                              MNK
and M indices for each embedded part. Concatenating first would read MK and write MK more, in both directions.
One launch each: forward runs through the parts one after the other with one accumulator, the weight gradient has its
column tiles from part to part, so that each part keeps its own strides and alignment.

Registers a thread, the most in a drawn sample of variants for sm_80, 86, 90, 100 and 120 (Triton 3.7.1; some by 3.6.0),
nothing spilled: forward 253 in 128x128, 196 in 64x64, 114 in 32x32; weight gradient 247 in 128x128, 255 in 64x64, 168
in 32x32 (its cap); IEEE fp32 up to 246. wgmma on sm_90 wherever the tile has 64 rows or more, save in IEEE fp32. Where
64 does not divide M, masks along M take registers: the weight gradient's tiles are then those of irregular operands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels.activation import activate, times_derivative
from fastgan.kernels.launch import Launch, Workspace, submit
from fastgan.kernels.linear import gathered, shared
from fastgan.kernels.tile import GROUP, Config, Problem, Target, choose, regular, tile_of

Part = tuple[Tensor, Tensor | None]  # values [M, K] and None, or a table [V, K] and an index [M]
MOST = 3  # parts of one launch
LEAST_CAP = 168  # registers of the weight gradient's threads


@triton.jit
def rows_of(index, i_m, V, m, there):
    """Which rows of a table its rows ``m`` are, and which of them exist; ``there`` is None where all m do."""
    if there is None:
        row = tl.load(index + m * i_m).to(tl.int64)
        return row, (row >= 0) & (row < V)
    else:
        row = tl.load(index + m * i_m, mask=there, other=0).to(tl.int64)
        return row, there & (row >= 0) & (row < V)


@triton.jit
def add_part(
    total, x, index, w, M, N, K, V, x_m, x_k, i_m, w_n, w_k, m, n, share, splits,
    PRECISION: tl.constexpr, SPLIT: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Add a part times its columns of W, at the first of which ``w`` points; NaN to a row that does not exist."""
    row, there = m, m < M  # [BM]
    if index is not None:
        row, there = rows_of(index, i_m, V, m, there)
    begin, end = 0, K
    if SPLIT:
        length = tl.cdiv(tl.cdiv(K, BK), splits) * BK
        begin, end = share * length, tl.minimum(share * length + length, K)
    k = begin + tl.arange(0, BK).to(tl.int64)  # [BK]
    x_tile = x + row[:, None] * x_m + k[None, :] * x_k  # [BM, BK]
    w_tile = w + k[:, None] * w_k + n[None, :] * w_n  # [BK, BN]
    depth = tl.cast(BK, tl.int64)
    for done in range(begin, end, BK):
        left = k < K - (done - begin)
        a = tl.load(x_tile, mask=there[:, None] & left[None, :], other=0.0)
        b = tl.load(w_tile, mask=left[:, None] & (n[None, :] < N), other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
        x_tile += depth * x_k
        w_tile += depth * w_k
    if index is not None:
        total += tl.where(there, 0.0, float("nan"))[:, None]
    return total


@triton.jit(do_not_specialize=["M", "splits", "V0", "V1", "V2"])
def concat_linear_fwd_kernel(
    x0, x1, x2, index0, index1, index2, w, bias, y, pre, work, ticket, M, splits, N, K0, K1, K2, V0, V1, V2,
    x0_m, x0_k, x1_m, x1_k, x2_m, x2_k, i0_m, i1_m, i2_m, w_n, w_k, slope,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, SPLIT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One [BM, BN] tile of y, and of the pre-activation where ``pre`` is given; x1, x2 and any index may be None."""
    tile, share = tl.program_id(0), 0
    if SPLIT:
        tile, share = tile // splits, tile % splits
    tile_m, tile_n = tile_of(tile, tl.cdiv(M, BM), tl.cdiv(N, BN), GROUP)
    m = tile_m.to(tl.int64) * BM + tl.arange(0, BM)  # [BM]
    n = tile_n.to(tl.int64) * BN + tl.arange(0, BN)  # [BN]

    total = tl.zeros([BM, BN], tl.float32)
    total = add_part(
        total, x0, index0, w, M, N, K0, V0, x0_m, x0_k, i0_m, w_n, w_k, m, n, share, splits, PRECISION, SPLIT, BK
    )  # fmt: skip
    if x1 is not None:
        w += tl.cast(K0, tl.int64) * w_k
        total = add_part(
            total, x1, index1, w, M, N, K1, V1, x1_m, x1_k, i1_m, w_n, w_k, m, n, share, splits, PRECISION, SPLIT, BK
        )  # fmt: skip
    if x2 is not None:
        w += tl.cast(K1, tl.int64) * w_k
        total = add_part(
            total, x2, index2, w, M, N, K2, V2, x2_m, x2_k, i2_m, w_n, w_k, m, n, share, splits, PRECISION, SPLIT, BK
        )  # fmt: skip

    if SPLIT:
        last, total = gathered(total, work, ticket, tile, share, splits, BM, BN)
        if not last:
            return
    if bias is not None:
        total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    at = m[:, None] * N + n[None, :]
    inside = (m[:, None] < M) & (n[None, :] < N)
    if pre is not None:
        tl.store(pre + at, total.to(pre.dtype.element_ty), mask=inside)
    tl.store(y + at, activate(total, slope, ACTIVATION).to(y.dtype.element_ty), mask=inside)


@triton.jit
def weight_tile(
    gy, saved, x, index, M, N, K, V, x_m, x_k, i_m, g_m, g_n, slope, n, k, share, splits, with_bias,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, EVEN: tl.constexpr, SPLIT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A share of g^T x for one [BN, BK] tile, and of the sum over g [BN] where that is wanted."""
    begin, end = 0, M
    if SPLIT:
        length = tl.cdiv(tl.cdiv(M, BM), splits) * BM
        begin, end = share * length, tl.minimum(share * length + length, M)
    lane = tl.arange(0, BM).to(tl.int64)  # [BM]
    in_n, in_k = (n < N)[None, :], (k < K)[None, :]

    total = tl.zeros([BN, BK], tl.float32)
    column = tl.zeros([BN], tl.float32)
    for done in range(begin, end, BM):  # addresses are formed anew in each trip: kept, they would take registers
        m = done + lane
        live_g, live_x, there = in_n, in_k, None
        if not EVEN:
            there = m < M
            live_g, live_x = there[:, None] & in_n, there[:, None] & in_k
        g = tl.load(gy + m[:, None] * g_m + n[None, :] * g_n, mask=live_g, other=0.0)  # [BM, BN]
        if saved is not None:
            s = tl.load(saved + m[:, None] * N + n[None, :], mask=live_g, other=0.0)
            g = times_derivative(g, s, slope, ACTIVATION).to(g.dtype)
        if with_bias:
            column += tl.sum(g.to(tl.float32), axis=0)
        if index is not None:
            m, there = rows_of(index, i_m, V, m, there)
            live_x = there[:, None] & in_k
        b = tl.load(x + m[:, None] * x_m + k[None, :] * x_k, mask=live_x, other=0.0)  # [BM, BK]
        total = tl.dot(tl.trans(g), b, total, input_precision=PRECISION)
    return total, column


@triton.jit(do_not_specialize=["M", "splits", "V0", "V1", "V2"])
def concat_linear_bwd_weight_kernel(
    gy, saved, x0, x1, x2, index0, index1, index2, gw, gb, work, columns, ticket, M, splits, N, K0, K1, K2, V0, V1, V2,
    x0_m, x0_k, x1_m, x1_k, x2_m, x2_k, i0_m, i1_m, i2_m, g_m, g_n, w_n, slope,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, EVEN: tl.constexpr, SPLIT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One [BN, BK] tile of gW, in the part that the program's column falls into; none straddles two. EVEN: BM | M."""
    tile, share = tl.program_id(0), 0
    if SPLIT:
        tile, share = tile // splits, tile % splits
    tiles0 = tl.maximum(tl.cdiv(K0, BK), 1)  # one at least: it has the bias gradient to write
    tiles1 = tl.cdiv(K1, BK) if x1 is not None else 0
    tiles2 = tl.cdiv(K2, BK) if x2 is not None else 0
    tile_n, tile_k = tile_of(tile, tl.cdiv(N, BN), tiles0 + tiles1 + tiles2, GROUP)
    n = tile_n.to(tl.int64) * BN + tl.arange(0, BN)  # [BN]
    k = tile_k.to(tl.int64) * BK + tl.arange(0, BK)  # [BK], from the part's first column on
    width, before = K0, 0  # of the part, and in front of it
    if x1 is not None:
        behind = tile_k >= tiles0
        k -= tl.where(behind, tiles0 * BK, 0)
        width, before = tl.where(behind, K1, K0), tl.where(behind, K0, 0)
    if x2 is not None:
        behind = tile_k >= tiles0 + tiles1
        k -= tl.where(behind, tiles1 * BK, 0)
        width, before = tl.where(behind, K2, width), tl.where(behind, K0 + K1, before)

    total = tl.zeros([BN, BK], tl.float32)
    column = tl.zeros([BN], tl.float32)
    if tile_k < tiles0:
        total, column = weight_tile(
            gy, saved, x0, index0, M, N, K0, V0, x0_m, x0_k, i0_m, g_m, g_n, slope, n, k, share, splits,
            (gb is not None) & (tile_k == 0), ACTIVATION, PRECISION, EVEN, SPLIT, BM, BN, BK,
        )  # fmt: skip
    if x1 is not None and (tile_k >= tiles0) & (tile_k < tiles0 + tiles1):
        total, _ = weight_tile(
            gy, saved, x1, index1, M, N, K1, V1, x1_m, x1_k, i1_m, g_m, g_n, slope, n, k, share, splits,
            False, ACTIVATION, PRECISION, EVEN, SPLIT, BM, BN, BK,
        )  # fmt: skip
    if x2 is not None and tile_k >= tiles0 + tiles1:
        total, _ = weight_tile(
            gy, saved, x2, index2, M, N, K2, V2, x2_m, x2_k, i2_m, g_m, g_n, slope, n, k, share, splits,
            False, ACTIVATION, PRECISION, EVEN, SPLIT, BM, BN, BK,
        )  # fmt: skip

    if SPLIT:
        if gb is not None and tile_k == 0:
            tl.store(columns + tl.cast(share, tl.int64) * N + n, column, mask=n < N)
        last, total = gathered(total, work, ticket, tile, share, splits, BN, BK)
        if not last:
            return
        if gb is not None and tile_k == 0:
            column = tl.zeros([BN], tl.float32)
            for other in range(splits):
                at = columns + tl.cast(other, tl.int64) * N + n
                column += tl.load(at, mask=n < N, other=0.0, cache_modifier=".cg")
    inside = (n[:, None] < N) & (k[None, :] < width)
    tl.store(gw + n[:, None] * w_n + before + k[None, :], total.to(gw.dtype.element_ty), mask=inside)
    if gb is not None and tile_k == 0:
        tl.store(gb + n, column.to(gb.dtype.element_ty), mask=n < N)


def described(parts: Sequence[Part]) -> dict[str, object]:
    """Name what both kernels are told of each part; None for parts that are not there."""
    arguments: dict[str, object] = {}
    for at in range(MOST):
        values, index = parts[at] if at < len(parts) else (None, None)
        arguments[f"x{at}"], arguments[f"index{at}"] = values, index
        arguments[f"K{at}"] = None if values is None else values.shape[1]
        arguments[f"V{at}"] = None if values is None or index is None else values.shape[0]
        arguments[f"x{at}_m"], arguments[f"x{at}_k"] = (None, None) if values is None else values.stride()
        arguments[f"i{at}_m"] = None if index is None else index.stride(0)
    return arguments


def fwd_launch(
    w: Tensor,
    bias: Tensor | None,
    y: Tensor,
    pre: Tensor | None,
    activation: str,
    slope: float,
    target: Target,
    *,
    parts: Sequence[Part],
    config: Config | None = None,
) -> Launch:
    """Prepare y [M, N] = phi(the parts, side by side, times w [N, K]^T + bias [N])."""
    M, N = y.shape
    tile = config or choose(fwd_problem(parts, w, y, target))
    arguments = described(parts) | {"w": w, "bias": bias, "y": y, "pre": pre, "M": M, "N": N}
    arguments |= {"w_n": w.stride(0), "w_k": w.stride(1), "slope": slope, "splits": tile.split}
    arguments |= shared(tile, tile.tiles(M, N), 0)
    constexprs: dict[str, object] = {"ACTIVATION": activation, "PRECISION": target.precision}
    constexprs |= {"SPLIT": tile.split > 1, "GROUP": GROUP}
    constexprs |= {"BM": tile.rows, "BN": tile.cols, "BK": tile.depth}
    return Launch(concat_linear_fwd_kernel, arguments, constexprs, tile.programs(M, N), tile)


def bwd_weight_launch(
    gy: Tensor,
    saved: Tensor | None,
    gw: Tensor,
    gb: Tensor | None,
    activation: str,
    slope: float,
    target: Target,
    *,
    parts: Sequence[Part],
    config: Config | None = None,
) -> Launch:
    """Prepare gw [N, K] = (gy [M, N] * phi'(saved [M, N]))^T times the parts, and gb [N] where it is given."""
    M, N = gy.shape
    tile = config or choose(bwd_weight_problem(gy, saved, parts, target))
    tile = replace(tile, registers=max(tile.registers, LEAST_CAP))  # for as many loops as there are parts
    first, *others = (-(-values.shape[1] // tile.cols) for values, _ in parts)
    tiles = -(-N // tile.rows) * (max(1, first) + sum(others))
    split_bias = gb is not None and tile.split > 1
    arguments = described(parts) | {"gy": gy, "saved": saved, "gw": gw, "gb": gb, "M": M, "N": N}
    arguments |= {"splits": tile.split, "g_m": gy.stride(0), "g_n": gy.stride(1), "w_n": gw.stride(0), "slope": slope}
    arguments |= shared(tile, tiles, 0)
    arguments["columns"] = Workspace(tile.split * N) if split_bias else None
    constexprs: dict[str, object] = {"ACTIVATION": activation, "PRECISION": target.precision}
    constexprs |= {"EVEN": M % tile.depth == 0, "SPLIT": tile.split > 1, "GROUP": GROUP}
    constexprs |= {"BN": tile.rows, "BK": tile.cols, "BM": tile.depth}
    return Launch(concat_linear_bwd_weight_kernel, arguments, constexprs, tiles * tile.split, tile)


def fwd_problem(parts: Sequence[Part], w: Tensor, y: Tensor, target: Target) -> Problem:
    """Describe the product y [M, N] for the choice of a tile."""
    vectors = regular(*(values for values, _ in parts), w, y)
    (M, N), K = y.shape, w.shape[1]
    return Problem("concat_linear_fwd", M, N, K, y.dtype.itemsize, target, vectors=vectors, splits=True)


def bwd_weight_problem(gy: Tensor, saved: Tensor | None, parts: Sequence[Part], target: Target) -> Problem:
    """Describe the product gW [N, K] for the choice of a tile."""
    (M, N), K = gy.shape, sum(values.shape[1] for values, _ in parts)
    masked, vectors = saved is not None, M % 64 == 0 and regular(gy, *(values for values, _ in parts))
    return Problem("concat_linear_bwd_weight", N, K, M, gy.dtype.itemsize, target, masked, vectors, splits=True)


def concat_linear_fwd(
    parts: Sequence[Part], w: Tensor, bias: Tensor | None, activation: str, slope: float, store_pre: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return phi(the parts, side by side, times w^T + bias), and the pre-activation too where it is asked for."""
    values, index = parts[0]
    y = values.new_empty((values if index is None else index).shape[0], w.shape[0])
    pre = torch.empty_like(y) if store_pre else None
    if y.numel():
        bias = None if bias is None else bias.contiguous()
        submit(fwd_launch, (w, bias), (y, pre), activation, slope, Target.of(y), parts=tuple(parts))
    return y, pre


def concat_linear_bwd_weight(
    gy: Tensor, saved: Tensor | None, parts: Sequence[Part], activation: str, slope: float, with_bias: bool,
    *, gw: Tensor | None = None, gb: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Return the gradient of w [N, K], and of the bias [N] where it is asked for.

    ``gw``, ``gb``: contiguous memory for them, of any floating dtype; else they are new, in the operands' dtype.
    """
    gw = gy.new_empty(gy.shape[1], sum(values.shape[1] for values, _ in parts)) if gw is None else gw
    gb = gy.new_empty(gy.shape[1]) if gb is None and with_bias else gb
    if gy.shape[1]:  # with K = 0 there may still be a bias gradient
        submit(bwd_weight_launch, (gy, saved), (gw, gb), activation, slope, Target.of(gy), parts=tuple(parts))
    return gw, gb
