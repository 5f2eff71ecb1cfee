"""How far the norms of a critic's gradients are from where they should be, in one launch; and its slope, in another.

    norms [M] = sqrt(sum_n g [M, N]^2)
    value     = scale mean_m (norms - center)^2            ONE_SIDED: of what is above center alone
    slope     = 2 scale / M (1 - center / norms) g         ONE_SIDED: 0 for what is below; where a norm is 0, 0

Contract: g is bf16, fp16 or fp32; the elements of a row lie one after another, rows by any stride; the slope is
contiguous, of g's dtype, times ``grad``, one number on the device. Sums, norms and the value are fp32: a square beyond
its range is infinite, as PyTorch's is. M or N may be 0: the mean of nothing is NaN. Addresses are int64. No atomic adds
a float: of the programs that share a row, and of all, the last to arrive adds what was stored in a fixed order.

Bytes, for items of s bytes: forward reads s MN, backward reads s MN and writes as many. FLOPs: 2 MN each.

Registers a thread, the most of the variants on sm_80, 86, 89, 90, 100 and 120 (Triton 3.7.1): 68, capped at
128; nothing spilled.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels.launch import Launch, Tickets, Workspace, submit
from fastgan.kernels.ticket import arrives_last
from fastgan.kernels.tile import Config
from fastgan.kernels.variant import Variant

REGISTERS = 128  # the cap: two blocks of 256 threads on an SM at the least
WARPS, ELEMENTS, MOST_COLUMNS = 8, 2048, 2048  # of a tile
PROGRAMS = 264  # that rows are split for: two on each SM of an H200
MOST_SPLITS = 64


@triton.jit(do_not_specialize=["M", "splits", "groups"])
def norm_penalty_fwd_kernel(
    g, norms, value, norm, squares, parts, ticket, M, N, g_m, center, scale, splits, groups,
    ONE_SIDED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, SPLITS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Every ``splits``-th tile [BM, BN] of a group of BM rows; the last program finishes the group, then the mean."""
    group, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    m = group.to(tl.int64) * BM + tl.arange(0, BM)  # [BM]
    total = tl.zeros([BM, BN], tl.float32)
    for tile in range(split, tl.cdiv(N, BN), splits):
        n = tl.cast(tile, tl.int64) * BN + tl.arange(0, BN)  # [BN]
        inside = (m[:, None] < M) & (n[None, :] < N)
        x = tl.load(g + m[:, None] * g_m + n[None, :], mask=inside, other=0.0).to(tl.float32)
        total += x * x
    square = tl.sum(total, axis=1)  # [BM]

    last = True
    if SPLITS > 1:
        tl.store(squares + m * splits + split, square, mask=m < M)
        last = arrives_last(ticket + group, splits)
    if last:
        if SPLITS > 1:
            of = tl.arange(0, SPLITS)  # [SPLITS]
            seen = (m[:, None] < M) & (of[None, :] < splits)
            there = squares + m[:, None] * splits + of[None, :]
            square = tl.sum(tl.load(there, mask=seen, other=0.0, cache_modifier=".cg"), axis=1)
        length = tl.sqrt_rn(square)
        tl.store(norms + m, length, mask=m < M)
        excess = length - center
        if ONE_SIDED:
            excess = tl.maximum(excess, 0.0, propagate_nan=tl.PropagateNan.ALL)
        sum_terms = tl.sum(tl.where(m < M, excess * excess, 0.0), axis=0)
        sum_norms = tl.sum(tl.where(m < M, length, 0.0), axis=0)

        if parts is not None:
            tl.store(parts + group, sum_terms)
            tl.store(parts + groups + group, sum_norms)
            if arrives_last(ticket + groups, groups):
                terms, lengths = 0.0, 0.0
                for first in range(0, groups, PARTS):
                    which = first + tl.arange(0, PARTS)
                    one = tl.load(parts + which, mask=which < groups, other=0.0, cache_modifier=".cg")
                    two = tl.load(parts + groups + which, mask=which < groups, other=0.0, cache_modifier=".cg")
                    terms += tl.sum(one, axis=0)
                    lengths += tl.sum(two, axis=0)
                tl.store(value, terms / M * scale)
                tl.store(norm, lengths / M)
        else:
            tl.store(value, sum_terms / M * scale)
            tl.store(norm, sum_norms / M)


@triton.jit(do_not_specialize=["M", "grad"])
def norm_penalty_bwd_kernel(
    g, norms, grad, out, M, N, g_m, center, scale,
    ONE_SIDED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """One [BM, BN] tile of the slope."""
    tiles = tl.cdiv(N, BN)
    m = (tl.program_id(0) // tiles).to(tl.int64) * BM + tl.arange(0, BM)  # [BM]
    n = (tl.program_id(0) % tiles).to(tl.int64) * BN + tl.arange(0, BN)  # [BN]
    inside = (m[:, None] < M) & (n[None, :] < N)
    length = tl.load(norms + m, mask=m < M, other=1.0)
    still = length == 0.0  # its norm has no slope: 0 is taken
    share = tl.where(still, 0.0, (length - center) / tl.where(still, 1.0, length))  # [BM]
    if ONE_SIDED:
        share = tl.maximum(share, 0.0, propagate_nan=tl.PropagateNan.ALL)
    share *= 2.0 * scale / M * tl.load(grad).to(tl.float32)
    x = tl.load(g + m[:, None] * g_m + n[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(out + m[:, None] * N + n[None, :], (x * share[:, None]).to(out.dtype.element_ty), mask=inside)


def choose(N: int) -> Config:
    """Take a tile as wide as a row, within limits: rows of small samples, parts of a row of large ones."""
    cols = min(MOST_COLUMNS, max(16, triton.next_power_of_2(N)))
    return Config(ELEMENTS // cols, cols, 1, WARPS, REGISTERS, stages=1)


def splits_of(M: int, N: int, tile: Config) -> int:
    """Return over how many programs a group of rows is split: enough to fill a GPU, no more than there are tiles."""
    groups, tiles = -(-M // tile.rows), -(-N // tile.cols)
    return max(1, min(tiles, MOST_SPLITS, PROGRAMS // max(1, groups)))


def launch_fwd(
    g: Tensor, norms: Tensor, value: Tensor, norm: Tensor, center: float, one_sided: bool, scale: float
) -> Launch:
    """Prepare the value and the norms of g [M, N]."""
    M, N = g.shape
    tile = choose(N)
    groups, splits = max(1, -(-M // tile.rows)), splits_of(M, N, tile)
    arguments: dict[str, object] = {"g": g, "norms": norms, "value": value, "norm": norm}
    arguments |= {"M": M, "N": N, "g_m": g.stride(0), "center": center, "scale": scale}
    arguments |= {"squares": Workspace(M * splits) if splits > 1 else None, "splits": splits, "groups": groups}
    arguments |= {"parts": Workspace(2 * groups) if groups > 1 else None}
    arguments |= {"ticket": Tickets(groups + 1) if groups > 1 or splits > 1 else None}
    constexprs: dict[str, object] = {"ONE_SIDED": one_sided, "BM": tile.rows, "BN": tile.cols}
    constexprs |= {"SPLITS": triton.next_power_of_2(splits), "PARTS": 1024}
    return Launch(norm_penalty_fwd_kernel, arguments, constexprs, groups * splits, tile)


def launch_bwd(
    g: Tensor, norms: Tensor, grad: Tensor, out: Tensor, center: float, one_sided: bool, scale: float
) -> Launch:
    """Prepare the slope [M, N]."""
    M, N = g.shape
    tile = choose(N)
    arguments: dict[str, object] = {"g": g, "norms": norms, "grad": grad, "out": out, "M": M, "N": N}
    arguments |= {"g_m": g.stride(0), "center": center, "scale": scale}
    constexprs: dict[str, object] = {"ONE_SIDED": one_sided, "BM": tile.rows, "BN": tile.cols}
    return Launch(norm_penalty_bwd_kernel, arguments, constexprs, tile.programs(M, N), tile)


def norm_penalty_fwd(g: Tensor, *, center: float, one_sided: bool, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the value (), the mean norm () and the norms [M] of the rows of g [M, N], all fp32.

    Args:
        g: the elements of a row one after another; rows by any stride.
        center: the norm to be at.
        one_sided: shorter rows are free.
        scale: of the mean.
    """
    norms = torch.empty(len(g), dtype=torch.float32, device=g.device)
    value, norm = (torch.empty((), dtype=torch.float32, device=g.device) for _ in range(2))
    submit(launch_fwd, (g,), (norms, value, norm), center, one_sided, scale)
    return value, norm, norms


def norm_penalty_bwd(g: Tensor, norms: Tensor, grad: Tensor, *, center: float, one_sided: bool, scale: float) -> Tensor:
    """Return the slope of the value by g [M, N], contiguous, times ``grad``, one number on the device."""
    out = g.new_empty(g.shape)
    if out.numel():
        submit(launch_bwd, (g, norms, grad), (out,), center, one_sided, scale)
    return out


_SIZES = (  # M, N, and the stride of rows
    *((64, 12288, 12288), (64, 3072, 3072), (512, 2, 2), (64, 1, 1), (1, 12288, 12288), (1, 2, 2), (64, 63, 63)),
    *((64, 128, 512), (64, 128, 129), (3, 12287, 12287)),
)


def variants(arch: int) -> Iterator[Variant]:
    """Yield every compiled form that can be launched, each once; the same on every architecture."""
    seen = set()
    for dtype in (torch.bfloat16, torch.float32, torch.float16):
        for M, N, row in _SIZES:
            for one_sided in (False, True):
                g = torch.empty_strided((M, N), (row, 1), dtype=dtype, device="meta")
                norms, one = torch.empty(M, device="meta"), torch.empty((), device="meta")
                how = 1.0, one_sided, 1.0
                both = launch_fwd(g, norms, one, one, *how), launch_bwd(g, norms, one, g.new_empty(M, N), *how)
                for name, prepared in zip(("norm_penalty_fwd", "norm_penalty_bwd"), both, strict=True):
                    kind = f"{str(dtype).removeprefix('torch.')} {M}x{N} rows of {row}{' one-sided' * one_sided}"
                    variant = prepared.variant(name, kind, 0)
                    form = repr((name, variant.signature, variant.constexprs, variant.divisible))
                    if form not in seen:
                        seen.add(form)
                        yield variant
