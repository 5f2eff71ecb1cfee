"""The weight and bias gradients of a linear layer in one launch.

    gW [N, K] = g^T u,   u = x, or phi(s (x - mean) + beta) formed again;   g as in linear_bwd_input.py
    gb [N]    = sum over M of g                      by the programs of the first tile across, in the same pass

Contract: as linear.py; gy by any strides, ``saved`` contiguous; gW and gb contiguous, in fp32 or the operands' dtype.
g and u are formed in the operand loads, never stored.
The reduction over the batch is shared by several programs where there are few tiles; parts are added in a fixed order,
without atomics.

Work, in elements and multiply-adds (s: 1 where something was saved, else 0): reads (1 + s) MN + MK, writes NK + N, MNK
products.

Registers a thread, the most of any form in linear_forms.py on sm_80, 86, 89, 90, 100 and 120 (Triton 3.7.1), of at most
255, nothing spilled; wgmma on sm_90 wherever the tile has 64 rows or more, save in IEEE fp32:
    tile      128x256   128x128   128x64   64x64   32x32
    16 bits       246       206      248     255     238
    TF32            -       204      246     243     209
    IEEE            -         -        -     250     202
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels.launch import Launch, Workspace, submit
from fastgan.kernels.linear import gathered, given, shared
from fastgan.kernels.norm import (
    Correction,
    Norm,
    correction_arguments,
    formed,
    norm_arguments,
    normalised,
    vectors_of,
)
from fastgan.kernels.tile import GROUP, Config, Problem, Target, choose, regular, tile_of


@triton.jit(do_not_specialize=["rows", "splits"])
def linear_bwd_weight_kernel(
    gy, saved, x, gw, gb, rows, groups, splits, N, K, g_m, g_n, x_m, x_k, slope, up_mean, lift, tilt,
    in_mean, in_var, in_gamma, in_beta, in_step, in_eps, in_slope, work, columns, ticket,
    ACTIVATION: tl.constexpr, IN_ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    EVEN: tl.constexpr, SPLIT: tl.constexpr, STACK: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One [BN, BK] tile of gW; the first tile across also writes its BN elements of gb. EVEN: BM divides rows.

    STACK: each group of rows has a gW [N, K] and a gb [N] of its own.
    """
    tile, part = tl.program_id(0), 0
    if SPLIT:
        tile, part = tile // splits, tile % splits
    tiles_k = tl.maximum(tl.cdiv(K, BK), 1)  # with K = 0 there is still a bias gradient to write
    place = tile
    if STACK:
        own = tl.cdiv(N, BN) * tiles_k
        member, place = tile // own, tile % own
        gw += member.to(tl.int64) * N * K
        if gb is not None:
            gb += member.to(tl.int64) * N
        if SPLIT and gb is not None:
            columns += member.to(tl.int64) * splits * N
    tile_n, tile_k = tile_of(place, tl.cdiv(N, BN), tiles_k, GROUP)
    n = tile_n.to(tl.int64) * BN + tl.arange(0, BN)  # [BN]
    k = tile_k.to(tl.int64) * BK + tl.arange(0, BK)  # [BK]
    lane = tl.arange(0, BM).to(tl.int64)  # [BM]
    in_n, in_k = (n < N)[None, :], (k < K)[None, :]
    high = tl.cdiv(rows, BM)
    trips = high * groups
    if STACK:
        trips = high
    begin, end = 0, trips
    if SPLIT:
        share = tl.cdiv(trips, splits)
        begin, end = part * share, tl.minimum(part * share + share, trips)
    if STACK:
        begin, end = begin + member * high, end + member * high

    total = tl.zeros([BN, BK], tl.float32)
    column = tl.zeros([BN], tl.float32)
    for trip in range(begin, end):
        group = tl.cast(trip // high, tl.int64)
        local = trip % high * BM + lane
        m = group * rows + local  # [BM]
        live_g, live_x = in_n, in_k
        if not EVEN:
            live_g, live_x = (local < rows)[:, None] & in_n, (local < rows)[:, None] & in_k
        g = tl.load(gy + m[:, None] * g_m + n[None, :] * g_n, mask=live_g, other=0.0)  # [BM, BN]
        if saved is not None:
            s = tl.load(saved + m[:, None] * N + n[None, :], mask=live_g, other=0.0)
            g = formed(g, s, n, n < N, group * N, slope, up_mean, lift, tilt, ACTIVATION)
            if lift is not None and not EVEN:
                g = tl.where(live_g, g, 0.0)
        if gb is not None and tile_k == 0:
            column += tl.sum(g.to(tl.float32), axis=0)
        b = tl.load(x + m[:, None] * x_m + k[None, :] * x_k, mask=live_x, other=0.0)  # [BM, BK]
        if in_mean is not None:
            own = group * in_step
            centre, scale, shift = vectors_of(k, k < K, in_mean + own, in_var + own, in_gamma, in_beta, in_eps)
            b = tl.where(live_x, normalised(b, centre, scale, shift, in_slope, IN_ACTIVATION), 0.0).to(b.dtype)
        total = tl.dot(tl.trans(g), b, total, input_precision=PRECISION)

    if SPLIT:
        if gb is not None and tile_k == 0:
            tl.store(columns + tl.cast(part, tl.int64) * N + n, column, mask=n < N)
        last, total = gathered(total, work, ticket, tile, part, splits, BN, BK)
        if not last:
            return
        if gb is not None and tile_k == 0:
            column = tl.zeros([BN], tl.float32)
            for other in range(splits):
                column += tl.load(
                    columns + tl.cast(other, tl.int64) * N + n, mask=n < N, other=0.0, cache_modifier=".cg"
                )
    inside = (n[:, None] < N) & in_k
    tl.store(gw + n[:, None] * K + k[None, :], total.to(gw.dtype.element_ty), mask=inside)
    if gb is not None and tile_k == 0:
        tl.store(gb + n, column.to(gb.dtype.element_ty), mask=n < N)


def bwd_weight_launch(
    gy: Tensor,
    saved: Tensor | None,
    x: Tensor,
    gw: Tensor,
    gb: Tensor | None,
    activation: str,
    slope: float,
    target: Target,
    *,
    correction: Correction | None = None,
    norm: Norm | None = None,
    config: Config | None = None,
) -> Launch:
    """Prepare gw [N, K] = g [M, N]^T u [M, K], u being x or x normalised, and gb [N] where it is given.

    With gw [E, N, K] and gb [E, N] each is the sum over its E-th of the rows.
    """
    (M, N), K = gy.shape, x.shape[1]
    members = 1 if gw.dim() == 2 else gw.shape[0]
    tile = config or choose(bwd_weight_problem(gy, saved, x, target, correction, norm, members=members))
    groups = max(norm.mean.shape[0] if norm else 1, correction.mean.shape[0] if correction else 1)
    groups = groups if gw.dim() == 2 else members
    tiles, rows = members * tile.tiles(N, K), M // groups
    arguments: dict[str, object] = {"gy": gy, "saved": saved, "x": x, "gw": gw, "gb": gb, "slope": slope}
    arguments |= {"rows": rows, "groups": groups, "splits": tile.split, "N": N, "K": K}
    arguments |= {"g_m": gy.stride(0), "g_n": gy.stride(1), "x_m": x.stride(0), "x_k": x.stride(1)}
    arguments |= correction_arguments(correction) | norm_arguments(norm) | shared(tile, tiles, 0)
    split_bias = gb is not None and tile.split > 1
    arguments["columns"] = Workspace(members * tile.split * N) if split_bias else None
    constexprs: dict[str, object] = {"ACTIVATION": activation, "IN_ACTIVATION": norm.activation if norm else "none"}
    constexprs |= {"PRECISION": target.precision, "EVEN": rows % tile.depth == 0, "SPLIT": tile.split > 1}
    constexprs["STACK"] = gw.dim() == 3
    constexprs |= {"BN": tile.rows, "BK": tile.cols, "BM": tile.depth, "GROUP": GROUP}
    return Launch(linear_bwd_weight_kernel, arguments, constexprs, tiles * tile.split, tile)


def bwd_weight_problem(
    gy: Tensor,
    saved: Tensor | None,
    x: Tensor,
    target: Target,
    correction: Correction | None = None,
    norm: Norm | None = None,
    *,
    members: int = 1,
) -> Problem:
    """Describe the weight gradient's product to the choice of a tile: what stands beside it takes registers."""
    op = "linear_bwd_weight" if norm is None else "linear_bwd_weight_norm"
    size = members * gy.shape[1], x.shape[1], gy.shape[0] // members, gy.dtype.itemsize
    room = 16 if norm and correction else 32 if norm or correction else 64 if target.tensor_memory else 128
    return Problem(op, *size, target, saved is not None, regular(gy, x), True, room)


def linear_bwd_weight(
    gy: Tensor,
    saved: Tensor | None,
    x: Tensor,
    activation: str,
    slope: float,
    with_bias: bool,
    *,
    correction: Correction | None = None,
    norm: Norm | None = None,
    gw: Tensor | None = None,
    gb: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the gradient of w [N, K], and of the bias [N] where it is asked for.

    ``gw``, ``gb``: contiguous memory for them, of any floating dtype; else they are new, in the operands' dtype.
    """
    gw = gy.new_empty(gy.shape[1], x.shape[1]) if gw is None else gw
    gb = gy.new_empty(gy.shape[1]) if gb is None and with_bias else gb
    if gy.shape[1]:  # with K = 0 there may still be a bias gradient
        more = given(correction=correction, norm=norm)
        submit(bwd_weight_launch, (gy, saved, x), (gw, gb), activation, slope, Target.of(gy), **more)
    return gw, gb
