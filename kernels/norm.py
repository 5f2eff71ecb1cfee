"""Normalisation as a few vectors: what forms, measures and differentiates a normalised operand in passing.

A layer stores its raw output y [M, C] once. With the statistics of each group of rows,

    u = phi(s (y - mean) + beta),   s = gamma / sqrt(var + eps)

is formed where the next product loads it. ``mean`` and ``var`` are fp32 [groups, C]: a batch of real and one of fake
samples may share a launch without sharing statistics. ``gamma`` and ``beta`` [C] may be missing. Backward, for dv the
gradient of phi's argument, needs two sums over the rows of a group, gb = sum dv and gs = sum dv (y - mean):

    g_y = s dv - s gb / n - s (y - mean) gs / (n (var + eps))
    ggamma = sum over groups of gs / sqrt(var + eps),   gbeta = sum over groups of gb

of which s dv is stored and the rest travels as two vectors ``lift`` and ``tilt``: g_y = s dv + lift + tilt (y - mean).
Sums are merged from tiles by Chan, Golub & LeVeque's formula, in a fixed order.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels.activation import activate, times_derivative

LANES = 32  # parts that the last program takes at once


class Norm(NamedTuple):
    """How a raw output [M, C] becomes the operand of the next product."""

    mean: Tensor  # [groups, C]
    var: Tensor  # [groups, C], biased
    gamma: Tensor | None  # [C]
    beta: Tensor | None  # [C]
    eps: float
    activation: str
    slope: float


class Statistics(NamedTuple):
    """Where the statistics of an output [M, C] go."""

    mean: Tensor  # [groups, C]
    var: Tensor  # [groups, C], biased
    running_mean: Tensor | None  # [C], moved towards each group's in turn
    running_var: Tensor | None  # [C], unbiased
    tracked: Tensor | None  # batches seen before this one, where the running ones are plain averages
    momentum: float


class Correction(NamedTuple):
    """What the statistics of a raw output [M, C] add to its gradient: lift + tilt (y - mean)."""

    mean: Tensor  # [groups, C]
    lift: Tensor  # [groups, C]
    tilt: Tensor  # [groups, C]


class NormGradients(NamedTuple):
    """Where the gradients of a norm go; None for those that nobody asked for."""

    lift: Tensor | None  # [groups, C]
    tilt: Tensor | None  # [groups, C]
    gamma: Tensor | None  # [C]
    beta: Tensor | None  # [C]


@triton.jit
def vectors_of(c, inside, mean, var, gamma, beta, eps):
    """Return mean, s and beta [BC] of the channels c, whatever stands beyond the last."""
    m = tl.load(mean + c, mask=inside, other=0.0).to(tl.float32)
    s = tl.rsqrt(tl.load(var + c, mask=inside, other=1.0).to(tl.float32) + eps)
    b = tl.zeros_like(m)
    if gamma is not None:
        s *= tl.load(gamma + c, mask=inside, other=0.0).to(tl.float32)
    if beta is not None:
        b = tl.load(beta + c, mask=inside, other=0.0).to(tl.float32)
    return m, s, b


@triton.jit
def normalised(raw, m, s, b, slope, ACTIVATION: tl.constexpr):
    """phi(s (raw - m) + b) [BM, BC] in fp32."""
    return activate((raw.to(tl.float32) - m[None, :]) * s[None, :] + b[None, :], slope, ACTIVATION)


@triton.jit
def denormalised(grad, raw, m, s, b, slope, ACTIVATION: tl.constexpr):
    """dv = grad phi'(s (raw - m) + b) and raw - m, both [BM, BC] in fp32."""
    centred = raw.to(tl.float32) - m[None, :]
    v = centred * s[None, :] + b[None, :]
    if ACTIVATION != "leaky_relu":  # of which the argument tells the derivative for any slope
        v = activate(v, slope, ACTIVATION)
    return times_derivative(grad, v, slope, ACTIVATION), centred


@triton.jit
def corrected(grad, raw, c, inside, mean, lift, tilt):
    """grad + lift + tilt (raw - mean) [BM, BC] in fp32."""
    m = tl.load(mean + c, mask=inside, other=0.0)
    up = tl.load(lift + c, mask=inside, other=0.0)
    slant = tl.load(tilt + c, mask=inside, other=0.0)
    return grad.to(tl.float32) + up[None, :] + slant[None, :] * (raw.to(tl.float32) - m[None, :])


@triton.jit
def formed(g, saved, c, inside, own, slope, up_mean, lift, tilt, ACTIVATION: tl.constexpr):
    """g [BM, BN] from the incoming gradient and what was saved, rounded to the gradient's dtype."""
    if lift is not None:
        return corrected(g, saved, c, inside, up_mean + own, lift + own, tilt + own).to(g.dtype)
    return times_derivative(g, saved, slope, ACTIVATION).to(g.dtype)


@triton.jit
def measure(tile, live, count, part, c, inside, C):
    """Store the mean and the sum of squared distances of a tile's live rows [BM, 1] at ``part`` [2, C]."""
    centre = tl.sum(tl.where(live, tile, 0.0), axis=0) / count
    off = tl.where(live, tile - centre[None, :], 0.0)
    tl.store(part + c, centre, mask=inside)
    tl.store(part + C + c, tl.sum(off * off, axis=0), mask=inside)


@triton.jit
def merge(parts, tiles, rows, share, c, inside, C, BC: tl.constexpr, LANES: tl.constexpr):
    """Mean and sum of squared distances [BC] of a group of ``rows``, by its tiles [tiles, 2, C] of ``share`` rows."""
    mean = tl.zeros([BC], tl.float32)
    squares = tl.zeros([BC], tl.float32)
    seen = 0.0
    for first in range(0, tiles, LANES):
        t = first + tl.arange(0, LANES)  # [LANES]
        count = tl.maximum(tl.minimum(rows - t * share, share), 0).to(tl.float32)[:, None]
        at = parts + t.to(tl.int64)[:, None] * 2 * C + c[None, :]
        there = (t < tiles)[:, None] & inside[None, :]
        centre = tl.load(at, mask=there, other=0.0, cache_modifier=".cg")  # [LANES, BC]
        within = tl.load(at + C, mask=there, other=0.0, cache_modifier=".cg")
        new = tl.minimum((rows - first * share).to(tl.float32), 1.0 * LANES * share)
        middle = tl.sum(centre * count, axis=0) / new
        off = tl.where(there, centre - middle[None, :], 0.0)
        between = tl.sum(within + off * off * count, axis=0)
        step = middle - mean
        both = seen + new
        mean += step * (new / both)
        squares += between + step * step * (seen * new / both)
        seen = both
    return mean, squares


@triton.jit
def finish_statistics(
    parts, tiles, rows, groups, c, inside, C, mean, var, running_mean, running_var, tracked, momentum,
    share, BC: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Merge each group's tiles of ``share`` rows, in order: mean, biased variance; the running ones by the unbiased."""
    if running_mean is not None:
        slow_mean = tl.load(running_mean + c, mask=inside, other=0.0).to(tl.float32)
        slow_var = tl.load(running_var + c, mask=inside, other=0.0).to(tl.float32)
    size = tl.cast(tiles, tl.int64) * 2 * C
    for group in range(groups):
        centre, squares = merge(parts + group * size, tiles, rows, share, c, inside, C, BC, LANES)
        tl.store(mean + group * C + c, centre, mask=inside)
        tl.store(var + group * C + c, squares / rows, mask=inside)
        if running_mean is not None:
            step = momentum
            if tracked is not None:
                step = 1.0 / (tl.load(tracked) + group + 1).to(tl.float32)
            slow_mean += step * (centre - slow_mean)
            slow_var += step * (squares / (rows - 1) - slow_var)
    if running_mean is not None:
        tl.store(running_mean + c, slow_mean.to(running_mean.dtype.element_ty), mask=inside)
        tl.store(running_var + c, slow_var.to(running_var.dtype.element_ty), mask=inside)


@triton.jit
def finish_gradients(
    parts, tiles, rows, groups, c, inside, C, var, gamma, step, eps, lift, tilt, ggamma, gbeta,
    BC: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Add up each group's tiles [tiles, 2, C]: its lift and tilt, and over all the gradients of gamma and beta."""
    to_gamma = tl.zeros([BC], tl.float32)
    to_beta = tl.zeros([BC], tl.float32)
    size = tl.cast(tiles, tl.int64) * 2 * C
    for group in range(groups):
        shift = tl.zeros([BC], tl.float32)
        scale = tl.zeros([BC], tl.float32)
        for first in range(0, tiles, LANES):
            t = first + tl.arange(0, LANES)
            at = parts + group * size + t.to(tl.int64)[:, None] * 2 * C + c[None, :]
            there = (t < tiles)[:, None] & inside[None, :]
            shift += tl.sum(tl.load(at, mask=there, other=0.0, cache_modifier=".cg"), axis=0)
            scale += tl.sum(tl.load(at + C, mask=there, other=0.0, cache_modifier=".cg"), axis=0)
        inverse = tl.rsqrt(tl.load(var + group * step + c, mask=inside, other=1.0).to(tl.float32) + eps)
        s = inverse
        if gamma is not None:
            s *= tl.load(gamma + c, mask=inside, other=0.0).to(tl.float32)
        if lift is not None:
            tl.store(lift + group * C + c, -s * shift / rows, mask=inside)
        if tilt is not None:
            tl.store(tilt + group * C + c, -s * inverse * inverse * scale / rows, mask=inside)
        to_gamma += inverse * scale
        to_beta += shift
    if ggamma is not None:
        tl.store(ggamma + c, to_gamma.to(ggamma.dtype.element_ty), mask=inside)
    if gbeta is not None:
        tl.store(gbeta + c, to_beta.to(gbeta.dtype.element_ty), mask=inside)


def norm_arguments(norm: Norm | None) -> dict[str, object]:
    """Return the kernels' arguments for a normalised operand."""
    if norm is None:
        none = dict.fromkeys(("in_mean", "in_var", "in_gamma", "in_beta"))
        return {**none, "in_step": 0, "in_eps": 0.0, "in_slope": 0.0}
    step = norm.mean.stride(0) if norm.mean.shape[0] > 1 else 0
    vectors = {"in_mean": norm.mean, "in_var": norm.var, "in_gamma": norm.gamma, "in_beta": norm.beta}
    return {**vectors, "in_step": step, "in_eps": norm.eps, "in_slope": norm.slope}


def correction_arguments(correction: Correction | None) -> dict[str, object]:
    """Return the kernels' arguments for what statistics add to a gradient."""
    return dict(zip(("up_mean", "lift", "tilt"), correction or (None,) * 3, strict=True))
