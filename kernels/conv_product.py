"""The sum over taps and channels that a convolution is, either way: one implicit matrix product.

    out [BM, BN] = sum over the taps of a phase and the channels of  a [BM, BK] w [BK, BN]

``a`` is read where the index map (kernels/conv_map.py) says; what lies outside is 0, also after what is done to ``a``
in passing: a norm and its activation, or for a gradient an activation's derivative or the statistics' correction. The
loop over taps and blocks of channels is one, so that loads run ahead across taps. Where there are few channels (an
image's 3), PACKED, a block takes the channels of several taps, at an address for each element.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels import cost, tables
from fastgan.kernels.activation import activate
from fastgan.kernels.conv_map import GATHER, Geometry, axis_of, placed, quotient_of_few, tap_of, within
from fastgan.kernels.conv_norm import room
from fastgan.kernels.launch import Tickets, Workspace
from fastgan.kernels.linear import gathered
from fastgan.kernels.norm import formed, normalised, vectors_of
from fastgan.kernels.problem import useful
from fastgan.kernels.tile import GROUP, WGMMA, Config, Problem, Target, candidates, choose, refusal, tile_of

LEAST_CHANNELS = 16  # of a block that takes one tap: with fewer, a block takes several
MOST_NARROW = 64  # channels of an output that a tile may be cut to
MOST_REGISTERS = 255  # of a thread


@triton.jit
def contraction(
    source, saved, weight, samples, groups, splits, high, out_channels, channels,
    s_n, s_h, s_w, s_c, f_d, f_o, f_r, f_s,
    h_source, h_out, h_kernel, h_stride, h_padding, h_dilation, h_common, h_inverse,
    w_source, w_out, w_kernel, w_stride, w_padding, w_dilation, w_common, w_inverse,
    slope, up_mean, lift, tilt, in_mean, in_var, in_gamma, in_beta, in_step, in_eps, in_slope, work, ticket,
    ACTIVATION: tl.constexpr, IN_ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, MAP: tl.constexpr, UP: tl.constexpr,
    EVEN: tl.constexpr, PACKED: tl.constexpr, SPLIT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """This program's tile [BM, BN] in fp32 and where it belongs; EVEN: BK divides the channels.

    Returns the sums, whether they are whole, sample (int64) and place of each row, which rows there are and how many,
    the output channels, the group, the tile in it, their number, and the column of tiles.
    """
    SCALE: tl.constexpr = UP if MAP == "gather" else 1  # of the source
    program, part = tl.program_id(0), 0
    if SPLIT:
        program, part = program // splits, program % splits
    phases = 1
    if MAP == "phase":
        phases = h_stride * w_stride
    tiles = phases * high
    row, across = tile_of(program, groups * tiles, tl.cdiv(out_channels, BN), GROUP)
    group, tile = row // tiles, row % tiles
    phase_h, phase_w = tile % phases // w_stride, tile % phases % w_stride
    positions_h, taps_h, first_h, spacing_h, step_h, base_h, jump_h = axis_of(
        phase_h, h_out, h_kernel, h_stride, h_padding, h_dilation, h_common, h_inverse, MAP, UP
    )
    positions_w, taps_w, first_w, spacing_w, step_w, base_w, jump_w = axis_of(
        phase_w, w_out, w_kernel, w_stride, w_padding, w_dilation, w_common, w_inverse, MAP, UP
    )
    n, i, j, live, count = placed(tile // phases, samples, positions_h, positions_w, BM)
    n += group.to(tl.int64) * samples
    o = across * BN + tl.arange(0, BN)  # [BN]
    in_o = (o < out_channels)[None, :]
    at_h, at_w = i * step_h + base_h, j * step_w + base_w  # [BM]
    rows = n * s_n + at_h.to(tl.int64) * s_h + at_w.to(tl.int64) * s_w

    blocks = tl.cdiv(channels, BK)
    trips = taps_h * taps_w * blocks
    if PACKED:
        trips = tl.cdiv(taps_h * taps_w * channels, BK)
    begin, end = 0, tl.where(count > 0, trips, 0)
    if SPLIT:
        share = tl.cdiv(trips, splits)
        begin, end = part * share, tl.minimum(part * share + share, end)
    total = tl.zeros([BM, BN], tl.float32)
    for trip in range(begin, end):
        if PACKED:
            d = trip * BK + tl.arange(0, BK)  # [BK]
            tap = quotient_of_few(d, channels)
            c = (d - tap * channels).to(tl.int64)
            left = tap < taps_h * taps_w
            down = quotient_of_few(tap, tl.maximum(taps_w, 1))
        else:
            tap, c = trip // blocks, trip % blocks * BK + tl.arange(0, BK)
            left = c < channels
            down = tap // taps_w
        far_h, tap_h = tap_of(down, first_h, spacing_h, jump_h, MAP, UP)
        far_w, tap_w = tap_of(tap - down * taps_w, first_w, spacing_w, jump_w, MAP, UP)
        at_f = tap_h.to(tl.int64) * f_r + tap_w.to(tl.int64) * f_s
        if PACKED:
            in_h, of_h = within(at_h[:, None] + far_h[None, :], h_source, SCALE)
            in_w, of_w = within(at_w[:, None] + far_w[None, :], w_source, SCALE)
            there = live[:, None] & in_h & in_w & left[None, :]
            if SCALE > 1:
                spot = (n * s_n)[:, None] + of_h.to(tl.int64) * s_h + of_w.to(tl.int64) * s_w + (c * s_c)[None, :]
            else:
                spot = rows[:, None] + (far_h.to(tl.int64) * s_h + far_w.to(tl.int64) * s_w + c * s_c)[None, :]
            f = weight + (at_f + c * f_d)[:, None] + o.to(tl.int64)[None, :] * f_o
        else:
            in_h, of_h = within(at_h + far_h, h_source, SCALE)
            in_w, of_w = within(at_w + far_w, w_source, SCALE)
            there = (live & in_h & in_w)[:, None]
            if not EVEN:
                there = there & left[None, :]
            if SCALE > 1:
                spot = (n * s_n + of_h.to(tl.int64) * s_h + of_w.to(tl.int64) * s_w)[:, None]
            else:
                spot = (rows + (far_h.to(tl.int64) * s_h + far_w.to(tl.int64) * s_w))[:, None]
            spot = spot + c.to(tl.int64)[None, :] * s_c
            f = weight + at_f + c.to(tl.int64)[:, None] * f_d + o.to(tl.int64)[None, :] * f_o
        a = tl.load(source + spot, mask=there, other=0.0)  # [BM, BK]
        if saved is not None:
            s = tl.load(saved + spot, mask=there, other=0.0)
            a = formed(a, s, c, left, group * channels, slope, up_mean, lift, tilt, ACTIVATION)
            if lift is not None:
                a = tl.where(there, a, 0.0)
        elif in_mean is not None:
            own = group * in_step
            m, scale, shift = vectors_of(c, left, in_mean + own, in_var + own, in_gamma, in_beta, in_eps)
            a = tl.where(there, normalised(a, m, scale, shift, in_slope, IN_ACTIVATION), 0.0).to(a.dtype)
        elif IN_ACTIVATION != "none":
            a = tl.where(there, activate(a.to(tl.float32), in_slope, IN_ACTIVATION), 0.0).to(a.dtype)
        in_f = in_o
        if PACKED or not EVEN:
            in_f = left[:, None] & in_o
        b = tl.load(f, mask=in_f, other=0.0)  # [BK, BN]
        total = tl.dot(a, b, total, input_precision=PRECISION)

    whole = True
    if SPLIT:
        whole, total = gathered(total, work, ticket, program, part, splits, BM, BN)
    place_h, place_w = i, j
    if MAP == "phase":
        place_h, place_w = phase_h + i * h_stride, phase_w + j * w_stride
    return total, whole, n, place_h, place_w, live, count, o, group, tile, tiles, across


@dataclass(frozen=True)
class Frame:
    """One launch's tiles: rows of every group and phase, by columns of output channels."""

    geometry: Geometry
    map: str
    samples: int  # of a group
    groups: int
    channels: int  # of the output
    tile: Config

    @property
    def high(self) -> int:
        """Count the tiles of a group's largest phase."""
        return -(-self.samples * self.geometry.positions(self.map) // self.tile.rows)

    @property
    def tiles(self) -> int:
        """Count the tiles of a group, down."""
        return self.high * self.geometry.phases(self.map)

    @property
    def wide(self) -> int:
        """Count the tiles across."""
        return -(-self.channels // self.tile.cols)

    @property
    def programs(self) -> int:
        """Count the programs."""
        return self.groups * self.tiles * self.wide * self.tile.split

    def arguments(self, sums: int) -> dict[str, object]:
        """Return the kernels' arguments but for operands; ``sums`` [channels] of a tile are merged over all tiles."""
        split = self.tile.split
        parts, columns = room(self.groups, self.tiles, self.wide)
        shared = self.groups * self.tiles * self.wide if split > 1 else 0
        work = Workspace(shared * split * self.tile.rows * self.tile.cols) if split > 1 else None
        return {
            **self.geometry.arguments(self.map),
            **{"samples": self.samples, "groups": self.groups, "splits": split, "high": self.high},
            "parts": Workspace(parts * sums * self.channels) if sums else None,
            "work": work,
            "ticket": Tickets(shared + (columns if sums else 0)) if work or sums else None,
        }

    def constexprs(self, depth: int) -> dict[str, object]:
        """Return the kernels' constexprs that follow from the tile and the ``depth`` channels of the input."""
        tile = self.tile
        return {
            **{"MAP": self.map, "UP": self.geometry.h.up, "SPLIT": tile.split > 1, "PACKED": packed(depth)},
            **{"EVEN": depth % tile.depth == 0, "GROUP": GROUP, "BM": tile.rows, "BN": tile.cols, "BK": tile.depth},
        }


def packed(channels: int) -> bool:
    """Whether a block takes the channels of several taps."""
    return channels < LEAST_CHANNELS


def steps(tensor: Tensor) -> tuple[int, ...]:
    """Return the strides of a tensor of four axes; along an axis of one position, where any would do, 0."""
    n, c, h, w = tensor.stride()
    return n if tensor.shape[0] > 1 else 0, c, h if tensor.shape[2] > 1 else 0, w if tensor.shape[3] > 1 else 0


def row_step(tensor: Tensor) -> int | None:
    """Return the one step from each row (n, h, w) of a tensor of four axes to the next, None where it varies."""
    n, _, h, w = tensor.shape
    s_n, _, s_h, s_w = tensor.stride()
    axes = [(size, step) for size, step in ((n, s_n), (h, s_h), (w, s_w)) if size > 1]
    even = all(outer == size * step for (_, outer), (size, step) in pairwise(axes))
    return (axes[-1][1] if axes else 0) if even else None


def strides(name: str, tensor: Tensor) -> dict[str, int]:
    """Return the kernels' arguments for the strides of a tensor (n, c, h, w)."""
    n, c, h, w = steps(tensor)
    return {f"{name}_n": n, f"{name}_c": c, f"{name}_h": h, f"{name}_w": w}


def filter_strides(weight: Tensor, map: str) -> dict[str, int]:
    """Return the kernels' arguments for the strides of weights [K, C, R, S]: of the sum's depth, and of the output."""
    k, c, r, s = steps(weight)
    return {"f_d": c if map == GATHER else k, "f_o": k if map == GATHER else c, "f_r": r, "f_s": s}


def channels_of(weight: Tensor, map: str) -> tuple[int, int]:
    """Return the channels that are summed over and those of the output."""
    K, C = weight.shape[:2]
    return (C, K) if map == GATHER else (K, C)


def straight(operand: Tensor) -> bool:
    """Whether whole vectors can be loaded along the channels of an operand (n, c, h, w)."""
    even = all(step % 16 == 0 for step in steps(operand) if step != 1)
    return operand.stride(1) == 1 and even and operand.shape[1] % 16 == 0 and operand.data_ptr() % 16 == 0


def vectors(operand: Tensor, weight: Tensor, map: str) -> bool:
    """Whether whole vectors can be loaded along the channels of an operand (n, c, h, w) and of its weights."""
    even = all(step % 16 == 0 for step in steps(weight) if step != 1) and channels_of(weight, map)[1] % 16 == 0
    return straight(operand) and even and min(weight.stride()[:2]) == 1 and weight.data_ptr() % 16 == 0


def conv_target(operand: Tensor) -> Target:
    """Return the device that holds the operand, with PyTorch's own TF32 setting for convolutions."""
    exact = operand.dtype == torch.float32 and torch.backends.cudnn.conv.fp32_precision != "tf32"  # type: ignore[attr-defined]
    return Target.of(operand, exact)


def problem(
    op: str,
    source: Tensor,
    weight: Tensor,
    geometry: Geometry,
    map: str,
    target: Target,
    masked: bool = False,
    accumulators: int = 128,
) -> Problem:
    """Describe a convolution to the choice of a tile, as the matrix product that it is."""
    depth, cols = channels_of(weight, map)
    if source.dtype.itemsize == 4 and target.arch not in WGMMA:
        accumulators = min(accumulators, 32)  # with 64 a plain product was seen to spill on sm_120
    whole = vectors(source, weight, map)
    if not whole and op.endswith("_norm") and target.arch >= 120:
        accumulators = min(accumulators, 16)  # seen to spill there with 32
    high, wide = geometry.out(map)
    size = source.shape[0] * high * wide, cols, depth * geometry.taps(map)
    return Problem(
        op,
        *size,
        source.dtype.itemsize,
        target,
        masked,
        whole,
        True,
        accumulators,
        repeats=(max(1.0, size[0] * size[2] / max(1, source.numel())), 1.0),
    )


def tile_for(asked: Problem, channels: int) -> Config:
    """Return the tile for a problem whose sum goes over so many channels a tap.

    Where nothing was measured, an output of few channels takes a tall tile if that is expected to be faster.
    """
    tile = choose(asked)
    if tables.nearest(asked) is None:
        tile = min((tile, *_tall(asked)), key=lambda each: cost.estimate(asked, each))
    return _fitted(tile, channels)


def candidates_for(asked: Problem, channels: int) -> tuple[Config, ...]:
    """List the tiles that ``tile_for`` may return where nothing was measured."""
    return tuple(dict.fromkeys(_fitted(tile, channels) for tile in (*candidates(asked), *_tall(asked))))


def _fitted(tile: Config, channels: int) -> Config:
    """Return a tile whose blocks take no more channels than a tap has; index maps take registers, so it has all."""
    depth = tile.depth if packed(channels) else min(tile.depth, 1 << (channels.bit_length() - 1))
    return replace(tile, depth=depth, registers=MOST_REGISTERS)


def _tall(asked: Problem) -> list[Config]:
    """List the tiles that are as narrow as an output of few channels."""
    if asked.cols > MOST_NARROW or asked.kind == "ieee":
        return []
    cols = max(LEAST_CHANNELS, 1 << (asked.cols - 1).bit_length())
    depth = 128 // asked.item_bytes if asked.vectors else 32
    rows = 128 if asked.vectors or asked.item_bytes == 2 else 64  # an address for each element
    tile = Config(rows, cols, depth, 8 if cols == MOST_NARROW else 4, MOST_REGISTERS)
    return [tile] if refusal(asked, tile) is None and useful(asked, tile) else []


def weight_tile(tile: Config, channels: int) -> Config:
    """Return a weight gradient's tile, no wider than a tap's channels; index maps take registers, so it has all."""
    cols = tile.cols if packed(channels) else min(tile.cols, max(LEAST_CHANNELS, 1 << (channels - 1).bit_length()))
    return replace(tile, cols=cols, registers=MOST_REGISTERS)


def in_load(asked: Problem, plain: Problem, channels: int, elements: int, columns: bool = False) -> bool:
    """Whether an operand is normalised where ``asked`` loads it, rather than by a pass over its ``elements`` before.

    Every tap and every tile across loads it anew, and the vectors leave less room for accumulators; a pass takes a
    launch and memory. ``columns``: it is the operand of the columns.
    """
    if "weight" in asked.op:
        tile, least = weight_tile(choose(asked), channels), weight_tile(choose(plain), channels)
    else:
        tile, least = tile_for(asked, channels), tile_for(plain, channels)
    side, times = (asked.cols, -(-asked.rows // tile.rows)) if columns else (asked.rows, -(-asked.cols // tile.cols))
    here = cost.estimate(asked, tile) + cost.forming_us(asked, tile, side * asked.depth * times)
    return here <= cost.estimate(plain, least) + cost.pass_us(plain, elements)
