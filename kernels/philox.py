"""Random bits computed where they are needed, and again where they are needed again: dropout stores no mask.

Philox4x32 with 7 rounds, the fewest that pass BigCrush (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as
easy as 1, 2, 3", SC 2011). ``rng``, int64 [2] on the device, holds a seed, which is the key, and an offset, which is
the upper half of the counter. The lower half numbers elements by fours: element ``at`` of the row-major output
(m N + n, int64) takes word ``at % 4`` of counter ``at // 4``. ``fastgan/ops/dropout.py`` is the same in plain PyTorch.

A tile by fours takes about 19 instructions an element on sm_90, ``kept`` 55 and more registers: an accumulator of a
matrix product has few to spare.
"""

import triton
import triton.language as tl

ROUNDS = tl.constexpr(7)
LEFT, RIGHT = tl.constexpr(0xD2511F53), tl.constexpr(0xCD9E8D57)  # the multipliers
LAST_0, LAST_1 = (tl.constexpr((ROUNDS.value - 1) * weyl % 2**32) for weyl in (0x9E3779B9, 0xBB67AE85))


@triton.jit
def words(rng, four, ROUNDS: tl.constexpr = ROUNDS):
    """The four uint32 of each counter, as four blocks of the shape of ``four`` (int64)."""
    offset = tl.load(rng + 1)
    c0, c1 = four.to(tl.uint32), (four >> 32).to(tl.uint32)
    c2, c3 = offset.to(tl.uint32), (offset >> 32).to(tl.uint32)
    return tl.philox(tl.load(rng), c0, c1, c2, c3, ROUNDS)


@triton.jit
def kept(rng, at, threshold):
    """Whether the elements ``at`` (int64, any shape) stay: each falls out with probability threshold / 2^32."""
    c0, c1, c2, c3 = words(rng, at >> 2, ROUNDS - 1)
    seed = tl.load(rng)  # the last round makes the one word that is asked for: fewer registers
    k0, k1 = seed.to(tl.uint32) + LAST_0, (seed >> 32).to(tl.uint32) + LAST_1
    second_half, odd = (at & 2) != 0, (at & 1) != 0
    product = tl.where(second_half, c0, c2).to(tl.uint64) * tl.where(second_half, LEFT, RIGHT).to(tl.uint64)
    upper = (product >> 32).to(tl.uint32) ^ tl.where(second_half, c3 ^ k1, c1 ^ k0)
    return tl.where(odd, product.to(tl.uint32), upper).to(tl.int64) >= threshold


@triton.jit
def kept_by_fours(rng, at, threshold):
    """The same [rows, 4 cols], for the first of each four elements in ``at`` [rows, cols]: multiples of 4."""
    first, second, third, fourth = words(rng, at >> 2)
    word = tl.join(tl.join(first, third), tl.join(second, fourth)).reshape(at.shape[0], 4 * at.shape[1])
    return word.to(tl.int64) >= threshold


@triton.jit
def dropout(v, rng, at, threshold, scale):
    """v * scale where the elements ``at`` stay, else 0 whatever v is, for fp32 v of the shape of ``at``."""
    return tl.where(kept(rng, at, threshold), v * scale, 0.0)


@triton.jit
def dropout_tile(v, rng, row, column, threshold, scale, FOURS: tl.constexpr):
    """The same for a tile v [rows, cols]: ``row`` [rows] are the indices of its rows' elements 0, ``column`` its first.

    FOURS: 4 divides the length of a row, ``column`` and cols, so that no four straddles a row or a tile.
    """
    if FOURS:
        at = row[:, None] + (column + 4 * tl.arange(0, v.shape[1] // 4))[None, :]
        keep = kept_by_fours(rng, at, threshold)
    else:
        keep = kept(rng, row[:, None] + (column + tl.arange(0, v.shape[1]))[None, :], threshold)
    return tl.where(keep, v * scale, 0.0)
