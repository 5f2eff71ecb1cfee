"""A linear layer in one launch: its operand normalised in passing, its bias, activation, dropout and statistics too.

    u  [M, K] = x, or phi(s (x - mean) + beta) where x is a raw output with its norm   (kernels/norm.py)
    y  [M, N] = drop(phi(u W [N, K]^T + b [N]))   or phi(drop(.))
    mean, var [groups, N] of y as it was stored, and the running ones, where they are asked for

Contract: bf16, fp16 or fp32, one dtype for x, W and y; x and W by any strides, the rest contiguous; vectors in any
floating dtype, statistics in fp32. Rows fall into ``groups`` equal parts, each with its own statistics; no tile has
rows of two. Products accumulate in fp32; fp32 operands are multiplied as PyTorch's TF32 setting says. Any of M, N, K
may be 0. Where ``splits`` programs share a tile, each takes a part of K, and the last to arrive adds the parts in their
order: the same operands give the same bits, always. Addresses are int64 from the program's number on.

Work, in elements and multiply-adds: reads MK + NK + N, writes MN (2 MN with the pre-activation), MNK products; with
splits, 2 splits MN fp32 more, mostly in L2. Operands are read once per tile across; programs run in groups, so that
the rereads come from L2. Backward: linear_bwd_input.py, linear_bwd_weight.py.

Registers a thread, the most of any form in linear_forms.py on sm_80, 86, 89, 90, 100 and 120 (Triton 3.7.1), of at most
255, nothing spilled; wgmma on sm_90 wherever the tile has 64 rows or more, save in IEEE fp32:
    tile      128x256   128x128   128x64   64x64   32x32
    16 bits       255       254      202     240     183
    TF32            -       255      222     255     211
    IEEE            -         -        -     225     171
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels.activation import activate
from fastgan.kernels.launch import Launch, Tickets, Workspace, submit
from fastgan.kernels.norm import (
    LANES,
    Norm,
    Statistics,
    finish_statistics,
    measure,
    norm_arguments,
    normalised,
    vectors_of,
)
from fastgan.kernels.philox import dropout_tile
from fastgan.kernels.ticket import arrives_last
from fastgan.kernels.tile import GROUP, WGMMA, Config, Problem, Target, choose, regular, tile_of


class Dropout(NamedTuple):
    """Which outputs are dropped: kernels/philox.py says how they are drawn."""

    rng: Tensor  # int64 [2]: seed and offset
    threshold: int  # round(p 2^32)
    scale: float  # 1 / (1 - p)
    first: bool = False  # before the activation


@triton.jit
def gathered(total, work, ticket, tile, part, splits, BM: tl.constexpr, BN: tl.constexpr):
    """Store this program's part of a tile; return whether it came last and then, in a fixed order, the sum of all."""
    spot = tl.arange(0, BM)[:, None] * BN + tl.arange(0, BN)[None, :]  # [BM, BN]
    first = work + tile.to(tl.int64) * splits * (BM * BN) + spot
    tl.store(first + part * (BM * BN), total)
    last = arrives_last(ticket + tile, splits)
    if last:
        total = tl.load(first, cache_modifier=".cg")
        for other in range(1, splits):
            total += tl.load(first + other * (BM * BN), cache_modifier=".cg")
    return last, total


@triton.jit(do_not_specialize=["rows", "splits"])
def linear_fwd_kernel(
    x, w, bias, y, pre, rows, groups, splits, N, K, x_m, x_k, w_n, w_k, w_g, slope,
    in_mean, in_var, in_gamma, in_beta, in_step, in_eps, in_slope, rng, threshold, scale,
    mean, var, running_mean, running_var, tracked, momentum, parts, work, ticket,
    ACTIVATION: tl.constexpr, IN_ACTIVATION: tl.constexpr, DROP_FIRST: tl.constexpr, FOURS: tl.constexpr,
    PRECISION: tl.constexpr,     EVEN: tl.constexpr, SPLIT: tl.constexpr, LANES: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One [BM, BN] tile of y, and of the pre-activation where ``pre`` is given. EVEN: BK divides K.

    Each group of rows has a weight [N, K] and a bias [N] of its own where ``w_g``, the stride between them, is given.
    """
    tile, part = tl.program_id(0), 0
    if SPLIT:
        tile, part = tile // splits, tile % splits
    high = tl.cdiv(rows, BM)  # tiles of one group's rows
    tile_m, tile_n = tile_of(tile, high * groups, tl.cdiv(N, BN), GROUP)
    group = (tile_m // high).to(tl.int64)
    local = tile_m % high * BM + tl.arange(0, BM)  # [BM], in the group
    live = (local < rows)[:, None]
    m = group * rows + local  # [BM]
    if w_g is not None:
        w += group * w_g
        if bias is not None:
            bias += group * N
    n = tile_n.to(tl.int64) * BN + tl.arange(0, BN)  # [BN]
    begin, end = 0, K
    if SPLIT:
        share = tl.cdiv(tl.cdiv(K, BK), splits) * BK
        begin, end = part * share, tl.minimum(part * share + share, K)
    k = begin + tl.arange(0, BK).to(tl.int64)  # [BK]
    x_tile = x + m[:, None] * x_m + k[None, :] * x_k  # [BM, BK]
    w_tile = w + k[:, None] * w_k + n[None, :] * w_n  # [BK, BN]
    depth = tl.cast(BK, tl.int64)
    in_n = (n < N)[None, :]

    total = tl.zeros([BM, BN], tl.float32)
    for done in range(begin, end, BK):
        left = k < K - (done - begin)
        live_a, live_b = live, in_n
        if not EVEN:
            live_a, live_b = live & left[None, :], left[:, None] & in_n
        a = tl.load(x_tile, mask=live_a, other=0.0)
        if in_mean is not None:
            c = k + (done - begin)
            own = group * in_step
            centre, s, shift = vectors_of(c, left, in_mean + own, in_var + own, in_gamma, in_beta, in_eps)
            a = tl.where(live_a, normalised(a, centre, s, shift, in_slope, IN_ACTIVATION), 0.0).to(a.dtype)
        b = tl.load(w_tile, mask=live_b, other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
        x_tile += depth * x_k
        w_tile += depth * w_k

    if SPLIT:
        last, total = gathered(total, work, ticket, tile, part, splits, BM, BN)
        if not last:
            return
    if bias is not None:
        total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    at = m[:, None] * N + n[None, :]
    if pre is not None:
        tl.store(pre + at, total.to(pre.dtype.element_ty), mask=live & in_n)
    if rng is not None and DROP_FIRST:
        total = dropout_tile(total, rng, m * N, tile_n.to(tl.int64) * BN, threshold, scale, FOURS)
    total = activate(total, slope, ACTIVATION)
    if rng is not None and not DROP_FIRST:
        total = dropout_tile(total, rng, m * N, tile_n.to(tl.int64) * BN, threshold, scale, FOURS)
    out = total.to(y.dtype.element_ty)
    tl.store(y + at, out, mask=live & in_n)
    if mean is not None:
        count = tl.minimum(rows - tile_m % high * BM, BM)
        measure(out.to(tl.float32), live, count, parts + tile_m.to(tl.int64) * 2 * N, n, n < N, N)
        tiles = high * groups * tl.cdiv(N, BN)
        if arrives_last(ticket + tiles + tile_n, high * groups):
            finish_statistics(
                parts, high, rows, groups, n, n < N, N, mean, var, running_mean, running_var, tracked, momentum,
                BM, BN, LANES,
            )  # fmt: skip


def fwd_launch(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    y: Tensor,
    pre: Tensor | None,
    activation: str,
    slope: float,
    target: Target,
    *,
    norm: Norm | None = None,
    dropout: Dropout | None = None,
    statistics: Statistics | None = None,
    config: Config | None = None,
) -> Launch:
    """Prepare y [M, N] = phi(x [M, K] w [N, K]^T + bias [N]), x normalised first, y dropped and measured after.

    With w [E, N, K] and bias [E, N] each E-th of the rows has its own.
    """
    (M, K), N = x.shape, w.shape[-2]
    tile = config or choose(fwd_problem(x, w, target, pre, norm, dropout, statistics))
    groups = groups_of(norm, statistics) if w.dim() == 2 else w.shape[0]
    high, wide = -(-M // groups // tile.rows), -(-N // tile.cols)
    arguments: dict[str, object] = {"x": x, "w": w, "bias": bias, "y": y, "pre": pre, "slope": slope}
    arguments |= {"rows": M // groups, "groups": groups, "splits": tile.split, "N": N, "K": K}
    arguments |= {"x_m": x.stride(0), "x_k": x.stride(1)} | weight_strides(w)
    arguments |= norm_arguments(norm) | dropout_arguments(dropout) | statistics_arguments(statistics)
    arguments["parts"] = Workspace(groups * high * 2 * N) if statistics else None
    arguments |= shared(tile, groups * high * wide, wide if statistics else 0)
    constexprs: dict[str, object] = {"ACTIVATION": activation, "IN_ACTIVATION": norm.activation if norm else "none"}
    constexprs |= {"DROP_FIRST": bool(dropout and dropout.first), "FOURS": dropout is not None and N % 4 == 0}
    constexprs |= {"PRECISION": target.precision, "LANES": LANES, "EVEN": K % tile.depth == 0}
    constexprs |= {"SPLIT": tile.split > 1, "GROUP": GROUP, "BM": tile.rows, "BN": tile.cols, "BK": tile.depth}
    return Launch(linear_fwd_kernel, arguments, constexprs, groups * high * wide * tile.split, tile)


def fwd_problem(
    x: Tensor,
    w: Tensor,
    target: Target,
    pre: Tensor | None = None,
    norm: Norm | None = None,
    dropout: Dropout | None = None,
    statistics: Statistics | None = None,
) -> Problem:
    """Describe the forward product to the choice of a tile: what stands beside it takes registers."""
    op = "linear_fwd" if norm is None else "linear_fwd_norm"
    size = x.shape[0], w.shape[-2], x.shape[1]
    more = sum(thing is not None for thing in (pre, norm, dropout, statistics))
    more += statistics is not None and target.arch not in WGMMA  # seen to spill with a room of 64
    more += 2 * (w.shape[-2] % 16 != 0)  # an address for each element of the output: seen to spill on all
    room = (128, 64, 32)[min(more, 2)]
    vectors = regular(x, *matrices(w))
    return Problem(op, *size, x.dtype.itemsize, target, vectors=vectors, splits=True, accumulators=room)


def matrices(w: Tensor) -> tuple[Tensor, ...]:
    """Return a weight [N, K], or of a stack [E, N, K] the first and the second: they tell how all lie."""
    return (w,) if w.dim() == 2 else tuple(w[:2])


def weight_strides(w: Tensor) -> dict[str, object]:
    """Return the kernels' arguments for a weight [N, K] or a stack [E, N, K]."""
    return {"w_n": w.stride(-2), "w_k": w.stride(-1), "w_g": None if w.dim() == 2 else w.stride(0)}


def groups_of(norm: Norm | None, statistics: Statistics | None) -> int:
    """Return how many groups of rows have statistics of their own."""
    return max(norm.mean.shape[0] if norm else 1, statistics.mean.shape[0] if statistics else 1)


def dropout_arguments(drop: Dropout | None) -> dict[str, object]:
    """Return the kernels' arguments for dropout."""
    return {"rng": drop and drop.rng, "threshold": drop.threshold if drop else 0, "scale": drop.scale if drop else 0.0}


def statistics_arguments(to: Statistics | None) -> dict[str, object]:
    """Return the forward kernel's arguments for statistics."""
    names = Statistics._fields
    return to._asdict() if to else {**dict.fromkeys(names), "momentum": 0.0}


def shared(tile: Config, tiles: int, columns: int) -> dict[str, object]:
    """Return the workspace of programs that share a tile or a column of tiles, where there are such."""
    work = Workspace(tiles * tile.split * tile.rows * tile.cols) if tile.split > 1 else None
    return {"work": work, "ticket": Tickets(tiles + columns) if work or columns else None}


def given(**groups: object) -> dict[str, object]:
    """Return those that are not None: what is not there costs nothing to look up."""
    return {name: group for name, group in groups.items() if group is not None}


def linear_fwd(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    activation: str,
    slope: float,
    store_pre: bool = False,
    *,
    norm: Norm | None = None,
    dropout: Dropout | None = None,
    statistics: Statistics | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return phi(x [M, K] w [N, K]^T + bias [N]), and the pre-activation too where it is asked for.

    ``norm`` is what x has yet to go through, ``statistics`` where those of the result are written.
    """
    y = x.new_empty(x.shape[0], w.shape[0])
    pre = torch.empty_like(y) if store_pre else None
    if y.numel():
        bias = None if bias is None else bias.contiguous()
        more = given(norm=norm, dropout=dropout, statistics=statistics)
        submit(fwd_launch, (x, w, bias), (y, pre), activation, slope, Target.of(x), **more)
    return y, pre
