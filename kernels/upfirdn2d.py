"""Images up-sampled with zeros, padded or cropped, filtered and down-sampled in one launch, by the taps that count.

    y [N, C, P, Q] = gain sum over r, s of f[r, s] z[n, c, p down_y + r - pad_y, q down_x + s - pad_x]

z is x [N, C, H, W] with up - 1 zeros behind each pixel and 0 beyond its borders. Of the taps of an output only each
up-th falls on a sample, from one that its phase says: those alone are loaded and multiplied. Backward is the same
kernel with up and down exchanged, the filter turned around and other padding.

Contract: bf16, fp16 or fp32, one dtype for x and y, formed in fp32 and rounded once; the filter [R, S] floating, of any
dtype, any strides and any size, read from memory at each launch, from its end where it is ``turned``. x by any strides,
y contiguous or channels_last; any size may be 0. Padded coordinates fit int32; addresses are int64. Sums run in a fixed
order.

Bytes, for items of s bytes: s for each element of x and of y, when neighbours find x in the L1 cache. FLOPs: 2 for each
output and tap that counts. What is written goes by 16 bytes where 16 divides its lines; x is read element by element
where the filter's steps shift it, by whole vectors along channels.

Registers a thread, the most of the variants on sm_80, 86, 89, 90, 100 and 120 (Triton 3.7.1): 128, where they are
capped; nothing spilled.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels.launch import Launch, submit
from fastgan.kernels.tile import Config
from fastgan.kernels.variant import Variant

REGISTERS = 128  # the cap: two blocks of 256 threads on an SM at the least
ELEMENTS = 1024  # of a tile
UNROLLED = 8  # taps of a row at a time, at the most


@triton.jit
def _first(at, down, pad, ahead, UP: tl.constexpr):
    """The first sample that taps of output ``at`` reach, and by which tap; ``ahead`` samples keep it from below 0."""
    start = at * down - pad + ahead * UP
    sample = (start + UP - 1) // UP
    return sample - ahead, sample * UP - start


@triton.jit(do_not_specialize=["C", "R", "S", "pad_x", "pad_y", "ahead_x", "ahead_y"])
def upfirdn2d_kernel(
    x, f, y, C, H, W, P, Q, R, S, down_x, down_y, pad_x, pad_y, ahead_x, ahead_y, gain,
    x_n, x_c, x_h, x_w, f_r, f_s, y_n, y_c, y_h, y_w,
    UP_X: tl.constexpr, UP_Y: tl.constexpr, TURNED: tl.constexpr, TAPS: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr, BQ: tl.constexpr,
):  # fmt: skip
    """One tile [BC, BP, BQ] of an image: TAPS taps of a row of the filter at a time."""
    across, down, over = tl.cdiv(Q, BQ), tl.cdiv(P, BP), tl.cdiv(C, BC)
    tile = tl.program_id(0)
    q = (tile % across) * BQ + tl.arange(0, BQ)[None, None, :]  # [1, 1, BQ]
    tile = tile // across
    p = (tile % down) * BP + tl.arange(0, BP)[None, :, None]  # [1, BP, 1]
    tile = tile // down
    c = (tile % over).to(tl.int64) * BC + tl.arange(0, BC)[:, None, None]  # [BC, 1, 1]
    n = (tile // over).to(tl.int64)
    here = (c < C) & (p < P) & (q < Q)

    h, r = _first(p, down_y, pad_y, ahead_y, UP_Y)  # [1, BP, 1]
    w, s = _first(q, down_x, pad_x, ahead_x, UP_X)  # [1, 1, BQ]
    if UP_Y == 1:
        r = 0  # every output begins with the first tap: one address for all
    if UP_X == 1:
        s = 0
    x += n * x_n + c * x_c
    total = tl.zeros([BC, BP, BQ], tl.float32)
    for row in range(tl.cdiv(R, UP_Y)):
        rows, tap_r = h + row, r + row * UP_Y
        lines = x + rows.to(tl.int64) * x_h
        within = here & (rows >= 0) & (rows < H)
        for first in range(0, tl.cdiv(S, UP_X), TAPS):
            for step in tl.static_range(TAPS):
                column, tap_s = w + (first + step), s + (first + step) * UP_X
                of_r, of_s = tap_r, tap_s
                if TURNED:
                    of_r, of_s = R - 1 - tap_r, S - 1 - tap_s
                factor = tl.load(f + of_r * f_r + of_s * f_s, mask=(tap_r < R) & (tap_s < S), other=0.0)
                there = within & (column >= 0) & (column < W) & (tap_r < R) & (tap_s < S)
                sample = tl.load(lines + column.to(tl.int64) * x_w, mask=there, other=0.0)
                total += sample.to(tl.float32) * factor.to(tl.float32)
    to = n * y_n + c * y_c + p.to(tl.int64) * y_h + q.to(tl.int64) * y_w
    tl.store(y + to, (total * gain).to(y.dtype.element_ty), mask=here)


def upfirdn2d_launch(
    x: Tensor, f: Tensor, y: Tensor, up: tuple[int, int], down: tuple[int, int], pad: tuple[int, int],
    size: tuple[int, int], turned: bool, gain: float, channels_last: bool,
) -> Launch:  # fmt: skip
    """Prepare y [N, C, P, Q]; each pair is (x, y), the size (P, Q)."""
    N, C, H, W = x.shape
    (P, Q), (R, S) = size, f.shape
    last = channels_last and C > 1
    tile = choose(C, P, Q, last)
    ahead = [max(0, -(-padding // factor)) for padding, factor in zip(pad, up, strict=True)]
    to = (C * P * Q, 1, C * Q, C) if channels_last else (C * P * Q, P * Q, Q, 1)
    arguments: dict[str, object] = {"x": x, "f": f, "y": y, "C": C, "H": H, "W": W, "P": P, "Q": Q, "R": R, "S": S}
    arguments |= {"down_x": down[0], "down_y": down[1], "pad_x": pad[0], "pad_y": pad[1]}
    arguments |= {"ahead_x": ahead[0], "ahead_y": ahead[1], "gain": gain, "f_r": f.stride(0), "f_s": f.stride(1)}
    arguments |= dict(zip(("x_n", "x_c", "x_h", "x_w"), x.stride(), strict=True))
    arguments |= dict(zip(("y_n", "y_c", "y_h", "y_w"), to, strict=True))
    constexprs = {"UP_X": up[0], "UP_Y": up[1], "TURNED": turned, "TAPS": min(UNROLLED, -(-S // up[0]))}
    constexprs |= {"BC": tile.channels, "BP": tile.height, "BQ": tile.width}
    programs = N * -(-C // tile.channels) * -(-P // tile.height) * -(-Q // tile.width)
    return Launch(upfirdn2d_kernel, arguments, constexprs, programs, tile.config)


class Tile(NamedTuple):
    """What a program writes: channels x height x width."""

    channels: int
    height: int
    width: int

    @property
    def config(self) -> Config:
        """Its warps: 4 elements a thread."""
        warps = min(8, max(1, self.channels * self.height * self.width // 128))
        return Config(self.height, self.width, self.channels, warps, REGISTERS, stages=1)


@functools.lru_cache(maxsize=4096)
def choose(C: int, P: int, Q: int, last: bool) -> Tile:
    """Take a tile that wastes little of a small image; along channels where these lie innermost."""
    power = triton.next_power_of_2
    if last:
        channels = min(power(C), 64)
        width = min(power(Q), 8, ELEMENTS // channels)
        return Tile(channels, min(power(P), 4, ELEMENTS // (channels * width)), width)
    width = min(power(Q), 64)
    height = min(power(P), 16, ELEMENTS // width)
    return Tile(min(power(C), ELEMENTS // (width * height)), height, width)


def upfirdn2d(
    x: Tensor, f: Tensor, up: tuple[int, int], down: tuple[int, int], pad: tuple[int, int], size: tuple[int, int],
    turned: bool, gain: float, channels_last: bool,
) -> Tensor:  # fmt: skip
    """Return images [N, C, P, Q] in x's dtype.

    Args:
        x: [N, C, H, W] by any strides.
        f: the filter [R, S], floating, by any strides.
        up, down: (x, y), each at least 1.
        pad: zeros in front (x, y), in up-sampled pixels; negative: what is cut off there.
        size: (P, Q); what it takes is padded or cut off behind.
        turned: whether the filter is read from its end: a convolution, else a correlation.
        gain: what the sums are multiplied by.
        channels_last: the result's layout; else it is contiguous.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    y = torch.empty((*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=layout)
    if y.numel():
        submit(upfirdn2d_launch, (x, f), (y,), up, down, pad, size, turned, gain, channels_last)
    return y


class _Case(NamedTuple):
    """Operands that make a compiled form of their own."""

    up: tuple[int, int]
    down: tuple[int, int]
    taps: tuple[int, int]  # rows and columns of the filter
    size: tuple[int, int, int, int] = (16, 64, 64, 64)
    layout: str = "rows"
    turned: bool = True


_RESAMPLED = (
    ((1, 1), (1, 1), (4, 4)),  # a filter by itself, as behind a transposed convolution
    ((2, 2), (1, 1), (4, 4)),
    ((1, 1), (2, 2), (4, 4)),
    ((2, 1), (1, 1), (1, 12)),  # separable ones, an axis at a time
    ((1, 2), (1, 1), (12, 1)),
    ((1, 1), (2, 1), (1, 12)),
    ((1, 1), (1, 2), (12, 1)),
    ((4, 1), (1, 1), (1, 24)),
    ((1, 1), (1, 1), (1, 1)),
    ((2, 2), (3, 3), (5, 3)),
)
_SIZES = ((16, 512, 4, 4), (16, 3, 256, 256), (3, 5, 33, 65))


def _cases() -> Iterator[_Case]:
    for resampled, layout in product(_RESAMPLED, ("rows", "last")):
        yield _Case(*resampled, layout=layout)
    for resampled in _RESAMPLED[:3]:
        yield _Case(*resampled, turned=False)
        for size in _SIZES:
            yield _Case(*resampled, size, "rows" if size[1] < 64 else "last")
    for layout in ("steps", "expanded"):
        yield _Case(*_RESAMPLED[0], layout=layout)


def variants(arch: int) -> Iterator[Variant]:
    """Yield compiled forms that networks launch, each once; the same on every architecture.

    A form differs by up and by how many taps are taken at a time, 1 to UNROLLED; these are the ones people use.
    """
    seen = set()
    for dtype, case in product((torch.bfloat16, torch.float32, torch.float16), _cases()):
        if dtype == torch.float16 and (
            case.layout != "rows" or case.taps != (4, 4)
        ):  # it differs from bf16 by its casts
            continue
        _, C, H, W = case.size
        rows = (C * H * W, H * W, W, 1)
        strides = {"last": (C * H * W, 1, C * W, C), "steps": tuple(3 * step for step in rows), "expanded": (0,) * 4}
        x = torch.empty_strided(case.size, strides.get(case.layout, rows), dtype=dtype, device="meta")
        size = (H * case.up[1] // case.down[1], W * case.up[0] // case.down[0])
        y = torch.empty(1, dtype=dtype, device="meta")
        f = torch.empty(case.taps, device="meta")
        how = (case.up, case.down, (2, 2), size, case.turned, 1.0, case.layout == "last")
        launch = upfirdn2d_launch(x, f, y, *how)
        shape = "x".join(map(str, case.size))
        taps = "x".join(map(str, case.taps))
        label = f"{str(dtype).removeprefix('torch.')} {taps} up {case.up} down {case.down} {case.layout} {shape}"
        variant = launch.variant("upfirdn2d", label + (" turned" if case.turned else ""), 0)
        form = repr((variant.signature, variant.constexprs, variant.divisible))
        if form not in seen:
            seen.add(form)
            yield variant
