"""latent and labels: what a generator is given at a step, one launch each, functions of a seed and a clock."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgan.errors import UserError, unknown
from fastgan.ops import streams
from fastgan.ops.backend import KERNEL_DTYPES, choose, register
from fastgan.ops.registration import traced

OP = register("latent")
KINDS = ("normal", "uniform", "discrete")
MOST_LEVELS = 2**24  # that fp32 tells apart


def latent(
    clock: Tensor,
    *,
    shape: tuple[int, ...],
    seed: int,
    site: streams.Site,
    kind: str = "normal",
    levels: int = 2,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
    first: int = 0,
) -> Tensor:
    """Return latents: the same on every device, drawn anew as the clock moves. No gradient.

    A captured graph that replays this call draws what the clock has come to; a run that is resumed needs the clock.

    Args:
        clock: int64 (), the iterations done, from 0; the result is on its device.
        shape: of the result, such as (n, z_dim). Fewer samples are the first of more.
        seed: up to 64 bits.
        site: (draws of latents in a step, which of them this is).
        kind: ``"normal"``: N(0, 1) by Box-Muller, from 32 bits each for radius and angle; at most 6.764 on either side,
            which of 7.4e10 normal numbers one would exceed; never infinite or NaN. ``"uniform"``: in [-1, 1), 24 bits.
            ``"discrete"``: one of ``levels`` values, -1 and 1 among them and as far from each other, all alike but for
            a share of levels / 2^32.
        levels: of ``"discrete"``, from 2 to 2^24.
        dtype: float32 where None, bf16 or fp16: rounded once, so that a uniform number may become 1.
        out: memory of that shape to write to, contiguous; its dtype then decides.
        first: which sample of a larger draw the first one is: ``shape`` (2, d) and 5 give rows 5 and 6 of any such draw
            of 7 or more, bit for bit.

    Returns:
        ``out``, or new memory. Uniform and discrete ones have the same bits on every device; normal ones differ by the
        rounding of logarithm, sine and cosine.

    Raises:
        UserError: for another kind, dtype or number of levels, and a clock, site, seed or ``out`` that is none.
    """
    if kind not in KINDS:
        raise unknown("kind of latent", kind, KINDS)
    if kind == "discrete" and not 2 <= levels <= MOST_LEVELS:
        raise UserError(f"levels={levels}: discrete latents have from 2 to 2^24 of them")
    out = _room(clock, shape, dtype, out)
    if out.dtype not in KERNEL_DTYPES:
        raise UserError(f"latents are float32, bfloat16 or float16, not {str(out.dtype).removeprefix('torch.')}")
    if first < 0:
        raise UserError(f"first={first}: it counts the samples of a larger draw that come before, from 0")
    return _drawn(clock, out, kind, seed, site, levels, first * math.prod(shape[1:]))


def labels(clock: Tensor, *, n: int, classes: int, seed: int, site: streams.Site, out: Tensor | None = None) -> Tensor:
    """Return n labels, int64 from 0 to classes - 1: the same on every device, drawn anew as the clock moves.

    Each class has its share but for a relative classes / 2^32. ``clock``, ``seed``, ``site`` and ``out`` are those of
    :func:`latent`; labels and latents of one site have nothing in common.

    Raises:
        UserError: for no classes or 2^31 and more, and a clock, site, seed or ``out`` that is none.
    """
    if not 1 <= classes < 2**31:
        raise UserError(f"classes={classes}: there have to be from 1 to 2^31 - 1")
    out = _room(clock, (n,), torch.int64, out)
    return _drawn(clock, out, "label", seed, site, classes)


def _room(clock: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None, out: Tensor | None) -> Tensor:
    """Return memory to write to."""
    if out is None:
        return torch.empty(shape, dtype=dtype or torch.float32, device=clock.device)
    kind = dtype or out.dtype
    if out.shape != tuple(shape) or out.dtype != kind or out.device != clock.device or not out.is_contiguous():
        raise UserError(f"out has to be {kind} {tuple(shape)} on {clock.device}, contiguous, not {described(out)}")
    return out


def described(tensor: Tensor) -> str:
    """Say what a tensor is, for messages."""
    return f"{tensor.dtype} {tuple(tensor.shape)} by strides {tensor.stride()} on {tensor.device}"


@torch.no_grad()
def _drawn(clock: Tensor, out: Tensor, kind: str, seed: int, site: streams.Site, levels: int, first: int = 0) -> Tensor:
    """Fill ``out``, by one launch or by plain PyTorch."""
    streams.check_clock(clock, clock.device)
    streams.check_site(site)
    of = torch.float32 if kind == "label" else out.dtype  # no kernel's choice hangs on the labels' being integers
    if not traced(clock, out) and choose(OP, clock.device, of).backend == "triton":
        from fastgan.kernels import latent as kernels

        return kernels.draw(clock, out, kind=kind, seed=streams.key(seed), site=site, levels=levels, first=first)
    purpose = streams.LABEL if kind == "label" else streams.LATENT
    generator = streams.rng(purpose, streams.count(clock, site), seed)
    return out.copy_(_formed(generator, tuple(out.shape), kind, levels, first))


def _formed(generator: Tensor, shape: tuple[int, ...], kind: str, levels: int, first: int = 0) -> Tensor:
    """Return the numbers in float32, or labels in int64, from the ``first`` on."""
    begin, skip = divmod(first, 4)
    own = slice(skip, skip + math.prod(shape))
    fours = streams.words(generator, own.stop, begin)
    if kind == "normal":
        return streams.normals(fours).flatten()[own].view(shape)
    word = fours.flatten()[own].view(shape)
    if kind == "uniform":
        return streams.units(word)
    drawn = streams.below(word, levels)
    if kind == "label":
        return drawn
    steps = torch.full((), float(levels - 1), device=word.device)  # a number on the host would be inverted first
    return (2 * drawn - (levels - 1)).to(torch.float32) / steps
