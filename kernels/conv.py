"""A convolution or a transposed one in one launch: normalised on the way in; biased, activated, measured after.

    u            = x, phi(x), or phi(s (x - mean) + beta) where x is a raw output with its norm   (kernels/norm.py)
    y            = phi(conv(u, W) + b), by the index map "gather", or "phase" if it is transposed  (kernels/conv_map.py)
    mean, var [groups, K] of y as it was stored, and the running ones, where they are asked for

Contract: bf16, fp16 or fp32, one dtype for x, W and y; x, W and y by any strides; vectors in any floating dtype,
statistics in fp32. Samples fall into ``groups`` equal parts, each with its own statistics; no tile has rows of two.
Products accumulate in fp32; fp32 operands are multiplied as PyTorch's TF32 setting says. What lies outside the image is
0 after the norm and the activation. Where ``splits`` programs share a tile, the last to arrive adds the parts in their
order: the same operands give the same bits, always.

Work, in elements and multiply-adds, for M rows (samples x positions of the output) and T taps: reads the input once for
each column of tiles, from L2 where it was read for another tap, and T C K weights; writes M K; M T C K products, of
which a phase of a transposed convolution has T / stride^2 each. Backward: conv_bwd_input.py, conv_bwd_weight.py.

Registers a thread, the most of any form in conv_forms.py on sm_80, 86, 89, 90, 100 and 120 (Triton 3.7.1), of at most
255, nothing spilled; wgmma on sm_90 from 64 rows on, save in IEEE fp32:
    tile      128x256   128x128    128x64    128x32    128x16     64x64     64x16     32x32
    16 bits       255       255       233       220       168       252         -       180
    TF32            -       255       250         -         -       254       146       150
    IEEE            -         -         -         -         -       236         -       181
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels.activation import activate
from fastgan.kernels.conv_map import GEOMETRY, Geometry
from fastgan.kernels.conv_norm import finish_measured
from fastgan.kernels.conv_product import (
    Frame,
    channels_of,
    contraction,
    conv_target,
    filter_strides,
    problem,
    strides,
    tile_for,
)
from fastgan.kernels.launch import Launch, submit
from fastgan.kernels.linear import given, groups_of, statistics_arguments
from fastgan.kernels.norm import LANES, Norm, Statistics, norm_arguments
from fastgan.kernels.tile import WGMMA, Config, Problem, Target

NOTHING = ("none", 0.0)  # what has no activation
UNSPECIALISED = ["samples", "splits", "high", *GEOMETRY]


@triton.jit(do_not_specialize=UNSPECIALISED)
def conv_fwd_kernel(
    x, weight, bias, y, samples, groups, splits, high, K, C,
    s_n, s_h, s_w, s_c, f_d, f_o, f_r, f_s, y_n, y_h, y_w, y_c,
    h_source, h_out, h_kernel, h_stride, h_padding, h_dilation, h_common, h_inverse,
    w_source, w_out, w_kernel, w_stride, w_padding, w_dilation, w_common, w_inverse,
    slope, in_mean, in_var, in_gamma, in_beta, in_step, in_eps, in_slope,
    mean, var, running_mean, running_var, tracked, momentum, parts, work, ticket,
    ACTIVATION: tl.constexpr, IN_ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, MAP: tl.constexpr, UP: tl.constexpr,
    EVEN: tl.constexpr, PACKED: tl.constexpr, SPLIT: tl.constexpr, LANES: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One [BM, BN] tile of y: rows of one phase, output channels."""
    total, whole, n, i, j, live, count, k, group, tile, tiles, across = contraction(
        x, None, weight, samples, groups, splits, high, K, C, s_n, s_h, s_w, s_c, f_d, f_o, f_r, f_s,
        h_source, h_out, h_kernel, h_stride, h_padding, h_dilation, h_common, h_inverse,
        w_source, w_out, w_kernel, w_stride, w_padding, w_dilation, w_common, w_inverse,
        0.0, None, None, None, in_mean, in_var, in_gamma, in_beta, in_step, in_eps, in_slope, work, ticket,
        "none", IN_ACTIVATION, PRECISION, MAP, UP, EVEN, PACKED, SPLIT, BM, BN, BK, GROUP,
    )  # fmt: skip
    if SPLIT:
        if not whole:
            return
        ticket += groups * tiles * tl.cdiv(K, BN)
    if bias is not None:
        total += tl.load(bias + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
    out = activate(total, slope, ACTIVATION).to(y.dtype.element_ty)
    at = (n * y_n + i.to(tl.int64) * y_h + j.to(tl.int64) * y_w)[:, None] + k.to(tl.int64)[None, :] * y_c
    tl.store(y + at, out, mask=live[:, None] & (k < K)[None, :])
    if mean is not None:
        finish_measured(
            out.to(tl.float32), live[:, None], count, parts, ticket, tile, tiles,
            group, groups, across,
            k, k < K, K, mean, var, running_mean, running_var, tracked, momentum, BN, LANES,
        )  # fmt: skip


def fwd_launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    geometry: Geometry,
    map: str,
    activation: str,
    slope: float,
    target: Target,
    *,
    norm: Norm | None = None,
    before: tuple[str, float] = NOTHING,
    statistics: Statistics | None = None,
    config: Config | None = None,
) -> Launch:
    """Prepare y = phi(conv(x, weight) + bias); ``before``: an activation of x that has no norm."""
    depth, cols = channels_of(weight, map)
    tile = config or tile_for(fwd_problem(x, weight, geometry, map, target, norm, statistics, before), depth)
    groups = groups_of(norm, statistics)
    frame = Frame(geometry, map, x.shape[0] // groups, groups, cols, tile)
    arguments: dict[str, object] = {"x": x, "weight": weight, "bias": bias, "y": y, "slope": slope}
    arguments |= {"K": cols, "C": depth} | frame.arguments(3 if statistics else 0)
    arguments |= strides("s", x) | filter_strides(weight, map) | strides("y", y)
    arguments |= norm_arguments(norm) | statistics_arguments(statistics)
    phi = (norm.activation, norm.slope) if norm else before
    arguments["in_slope"] = phi[1]
    constexprs: dict[str, object] = {"ACTIVATION": activation, "IN_ACTIVATION": phi[0], "LANES": LANES}
    constexprs |= {"PRECISION": target.precision} | frame.constexprs(depth)
    return Launch(conv_fwd_kernel, arguments, constexprs, frame.programs, tile)


def fwd_problem(
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
    map: str,
    target: Target,
    norm: Norm | None = None,
    statistics: Statistics | None = None,
    before: tuple[str, float] = NOTHING,
) -> Problem:
    """Describe a convolution forward to the choice of a tile: what stands beside it takes registers."""
    op = "conv_fwd" if norm is None else "conv_fwd_norm"
    room = 64 if norm or statistics else 128
    if statistics and (target.arch >= 120 or (before != NOTHING and target.arch not in WGMMA)):
        room = 32  # seen to spill there with 64
    return problem(op, x, weight, geometry, map, target, False, room)


def conv_fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    geometry: Geometry,
    map: str,
    activation: str,
    slope: float,
    *,
    norm: Norm | None = None,
    before: tuple[str, float] = NOTHING,
    statistics: Statistics | None = None,
) -> Tensor:
    """Write phi(conv(x, weight) + bias) to y (n, channels, *geometry.out(map)), of any strides, and return it.

    Args:
        x: (n, channels, height, width) of the map's source.
        weight: (K, C, R, S): K channels on the grid's side, C on the image's; so it is torch's for both directions.
        bias: of the output's channels.
        geometry, map: which position reads which.
        norm: what x has yet to go through; ``before``: an activation that it has to go through without a norm.
        statistics: where those of y are written; then y is not empty.
    """
    if y.numel():
        bias = None if bias is None else bias.contiguous()
        more = given(norm=norm, statistics=statistics)
        if before != NOTHING:
            more["before"] = before
        submit(fwd_launch, (x, weight, bias, y), (), geometry, map, activation, slope, conv_target(x), **more)
    return y
