"""What a captured step draws: random words as functions of a seed and of a clock on the device.

``fastgan/ops/streams.py`` says how a draw's purpose, its number and the place in it make Philox's counter, and has the
same bits in plain PyTorch. A seed arrives as two words, signed as int32, so that kernels have one form for all seeds.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastgan.kernels.philox import ROUNDS

ORDER, FLIP, NOISE, LATENT, LABEL = (tl.constexpr(purpose) for purpose in (1, 2, 3, 4, 5))
COUNT_BITS = tl.constexpr(56)


def halves(seed: int) -> tuple[int, int]:
    """Return the lower and the upper 32 bits of an int64, each as an int32."""
    return (seed & 0xFFFFFFFF ^ 0x80000000) - 0x80000000, seed >> 32


@triton.jit
def words(seed_low, seed_high, purpose, count, at):
    """The four uint32 of places ``at`` (int64, any shape) in draw ``count`` (int64) of that purpose."""
    seed = (seed_high.to(tl.int64) << 32) | seed_low.to(tl.uint32).to(tl.int64)
    offset = count + (tl.full((), purpose, tl.int64) << COUNT_BITS)
    c0, c1 = at.to(tl.uint32), (at >> 32).to(tl.uint32)
    c2, c3 = offset.to(tl.uint32), (offset >> 32).to(tl.uint32)
    return tl.philox(seed, c0, c1, c2, c3, ROUNDS)


@triton.jit
def in_order(first, second, third, fourth):
    """Four blocks [rows, cols], of which each four make neighbours of [rows, 4 cols]."""
    joined = tl.join(tl.join(first, third), tl.join(second, fourth))
    return joined.reshape(first.shape[0], 4 * first.shape[1])


@triton.jit
def pair(first, second):
    """Two fp32 normals of two words, by Box and Muller; of 6.764 at the most, never infinite or NaN.

    Sine and cosine are polynomials on an eighth of a turn (as in Cephes): PyTorch's and libdevice's reduce large angles
    through memory, which an angle made of 32 bits needs no more than it needs their branch.
    """
    unit = first.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10  # from 2^-33 to 1
    radius = tl.sqrt(tl.maximum(-2.0 * tl.log(unit), 0.0))
    quarter = (second + 0x20000000) >> 30  # the nearest of 0 ... 3, 4 being 0: the sum wraps around
    rest = (second - (quarter << 30)).to(tl.int32, bitcast=True)
    angle = rest.to(tl.float32) * 1.4629180792671596e-9  # 2 pi / 2^32: from -pi / 4 to pi / 4
    square = angle * angle
    sine = ((-1.9515295891e-4 * square + 8.3321608736e-3) * square - 1.6666654611e-1) * square * angle + angle
    cosine = (2.443315711809948e-5 * square - 1.388731625493765e-3) * square + 4.166664568298827e-2
    cosine = cosine * square * square - 0.5 * square + 1.0
    odd, half = (quarter & 1) != 0, (quarter & 2) != 0
    along, across = tl.where(odd, -sine, cosine), tl.where(odd, cosine, sine)
    radius = tl.where(half, -radius, radius)
    return radius * along, radius * across


@triton.jit
def normals(seed_low, seed_high, purpose, count, fours):
    """fp32 normals [rows, 4 cols] of counters ``fours`` [rows, cols] (int64)."""
    first, second, third, fourth = words(seed_low, seed_high, purpose, count, fours)
    z0, z1 = pair(first, second)
    z2, z3 = pair(third, fourth)
    return in_order(z0, z1, z2, z3)


@triton.jit
def below(word, size):
    """Integers from 0 to size - 1, int32 for sizes below 2^31: the upper half of word * size."""
    return tl.umulhi(word, tl.cast(size, tl.uint32)).to(tl.int32)
