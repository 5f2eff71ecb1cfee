"""Where a convolution reads and writes: one index map an axis, for all three directions.

A convolution leads from an image [H, W] of C channels to [P, Q] of K channels, by weights [K, C, R, S]:

    y[p, q, k] = sum over r, s, c of x[p stride - padding + r dilation, ...] w[k, c, r, s]

A transposed one leads back: its weights are the same, its output is the image. So there are three maps, and each is the
forward pass of one and a backward pass of the other:

    gather   [H, W] -> [P, Q]: convolution forward, transposed convolution's input gradient
    phase    [P, Q] -> [H, W]: transposed convolution forward, convolution's input gradient. Positions congruent modulo
             the stride form a phase: a small dense convolution by every stride-th tap. A phase may have no tap (kernel
             < stride, a dilation that shares a factor with the stride): its sums are 0, and are written too.
    spread   the input gradient of a convolution of stride 1 over an image scaled up by ``up``: [P, Q] -> [H, W] by
             R up taps, without the larger image

Along one axis the i-th position of a phase reads ``source = i step + base + tap offset``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import triton
import triton.language as tl

GATHER, PHASE, SPREAD = "gather", "phase", "spread"


class Axis(NamedTuple):
    """One axis of a convolution."""

    image: int  # positions of the image: H or W, before it is scaled up
    grid: int  # positions that the kernel stands at: P or Q
    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    up: int = 1  # how many times each position of the image is repeated (nearest neighbour)

    def arguments(self, name: str, map: str) -> dict[str, int]:
        """Return a kernel's arguments for this axis, ``name`` before each."""
        source, out = (self.image, self.grid) if map == GATHER else (self.grid, self.image)
        common = math.gcd(self.stride, self.dilation)
        spacing = self.stride // common
        inverse = pow(self.dilation // common, -1, spacing) if spacing > 1 else 0
        values = (source, out, self.kernel, self.stride, self.padding, self.dilation, common, inverse)
        return {f"{name}_{what}": value for what, value in zip(AXIS, values, strict=True)}

    def phases(self, map: str) -> int:
        """Count the phases."""
        return self.stride if map == PHASE else 1

    def positions(self, map: str) -> int:
        """Count the positions of the largest phase."""
        return self.grid if map == GATHER else -(-self.image // self.phases(map))

    def taps(self, map: str) -> int:
        """Count the taps of the largest phase."""
        if map == SPREAD:
            return self.kernel * self.up
        return -(-self.kernel * math.gcd(self.stride, self.dilation) // self.phases(map))


AXIS = ("source", "out", "kernel", "stride", "padding", "dilation", "common", "inverse")
GEOMETRY = [f"{name}_{what}" for name in "hw" for what in AXIS]  # arguments that kernels are not specialised to


class Geometry(NamedTuple):
    """Both axes, which have the same ``up``. A signal of one dimension has a height of 1."""

    h: Axis
    w: Axis

    def arguments(self, map: str) -> dict[str, int]:
        """Return a kernel's arguments."""
        return {**self.h.arguments("h", map), **self.w.arguments("w", map)}

    def phases(self, map: str) -> int:
        """Count the phases."""
        return self.h.phases(map) * self.w.phases(map)

    def positions(self, map: str) -> int:
        """Count the positions of a sample's largest phase."""
        return self.h.positions(map) * self.w.positions(map)

    def taps(self, map: str) -> int:
        """Count the taps of the largest phase."""
        return self.h.taps(map) * self.w.taps(map)

    def out(self, map: str) -> tuple[int, int]:
        """Return the size of the output."""
        return (self.h.grid, self.w.grid) if map == GATHER else (self.h.image, self.w.image)

    def lone(self) -> Geometry:
        """Return the same for a grid of one position, whose every tap is a phase by itself: then no trip is idle."""
        return Geometry(*(_lone(axis) for axis in self))


def _lone(axis: Axis) -> Axis:
    return axis._replace(stride=(axis.kernel - 1) * axis.dilation + 1) if axis.grid == 1 and axis.up == 1 else axis


@triton.jit
def axis_of(
    phase, out, kernel, stride, padding, dilation, common, inverse, MAP: tl.constexpr, UP: tl.constexpr
):  # fmt: skip
    """Along one axis: positions, taps, the first tap and their spacing, step and base of the source, step of a tap."""
    if MAP == "phase":
        residue = (phase + padding) % stride
        spacing = stride // common
        first = residue // common * inverse % spacing
        taps = tl.where(residue % common == 0, tl.cdiv(kernel - first, spacing), 0)
        base = (phase + padding - first * dilation) // stride  # without remainder where there are taps
        return tl.cdiv(out - phase, stride), taps, first, spacing, 1, base, -(dilation // common)
    elif MAP == "spread":
        return out, kernel * UP, 0, 1, UP, padding, dilation
    else:
        return out, kernel, 0, 1, stride, -padding, dilation


@triton.jit
def tap_of(j, first, spacing, step, MAP: tl.constexpr, UP: tl.constexpr):
    """Of the j-th tap of a phase: how far from the base it reads, and which of the kernel's it is."""
    if MAP == "spread":
        tap = j // UP
        return j % UP - tap * step, tap
    else:
        return j * step, first + j * spacing


@triton.jit
def placed(tile, samples, high, wide, BM: tl.constexpr):
    """Of a tile's rows in a group's phase: sample (int64), position along both axes, whether it is there, how many are.

    Rows run through the samples of a group, and in each through a phase's high x wide positions.
    """
    area = tl.maximum(high * wide, 1)
    first = tile.to(tl.int64) * BM
    sample = first // area
    local = (first - sample * area).to(tl.int32) + tl.arange(0, BM)  # [BM]
    n = sample + local // area
    spot = local % area
    rows = samples * (high * wide).to(tl.int64)
    count = tl.minimum(tl.maximum(rows - first, 0), BM).to(tl.int32)
    wide = tl.maximum(wide, 1)
    return n, spot // wide, spot % wide, tl.arange(0, BM) < count, count


def reciprocal(divisor: int) -> tuple[int, int]:
    """Return the factor (its 32 bits as a signed number) and the shift by which ``quotient`` divides by ``divisor``.

    Source: Granlund and Montgomery, 1994, "Division by Invariant Integers using Multiplication", theorem 4.2.
    """
    bits = (divisor - 1).bit_length()
    factor = -(-(1 << (31 + bits)) // divisor)
    return factor - (factor >> 31 << 32), max(bits - 1, 0)


@triton.jit
def quotient(x, divisor, factor, shift):
    """x // divisor for an int32 x from 0 on: one multiplication, where a division takes some thirty instructions."""
    high = tl.umulhi(x.to(tl.uint32), tl.cast(factor, tl.uint32)) >> tl.cast(shift, tl.uint32)
    return tl.where(divisor == 1, x, high.to(tl.int32))


@triton.jit
def quotient_of_few(x, divisor):
    """x // divisor for x from 0 to 2^22: by floats, whose two roundings do not reach the half that is added."""
    return ((x.to(tl.float32) + 0.5) * (1.0 / divisor)).to(tl.int32)


@triton.jit
def placed_of_few(tile, rows, area, wide, area_factor, area_shift, wide_factor, wide_shift, BM: tl.constexpr):
    """As ``placed`` for a group of less than 2^31 - BM rows in one phase: row (int32), sample, position, if there."""
    row = tile * BM + tl.arange(0, BM)  # [BM]
    n = quotient(row, area, area_factor, area_shift)
    spot = row - n * area
    p = quotient(spot, wide, wide_factor, wide_shift)
    return row, n.to(tl.int64), p, spot - p * wide, row < rows


@triton.jit
def within(position, size, UP: tl.constexpr):
    """Whether positions lie in an image of ``size``, scaled up by UP, and where in the image itself that is."""
    inside = (position >= 0) & (position < size * UP)
    if UP > 1:
        position = position // UP
    return inside, position
