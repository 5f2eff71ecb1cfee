"""The weight gradient of a convolution or a transposed one, and of the convolution's bias, in one launch.

    gW [K, C, R, S] = sum over samples n and grid positions p, q of
                      e[n, p, q, k] f[n, p stride - padding + r dilation, ..., c]
    gb [K]          = sum of e, by the programs of the first tile across, where e is the gradient

e stands on the grid [P, Q], f on the image [H, W]. For a convolution e is the gradient g and f the operand u; for a
transposed one e is u and f is g, and its bias gradient is no by-product. g and u as in conv_bwd_input.py and conv.py,
formed in the operand loads and never stored; what lies outside the image is 0.

Contract: as conv.py; ``saved`` has the strides of gy; gW by any strides, in fp32 or the operands' dtype. The sum over
positions is shared by several programs where there are few tiles; parts are added in a fixed order, without atomics.

Work, in elements and multiply-adds, for M = n P Q rows and T taps: reads the grid's side once for each tile across and
the image's once for each tile down and each tap (from L2); writes K C T; M T C K products.

Registers a thread, the most of any form in conv_forms.py on sm_80, 86, 89, 90, 100 and 120 (Triton 3.7.1), of at most
255, nothing spilled; wgmma on sm_90 from 64 rows on, save in IEEE fp32:
    tile      128x256   128x128    128x64     64x64     64x32     32x32
    16 bits       255       254       220       229       154       172
    TF32            -       254       164       166         -       138
    IEEE            -         -         -       125         -       104
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels.activation import activate
from fastgan.kernels.conv_map import GATHER, GEOMETRY, Geometry, placed, placed_of_few, reciprocal, within
from fastgan.kernels.conv_product import conv_target, packed, row_step, steps, straight, strides, weight_tile
from fastgan.kernels.launch import Launch, Tickets, Workspace, submit
from fastgan.kernels.linear import gathered, given
from fastgan.kernels.norm import Correction, Norm, correction_arguments, formed, norm_arguments, normalised, vectors_of
from fastgan.kernels.tile import GROUP, WGMMA, Config, Problem, Target, choose, tile_of


@triton.jit
def operand(
    values, inside, c, live, in_mean, in_var, in_gamma, in_beta, own, in_eps, in_slope, IN_ACTIVATION: tl.constexpr
):  # fmt: skip
    """u [BM, BC] from what was loaded, 0 where nothing is."""
    if in_mean is not None:
        m, s, b = vectors_of(c, live, in_mean + own, in_var + own, in_gamma, in_beta, in_eps)
        values = tl.where(inside, normalised(values, m, s, b, in_slope, IN_ACTIVATION), 0.0).to(values.dtype)
    elif IN_ACTIVATION != "none":
        values = tl.where(inside, activate(values.to(tl.float32), in_slope, IN_ACTIVATION), 0.0).to(values.dtype)
    return values


@triton.jit
def gradient(
    values, saved, spot, inside, c, live, own, slope, up_mean, lift, tilt, ACTIVATION: tl.constexpr
):  # fmt: skip
    """g [BM, BC] from what was loaded, 0 where nothing is."""
    if saved is not None:
        s = tl.load(saved + spot, mask=inside, other=0.0)
        values = formed(values, s, c, live, own, slope, up_mean, lift, tilt, ACTIVATION)
        if lift is not None:
            values = tl.where(inside, values, 0.0)
    return values


DIVISORS = ["area_factor", "area_shift", "wide_factor", "wide_shift"]
MOST_ROWS = 2**31 - 2**10  # of a group, that are counted in 32 bits


@triton.jit(do_not_specialize=["samples", "splits", "trips", *DIVISORS, *GEOMETRY])
def conv_bwd_weight_kernel(
    gy, saved, x, gw, gb, samples, groups, splits, trips, area_factor, area_shift, wide_factor, wide_shift, K, C,
    e_n, e_h, e_w, e_c, i_n, i_h, i_w, i_c, f_k, f_c, f_r, f_s,
    h_source, h_out, h_kernel, h_stride, h_padding, h_dilation, h_common, h_inverse,
    w_source, w_out, w_kernel, w_stride, w_padding, w_dilation, w_common, w_inverse,
    slope, up_mean, lift, tilt, in_mean, in_var, in_gamma, in_beta, in_step, in_eps, in_slope, work, columns, ticket,
    ACTIVATION: tl.constexpr, IN_ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, TRANSPOSED: tl.constexpr,
    UP: tl.constexpr, PACKED: tl.constexpr, SPLIT: tl.constexpr, FEW: tl.constexpr, DENSE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One [BN, BK] tile of gW: channels of the grid, by those of the image at one tap (PACKED: at several)."""
    program, part = tl.program_id(0), 0
    if SPLIT:
        program, part = program // splits, program % splits
    blocks = tl.cdiv(C, BK)
    tiles_k, tiles_c = tl.cdiv(K, BN), h_kernel * w_kernel * blocks
    if PACKED:
        tiles_c = tl.cdiv(h_kernel * w_kernel * C, BK)
    tile_k, across = tile_of(program, tiles_k, tiles_c, GROUP)
    k = tile_k * BN + tl.arange(0, BN)  # [BN]
    if PACKED:
        d = across * BK + tl.arange(0, BK)  # [BK]
        tap, c = d // C, d % C
        in_c = tap < h_kernel * w_kernel
    else:
        tap, c = across // blocks, across % blocks * BK + tl.arange(0, BK)
        in_c = c < C
    tap_h, tap_w = tap // w_kernel, tap % w_kernel
    begin, end = 0, trips * groups
    if SPLIT:
        share = tl.cdiv(trips * groups, splits)
        begin, end = part * share, tl.minimum(part * share + share, trips * groups)

    total = tl.zeros([BN, BK], tl.float32)
    column = tl.zeros([BN], tl.float32)
    for trip in range(begin, end):
        group = trip // trips
        area = h_out * w_out
        if FEW:
            row, n, p, q, live = placed_of_few(
                trip - group * trips, samples * area, area, w_out, area_factor, area_shift, wide_factor, wide_shift, BM
            )
        else:
            n, p, q, live, _ = placed(trip - group * trips, samples, h_out, w_out, BM)
        n += tl.cast(group, tl.int64) * samples
        if DENSE:
            at = (tl.cast(group * samples, tl.int64) * area + row) * e_w  # [BM]
        else:
            at = n * e_n + p.to(tl.int64) * e_h + q.to(tl.int64) * e_w
        spot = at[:, None] + k.to(tl.int64)[None, :] * e_c
        in_e = live[:, None] & (k < K)[None, :]
        at_h, at_w = p * h_stride - h_padding, q * w_stride - w_padding  # [BM]
        if PACKED:
            in_h, of_h = within(at_h[:, None] + (tap_h * h_dilation)[None, :], h_source, UP)
            in_w, of_w = within(at_w[:, None] + (tap_w * w_dilation)[None, :], w_source, UP)
            in_f = live[:, None] & in_h & in_w & in_c[None, :]
            far = (n * i_n)[:, None] + of_h.to(tl.int64) * i_h + of_w.to(tl.int64) * i_w
        else:
            in_h, of_h = within(at_h + tap_h * h_dilation, h_source, UP)
            in_w, of_w = within(at_w + tap_w * w_dilation, w_source, UP)
            in_f = (live & in_h & in_w)[:, None] & in_c[None, :]
            far = (n * i_n + of_h.to(tl.int64) * i_h + of_w.to(tl.int64) * i_w)[:, None]
        far = far + c.to(tl.int64)[None, :] * i_c
        own = group * in_step
        if TRANSPOSED:
            e = tl.load(x + spot, mask=in_e, other=0.0)  # [BM, BN]
            e = operand(e, in_e, k, k < K, in_mean, in_var, in_gamma, in_beta, own, in_eps, in_slope, IN_ACTIVATION)
            f = tl.load(gy + far, mask=in_f, other=0.0)  # [BM, BK]
            f = gradient(f, saved, far, in_f, c, in_c, group * C, slope, up_mean, lift, tilt, ACTIVATION)
        else:
            e = tl.load(gy + spot, mask=in_e, other=0.0)
            e = gradient(e, saved, spot, in_e, k, k < K, group * K, slope, up_mean, lift, tilt, ACTIVATION)
            f = tl.load(x + far, mask=in_f, other=0.0)
            f = operand(f, in_f, c, in_c, in_mean, in_var, in_gamma, in_beta, own, in_eps, in_slope, IN_ACTIVATION)
        if gb is not None and across == 0:
            column += tl.sum(e.to(tl.float32), axis=0)
        total = tl.dot(tl.trans(e), f, total, input_precision=PRECISION)

    if SPLIT:
        if gb is not None and across == 0:
            tl.store(columns + tl.cast(part, tl.int64) * K + k, column, mask=k < K)
        last, total = gathered(total, work, ticket, program, part, splits, BN, BK)
        if not last:
            return
        if gb is not None and across == 0:
            column = tl.zeros([BN], tl.float32)
            for other in range(splits):
                column += tl.load(
                    columns + tl.cast(other, tl.int64) * K + k, mask=k < K, other=0.0, cache_modifier=".cg"
                )
    at = c.to(tl.int64) * f_c + tap_h.to(tl.int64) * f_r + tap_w.to(tl.int64) * f_s
    at = at[None, :] + k.to(tl.int64)[:, None] * f_k
    tl.store(gw + at, total.to(gw.dtype.element_ty), mask=(k < K)[:, None] & in_c[None, :])
    if gb is not None and across == 0:
        tl.store(gb + k, column.to(gb.dtype.element_ty), mask=k < K)


def bwd_weight_launch(
    gy: Tensor,
    saved: Tensor | None,
    x: Tensor,
    gw: Tensor,
    gb: Tensor | None,
    geometry: Geometry,
    transposed: bool,
    activation: str,
    slope: float,
    target: Target,
    *,
    correction: Correction | None = None,
    norm: Norm | None = None,
    before: tuple[str, float] = ("none", 0.0),
    config: Config | None = None,
) -> Launch:
    """Prepare gw [K, C, R, S] from gy and u, which is x, x through the activation ``before``, or x normalised."""
    K, C, R, S = gw.shape
    asked = bwd_weight_problem(gy, saved, x, gw, geometry, target, correction, norm, before)
    tile = config or weight_tile(choose(asked), C)
    groups = max(norm.mean.shape[0] if norm else 1, correction.mean.shape[0] if correction else 1)
    samples = x.shape[0] // groups
    area, wide = geometry.positions(GATHER), geometry.w.grid
    trips, few = -(-samples * area // tile.depth), samples * area < MOST_ROWS
    across = -(-R * S * C // tile.cols) if packed(C) else R * S * -(-C // tile.cols)
    tiles, split = -(-K // tile.rows) * across, tile.split
    grid, image = (x, gy) if transposed else (gy, x)
    phi = (norm.activation, norm.slope) if norm else before
    f_k, f_c, f_r, f_s = steps(gw)
    arguments: dict[str, object] = {
        "gy": gy,
        "saved": saved,
        "x": x,
        "gw": gw,
        "gb": gb,
        "slope": slope,
        "K": K,
        "C": C,
    }
    arguments |= {"samples": samples, "groups": groups, "splits": split, "trips": trips}
    arguments |= dict(zip(DIVISORS, (*reciprocal(area), *reciprocal(wide)), strict=True))
    arguments |= strides("e", grid) | strides("i", image) | {"f_k": f_k, "f_c": f_c, "f_r": f_r, "f_s": f_s}
    arguments |= geometry.arguments(GATHER) | correction_arguments(correction) | norm_arguments(norm)
    arguments |= {"in_slope": phi[1], "work": Workspace(tiles * split * tile.rows * tile.cols) if split > 1 else None}
    arguments["columns"] = Workspace(split * K) if gb is not None and split > 1 else None
    arguments["ticket"] = Tickets(tiles) if split > 1 else None
    constexprs: dict[str, object] = {"ACTIVATION": activation, "IN_ACTIVATION": phi[0], "PRECISION": target.precision}
    constexprs |= {"TRANSPOSED": transposed, "UP": geometry.h.up, "PACKED": packed(C), "SPLIT": split > 1}
    step = row_step(grid) if few else None
    if step is not None:
        arguments["e_w"] = step
    constexprs |= {"FEW": few, "DENSE": step is not None}
    constexprs |= {"BN": tile.rows, "BK": tile.cols, "BM": tile.depth, "GROUP": GROUP}
    return Launch(conv_bwd_weight_kernel, arguments, constexprs, tiles * split, tile)


def bwd_weight_problem(
    gy: Tensor,
    saved: Tensor | None,
    x: Tensor,
    gw: Tensor,
    geometry: Geometry,
    target: Target,
    correction: Correction | None = None,
    norm: Norm | None = None,
    before: tuple[str, float] = ("none", 0.0),
) -> Problem:
    """Describe a weight gradient to the choice of a tile: what stands beside the product takes registers."""
    K, C, R, S = gw.shape
    op = "conv_bwd_weight" if norm is None else "conv_bwd_weight_norm"
    size = K, C * R * S, x.shape[0] * geometry.positions(GATHER), gy.dtype.itemsize
    room = 64 if norm or saved is not None or before[0] != "none" or target.tensor_memory else 128
    if before[0] != "none" and (correction or target.arch not in WGMMA):
        room = 32  # seen to spill on sm_90 with 64
    if (norm or (correction and before[0] != "none")) and target.arch >= 120:
        room = 16  # seen to spill there with 32
    image = x.shape[0] * C * geometry.h.image * geometry.w.image
    repeats = 1.0, max(1.0, size[1] * size[2] / max(1, image))
    return Problem(op, *size, target, saved is not None, straight(gy) and straight(x), True, room, repeats)


def conv_bwd_weight(
    gy: Tensor,
    saved: Tensor | None,
    x: Tensor,
    gw: Tensor,
    gb: Tensor | None,
    geometry: Geometry,
    transposed: bool,
    activation: str,
    slope: float,
    *,
    correction: Correction | None = None,
    norm: Norm | None = None,
    before: tuple[str, float] = ("none", 0.0),
) -> Tensor:
    """Write the gradient of the weights to gw (K, C, R, S), of any strides, and return it.

    ``gb`` [K]: where the bias's gradient goes, of a convolution that is not transposed.
    """
    if gw.numel():
        more = given(correction=correction, norm=norm)
        if before[0] != "none":
            more["before"] = before
        how = geometry, transposed, activation, slope, conv_target(gy)
        submit(bwd_weight_launch, (gy, saved, x, gw, gb), (), *how, **more)
    return gw
