"""DiffAugment: an image's color, translation and cutout in one launch, and in one more what becomes of its gradient.

    y [N, C, H, W] = steps of ``order``, drawn for each image n from rng

    brightness   x + b,              b from -1/2 to 1/2      contrast      (x - M) k + M,     k from 1/2 to 3/2
    saturation   (x - m) s + m,      s from 0 to 2           translation   x[h + t_h, w + t_w], 0 beyond the border
    cutout       0 in a window of (H + 1) // 2 by (W + 1) // 2, whose center is drawn over the whole image

m is the mean over a pixel's channels and M that over the image, of what each step is given. ``color`` is the first
three in turn; saturation moves no mean, so that contrast's M is the mean of the image in front of ``color``, plus b.
But for b the map is linear, and color symmetric: backward is the same kernel with the steps in reverse order, t negated
and b left out, and what backward's own gradient needs is forward without b.

Contract: bf16, fp16 or fp32, one dtype for x and y, formed in fp32 and rounded once; x by any strides, y contiguous or
channels_last; up to MOST_CHANNELS channels; any size may be 0. Addresses are int64. What is cut out or comes from
beyond the border is 0, whatever the image holds. ``rng``, int64 [2] on the device, holds a seed and an offset; image n
takes words of Philox's counters 2 n and 2 n + 1 (``philox.py``): 24 bits for b, s and k each, and for t and the window
the upper half of word * count. No sum's order depends on who comes first: the same operands give the same bits.

Programs: one launch must know M before it writes a pixel, and an image's programs do not wait for each other. Each sums
the whole image and then writes its share of the tiles; no more than PROGRAMS programs share the work where there is
color. Bytes, for items of s bytes and E elements: s E read and s E written without color. With color each of an image's
P = PROGRAMS / N programs (1 for N from PROGRAMS on) reads all of it once more: s E (P + 1), of which all but s E come
from the L2 cache as long as the images in flight fit there. FLOPs: 1 an element for the sum, 8 for the color.
What is summed is read in the order of memory, by accesses of 16 bytes where 16 divides its lines; what is written is
read wherever the translation says, element by element.

Registers a thread, the most of the variants on sm_80, 86, 89, 90, 100 and 120 (Triton 3.7.1): 128, where they are
capped; nothing spilled. Contiguous bf16 of regular size takes 96 to 109.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels.launch import Launch, submit
from fastgan.kernels.philox import words
from fastgan.kernels.tile import Config
from fastgan.kernels.variant import Variant

MOST_CHANNELS = 64  # a program has all channels of its pixels
PROGRAMS = 256  # that share the work where each sums its whole image: about two for each SM of a large card
ELEMENTS = 2048  # of a tile that is written
SUMMED = 8192  # of a tile that is summed by whole vectors: enough loads on their way at a time; else half of it
REGISTERS = 128  # the cap: two blocks of 256 threads on an SM at the least


@triton.jit
def _unit(word):
    """A number from 0 to 1, below 1, of a word's upper 24 bits: exact in fp32."""
    return (word >> 8).to(tl.int32).to(tl.float32) * (1.0 / 2**24)


@triton.jit
def _below(word, count):
    """An integer from 0 to count - 1."""
    return tl.umulhi(word, tl.cast(count, tl.uint32)).to(tl.int32)


@triton.jit
def _drawn(rng, n, H, W):
    """What is drawn for image n: b, s, k, then t_h, t_w, and the window's first row and column."""
    b, s, k, down = words(rng, n * 2)
    right, row, column, _ = words(rng, n * 2 + 1)
    reach_h, reach_w = (H + 4) // 8, (W + 4) // 8  # an eighth, rounded
    cut_h, cut_w = (H + 1) // 2, (W + 1) // 2
    t_h = _below(down, 2 * reach_h + 1) - reach_h
    t_w = _below(right, 2 * reach_w + 1) - reach_w
    top = _below(row, H + 1 - cut_h % 2) - cut_h // 2
    left = _below(column, W + 1 - cut_w % 2) - cut_w // 2
    return _unit(b) - 0.5, 2.0 * _unit(s), _unit(k) + 0.5, t_h, t_w, top, left


@triton.jit
def _takes(h, w, from_h, from_w, H, W, top, left, CUT: tl.constexpr):
    """Whether pixel (h [rows, 1], w [1, cols]) is given what stands at (from_h, from_w): not outside, not cut."""
    rows = (h >= 0) & (h < H) & (from_h >= 0) & (from_h < H)
    columns = (w >= 0) & (w < W) & (from_w >= 0) & (from_w < W)
    takes = rows & columns
    if CUT == "output":
        takes = takes & ~(_within(h, top, H) & _within(w, left, W))
    if CUT == "input":
        takes = takes & ~(_within(from_h, top, H) & _within(from_w, left, W))
    return takes


@triton.jit
def _within(at, first, size):
    """Whether a row or a column is one of the window's."""
    return (at >= first) & (at < first + (size + 1) // 2)


@triton.jit
def _sum(
    x, C, H, W, x_c, x_h, x_w, t_h, t_w, top, left,
    CUT: tl.constexpr, LAST: tl.constexpr, BR: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """The sum of the pixels of x that a map by t hands on; read where they stand, so by whole vectors.

    Lines of memory, [BR, BL] at a time: of W elements, C H of them, or of W C elements where channels come last.
    """
    lines, length = C * H, W
    if LAST:
        lines, length = H, W * C
    across = tl.cdiv(length, BL)
    total = tl.zeros([BR, BL], tl.float32)
    for tile in range(tl.cdiv(lines, BR) * across):
        line = (tile // across) * BR + tl.arange(0, BR)[:, None]  # [BR, 1]
        along = (tile % across) * BL + tl.arange(0, BL)[None, :]  # [1, BL]
        if LAST:
            h, w = line, along // C
            at = h.to(tl.int64) * x_h + along
        else:
            h, w = line % H, along
            at = (line // H).to(tl.int64) * x_c + h.to(tl.int64) * x_h + w.to(tl.int64) * x_w
        value = tl.load(x + at, mask=(line < lines) & (along < length), other=0.0).to(tl.float32)
        total += tl.where(_takes(h - t_h, w - t_w, h, w, H, W, top, left, CUT), value, 0.0)
    return tl.sum(tl.sum(total, axis=1), axis=0)


@triton.jit
def elements(C, H, W):
    """How many elements an image has, which may be more than int32 holds."""
    return (tl.cast(C, tl.int64) * H * W).to(tl.float32)


@triton.jit(do_not_specialize=["C", "H", "parts", "before", "after", "lift"])
def diff_augment_kernel(
    x, y, rng, C, H, W, parts, before, after, lift, x_n, x_c, x_h, x_w, y_n, y_c, y_h, y_w,
    BEFORE: tl.constexpr, COLOR: tl.constexpr, AFTER: tl.constexpr, LAST: tl.constexpr,
    BC: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, BR: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Every parts-th tile [BC, BH, BW] of an image: pixel q of y, from q + after * t of color's image, from x there.

    That pixel of color's image comes from + before * t of x. BEFORE and AFTER: whether there is a cutout before and
    after color, and whether its window is in the coordinates of that map's output or of its input.
    """
    n = (tl.program_id(0) // parts).to(tl.int64)
    b, s, k, t_h, t_w, top, left = _drawn(rng, n, H, W)
    x += n * x_n
    y += n * y_n
    mean = 0.0
    if COLOR:
        total = _sum(x, C, H, W, x_c, x_h, x_w, before * t_h, before * t_w, top, left, BEFORE, LAST, BR, BL)
        mean = total / elements(C, H, W)

    channel = tl.arange(0, BC).to(tl.int64)[:, None, None]  # [BC, 1, 1]
    tiles_w = tl.cdiv(W, BW)
    for tile in range(tl.program_id(0) % parts, tl.cdiv(H, BH) * tiles_w, parts):
        h = (tile // tiles_w) * BH + tl.arange(0, BH)[:, None]  # [BH, 1]
        w = (tile % tiles_w) * BW + tl.arange(0, BW)[None, :]  # [1, BW]
        p_h, p_w = h + after * t_h, w + after * t_w
        from_h, from_w = p_h + before * t_h, p_w + before * t_w
        kept = _takes(h, w, p_h, p_w, H, W, top, left, AFTER)
        taken = kept & _takes(p_h, p_w, from_h, from_w, H, W, top, left, BEFORE)
        at = (from_h.to(tl.int64) * x_h + from_w.to(tl.int64) * x_w)[None, :, :] + channel * x_c
        value = tl.load(x + at, mask=taken[None, :, :] & (channel < C), other=0.0).to(tl.float32)
        if COLOR:
            gray = (tl.sum(value, axis=0) / C)[None, :, :]  # [1, BH, BW]
            value = ((value - gray) * s + gray - mean) * k + mean + lift * b
            value = tl.where(kept[None, :, :], value, 0.0)
        to = (h.to(tl.int64) * y_h + w.to(tl.int64) * y_w)[None, :, :] + channel * y_c
        tl.store(y + to, value.to(y.dtype.element_ty), mask=((h < H) & (w < W))[None, :, :] & (channel < C))


@dataclass(frozen=True)
class Moves:
    """Steps on one side of color as one map: whether it translates, and in whose coordinates its window is."""

    translates: bool
    cut: str  # "none", "output" or "input"

    @classmethod
    def of(cls, steps: Sequence[str]) -> Moves:
        """Join steps, of which each comes once."""
        if "cutout" not in steps:
            return cls("translation" in steps, "none")
        return cls("translation" in steps, "output" if steps[-1] == "cutout" else "input")


def augment_launch(
    x: Tensor, rng: Tensor, y: Tensor, order: str, transposed: bool, lifted: bool, channels_last: bool
) -> Launch:
    """Prepare y [N, C, H, W] = the steps of ``order``, or the transpose of their linear part."""
    steps = order.split(",")[:: -1 if transposed else 1]
    color = steps.index("color") if "color" in steps else 0
    before, after = Moves.of(steps[:color]), Moves.of(steps[color:])
    N, C, H, W = x.shape
    last = C > 1 and x.stride(1) == 1 and x.stride(3) == C
    tile = choose(C, H, W, last, last or x.stride(3) == 1)
    tiles = -(-H // tile.height) * -(-W // tile.width)
    parts = min(tiles, max(1, PROGRAMS // N)) if "color" in steps else tiles
    sign = -1 if transposed else 1
    to = (C * H * W, 1, C * W, C) if channels_last else (C * H * W, H * W, W, 1)
    arguments: dict[str, object] = {"x": x, "y": y, "rng": rng, "C": C, "H": H, "W": W, "parts": parts}
    arguments |= {"before": sign * before.translates, "after": sign * after.translates, "lift": int(lifted)}
    arguments |= dict(zip(("x_n", "x_c", "x_h", "x_w"), x.stride(), strict=True))
    arguments |= dict(zip(("y_n", "y_c", "y_h", "y_w"), to, strict=True))
    constexprs = {"BEFORE": before.cut, "COLOR": "color" in steps, "AFTER": after.cut, "LAST": last}
    constexprs |= {"BC": tile.channels, "BH": tile.height, "BW": tile.width, "BR": tile.lines, "BL": tile.length}
    return Launch(diff_augment_kernel, arguments, constexprs, N * parts, tile.config)


class Tile(NamedTuple):
    """What a program writes at a time, channels x height x width, and what it sums at a time, lines x length."""

    channels: int
    height: int
    width: int
    lines: int
    length: int

    @property
    def config(self) -> Config:
        """Its warps: 8 elements a thread that are written."""
        warps = min(8, max(1, self.channels * self.height * self.width // 256))
        return Config(self.height, self.width, self.channels, warps, REGISTERS, stages=1)


@functools.lru_cache(maxsize=4096)
def choose(C: int, H: int, W: int, last: bool, joined: bool) -> Tile:
    """Take a tile of all channels that wastes little of a small image.

    ``last``: channels lie side by side. ``joined``: a line's elements do.
    """
    power = triton.next_power_of_2
    channels, width = power(C), min(power(W), 64)
    height = min(power(H), max(1, ELEMENTS // (channels * width)))
    lines, along = (H, W * C) if last else (H * C, W)
    length = min(power(along), 256)
    summed = SUMMED if joined and along % 16 == 0 else SUMMED // 2  # an address for each element takes registers
    return Tile(channels, height, width, min(power(lines), summed // length), length)


def diff_augment(
    x: Tensor,
    rng: Tensor,
    order: str,
    *,
    transposed: bool = False,
    lifted: bool = True,
    channels_last: bool = False,
) -> Tensor:
    """Return images [N, C, H, W] with the steps of ``order`` done to them, in x's dtype.

    Args:
        x: images, of up to MOST_CHANNELS channels, by any strides.
        rng: int64 [2] on the device, contiguous: a seed and an offset.
        order: steps, each at most once, joined by commas: ``"color,translation,cutout"``.
        transposed: the transpose of the map's linear part: what becomes of a gradient.
        lifted: with brightness; False: the linear part alone.
        channels_last: the result's layout; else it is contiguous.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    y = torch.empty_like(x, memory_format=layout)
    if x.numel():
        submit(
            augment_launch, (x, rng), (y,), order, transposed, lifted and not transposed, channels_last=channels_last
        )
    return y


@dataclass(frozen=True)
class _Case:
    """Operands that make a compiled form of their own."""

    order: str = "color,translation,cutout"
    transposed: bool = False
    layout: str = "rows"  # of x; y is channels_last where x is
    shape: tuple[int, int, int, int] = (64, 3, 64, 64)

    def __str__(self) -> str:
        direction = "transposed" if self.transposed else "forward"
        return f"{self.order} {direction} {self.layout} {'x'.join(map(str, self.shape))}"


_ORDERS = ("color", "translation", "cutout", "translation,cutout", "cutout,translation", "color,cutout,translation")
_SIZES = ((64, 3, 256, 256), (64, 3, 32, 32), (64, 1, 28, 28), (64, 4, 33, 65), (64, 1, 64, 1), (2, 64, 64, 64))
_CASES = (
    *(_Case(transposed=transposed, layout=layout) for transposed in (False, True) for layout in ("rows", "last")),
    *(_Case(transposed=transposed, shape=shape) for transposed in (False, True) for shape in _SIZES),
    *(_Case(order) for order in _ORDERS),
    _Case("color,cutout,translation", True),
    _Case(layout="steps"),
    _Case(transposed=True, layout="expanded"),
    *(_Case(transposed=True, layout="last", shape=shape) for shape in ((64, 3, 256, 256), (64, 4, 33, 65))),
)
_FORMS = ((torch.bfloat16, _CASES), (torch.float32, _CASES), (torch.float16, _CASES[:4]))  # fp16 differs by its casts


def _laid(case: _Case, dtype: torch.dtype) -> Tensor:
    """Return x without storage."""
    _, C, H, W = case.shape
    rows = (C * H * W, H * W, W, 1)
    strides = {"last": (C * H * W, 1, C * W, C), "steps": tuple(4 * step for step in rows), "expanded": (0, 0, 0, 0)}
    return torch.empty_strided(case.shape, strides.get(case.layout, rows), dtype=dtype, device="meta")


def variants(arch: int) -> Iterator[Variant]:
    """Yield the compiled forms that can be launched, each once; the same on every architecture."""
    seen = set()
    rng = torch.empty(2, dtype=torch.int64, device="meta")
    for dtype, case in ((dtype, case) for dtype, cases in _FORMS for case in cases):
        x, y = _laid(case, dtype), torch.empty(case.shape, dtype=dtype, device="meta")
        how = (case.order, case.transposed, not case.transposed, case.layout == "last")
        launch = augment_launch(x, rng, y, *how)
        variant = launch.variant("diff_augment", f"{str(dtype).removeprefix('torch.')} {case}", 0)
        form = repr((variant.kernel, variant.signature, variant.constexprs, variant.divisible))
        if form not in seen:
            seen.add(form)
            yield variant
