"""The same words and the same order of samples as on a GPU, by numpy, for steps that run eagerly on the CPU.

Plain PyTorch takes a dozen small operations for a round of Philox and for a round of a shuffle, and a training step on
the CPU would feel them; in place, on words of their own size, it takes five and eleven. Bits are those of
``dropout.words`` and of ``permutation.permuted``, which compilers and captures see instead.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastgan.ops.dropout import MULTIPLIERS, ROUNDS, WEYL, WORD
from fastgan.ops.registration import traced

Words32 = NDArray[np.uint32]
HALF = np.uint64(32)


def usable(*tensors: Tensor) -> bool:
    """Whether these may be read here and now."""
    return tensors[0].device.type == "cpu" and not traced(*tensors)


def words(generator: Tensor, fours: Tensor) -> Tensor:
    """Return what ``dropout.words`` returns: int64 (*fours.shape, 4)."""
    seed, offset = (int(number) & 2**64 - 1 for number in generator.tolist())
    at = fours.reshape(-1).numpy().astype(np.uint64)
    even, odd = np.empty((2, len(at)), np.uint64), np.empty((2, len(at)), np.uint64)  # words 0 and 2; 1 and 3
    even[0], odd[0], even[1], odd[1] = at & np.uint64(WORD), at >> HALF, offset & WORD, offset >> 32
    by = np.array(MULTIPLIERS, np.uint64)[:, None]
    for turn in range(ROUNDS):
        key = (seed + turn * WEYL[0] & WORD, (seed >> 32) + turn * WEYL[1] & WORD)
        product = even * by
        odd ^= np.array(key, np.uint64)[:, None]
        odd ^= (product >> HALF)[::-1]
        product &= np.uint64(WORD)
        even, odd = odd, product[::-1]
    drawn = np.stack((even[0], odd[0], even[1], odd[1]), axis=-1).view(np.int64)
    return torch.from_numpy(drawn).view(*fours.shape, 4)


def permuted(position: Tensor, n: int, keys: Tensor) -> Tensor:
    """Return what ``permutation.permuted`` returns, of its rounds' keys (3, rounds)."""
    x = position.reshape(-1).numpy().astype(np.uint32)
    for total, salt, other in keys.numpy().astype(np.uint32).T:
        partner = total - x  # below 0 it wraps around, and comes back with n
        partner += np.where(x > total, np.uint32(n), np.uint32(0))
        hashed = np.maximum(x, partner)
        hashed ^= salt
        hashed = _mixed(hashed, other)
        x = np.where(hashed > np.uint32(WORD >> 1), partner, x)
    return torch.from_numpy(x.astype(np.int64)).view(position.shape)


def _mixed(word: Words32, salt: np.uint32) -> Words32:
    """Hash words in place."""
    word ^= word >> np.uint32(16)
    word *= np.uint32(0x7FEB352D)
    word ^= word >> np.uint32(15)
    word += salt
    word *= np.uint32(0x846CA68B)
    return word
