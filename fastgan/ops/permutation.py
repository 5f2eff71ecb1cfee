"""The order of an epoch as a function: which sample stands at a position, with no list of all of them.

A swap-or-not shuffle (Hoang, Morris and Rogaway, CRYPTO 2012), an exact bijection of 0 ... n - 1 for every n. Each of
its rounds pairs x with K - x mod n and swaps the two or leaves them, by a bit of a hash that both share.
``fastgan/kernels/permutation.py`` has the same bits, and says why there are 24 rounds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.errors import UserError
from fastgan.ops import host_draws, streams

ROUNDS = 24
WEYL = 0x9E3779B9  # from round to round
WORD = 0xFFFFFFFF


def permuted(position: Tensor, n: int, seed: int, epoch: int | Tensor) -> Tensor:
    """Return which of n samples stands at each position of an epoch. A function of its arguments alone.

    Args:
        position: integers from 0 to n - 1, any shape.
        n: samples, 1 <= n < 2^31.
        seed: up to 64 bits.
        epoch: from 0, below 2^56; int64 () on the device where the host does not know it. No two pairs of a seed and
            an epoch share their keys.

    Returns:
        int64 in the shape of ``position``: over all positions, each sample once.

    Raises:
        UserError: for another n or a seed of more than 64 bits.
    """
    if not 1 <= n < 2**31:
        raise UserError(f"{n} samples cannot be shuffled: there have to be from 1 to 2^31 - 1")
    if not isinstance(epoch, Tensor):
        epoch = torch.full((), epoch, dtype=torch.int64, device=position.device)
    keys = _keys(streams.rng(streams.ORDER, epoch, seed), n)
    if host_draws.usable(position, epoch):
        return host_draws.permuted(position, n, keys)
    x = position.to(torch.int64)
    for total, salt, other in zip(*(kind.unbind() for kind in keys.unbind()), strict=True):
        partner = total - x
        partner = torch.where(partner < 0, partner + n, partner)
        hashed = _mixed(torch.maximum(x, partner) ^ salt, other)
        x = torch.where(hashed > WORD >> 1, partner, x)
    return x


def _keys(generator: Tensor, n: int) -> Tensor:
    """Return K and the hash's two salts for each round: int64 (3, ROUNDS)."""
    a, b, c, d = streams.words(generator, 4).unbind(1)
    word = _mixed(a + torch.arange(ROUNDS, device=generator.device) * WEYL & WORD, b)
    return torch.stack((streams.below(word, n), word + c & WORD, word ^ d))


def _mixed(word: Tensor, salt: Tensor) -> Tensor:
    """Return a hash of 32-bit words, whose upper bits are its good ones."""
    word = (word ^ word >> 16) * 0x7FEB352D & WORD
    return ((word ^ word >> 15) + salt) * 0x846CA68B & WORD
