"""Dropout without a mask: which elements fall out follows from a seed, an offset and where they stand.

The bits are those of ``fastgan/kernels/philox.py``, here in plain PyTorch; the two are equal on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastgan.errors import UserError

ROUNDS = 7
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key from round to round
WORD = 0xFFFFFFFF


def check(p: float) -> float:
    """Return the probability if it is one; raise a ``UserError`` if it is not."""
    if not 0 <= p <= 1:
        raise UserError(f"dropout probability {p}: it has to be between 0 and 1")
    return float(p)


def threshold(p: float) -> int:
    """Return the number of 32-bit words, of 2^32, that drop an element: 0 for p = 0 and all for p = 1."""
    return round(p * 2**32)


def scale(p: float) -> float:
    """Return what kept elements are multiplied by: 1 / (1 - p), and 0 for p = 1, where none is kept."""
    return 1 / (1 - p) if p < 1 else 0.0


def draw(device: torch.device | str) -> Tensor:
    """Return a fresh seed and offset, int64 (2), from PyTorch's own generator on the device.

    One launch: ``torch.manual_seed`` governs it, and each replay of a CUDA graph draws anew.
    """
    return torch.empty(2, dtype=torch.int64, device=device).random_()


def usable(rng: Tensor, device: torch.device) -> Tensor:
    """Return a seed and an offset as the kernels read them; raise a ``UserError`` if it is something else."""
    if rng.dtype != torch.int64 or rng.shape != (2,) or rng.device != device:
        given = f"{str(rng.dtype).removeprefix('torch.')} {tuple(rng.shape)} on {rng.device}"
        raise UserError(f"rng has to be int64 (2) on {device}, a seed and an offset, not {given}")
    return rng.contiguous()


def dropped(v: Tensor, rng: Tensor, p: float) -> Tensor:
    """Return v / (1 - p) where an element is kept and 0 where it is not, whatever v is there. Gradient order: any.

    Args:
        v: any shape and floating dtype.
        rng: int64 (2) on v's device, from :func:`draw`. The same ``rng`` drops the same elements.
        p: probability of falling out, from 0 to 1.
    """
    return torch.where(keep_mask(rng, v.shape, p), v * scale(p), 0)


def keep_mask(rng: Tensor, shape: int | Sequence[int], p: float) -> Tensor:
    """Return which elements of a tensor of that shape (or of so many elements) are kept, as bool."""
    shape = (shape,) if isinstance(shape, int) else shape
    count = math.prod(shape)
    fours = torch.arange(-(-count // 4), device=rng.device)
    return (words(rng, fours) >= threshold(p)).flatten()[:count].view(shape)


def words(rng: Tensor, fours: Tensor) -> Tensor:
    """Return the random 32-bit words of elements 4 n ... 4 n + 3, for each int64 n: int64, (*fours.shape, 4)."""
    seed, offset = rng.unbind()
    counter = _low(fours), _high(fours), _low(offset).expand_as(fours), _high(offset).expand_as(fours)
    return torch.stack(philox(counter, (_low(seed), _high(seed))), dim=-1)


def philox(counter: Sequence[Tensor], key: Sequence[Tensor], rounds: int = ROUNDS) -> tuple[Tensor, ...]:
    """Return Philox4x32 of a counter of four words and a key of two (Salmon et al., SC 2011).

    Words are int64 tensors from 0 to 2^32 - 1, of shapes that broadcast.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        left, right = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]  # products past 2^63 wrap around: their bits are right
        c0, c1 = _high(right) ^ c1 ^ k0, _low(right)
        c2, c3 = _high(left) ^ c3 ^ k1, _low(left)
        k0, k1 = _low(k0 + WEYL[0]), _low(k1 + WEYL[1])
    return c0, c1, c2, c3


def _low(value: Tensor) -> Tensor:
    return value & WORD


def _high(value: Tensor) -> Tensor:
    return value >> 32 & WORD
