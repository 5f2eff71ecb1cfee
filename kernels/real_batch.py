"""A batch of real samples in one launch: chosen, gathered, normalised, flipped and blurred with noise on the device.

    out [B, C, H, W] = flip(images [n, C, H, W] [chosen]) + sigma * N(0, 1)        images: uint8 as x / 127.5 - 1
    picked [B]       = labels [n] [chosen]

Draw ``clock * per_step + index`` is batch b of epoch e, of n // B batches each; its row r is the sample that stands at
position b B + r of that epoch (``permutation.py``), or, ``in_order``, of the data: so a ring of batches is read that
were gathered elsewhere. Row r is mirrored where the upper bit of the first word of Philox's counter r, for FLIP, is
set. Element ``at`` of a sample, counted with the channels innermost in every layout, takes normal number ``at % 4`` of
counter r * ceil(C H W / 4) + at // 4, for NOISE (``streams.py``). ``out`` may be a part of that batch, the rows from
``lead`` on; a ring is then one of such parts.

Contract: uint8, bf16, fp16 or fp32 in, contiguous; bf16, fp16 or fp32 out, each sample dense, contiguous or
channels_last, rows by any stride; formed in fp32 and rounded once. Without noise uint8 gives the bits of
``fastgan.data.normalise`` on the CPU. ``clock`` (int64) is at least 0; ``noise`` is sigma (fp32) or None; ``labels``
are int64 or None. Below 2^31 samples of up to MOST_ELEMENTS each; addresses are int64.

Bytes, for E elements of a batch, of s bytes in the data and t in the result: s E read, t E written, and of 16 B for
labels. The walk is in the order of the result where channels come last, so that stores are whole vectors, and loads of
C planes side by side are of single elements, out of the L1 cache. Noise in a contiguous result of more than one channel
walks in the same order and stores single elements: results do not depend on the layout, and that one is not the one
that convolutions want. Each program finds its rows' samples anew (some 700 instructions, the chain of a shuffle's
rounds), so that no more than PROGRAMS share the work.

Registers a thread, the most of the variants on sm_90 and sm_120 (Triton 3.7.1 and 3.6.0): 96, of two
numbers a sample with noise, and capped at 128; images of regular size take 29 to 64. Nothing spilled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels.launch import Launch, submit
from fastgan.kernels.permutation import permuted
from fastgan.kernels.streams import FLIP, NOISE, halves, normals, words
from fastgan.kernels.tile import Config
from fastgan.kernels.variant import Variant

MOST_ELEMENTS = 2**30  # of a sample
ELEMENTS = 1024  # of a tile: 8 a thread
PROGRAMS = 512  # that share the work: four for each SM of a large card
REGISTERS = 128  # the cap: four blocks of 128 threads on an SM at the least


@triton.jit
def normalised(pixels):
    """x / 127.5 - 1 of uint8, rounded as a division rounds: the first product is exact, the second is its rest."""
    x = pixels.to(tl.float32)
    return x * 0.007843017578125 + x * 1.1967678403834725e-07 - 1.0


@triton.jit(
    do_not_specialize=["n", "rows", "batch", "lead", "batches", "parts", "seed_low", "seed_high", "per_step", "index"]
)
def real_batch_kernel(
    images, out, clock, noise, labels, picked, n, rows, batch, lead, batches, parts, size, out_r,
    seed_low, seed_high, per_step, index,
    C: tl.constexpr, W: tl.constexpr, PLANES: tl.constexpr, SHUFFLED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Every parts-th tile [BM, BN] of BM samples. C: channels walked innermost. W: a line's length; 0: no flip.

    PLANES: the result has its channels in planes, as the data has. SHUFFLED: samples are taken in an epoch's order, not
    in that of the data. ``rows`` of the ``batch`` from its row ``lead`` on.
    """
    part = tl.program_id(0) % parts
    row = (tl.program_id(0) // parts) * BM + tl.arange(0, BM)  # [BM]
    there = row < rows
    count = tl.load(clock) * per_step + index
    turn, stands = (count % batches).to(tl.int32), tl.minimum(row, rows - 1)
    if SHUFFLED:
        sample = permuted(turn * batch + lead + stands, n, seed_low, seed_high, count // batches)
    else:
        sample = turn * rows + stands
    sample = sample.to(tl.int64)
    if labels is not None:
        label = tl.load(labels + sample, mask=there & (part == 0), other=0)
        tl.store(picked + row, label, mask=there & (part == 0))

    far = row.to(tl.int64)[:, None]
    fours = (size + 3) // 4
    if W > 0:
        word, _, _, _ = words(seed_low, seed_high, FLIP, count, lead + row.to(tl.int64))
        mirrored = ((word >> 31) != 0)[:, None]
    for tile in range(part, tl.cdiv(size, BN), parts):
        at = tile * BN + tl.arange(0, BN)  # [BN]
        pixel = at // C
        place = (at % C) * (size // C) + pixel  # in planes
        come_from = place[None, :]
        if W > 0:
            come_from = tl.where(mirrored, (place + (W - 1) - 2 * (pixel % W))[None, :], come_from)  # [BM, BN]
        inside = there[:, None] & (at < size)[None, :]
        x = tl.load(images + sample[:, None] * size + come_from, mask=inside, other=0)
        x = normalised(x) if images.dtype.element_ty == tl.uint8 else x.to(tl.float32)
        if noise is not None:
            four = (lead + far) * fours + (tile * (BN // 4) + tl.arange(0, BN // 4))[None, :]
            x += tl.load(noise) * normals(seed_low, seed_high, NOISE, count, four)
        to = place if PLANES else at
        tl.store(out + far * out_r + to[None, :], x.to(out.dtype.element_ty), mask=inside)


def launch(
    images: Tensor,
    clock: Tensor,
    noise: Tensor | None,
    labels: Tensor | None,
    out: Tensor,
    picked: Tensor | None,
    seed: int,
    site: tuple[int, int],
    flip: bool,
    channels_last: bool,
    in_order: bool,
    part: tuple[int, int] | None = None,
) -> Launch:
    """Prepare out [B, ...] and picked [B]: draw ``site`` of images [n, ...] and labels [n], or a ``part`` of it."""
    n, rows, size = len(images), len(out), images[0].numel()
    batch, lead = part or (rows, 0)
    joined = images.dim() == 4 and images.shape[1] > 1 and (channels_last or noise is not None)
    tile = choose(size)
    blocks = -(-rows // tile.rows)
    parts = min(-(-size // tile.cols), max(1, PROGRAMS // blocks))
    arguments: dict[str, object] = {"images": images, "out": out, "clock": clock, "noise": noise}
    arguments |= {"labels": labels, "picked": picked, "n": n, "rows": rows, "parts": parts}
    arguments |= {"batch": batch, "lead": lead, "batches": n // (rows if in_order else batch)}
    arguments |= {"size": size, "out_r": out.stride(0)}
    arguments |= dict(zip(("seed_low", "seed_high"), halves(seed), strict=True))
    arguments |= dict(zip(("per_step", "index"), site, strict=True))
    constexprs: dict[str, object] = {"C": images.shape[1] if joined else 1, "W": images.shape[-1] if flip else 0}
    constexprs |= {"PLANES": joined and not channels_last, "SHUFFLED": not in_order, "BM": tile.rows, "BN": tile.cols}
    return Launch(real_batch_kernel, arguments, constexprs, blocks * parts, tile)


def choose(size: int) -> Config:
    """Take a tile as wide as a sample, within limits: samples of a few numbers, parts of a large one."""
    cols = min(ELEMENTS, max(16, triton.next_power_of_2(size)))
    return Config(ELEMENTS // cols, cols, 1, 4, REGISTERS, stages=1)


def real_batch(
    images: Tensor,
    clock: Tensor,
    out: Tensor,
    *,
    seed: int,
    site: tuple[int, int],
    flip: bool = False,
    noise: Tensor | None = None,
    labels: Tensor | None = None,
    channels_last: bool = False,
    in_order: bool = False,
    part: tuple[int, int] | None = None,
) -> Tensor | None:
    """Fill ``out`` with the batch that the clock has come to, and return its labels.

    Args:
        images: [n, C, H, W], or [n, d], contiguous.
        clock: int64 [], at least 0.
        out: [B, ...], 1 <= B <= n; each sample dense in the layout that ``channels_last`` names.
        seed: an int64.
        site: draws of this kind in a step, and which of them this is.
        flip: mirror every other image, of shape [C, H, W].
        noise: sigma, fp32 [], or None.
        labels: int64 [n], contiguous, or None.
        channels_last: the layout of ``out``.
        in_order: batches lie one behind the other, and after the last comes the first.
        part: the rows of the whole batch, and which of them the first one of ``out`` is; None: ``out`` is the batch.
    """
    picked = None if labels is None else labels.new_empty(len(out))
    if images.numel():
        # memory that the caller owns may lie in any way: with the inputs, strides and all
        submit(launch, (images, clock, noise, labels, out), (picked,), seed, site, flip, channels_last, in_order, part)
    return picked


@dataclass(frozen=True)
class _Case:
    """Operands that make a compiled form of their own."""

    shape: tuple[int, ...] = (60000, 1, 28, 28)
    stored: torch.dtype = torch.uint8
    dtype: torch.dtype = torch.float32
    flip: bool = False
    noise: bool = False
    labels: bool = False
    channels_last: bool = True
    in_order: bool = False

    def __str__(self) -> str:
        kinds = "/".join(str(dtype).removeprefix("torch.") for dtype in (self.stored, self.dtype))
        what = [name for name in ("flip", "noise", "labels", "channels_last", "in_order") if getattr(self, name)]
        return " ".join((kinds, "x".join(map(str, self.shape[1:])), *what))


_COLOR, _SMALL, _ODD = (50000, 3, 64, 64), (50000, 3, 32, 32), (50000, 3, 31, 33)
_CASES = (
    *(_Case(noise=noise, labels=labels) for noise in (False, True) for labels in (False, True)),
    _Case(flip=True, noise=True),
    *(_Case(dtype=dtype, noise=True) for dtype in (torch.bfloat16, torch.float16)),
    *(_Case(shape, dtype=torch.bfloat16, noise=noise) for shape in (_COLOR, _ODD) for noise in (False, True)),
    *(_Case(shape, flip=True, noise=True, labels=True) for shape in (_COLOR, _SMALL, _ODD)),
    *(_Case(_COLOR, dtype=torch.bfloat16, flip=True, noise=True, channels_last=last) for last in (False, True)),
    _Case(_COLOR, flip=True, channels_last=False),
    _Case(_COLOR, torch.float32, torch.bfloat16, True, True, True),
    *(_Case(_ODD, dtype, torch.float16, True, True) for dtype in (torch.bfloat16, torch.float16)),
    *(_Case(_COLOR, dtype=torch.bfloat16, flip=flip, noise=flip, in_order=True) for flip in (False, True)),
    *(_Case((100000, 2), torch.float32, noise=noise) for noise in (False, True)),
    _Case((100000, 40), torch.float32, noise=True),
)


def variants(arch: int) -> Iterator[Variant]:
    """Yield compiled forms, each once, for all that tells one data set from another; the same on every architecture."""
    seen = set()
    for case in _CASES:
        images = torch.empty(case.shape, dtype=case.stored, device="meta")
        out = torch.empty((64, *case.shape[1:]), dtype=case.dtype, device="meta")
        clock, noise = torch.empty((), dtype=torch.int64, device="meta"), torch.empty((), device="meta")
        labels = torch.empty(case.shape[0], dtype=torch.int64, device="meta") if case.labels else None
        how = (0, (1, 0), case.flip, case.channels_last, case.in_order)
        prepared = launch(images, clock, noise if case.noise else None, labels, out, labels, *how)
        variant = prepared.variant("real_batch", str(case), 0)
        form = repr((variant.signature, variant.constexprs, variant.divisible))
        if form not in seen:
            seen.add(form)
            yield variant
