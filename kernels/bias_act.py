"""Bias, activation and dropout behind a matrix product that somebody else made, and what they do to a gradient.

    y  [M, N] = drop(phi(v [M, N] + b [N]))    or phi(drop(v + b)) where dropout comes first
    g  [M, N] = gy * dy/dv                     from the saved y, or from v + b, the mask computed again
    gb [N]    = sum over M of the rounded g    in the same launch

Contract: bf16, fp16 or fp32, one dtype for v, y, gy, saved and g; v and gy by any strides, saved contiguous; outputs
are contiguous, in the operands' dtype, formed in fp32. y may be v itself. M or N may be 0. Addresses are int64. What is
saved ``kernels/activation.py`` lists: y after dropout, which tanh and sigmoid divide by scale again, or v + b for a
leaky ReLU with a negative slope. What is dropped is 0: in y, or in phi's argument where dropout comes first, and in g.

The bias gradient: no more than PROGRAMS programs walk down the rows and each stores a sum in fp32; of those that share
columns the last to arrive adds the sums. The order is fixed and no atomic adds a float: the same operands give the same
bits, on any card.

Bytes, for items of s bytes: forward reads s (MN + N) and writes s MN (2 s MN with the pre-activation); backward reads
2 s MN (s MN without activation) and writes s MN + s N. Accesses are of 16 bytes where 16 divides N. Where it does not,
2, 4, 8 or 16 contiguous rows are joined to one that it divides, if M allows; for a bias gradient only to 256 columns.
Else they are of one element.

Registers a thread, the most of the variants on sm_80, 86, 89, 90, 100 and 120 (Triton 3.7.1): forward 96,
backward 128, where both are capped; nothing spilled. Contiguous bf16 of regular size takes 64 and 94.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels.activation import activate, times_derivative
from fastgan.kernels.launch import Launch, Tickets, Workspace, submit
from fastgan.kernels.philox import dropout_tile
from fastgan.kernels.ticket import arrives_last
from fastgan.kernels.tile import Config
from fastgan.kernels.variant import Variant

PROGRAMS = 512  # that share a bias gradient: enough to keep a card's memory busy
PARTS = 256  # of them that share columns: few enough for the last one to add what they stored
MOST_COLUMNS = 2**20  # of joined rows
MOST_SUMMED = 256  # of joined rows whose columns are summed: one program has them all
REGISTERS = 128  # the cap: two blocks of 256 threads on an SM at the least


@triton.jit(do_not_specialize=["M", "width", "threshold"])
def bias_act_fwd_kernel(
    v, bias, y, pre, rng, M, N, width, v_m, v_n, slope, threshold, scale,
    ACTIVATION: tl.constexpr, DROPOUT: tl.constexpr, FOURS: tl.constexpr, JOINED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """One [BM, BN] tile of y, and of the pre-activation where ``pre`` is given."""
    tiles = tl.cdiv(N, BN)
    m = (tl.program_id(0) // tiles).to(tl.int64) * BM + tl.arange(0, BM)  # [BM]
    column = (tl.program_id(0) % tiles).to(tl.int64) * BN
    n = column + tl.arange(0, BN)  # [BN]
    inside = (m[:, None] < M) & (n[None, :] < N)
    at = m[:, None] * N + n[None, :]

    value = tl.load(v + m[:, None] * v_m + n[None, :] * v_n, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        channel = n.to(tl.int32) % width if JOINED else n
        value += tl.load(bias + channel, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if pre is not None:
        tl.store(pre + at, value.to(pre.dtype.element_ty), mask=inside)
    if DROPOUT == "first":
        value = dropout_tile(value, rng, m * N, column, threshold, scale, FOURS)
    value = activate(value, slope, ACTIVATION)
    if DROPOUT == "last":
        value = dropout_tile(value, rng, m * N, column, threshold, scale, FOURS)
    tl.store(y + at, value.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["M", "width", "parts", "threshold"])
def bias_act_bwd_kernel(
    gy, saved, g, gb, part, ticket, rng, M, N, width, parts, g_m, g_n, slope, threshold, scale, unscale,
    ACTIVATION: tl.constexpr, DROPOUT: tl.constexpr, FOURS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """BN columns of g in every parts-th block of BM rows; the last program of these columns writes gb, where given."""
    tiles = tl.cdiv(N, BN)
    first, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    column = tile.to(tl.int64) * BN
    n = column + tl.arange(0, BN)  # [BN]

    total = tl.zeros([BM, BN], tl.float32)
    for block in range(first, tl.cdiv(M, BM), parts):
        m = tl.cast(block, tl.int64) * BM + tl.arange(0, BM)  # [BM]
        inside = (m[:, None] < M) & (n[None, :] < N)
        at = m[:, None] * N + n[None, :]
        grad = tl.load(gy + m[:, None] * g_m + n[None, :] * g_n, mask=inside, other=0.0).to(tl.float32)
        if saved is not None:
            output = tl.load(saved + at, mask=inside, other=0.0).to(tl.float32)
            if DROPOUT == "last" and (ACTIVATION == "tanh" or ACTIVATION == "sigmoid"):
                output *= unscale  # as it was before dropout, where it was kept
            grad = times_derivative(grad, output, slope, ACTIVATION)
        if DROPOUT != "none":
            grad = dropout_tile(grad, rng, m * N, column, threshold, scale, FOURS)
        rounded = grad.to(g.dtype.element_ty)
        tl.store(g + at, rounded, mask=inside)
        if gb is not None:
            total += rounded.to(tl.float32)

    if gb is not None:
        tl.store(part + first.to(tl.int64) * N + n, tl.sum(total, axis=0), mask=n < N)
        if arrives_last(ticket + tile, parts):
            total = tl.zeros([BM, BN], tl.float32)
            for done in range(0, parts, BM):
                row = done + tl.arange(0, BM).to(tl.int64)  # [BM]
                there = (row[:, None] < parts) & (n[None, :] < N)
                total += tl.load(part + row[:, None] * N + n[None, :], mask=there, other=0.0, cache_modifier=".cg")
            sums = tl.sum(total, axis=0)
            if width < N:  # joined rows come apart again, in the first part's place: as many of them as BM at most
                tl.debug_barrier()
                tl.store(part + n, sums, mask=n < N)
                tl.debug_barrier()
                row = tl.arange(0, BM)
                there = (row[:, None] < N // width) & (n[None, :] < width)
                apart = tl.load(part + row[:, None] * width + n[None, :], mask=there, other=0.0, cache_modifier=".cg")
                sums = tl.sum(apart, axis=0)
            tl.store(gb + n, sums.to(gb.dtype.element_ty), mask=n < width)


def fwd_launch(
    v: Tensor,
    bias: Tensor | None,
    rng: Tensor | None,
    y: Tensor | None,
    pre: Tensor | None,
    activation: str,
    slope: float,
    threshold: int = 0,
    scale: float = 1.0,
    dropout_first: bool = False,
) -> Launch:
    """Prepare y [M, N] = drop(phi(v [M, N] + bias [N])), or phi(drop(v + bias)); into v where there is no y."""
    M, N, v_m, v_n = joined_rows(v, MOST_COLUMNS)
    tile = choose(M, N)
    arguments: dict[str, object] = {"v": v, "bias": bias, "y": v if y is None else y, "pre": pre, "rng": rng}
    arguments |= {"M": M, "N": N, "width": v.shape[1], "v_m": v_m, "v_n": v_n}
    arguments |= {"slope": slope, "threshold": threshold, "scale": scale}
    constexprs = _constexprs(activation, rng, dropout_first, N, tile) | {"JOINED": v.shape[1] < N}
    return Launch(bias_act_fwd_kernel, arguments, constexprs, tile.programs(M, N), tile)


def bwd_launch(
    gy: Tensor,
    saved: Tensor | None,
    rng: Tensor | None,
    g: Tensor,
    gb: Tensor | None,
    activation: str,
    slope: float,
    threshold: int = 0,
    scale: float = 1.0,
    dropout_first: bool = False,
) -> Launch:
    """Prepare g [M, N] = gy * dy/dv, and gb [N] where it is given."""
    M, N, g_m, g_n = joined_rows(gy, MOST_COLUMNS if gb is None else MOST_SUMMED)
    tile = choose(M, N, alone=gb is not None and gy.shape[1] < N)
    across, down = -(-N // tile.cols), -(-M // tile.rows)
    parts = down if gb is None else min(down, PARTS, max(1, PROGRAMS // across))
    arguments: dict[str, object] = {"gy": gy, "saved": saved, "g": g, "gb": gb, "rng": rng}
    arguments |= (
        {"part": None, "ticket": None} if gb is None else {"part": Workspace(parts * N), "ticket": Tickets(across)}
    )
    arguments |= {"M": M, "N": N, "width": gy.shape[1], "parts": parts, "g_m": g_m, "g_n": g_n}
    arguments |= {"slope": slope, "threshold": threshold, "scale": scale, "unscale": 1 / scale if scale else 0.0}
    constexprs = _constexprs(activation, rng, dropout_first, N, tile)
    return Launch(bias_act_bwd_kernel, arguments, constexprs, parts * across, tile)


def joined_rows(operand: Tensor, most: int) -> tuple[int, int, int, int]:
    """Return sizes and strides of the operand, rows taken together where they follow each other and vectors come of it.

    That is, where 16 divides the length of 2, 4, 8 or 16 of them, which is not above ``most``.
    """
    M, N = operand.shape
    joined, step = 16 // math.gcd(N, 16), 1 if operand.is_contiguous() else 0
    if joined == 1 or M % joined or N * joined > most or not (step or operand.stride() == (0, 0)):
        return M, N, operand.stride(0), operand.stride(1)
    return M // joined, N * joined, N * joined * step, step


@functools.lru_cache(maxsize=4096)
def choose(M: int, N: int, alone: bool = False) -> Config:
    """Take the tile that wastes the least; ``alone``: it has all the columns, up to MOST_SUMMED."""
    elements = 2048 if N % 16 else 4096  # an address for each element takes registers
    cols = 16 if N < 17 else 256 if M < 17 or (alone and N > 64) else 64
    return Config(elements // cols, cols, 1, 8, REGISTERS, stages=1)


def _constexprs(activation: str, rng: Tensor | None, first: bool, N: int, tile: Config) -> dict[str, object]:
    order = "none" if rng is None else "first" if first else "last"
    fours = rng is not None and N % 4 == 0
    return {"ACTIVATION": activation, "DROPOUT": order, "FOURS": fours, "BM": tile.rows, "BN": tile.cols}


def bias_act_fwd(
    v: Tensor,
    bias: Tensor | None,
    activation: str,
    slope: float,
    *,
    rng: Tensor | None = None,
    threshold: int = 0,
    scale: float = 1.0,
    dropout_first: bool = False,
    store_pre: bool = False,
    in_place: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return drop(phi(v [M, N] + bias [N])), and v + bias too where it is asked for.

    Args:
        v: the product. ``in_place``: it is contiguous, and becomes the result.
        bias: [N] or None.
        activation: ``none``, ``relu``, ``leaky_relu``, ``tanh`` or ``sigmoid``.
        slope: of the leaky ReLU.
        rng: int64 [2] on the device, seed and offset of the dropout; None: nothing is dropped.
        threshold: an element is dropped with probability threshold / 2^32.
        scale: what is kept is multiplied by it.
        dropout_first: phi(drop(v + bias)).
        store_pre: return v + bias beside it.
    """
    assert v.is_contiguous() or not in_place
    y = None if in_place else v.new_empty(v.shape)
    pre = v.new_empty(v.shape) if store_pre else None
    if v.numel():
        bias = None if bias is None else bias.contiguous()
        submit(fwd_launch, (v, bias, rng), (y, pre), activation, slope, threshold, scale, dropout_first)
    return v if y is None else y, pre


def bias_act_bwd(
    gy: Tensor,
    saved: Tensor | None,
    activation: str,
    slope: float,
    *,
    rng: Tensor | None = None,
    threshold: int = 0,
    scale: float = 1.0,
    dropout_first: bool = False,
    with_bias: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return the gradient of v [M, N] from gy and what forward saved, and the bias's [N] where it is asked for.

    Args:
        gy: gradient of the result, by any strides.
        saved: the result, contiguous; v + bias for a leaky ReLU with a negative slope; None without an activation.
        activation, slope, rng, threshold, scale, dropout_first: as they were in forward.
        with_bias: return the bias's gradient too.
    """
    g = gy.new_empty(gy.shape)
    if not gy.numel():
        return g, gy.new_zeros(gy.shape[1]) if with_bias else None
    gb = gy.new_empty(gy.shape[1]) if with_bias else None
    submit(bwd_launch, (gy, saved, rng), (g, gb), activation, slope, threshold, scale, dropout_first)
    return g, gb


@dataclass(frozen=True)
class _Case:
    """Operands that make compiled forms of their own: Triton folds sizes and strides of 1, and asks what 16 divides."""

    activation: str = "leaky_relu"
    dropout: str = "last"
    p: float = 0.3
    slope: float = 0.2
    bias: bool = True
    layout: str = "rows"  # of v and gy
    M: int = 1024
    N: int = 256

    def __str__(self) -> str:
        told = (f"{field.name}={getattr(self, field.name)}" for field in fields(self)[1:])
        usual = {f"{field.name}={field.default}" for field in fields(self)}
        return " ".join([self.activation, *(text for text in told if text not in usual)])


_CASES = (
    *(_Case(*how) for how in product(("none", "relu", "leaky_relu", "tanh", "sigmoid"), ("none", "first", "last"))),
    _Case(slope=-0.2),
    _Case(bias=False),
    _Case(p=0.7),
    *(_Case("tanh", dropout, layout=layout) for dropout in ("none", "last") for layout in ("columns", "steps")),
    _Case(layout="expanded"),
    *(_Case("sigmoid", M=M, N=N) for M, N in ((1024, 1), (1023, 1), (16, 256), (1024, 3), (1023, 3), (1024, 10))),
    *(_Case("sigmoid", M=M, N=N) for M, N in ((1024, 1034), (1023, 1034), (1023, 1000))),
)
_FORMS = ((torch.bfloat16, _CASES), (torch.float32, _CASES), (torch.float16, _CASES[:3]))  # fp16 differs by its casts


def _launches(case: _Case, dtype: torch.dtype) -> Iterator[Launch]:
    """Yield what is launched for such operands, built without storage."""
    M, N = case.M, case.N
    strides = {"rows": (N, 1), "columns": (1, M), "steps": (4 * N, 2), "expanded": (0, 0)}[case.layout]
    v = torch.empty_strided((M, N), strides, dtype=dtype, device="meta")
    y = torch.empty(M, N, dtype=dtype, device="meta")
    bias = torch.empty(N, dtype=dtype, device="meta") if case.bias else None
    rng = None if case.dropout == "none" else torch.empty(2, dtype=torch.int64, device="meta")
    how = (case.activation, case.slope, round(case.p * 2**32), 1 / (1 - case.p), case.dropout == "first")
    yield fwd_launch(v, bias, rng, y, y if case.slope < 0 else None, *how)
    yield bwd_launch(v, None if case.activation == "none" else y, rng, y, bias, *how)


def variants(arch: int) -> Iterator[Variant]:
    """Yield every compiled form that can be launched, each once; the same on every architecture."""
    seen = set()
    for dtype, case in ((dtype, case) for dtype, cases in _FORMS for case in cases):
        kind = str(dtype).removeprefix("torch.")
        for launch in _launches(case, dtype):
            variant = launch.variant("bias_act", f"{kind} {case} {launch.config.rows}x{launch.config.cols}", 0)
            form = repr((variant.kernel, variant.signature, variant.constexprs, variant.divisible))
            if form not in seen:
                seen.add(form)
                yield variant
