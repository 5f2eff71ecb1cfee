"""Where random bits come from when a step is replayed: functions of a seed and a clock, with no generator's state.

A step's ``clock``, int64 () on the device, holds the iterations done. A place in the step that draws is a site
``(per_step, index)``: the iteration has ``per_step`` of its kind, and in it that draw has the number

    count = clock * per_step + index

The bits are Philox's (``dropout.words``): the seed is its key, and the 128 bits of its counter are laid out so:

    bits 127 ... 120   the purpose, below          bits 63 ... 0   where in the draw: elements by fours, or a sample
    bits 119 ...  64   the count (of ORDER: the epoch)

So two purposes share no counter, nor two counts below 2^56. The upper half is what other ops call the offset of their
``rng``. ``fastgan/kernels/streams.py`` has the same numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgan.errors import UserError
from fastgan.ops import dropout, host_draws

ORDER, FLIP, NOISE, LATENT, LABEL = 1, 2, 3, 4, 5  # purposes, up to 127
COUNT_BITS = 56

Site = tuple[int, int]


def check_clock(clock: Tensor, device: torch.device) -> None:
    """Raise a ``UserError`` for a clock that no kernel can read."""
    if clock.dtype != torch.int64 or clock.dim() or clock.device != device:
        given = f"{str(clock.dtype).removeprefix('torch.')} {tuple(clock.shape)} on {clock.device}"
        raise UserError(f"clock has to be int64 () on {device}, the iterations done, not {given}")


def check_site(site: Site) -> None:
    """Raise a ``UserError`` for a site that is none: ``0 <= index < per_step < 2^31``."""
    per_step, index = site
    if not 0 <= index < per_step < 2**31:
        raise UserError(f"site {(per_step, index)}: (draws of its kind in a step, which of them it is, from 0)")


def key(seed: int) -> int:
    """Return a seed from -2^63 to 2^64 - 1 as an int64 of the same 64 bits."""
    if not -(2**63) <= seed < 2**64:
        raise UserError(f"seed {seed} has more than 64 bits: take a smaller one")
    return (seed + 2**63) % 2**64 - 2**63


def count(clock: Tensor, site: Site) -> Tensor:
    """Return the number, int64 (), of this draw among those of its kind."""
    per_step, index = site
    return clock * per_step + index


def rng(purpose: int, number: Tensor, seed: int) -> Tensor:
    """Return int64 (2), a seed and an offset, for draw ``number``, int64 (), of that purpose."""
    return torch.stack((torch.full_like(number, key(seed)), number + (purpose << COUNT_BITS)))


def counters(generator: Tensor, places: Tensor) -> Tensor:
    """Return the four words, int64 (*places.shape, 4), of each place (int64) in a draw."""
    return (host_draws if host_draws.usable(places, generator) else dropout).words(generator, places)


def words(generator: Tensor, total: int, begin: int = 0) -> Tensor:
    """Return 32-bit words as int64 (ceil(total / 4), 4), for ``total`` elements by fours, from counter ``begin`` on."""
    return counters(generator, torch.arange(begin, begin - (-total // 4), device=generator.device))


def normals(fours: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return normal numbers (..., 4) of words (..., 4): Box-Muller on the first two, and on the last two.

    Radius and angle have 32 bits each, rounded as they become floating. No number exceeds sqrt(66 log 2) = 6.764: of
    7.4e10 true normals one would. None is infinite or NaN.
    """
    first, second = fours[..., 0::2].to(dtype), fours[..., 1::2].to(dtype)
    radius = ((first * 2.0**-32 + 2.0**-33).log() * -2).clamp_min(0).sqrt()
    angle = second * (2 * math.pi * 2.0**-32)
    return torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1).flatten(-2)


def units(word: Tensor) -> Tensor:
    """Return float32 numbers from -1 to 1, 1 excluded, of a word's upper 24 bits: exact."""
    return (word >> 8).to(torch.float32) * 2.0**-23 - 1


def below(word: Tensor, size: int) -> Tensor:
    """Return integers from 0 to size - 1: the upper half of word * size.

    Each has its share 1 / size of the 2^32 words, but for one word at the most: a relative bias below size / 2^32.
    """
    return word * size >> 32
