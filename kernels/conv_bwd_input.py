"""The input gradient of a convolution or a transposed one in one launch, taken on through what the input came out of.

    g                = gy                                   the gradient as it comes,
                     | gy phi'(saved)                       through an activation, from what it saved,
                     | gy + lift + tilt (saved - mean)      through statistics of the raw output ``saved``
    gx               = g W, by the index map "phase" (or "spread"), or "gather" where the layer is transposed
                       and, in the epilogue, through what the operand came out of:
                     | g W phi'(below)                      the activation of the layer below, from its output
                     | s dv, dv = g W phi'(s (below - mean) + beta)   its norm; sums of dv as lift, tilt, ggamma, gbeta

Contract: as conv.py; ``saved`` has the strides of gy, what stands below those of gx. g is formed in the operand load in
fp32 and rounded to the operands' dtype for the product; it is never stored.

Work: as conv.py with the ends exchanged; 1 or 2 elements are read for each of g, and as many for each of gx.

Registers a thread, the most of any form in conv_forms.py on sm_80, 86, 89, 90, 100 and 120 (Triton 3.7.1), of at most
255, nothing spilled; wgmma on sm_90 from 64 rows on, save in IEEE fp32:
    tile      128x256   128x128    128x64    128x32    128x16     64x64     64x16     32x32
    16 bits       254       248       247       255       162       242         -       172
    TF32            -       255       254         -         -       254       145       184
    IEEE            -         -         -         -         -       242         -       184
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels.activation import times_derivative
from fastgan.kernels.conv import UNSPECIALISED
from fastgan.kernels.conv_map import Geometry
from fastgan.kernels.conv_norm import finish_summed
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
from fastgan.kernels.linear import given
from fastgan.kernels.linear_bwd_input import Below
from fastgan.kernels.norm import (
    LANES,
    Correction,
    Norm,
    NormGradients,
    correction_arguments,
    denormalised,
    norm_arguments,
    vectors_of,
)
from fastgan.kernels.tile import Config, Problem, Target


@triton.jit(do_not_specialize=[*UNSPECIALISED, "area"])
def conv_bwd_input_kernel(
    gy, saved, weight, gx, samples, groups, splits, high, K, C, area,
    s_n, s_h, s_w, s_c, f_d, f_o, f_r, f_s, y_n, y_h, y_w, y_c,
    h_source, h_out, h_kernel, h_stride, h_padding, h_dilation, h_common, h_inverse,
    w_source, w_out, w_kernel, w_stride, w_padding, w_dilation, w_common, w_inverse,
    slope, up_mean, lift, tilt, below, in_mean, in_var, in_gamma, in_beta, in_step, in_eps, in_slope,
    in_lift, in_tilt, ggamma, gbeta, parts, work, ticket,
    ACTIVATION: tl.constexpr, IN_ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, MAP: tl.constexpr, UP: tl.constexpr,
    EVEN: tl.constexpr, PACKED: tl.constexpr, SPLIT: tl.constexpr, LANES: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One [BM, BN] tile of gx: rows of one phase, C channels of the input."""
    total, whole, n, i, j, live, _, c, group, tile, tiles, across = contraction(
        gy, saved, weight, samples, groups, splits, high, C, K, s_n, s_h, s_w, s_c, f_d, f_o, f_r, f_s,
        h_source, h_out, h_kernel, h_stride, h_padding, h_dilation, h_common, h_inverse,
        w_source, w_out, w_kernel, w_stride, w_padding, w_dilation, w_common, w_inverse,
        slope, up_mean, lift, tilt, None, None, None, None, 0, 0.0, 0.0, work, ticket,
        ACTIVATION, "none", PRECISION, MAP, UP, EVEN, PACKED, SPLIT, BM, BN, BK, GROUP,
    )  # fmt: skip
    if SPLIT:
        if not whole:
            return
        ticket += groups * tiles * tl.cdiv(C, BN)
    at = (n * y_n + i.to(tl.int64) * y_h + j.to(tl.int64) * y_w)[:, None] + c.to(tl.int64)[None, :] * y_c
    inside = live[:, None] & (c < C)[None, :]
    if in_mean is not None:
        own = group * in_step
        m, s, b = vectors_of(c, c < C, in_mean + own, in_var + own, in_gamma, in_beta, in_eps)
        raw = tl.load(below + at, mask=inside, other=0.0)
        total, off = denormalised(total, raw, m, s, b, in_slope, IN_ACTIVATION)
        total = tl.where(inside, total, 0.0)
        tl.store(gx + at, (total * s[None, :]).to(gx.dtype.element_ty), mask=inside)
        if parts is not None:
            finish_summed(
                total, total * off, parts, ticket, tile, tiles, group, groups, across,
                samples.to(tl.float32) * area, c, c < C, C,
                in_var, in_gamma, in_step, in_eps, in_lift, in_tilt, ggamma, gbeta, BN, LANES,
            )  # fmt: skip
    else:
        if below is not None:
            total = times_derivative(total, tl.load(below + at, mask=inside, other=0.0), in_slope, IN_ACTIVATION)
        tl.store(gx + at, total.to(gx.dtype.element_ty), mask=inside)


def bwd_input_launch(
    gy: Tensor,
    saved: Tensor | None,
    weight: Tensor,
    gx: Tensor,
    raw: Tensor | None,
    geometry: Geometry,
    map: str,
    activation: str,
    slope: float,
    target: Target,
    *,
    correction: Correction | None = None,
    below: Below | None = None,
    norm: Norm | None = None,
    to: NormGradients | None = None,
    config: Config | None = None,
) -> Launch:
    """Prepare gx = conv(g, weight) by the ``map`` from g to gx, taken through ``below``, or the ``norm`` of ``raw``."""
    depth, cols = channels_of(weight, map)
    tile = config or tile_for(
        bwd_input_problem(gy, saved, weight, geometry, map, target, correction, below, norm), depth
    )
    groups = max(norm.mean.shape[0] if norm else 1, correction.mean.shape[0] if correction else 1)
    sums = to is not None and any(tensor is not None for tensor in to)
    frame = Frame(geometry, map, gy.shape[0] // groups, groups, cols, tile)
    through = (norm.activation, norm.slope) if norm else (below.activation, below.slope) if below else ("none", 0.0)
    arguments: dict[str, object] = {"gy": gy, "saved": saved, "weight": weight, "gx": gx, "slope": slope}
    arguments |= {"K": depth, "C": cols, "area": gx.shape[2] * gx.shape[3]} | frame.arguments(2 if sums else 0)
    arguments |= strides("s", gy) | filter_strides(weight, map) | strides("y", gx)
    arguments |= correction_arguments(correction) | norm_arguments(norm)
    arguments |= {"below": raw if norm else below and below.saved, "in_slope": through[1]}
    arguments |= dict(zip(("in_lift", "in_tilt", "ggamma", "gbeta"), to or (None,) * 4, strict=True))
    constexprs: dict[str, object] = {"ACTIVATION": activation, "IN_ACTIVATION": through[0], "LANES": LANES}
    constexprs |= {"PRECISION": target.precision} | frame.constexprs(depth)
    return Launch(conv_bwd_input_kernel, arguments, constexprs, frame.programs, tile)


def bwd_input_problem(
    gy: Tensor,
    saved: Tensor | None,
    weight: Tensor,
    geometry: Geometry,
    map: str,
    target: Target,
    correction: Correction | None = None,
    below: Below | None = None,
    norm: Norm | None = None,
) -> Problem:
    """Describe an input gradient to the choice of a tile: what stands beside the product takes registers."""
    op = "conv_bwd_input" if norm is None else "conv_bwd_input_norm"
    room = 32 if norm else 64 if below or saved is not None else 128
    return problem(op, gy, weight, geometry, map, target, saved is not None, room)


def conv_bwd_input(
    gy: Tensor,
    saved: Tensor | None,
    weight: Tensor,
    gx: Tensor,
    geometry: Geometry,
    map: str,
    activation: str,
    slope: float,
    *,
    correction: Correction | None = None,
    below: Below | None = None,
    norm: Norm | None = None,
    raw: Tensor | None = None,
    to: NormGradients | None = None,
) -> Tensor:
    """Write the gradient of the input to gx (n, channels, height, width), of any strides, and return it.

    ``saved`` has gy's strides. With ``below`` or ``norm`` it is the gradient of what stands before that activation, or
    of the output ``raw``; ``below.saved`` and ``raw`` have gx's strides. ``map`` leads from gy to gx.
    """
    if gx.numel():
        more = given(correction=correction, below=below, norm=norm, to=to)
        inputs = gy, saved, weight, gx, raw
        submit(bwd_input_launch, inputs, (), geometry, map, activation, slope, conv_target(gy), **more)
    else:
        for sums in to or ():
            if sums is not None:
                sums.zero_()
    return gx
