"""The input gradient of a linear layer in one launch, taken on through what the layer's input came out of.

    g  [M, N] = gy                                   the gradient as it comes,
              | gy phi'(saved)                       through an activation, from what it saved,
              | gy + lift + tilt (saved - mean)      through statistics of the raw output ``saved``
    gx [M, K] = g W                                  and, in the epilogue, through what the operand came out of:
              | g W phi'(below) [dropped]            the activation (and dropout) of the layer below, from its output
              | s dv, dv = g W phi'(s (below - mean) + beta)   its norm; sums of dv as lift, tilt, ggamma, gbeta

Contract: as linear.py; gy by any strides, ``saved`` and ``below`` contiguous. g is formed in the operand load in fp32
and rounded to the operands' dtype for the product; it is never stored.

Work, in elements and multiply-adds (s: 1 where something was saved, p: 1 where there is a layer below, else 0):
reads (1 + s) MN + NK + p MK, writes MK, MNK products.

Registers a thread, the most of any form in linear_forms.py on sm_80, 86, 89, 90, 100 and 120 (Triton 3.7.1), of at most
255, nothing spilled; wgmma on sm_90 wherever the tile has 64 rows or more, save in IEEE fp32:
    tile      128x256   128x128   128x64   64x64   32x32
    16 bits       252       200      255     255     237
    TF32            -       254      254     254     248
    IEEE            -         -        -     236     196
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels.activation import times_derivative
from fastgan.kernels.launch import Launch, Workspace, submit
from fastgan.kernels.linear import Dropout, dropout_arguments, gathered, given, matrices, shared, weight_strides
from fastgan.kernels.norm import (
    LANES,
    Correction,
    Norm,
    NormGradients,
    correction_arguments,
    denormalised,
    finish_gradients,
    formed,
    norm_arguments,
    vectors_of,
)
from fastgan.kernels.philox import dropout_tile
from fastgan.kernels.ticket import arrives_last
from fastgan.kernels.tile import GROUP, Config, Problem, Target, choose, regular, tile_of


class Below(NamedTuple):
    """The activation that an operand came out of, and its output (the operand itself, or a saved pre-activation)."""

    saved: Tensor  # [M, K]
    activation: str
    slope: float
    dropout: Dropout | None = None


@triton.jit(do_not_specialize=["rows", "splits"])
def linear_bwd_input_kernel(
    gy, saved, w, gx, rows, groups, splits, N, K, g_m, g_n, w_n, w_k, w_g, slope, up_mean, lift, tilt,
    below, in_mean, in_var, in_gamma, in_beta, in_step, in_eps, in_slope, rng, threshold, scale,
    in_lift, in_tilt, ggamma, gbeta, parts, work, ticket,
    ACTIVATION: tl.constexpr, IN_ACTIVATION: tl.constexpr, DROP_FIRST: tl.constexpr, FOURS: tl.constexpr,
    PRECISION: tl.constexpr, EVEN: tl.constexpr, SPLIT: tl.constexpr, LANES: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One [BM, BK] tile of gx. EVEN: BN divides N. ``w_g``: as in linear.py."""
    tile, part = tl.program_id(0), 0
    if SPLIT:
        tile, part = tile // splits, tile % splits
    high = tl.cdiv(rows, BM)
    tile_m, tile_k = tile_of(tile, high * groups, tl.cdiv(K, BK), GROUP)
    group = (tile_m // high).to(tl.int64)
    local = tile_m % high * BM + tl.arange(0, BM)  # [BM], in the group
    live = (local < rows)[:, None]
    m = group * rows + local  # [BM]
    if w_g is not None:
        w += group * w_g
    k = tile_k.to(tl.int64) * BK + tl.arange(0, BK)  # [BK]
    begin, end = 0, N
    if SPLIT:
        share = tl.cdiv(tl.cdiv(N, BN), splits) * BN
        begin, end = part * share, tl.minimum(part * share + share, N)
    n = begin + tl.arange(0, BN).to(tl.int64)  # [BN]
    g_tile = gy + m[:, None] * g_m + n[None, :] * g_n  # [BM, BN]
    w_tile = w + n[:, None] * w_n + k[None, :] * w_k  # [BN, BK]
    if saved is not None:
        s_tile = saved + m[:, None] * N + n[None, :]  # [BM, BN]
    depth = tl.cast(BN, tl.int64)
    in_k = (k < K)[None, :]

    total = tl.zeros([BM, BK], tl.float32)
    for done in range(begin, end, BN):
        left = n < N - (done - begin)
        live_g, live_b = live, in_k
        if not EVEN:
            live_g, live_b = live & left[None, :], left[:, None] & in_k
        g = tl.load(g_tile, mask=live_g, other=0.0)
        if saved is not None:
            s = tl.load(s_tile, mask=live_g, other=0.0)
            g = formed(g, s, n + (done - begin), left, group * N, slope, up_mean, lift, tilt, ACTIVATION)
            if lift is not None and not EVEN:
                g = tl.where(live_g, g, 0.0)
            s_tile += depth
        b = tl.load(w_tile, mask=live_b, other=0.0)
        total = tl.dot(g, b, total, input_precision=PRECISION)
        g_tile += depth * g_n
        w_tile += depth * w_n

    if SPLIT:
        last, total = gathered(total, work, ticket, tile, part, splits, BM, BK)
        if not last:
            return
    at = m[:, None] * K + k[None, :]
    inside = live & in_k
    if in_mean is not None:
        own = group * in_step
        centre, s, shift = vectors_of(k, k < K, in_mean + own, in_var + own, in_gamma, in_beta, in_eps)
        raw = tl.load(below + at, mask=inside, other=0.0)
        total, off = denormalised(total, raw, centre, s, shift, in_slope, IN_ACTIVATION)
        total = tl.where(inside, total, 0.0)
        tl.store(gx + at, (total * s[None, :]).to(gx.dtype.element_ty), mask=inside)
        if parts is not None:
            sums = parts + tile_m.to(tl.int64) * 2 * K + k
            tl.store(sums, tl.sum(total, axis=0), mask=k < K)
            tl.store(sums + K, tl.sum(total * off, axis=0), mask=k < K)
            tiles = high * groups * tl.cdiv(K, BK)
            if arrives_last(ticket + tiles + tile_k, high * groups):
                finish_gradients(
                    parts, high, rows, groups, k, k < K, K, in_var, in_gamma, in_step, in_eps,
                    in_lift, in_tilt, ggamma, gbeta, BK, LANES,
                )  # fmt: skip
    else:
        if below is not None:
            u = tl.load(below + at, mask=inside, other=0.0)
            row, column = m * K, tile_k.to(tl.int64) * BK
            total = through(total, u, rng, row, column, threshold, scale, in_slope, IN_ACTIVATION, DROP_FIRST, FOURS)
        tl.store(gx + at, total.to(gx.dtype.element_ty), mask=inside)


@triton.jit
def through(
    grad, saved, rng, row, column, threshold, scale, slope,
    ACTIVATION: tl.constexpr, DROP_FIRST: tl.constexpr, FOURS: tl.constexpr,
):  # fmt: skip
    """The gradient [BM, BN] in fp32 before an activation and its dropout, from their common output."""
    if rng is not None and not DROP_FIRST:
        grad = dropout_tile(grad, rng, row, column, threshold, scale, FOURS)
        if ACTIVATION == "tanh" or ACTIVATION == "sigmoid":
            saved = saved.to(tl.float32) * (1.0 / tl.maximum(scale, 1.0))  # a scale below 1 is the 0 of p = 1
    grad = times_derivative(grad, saved, slope, ACTIVATION)
    if rng is not None and DROP_FIRST:
        grad = dropout_tile(grad, rng, row, column, threshold, scale, FOURS)
    return grad


def bwd_input_launch(
    gy: Tensor,
    saved: Tensor | None,
    w: Tensor,
    gx: Tensor,
    activation: str,
    slope: float,
    target: Target,
    *,
    correction: Correction | None = None,
    below: Below | None = None,
    norm: Norm | None = None,
    raw: Tensor | None = None,
    to: NormGradients | None = None,
    config: Config | None = None,
) -> Launch:
    """Prepare gx [M, K] = g [M, N] w [N, K], taken through ``below``, or through the ``norm`` of ``raw`` [M, K].

    With w [E, N, K] each E-th of the rows has its own.
    """
    (M, N), K = gy.shape, w.shape[-1]
    tile = config or choose(bwd_input_problem(gy, saved, w, target, correction, below, norm))
    groups = max(norm.mean.shape[0] if norm else 1, correction.mean.shape[0] if correction else 1)
    groups = groups if w.dim() == 2 else w.shape[0]
    high, wide = -(-M // groups // tile.rows), -(-K // tile.cols)
    sums = to is not None and any(tensor is not None for tensor in to)
    through = (norm.activation, norm.slope) if norm else (below.activation, below.slope) if below else ("none", 0.0)
    arguments: dict[str, object] = {"gy": gy, "saved": saved, "w": w, "gx": gx, "slope": slope}
    arguments |= {"rows": M // groups, "groups": groups, "splits": tile.split, "N": N, "K": K}
    arguments |= {"g_m": gy.stride(0), "g_n": gy.stride(1)} | weight_strides(w)
    arguments |= correction_arguments(correction) | norm_arguments(norm) | dropout_arguments(below and below.dropout)
    arguments |= {"below": raw if norm else below and below.saved, "in_slope": through[1]}
    arguments |= dict(zip(("in_lift", "in_tilt", "ggamma", "gbeta"), to or (None,) * 4, strict=True))
    arguments["parts"] = Workspace(groups * high * 2 * K) if sums else None
    arguments |= shared(tile, groups * high * wide, wide if sums else 0)
    dropped_first = bool(below and below.dropout and below.dropout.first)
    constexprs: dict[str, object] = {"ACTIVATION": activation, "IN_ACTIVATION": through[0], "DROP_FIRST": dropped_first}
    constexprs |= {"FOURS": bool(below and below.dropout) and K % 4 == 0, "PRECISION": target.precision}
    constexprs |= {"EVEN": N % tile.depth == 0, "SPLIT": tile.split > 1, "LANES": LANES, "GROUP": GROUP}
    constexprs |= {"BM": tile.rows, "BK": tile.cols, "BN": tile.depth}
    return Launch(linear_bwd_input_kernel, arguments, constexprs, groups * high * wide * tile.split, tile)


def bwd_input_problem(
    gy: Tensor,
    saved: Tensor | None,
    w: Tensor,
    target: Target,
    correction: Correction | None = None,
    below: Below | None = None,
    norm: Norm | None = None,
) -> Problem:
    """Describe the input gradient's product to the choice of a tile: what stands beside it takes registers."""
    op = "linear_bwd_input" if norm is None else "linear_bwd_input_norm"
    size = gy.shape[0], w.shape[-1], gy.shape[1], gy.dtype.itemsize
    room = 16 if norm and correction else 32 if norm or correction else 64 if below else 128
    return Problem(op, *size, target, saved is not None, regular(gy, *matrices(w)), True, room)


def linear_bwd_input(
    gy: Tensor,
    saved: Tensor | None,
    w: Tensor,
    activation: str,
    slope: float,
    *,
    correction: Correction | None = None,
    below: Below | None = None,
    norm: Norm | None = None,
    raw: Tensor | None = None,
    to: NormGradients | None = None,
) -> Tensor:
    """Return the gradient of x [M, K] from gy [M, N] and the saved output, pre-activation or raw output [M, N].

    With ``below`` or ``norm`` it is the gradient of what stands before that activation, or of the output ``raw``.
    """
    gx = gy.new_empty(gy.shape[0], w.shape[1])
    if gx.numel():
        more = given(correction=correction, below=below, norm=norm, raw=raw, to=to)
        submit(bwd_input_launch, (gy, saved, w), (gx,), activation, slope, Target.of(gy), **more)
    else:
        for sums in to or ():
            if sums is not None:
                sums.zero_()
    return gx
