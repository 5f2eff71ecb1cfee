"""Random points between samples in one launch: where each lies is drawn on the device, by Philox.

    out [M, N] = alpha [M] * real [M, N] + (1 - alpha [M]) * fake [M, N]

alpha of row m is the upper 24 bits of word k % 4 of counter k // 4 (``philox.py``), over 2^24: from 0 to 1, 1 excluded,
with k = first + m: the rows may be part of a larger batch.
``fastgan/ops/interpolate.py`` has the same bits in plain PyTorch.

Contract: bf16, fp16 or fp32, each operand its own; the elements of a row lie one after another, rows by any stride;
``out`` is contiguous, formed in fp32 and rounded once. M or N may be 0. Addresses are int64.

Bytes, for items of s bytes: reads 2 s MN and 16, writes s MN. Accesses are of 16 bytes where 16 divides N and the
strides; else of one element.

Registers a thread, the most of the variants on sm_80, 86, 89, 90, 100 and 120 (Triton 3.7.1): 120, capped at 128;
nothing spilled. Contiguous samples of regular size take 30 to 44.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels.launch import Launch, submit
from fastgan.kernels.philox import words
from fastgan.kernels.tile import Config
from fastgan.kernels.variant import Variant

REGISTERS = 128  # the cap: two blocks of 256 threads on an SM at the least
ELEMENTS = 2048  # of a tile
MOST_COLUMNS = 1024


@triton.jit
def uniform(rng, at):
    """One fp32 number from 0 to 1, 1 excluded, for each of ``at`` (int64, any shape)."""
    first, second, third, fourth = words(rng, at >> 2)
    odd = (at & 1) != 0
    word = tl.where((at & 2) != 0, tl.where(odd, fourth, third), tl.where(odd, second, first))
    return (word >> 8).to(tl.float32) * (1.0 / 16777216.0)


@triton.jit(do_not_specialize=["M", "first"])
def interpolate_kernel(real, fake, out, rng, M, N, real_m, fake_m, first, BM: tl.constexpr, BN: tl.constexpr):
    """One [BM, BN] tile of out."""
    tiles = tl.cdiv(N, BN)
    m = (tl.program_id(0) // tiles).to(tl.int64) * BM + tl.arange(0, BM)  # [BM]
    n = (tl.program_id(0) % tiles).to(tl.int64) * BN + tl.arange(0, BN)  # [BN]
    inside = (m[:, None] < M) & (n[None, :] < N)
    alpha = uniform(rng, first + m)[:, None]  # [BM, 1]
    x = tl.load(real + m[:, None] * real_m + n[None, :], mask=inside, other=0.0).to(tl.float32)
    y = tl.load(fake + m[:, None] * fake_m + n[None, :], mask=inside, other=0.0).to(tl.float32)
    between = alpha * x + (1.0 - alpha) * y
    tl.store(out + m[:, None] * N + n[None, :], between.to(out.dtype.element_ty), mask=inside)


def launch(real: Tensor, fake: Tensor, rng: Tensor, out: Tensor, first: int = 0) -> Launch:
    """Prepare out [M, N] = alpha [M] * real [M, N] + (1 - alpha [M]) * fake [M, N]."""
    M, N = real.shape
    tile = choose(N)
    arguments: dict[str, object] = {"real": real, "fake": fake, "out": out, "rng": rng, "M": M, "N": N}
    arguments |= {"real_m": real.stride(0), "fake_m": fake.stride(0), "first": first}
    constexprs: dict[str, object] = {"BM": tile.rows, "BN": tile.cols}
    return Launch(interpolate_kernel, arguments, constexprs, tile.programs(M, N), tile)


def choose(N: int) -> Config:
    """Take a tile as wide as a row, within limits: rows of small samples, parts of a row of large ones."""
    cols = min(MOST_COLUMNS, max(16, triton.next_power_of_2(N)))
    return Config(ELEMENTS // cols, cols, 1, 8, REGISTERS, stages=1)


def interpolate(real: Tensor, fake: Tensor, rng: Tensor, first: int = 0) -> Tensor:
    """Return a random point between each row of real [M, N] and of fake [M, N].

    Args:
        real, fake: the elements of a row one after another; rows by any stride.
        rng: int64 [2] on the device, seed and offset.
        first: which row of the whole batch the first one is.

    Returns:
        [M, N], contiguous, in the wider of their dtypes.
    """
    out = real.new_empty(real.shape, dtype=torch.promote_types(real.dtype, fake.dtype))
    if out.numel():
        submit(launch, (real, fake, rng), (out,), first)
    return out


_SIZES = ((64, 12288, 12288), (512, 2, 2), (64, 1, 1), (64, 63, 63), (64, 48, 48), (64, 128, 512), (64, 128, 129))
_DTYPES = (
    (torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.float32),
    (torch.float16, torch.float16),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.bfloat16, torch.float32),
)


def variants(arch: int) -> Iterator[Variant]:
    """Yield every compiled form that can be launched, each once; the same on every architecture."""
    seen = set()
    rng = torch.empty(2, dtype=torch.int64, device="meta")
    for kinds in _DTYPES:
        for M, N, row in _SIZES:
            real, fake = (torch.empty_strided((M, N), (row, 1), dtype=dtype, device="meta") for dtype in kinds)
            out = torch.empty(M, N, dtype=torch.promote_types(*kinds), device="meta")
            prepared = launch(real, fake, rng, out)
            names = "/".join(str(dtype).removeprefix("torch.") for dtype in kinds)
            tile = prepared.config
            variant = prepared.variant("interpolate", f"{names} {M}x{N} rows of {row} {tile.rows}x{tile.cols}", 0)
            form = repr((variant.signature, variant.constexprs, variant.divisible))
            if form not in seen:
                seen.add(form)
                yield variant
