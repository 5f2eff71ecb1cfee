"""What a generator is given, drawn in one launch: latents of a few kinds, and class labels.

    out[at] = kind(word k % 4 of Philox's counter k // 4), for draw clock * per_step + index       (``streams.py``)

with k = first + at: what is drawn may be part of a larger draw.

    normal    Box-Muller on words 0 and 1 of a counter, and on 2 and 3; up to 6.764 on either side
    uniform   the upper 24 bits of the word, from -1 to 1, 1 excluded
    discrete  (2 j - (levels - 1)) / (levels - 1), j = word * levels >> 32
    label     word * levels >> 32, int64

Contract: ``out`` contiguous, of any number of elements: bf16, fp16 or fp32, formed in fp32 and rounded once (where 1
may come of what lies below it); int64 for labels. ``clock`` (int64) is at least 0. 2 <= levels <= 2^24 where values lie
between -1 and 1; 1 <= levels < 2^31 for labels. All kinds but the normal have the reference's bits.

Bytes: those of ``out``, and 8. Registers a thread, the most of the variants on sm_90 and sm_120 (Triton 3.7.1 and
3.6.0): 29; nothing spilled.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels.launch import Launch, submit
from fastgan.kernels.streams import LABEL, LATENT, below, halves, in_order, normals, words
from fastgan.kernels.tile import Config
from fastgan.kernels.variant import Variant

ELEMENTS = 512  # of a tile: 4 a thread, one counter's
REGISTERS = 128  # the cap
KINDS = ("normal", "uniform", "discrete", "label")


@triton.jit(do_not_specialize=["seed_low", "seed_high", "per_step", "index", "levels", "before"])
def latent_kernel(
    out, clock, total, levels, seed_low, seed_high, per_step, index, before, skip, KIND: tl.constexpr, BN: tl.constexpr
):  # fmt: skip
    """BN elements of out, less the ``skip`` first ones; ``before`` counters belong to what comes before."""
    tile = tl.program_id(0).to(tl.int64)
    count = tl.load(clock) * per_step + index
    four = (before + tile * (BN // 4) + tl.arange(0, BN // 4))[None, :]
    at = (tile * BN + tl.arange(0, BN))[None, :] - skip  # [1, BN]
    if KIND == "normal":
        value = normals(seed_low, seed_high, LATENT, count, four)
    else:
        first, second, third, fourth = words(seed_low, seed_high, LABEL if KIND == "label" else LATENT, count, four)
        word = in_order(first, second, third, fourth)
        if KIND == "uniform":
            value = (word >> 8).to(tl.int32).to(tl.float32) * 1.1920928955078125e-07 - 1.0
        if KIND == "discrete":
            value = tl.div_rn((2 * below(word, levels) - (levels - 1)).to(tl.float32), (levels - 1).to(tl.float32))
        if KIND == "label":
            value = below(word, levels)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=(at >= 0) & (at < total))


def launch(
    clock: Tensor, out: Tensor, kind: str, levels: int, seed: int, site: tuple[int, int], first: int = 0
) -> Launch:
    """Prepare out = draw ``site`` of that kind, from its element ``first`` on."""
    total = out.numel()
    arguments: dict[str, object] = {"out": out, "clock": clock, "total": total, "levels": levels}
    arguments |= dict(zip(("seed_low", "seed_high"), halves(seed), strict=True))
    arguments |= dict(zip(("per_step", "index"), site, strict=True))
    before, skip = divmod(first, 4)
    arguments |= {"before": before, "skip": skip}
    config = Config(1, ELEMENTS, 1, 4, REGISTERS, stages=1)
    return Launch(latent_kernel, arguments, {"KIND": kind, "BN": ELEMENTS}, -(-(skip + total) // ELEMENTS), config)


def draw(
    clock: Tensor, out: Tensor, *, kind: str, seed: int, site: tuple[int, int], levels: int = 2, first: int = 0
) -> Tensor:
    """Fill ``out`` with what the clock has come to, and return it.

    Args:
        clock: int64 [], at least 0.
        out: contiguous; floating, or int64 for labels.
        kind: one of KINDS.
        seed: an int64.
        site: draws of this kind in a step, and which of them this is.
        levels: of ``discrete``; for ``label`` the number of classes.
        first: which element of the whole draw the first one of ``out`` is.
    """
    if out.numel():
        submit(launch, (clock, out), (), kind, levels, seed, site, first)
    return out


def variants(arch: int) -> Iterator[Variant]:
    """Yield every compiled form that can be launched; the same on every architecture."""
    clock = torch.empty((), dtype=torch.int64, device="meta")
    for kind in KINDS:
        for dtype in (torch.int64,) if kind == "label" else (torch.float32, torch.bfloat16, torch.float16):
            for total in (6400, 6402, 1):
                out = torch.empty(total, dtype=dtype, device="meta")
                name = f"{kind} {str(dtype).removeprefix('torch.')} {total}"
                yield launch(clock, out, kind, 10, 0, (1, 0)).variant("latent", name, 0)
        for first in (1, 3):
            yield launch(clock, out, kind, 10, 0, (1, 0), first).variant("latent", f"{name} from {first}", 0)
