"""Statistics of many tiles, in the launch that makes them: the last of LANES tiles merges them, the last of all those.

A convolution has thousands of tiles of rows, and a phase may have fewer rows than its neighbour: a tile's part tells
how many it has. Two steps keep what the last program has left to do short. The order of all sums is fixed. The formulas
stand in kernels/norm.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastgan.kernels.norm import LANES
from fastgan.kernels.ticket import arrives_last


@triton.jit
def finished(ticket, tile, tiles, group, groups, across, LANES: tl.constexpr):
    """Return the block of this tile, its tiles, and whether this program is the last of them to arrive.

    ``tile`` of ``tiles`` in its group; ``across``: the tile's column, whose tickets are its own.
    """
    blocks = tl.cdiv(tiles, LANES)
    block = tile // LANES
    members = tl.minimum(tiles - block * LANES, LANES)
    own = ticket + across * (groups * blocks + 1) + 1 + group * blocks + block
    return block, members, arrives_last(own, members)


@triton.jit
def finish_measured(
    out, live, count, parts, ticket, tile, tiles, group, groups, across, c, inside, C,
    mean, var, running_mean, running_var, tracked, momentum, BC: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Measure a tile [BM, BC]; the last program of its channels writes mean, biased variance and the running ones."""
    number = tl.maximum(count, 1).to(tl.float32)
    centre = tl.sum(tl.where(live, out, 0.0), axis=0) / number
    off = tl.where(live, out - centre[None, :], 0.0)
    at = parts + (group.to(tl.int64) * tiles + tile) * 3 * C + c
    tl.store(at, tl.zeros_like(centre) + count, mask=inside)
    tl.store(at + C, centre, mask=inside)
    tl.store(at + 2 * C, tl.sum(off * off, axis=0), mask=inside)
    block, members, last = finished(ticket, tile, tiles, group, groups, across, LANES)
    if last:
        height = tl.cdiv(tiles, LANES)
        blocks = parts + tl.cast(groups, tl.int64) * tiles * 3 * C
        first = parts + (group.to(tl.int64) * tiles + block * LANES) * 3 * C
        seen, centre, squares = merged(first, members, c, inside, C, BC, LANES)
        at = blocks + (group.to(tl.int64) * height + block) * 3 * C + c
        tl.store(at, seen, mask=inside)
        tl.store(at + C, centre, mask=inside)
        tl.store(at + 2 * C, squares, mask=inside)
        if arrives_last(ticket + across * (groups * height + 1), groups * height):
            finish(
                blocks, height, groups, c, inside, C, mean, var, running_mean, running_var, tracked, momentum, BC, LANES
            )


@triton.jit
def finish(
    blocks, height, groups, c, inside, C, mean, var, running_mean, running_var, tracked, momentum,
    BC: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Write each group's statistics; the running ones move as if the groups had come one after another."""
    if running_mean is not None:
        slow_mean = tl.load(running_mean + c, mask=inside, other=0.0).to(tl.float32)
        slow_var = tl.load(running_var + c, mask=inside, other=0.0).to(tl.float32)
    for group in range(groups):
        first = blocks + tl.cast(group, tl.int64) * height * 3 * C
        seen, centre, squares = merged(first, height, c, inside, C, BC, LANES)
        tl.store(mean + group * C + c, centre, mask=inside)
        tl.store(var + group * C + c, squares / tl.maximum(seen, 1.0), mask=inside)
        if running_mean is not None:
            step = momentum
            if tracked is not None:
                step = 1.0 / (tl.load(tracked) + group + 1).to(tl.float32)
            slow_mean += step * (centre - slow_mean)
            slow_var += step * (squares / (seen - 1) - slow_var)
    if running_mean is not None:
        tl.store(running_mean + c, slow_mean.to(running_mean.dtype.element_ty), mask=inside)
        tl.store(running_var + c, slow_var.to(running_var.dtype.element_ty), mask=inside)


@triton.jit
def merged(parts, tiles, c, inside, C, BC: tl.constexpr, LANES: tl.constexpr):
    """Number, mean and sum of squared distances [BC] of parts [tiles, 3, C], by Chan, Golub & LeVeque's formula."""
    seen = tl.zeros([BC], tl.float32)
    mean = tl.zeros([BC], tl.float32)
    squares = tl.zeros([BC], tl.float32)
    for first in range(0, tiles, LANES):
        t = first + tl.arange(0, LANES)  # [LANES]
        at = parts + t.to(tl.int64)[:, None] * 3 * C + c[None, :]
        there = (t < tiles)[:, None] & inside[None, :]
        count = tl.load(at, mask=there, other=0.0, cache_modifier=".cg")  # [LANES, BC]
        centre = tl.load(at + C, mask=there, other=0.0, cache_modifier=".cg")
        own = tl.load(at + 2 * C, mask=there, other=0.0, cache_modifier=".cg")
        new = tl.sum(count, axis=0)
        middle = tl.sum(centre * count, axis=0) / tl.maximum(new, 1.0)
        off = tl.where(count > 0, centre - middle[None, :], 0.0)
        both = seen + new
        share = new / tl.maximum(both, 1.0)
        step = middle - mean
        mean += step * share
        squares += tl.sum(own + off * off * count, axis=0) + step * step * seen * share
        seen = both
    return seen, mean, squares


@triton.jit
def finish_summed(
    total, weighted, parts, ticket, tile, tiles, group, groups, across, rows, c, inside, C,
    var, gamma, step, eps, lift, tilt, ggamma, gbeta, BC: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Add up dv and dv (y - mean) over tiles; the last program of its channels writes the norm's gradients."""
    at = parts + (group.to(tl.int64) * tiles + tile) * 2 * C + c
    tl.store(at, tl.sum(total, axis=0), mask=inside)
    tl.store(at + C, tl.sum(weighted, axis=0), mask=inside)
    block, members, last = finished(ticket, tile, tiles, group, groups, across, LANES)
    if last:
        height = tl.cdiv(tiles, LANES)
        blocks = parts + tl.cast(groups, tl.int64) * tiles * 2 * C
        first = parts + (group.to(tl.int64) * tiles + block * LANES) * 2 * C
        shift, scale = summed(first, members, c, inside, C, BC, LANES)
        at = blocks + (group.to(tl.int64) * height + block) * 2 * C + c
        tl.store(at, shift, mask=inside)
        tl.store(at + C, scale, mask=inside)
        if arrives_last(ticket + across * (groups * height + 1), groups * height):
            to_gamma = tl.zeros([BC], tl.float32)
            to_beta = tl.zeros([BC], tl.float32)
            for of in range(groups):
                first = blocks + tl.cast(of, tl.int64) * height * 2 * C
                shift, scale = summed(first, height, c, inside, C, BC, LANES)
                inverse = tl.rsqrt(tl.load(var + of * step + c, mask=inside, other=1.0).to(tl.float32) + eps)
                s = inverse
                if gamma is not None:
                    s *= tl.load(gamma + c, mask=inside, other=0.0).to(tl.float32)
                if lift is not None:
                    tl.store(lift + of * C + c, -s * shift / rows, mask=inside)
                if tilt is not None:
                    tl.store(tilt + of * C + c, -s * inverse * inverse * scale / rows, mask=inside)
                to_gamma += inverse * scale
                to_beta += shift
            if ggamma is not None:
                tl.store(ggamma + c, to_gamma.to(ggamma.dtype.element_ty), mask=inside)
            if gbeta is not None:
                tl.store(gbeta + c, to_beta.to(gbeta.dtype.element_ty), mask=inside)


@triton.jit
def summed(parts, tiles, c, inside, C, BC: tl.constexpr, LANES: tl.constexpr):
    """Both sums [BC] of parts [tiles, 2, C]."""
    shift = tl.zeros([BC], tl.float32)
    scale = tl.zeros([BC], tl.float32)
    for first in range(0, tiles, LANES):
        t = first + tl.arange(0, LANES)
        at = parts + t.to(tl.int64)[:, None] * 2 * C + c[None, :]
        there = (t < tiles)[:, None] & inside[None, :]
        shift += tl.sum(tl.load(at, mask=there, other=0.0, cache_modifier=".cg"), axis=0)
        scale += tl.sum(tl.load(at + C, mask=there, other=0.0, cache_modifier=".cg"), axis=0)
    return shift, scale


def room(groups: int, tiles: int, wide: int) -> tuple[int, int]:
    """Return how many parts there are, blocks of parts included, and tickets for ``wide`` columns of tiles."""
    blocks = groups * -(-tiles // LANES)
    return groups * tiles + blocks, wide * (blocks + 1)
