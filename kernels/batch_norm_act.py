"""Batch normalisation where no matrix product carries it: statistics, the normalised and activated rows, and backward.

    mean, var [groups, C] of y [M, C], and the running ones    where a library made y
    u  = phi(s (y - mean) + beta)                              where nothing of ours loads y
    gy = s dv, dv = gu phi'(s (y - mean) + beta)               sums of dv as lift, tilt, ggamma and gbeta, as asked for
    g  = gy + lift + tilt (y - mean)                           where a library is to read it

Contract: bf16, fp16 or fp32 y [M, C], contiguous, its M rows in ``groups`` equal parts; gu by any strides, results
contiguous and in the dtype of y, formed in fp32. Vectors are contiguous: mean, var, lift and tilt in fp32, gamma, beta,
their gradients and the running statistics in any floating dtype. A frozen norm has one row of mean and var for all.
M or C may be 0, but nothing has no statistics, and one row no unbiased variance. Addresses are int64. NaN in, NaN out.

Statistics and sums: no more than PROGRAMS programs walk down stretches of one group's rows, unless columns and groups
make more, and no more than PARTS share columns, unless there are more groups. Each place of a program's tile keeps a
mean and a sum of squared distances (Welford), merged at the stretch's end by Chan's formula; the last program to arrive
merges the stretches. The order is fixed and no atomic adds a float: the same operands give the same bits.

Bytes, for items of s bytes: statistics read s MC; forward reads and writes s MC; backward and correction read 2 s MC
and write s MC. Accesses are of 16 bytes where 16 divides C, else of one element. What the stretches give comes to it,
8 bytes a column each, mostly in L2.

Registers a thread, the most of any variant on sm_80, 86, 89, 90, 100 and 120 (Triton 3.7.1), nothing spilled:
statistics 128, forward 59, backward 119, correction 48.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels.launch import Launch, Tickets, Workspace, submit
from fastgan.kernels.norm import (
    Correction,
    Norm,
    NormGradients,
    Statistics,
    corrected,
    correction_arguments,
    denormalised,
    finish_gradients,
    finish_statistics,
    norm_arguments,
    normalised,
    vectors_of,
)
from fastgan.kernels.ticket import arrives_last
from fastgan.kernels.tile import Config, regular
from fastgan.kernels.variant import Variant

PROGRAMS = 1024  # that share the rows: enough to keep a card's memory busy
PARTS = 256  # of them that share columns: few enough for the last one to merge
LINE = 128  # bytes of a tile's row
STATS_REGISTERS = 128  # caps on a thread's: for statistics, and for sums that take as many,
SUMS_REGISTERS = 80  # for the usual sums: piecewise linear, by whole vectors,
REGISTERS = 64  # and for one tile a program, whose loads are hidden by other programs alone


@triton.jit
def stretch_of(program, rows, C, pieces, share, BC: tl.constexpr):
    """Which columns a program walks down, as which part, in which group, and from which of its rows to which."""
    wide = tl.cdiv(C, BC)
    column, part = program % wide, program // wide
    begin = part % pieces * share
    return column, part, (part // pieces).to(tl.int64), begin, tl.minimum(begin + share, rows)


@triton.jit(do_not_specialize=["rows", "groups", "pieces", "share"])
def batch_norm_stats_kernel(
    y, rows, groups, C, pieces, share, mean, var, running_mean, running_var, tracked, momentum, parts, ticket,
    STAGES: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Mean and squared distances of one stretch; the last program of these columns finishes the statistics."""
    column, part, group, begin, end = stretch_of(tl.program_id(0), rows, C, pieces, share, BC)
    c = column.to(tl.int64) * BC + tl.arange(0, BC)  # [BC]
    inside = c < C
    row = tl.arange(0, BM)  # [BM], in the tile

    centre = tl.zeros([BM, BC], tl.float32)
    squares = tl.zeros([BM, BC], tl.float32)
    seen = 0.0
    for done in tl.range(begin, end, BM, num_stages=STAGES):
        m = group * rows + done + row  # [BM]
        live = (row < end - done)[:, None] & inside[None, :]
        value = tl.load(y + m[:, None] * C + c[None, :], mask=live, other=0.0).to(tl.float32)
        seen += 1.0
        off = tl.where(live, value - centre, 0.0)
        centre += off * (1.0 / seen)
        squares += off * (value - centre)

    count = tl.cdiv(end - begin - row, BM).to(tl.float32)[:, None]  # [BM, 1] rows that each place has seen
    middle = tl.sum(centre * count, axis=0) / (end - begin)
    off = centre - middle[None, :]
    at = parts + part.to(tl.int64) * 2 * C + c
    tl.store(at, middle, mask=inside)
    tl.store(at + C, tl.sum(squares + off * off * count, axis=0), mask=inside)
    if arrives_last(ticket + column, pieces * groups):
        finish_statistics(
            parts, pieces, rows, groups, c, inside, C, mean, var, running_mean, running_var, tracked, momentum,
            share, BC, BM,
        )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "pieces", "share"])
def batch_norm_act_fwd_kernel(
    y, u, rows, C, pieces, share, in_mean, in_var, in_gamma, in_beta, in_step, in_eps, in_slope,
    ACTIVATION: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """One tile of u."""
    column, _, group, begin, end = stretch_of(tl.program_id(0), rows, C, pieces, share, BC)
    c = column.to(tl.int64) * BC + tl.arange(0, BC)  # [BC]
    row, own = tl.arange(0, BM), group * in_step
    live = (row < end - begin)[:, None] & (c < C)[None, :]
    at = (group * rows + begin + row)[:, None] * C + c[None, :]  # [BM, BC]
    raw = tl.load(y + at, mask=live, other=0.0)
    centre, s, shift = vectors_of(c, c < C, in_mean + own, in_var + own, in_gamma, in_beta, in_eps)
    value = normalised(raw, centre, s, shift, in_slope, ACTIVATION)
    tl.store(u + at, value.to(u.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["rows", "groups", "pieces", "share"])
def batch_norm_act_bwd_kernel(
    gu, y, gy, rows, groups, C, g_m, g_n, pieces, share,
    in_mean, in_var, in_gamma, in_beta, in_step, in_eps, in_slope, lift, tilt, ggamma, gbeta, parts, ticket,
    ACTIVATION: tl.constexpr, STAGES: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """One stretch of gy; the last program of these columns writes the vectors that are asked for."""
    column, part, group, begin, end = stretch_of(tl.program_id(0), rows, C, pieces, share, BC)
    c = column.to(tl.int64) * BC + tl.arange(0, BC)  # [BC]
    inside = c < C
    row, own = tl.arange(0, BM), group * in_step
    centre, s, shift = vectors_of(c, inside, in_mean + own, in_var + own, in_gamma, in_beta, in_eps)

    to_shift = tl.zeros([BM, BC], tl.float32)
    to_scale = tl.zeros([BM, BC], tl.float32)
    for done in tl.range(begin, end, BM, num_stages=STAGES):
        m = group * rows + done + row  # [BM]
        live = (row < end - done)[:, None] & inside[None, :]
        at = m[:, None] * C + c[None, :]
        grad = tl.load(gu + m[:, None] * g_m + c[None, :] * g_n, mask=live, other=0.0)
        raw = tl.load(y + at, mask=live, other=0.0)
        dv, off = denormalised(grad, raw, centre, s, shift, in_slope, ACTIVATION)
        tl.store(gy + at, (dv * s[None, :]).to(gy.dtype.element_ty), mask=live)
        if parts is not None:
            dv = tl.where(live, dv, 0.0)
            to_shift += dv
            to_scale += dv * off

    if parts is not None:
        at = parts + part.to(tl.int64) * 2 * C + c
        tl.store(at, tl.sum(to_shift, axis=0), mask=inside)
        tl.store(at + C, tl.sum(to_scale, axis=0), mask=inside)
        if arrives_last(ticket + column, pieces * groups):
            finish_gradients(
                parts, pieces, rows, groups, c, inside, C, in_var, in_gamma, in_step, in_eps,
                lift, tilt, ggamma, gbeta, BC, BM,
            )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "pieces", "share"])
def batch_norm_correct_kernel(
    gy, y, g, rows, C, g_m, g_n, pieces, share, up_mean, lift, tilt, BM: tl.constexpr, BC: tl.constexpr
):
    """One tile of g."""
    column, _, group, begin, end = stretch_of(tl.program_id(0), rows, C, pieces, share, BC)
    c = column.to(tl.int64) * BC + tl.arange(0, BC)  # [BC]
    row, own = tl.arange(0, BM), group * C
    live = (row < end - begin)[:, None] & (c < C)[None, :]
    m = group * rows + begin + row  # [BM]
    at = m[:, None] * C + c[None, :]
    grad = tl.load(gy + m[:, None] * g_m + c[None, :] * g_n, mask=live, other=0.0)
    raw = tl.load(y + at, mask=live, other=0.0)
    value = corrected(grad, raw, c, c < C, up_mean + own, lift + own, tilt + own)
    tl.store(g + at, value.to(g.dtype.element_ty), mask=live)


def stats_launch(y: Tensor, to: Statistics, config: Config | None = None) -> Launch:
    """Prepare the statistics of y [M, C]."""
    groups, tile = to.mean.shape[0], config or choose(4096, STATS_REGISTERS, y)
    walk, programs = walked(y, groups, tile, sums=True)
    arguments: dict[str, object] = {"y": y, "groups": groups, **walk, **to._asdict()}
    arguments |= workspace(y, groups, tile, walk)
    constexprs = {"STAGES": tile.stages, "BM": tile.rows, "BC": tile.cols}
    return Launch(batch_norm_stats_kernel, arguments, constexprs, programs, tile)


def fwd_launch(y: Tensor, u: Tensor, norm: Norm, config: Config | None = None) -> Launch:
    """Prepare u [M, C] = phi(s (y - mean) + beta)."""
    tile = config or choose(4096, REGISTERS, y)
    walk, programs = walked(y, norm.mean.shape[0], tile, sums=False)
    arguments: dict[str, object] = {"y": y, "u": u, **walk, **norm_arguments(norm)}
    constexprs = {"ACTIVATION": norm.activation, "BM": tile.rows, "BC": tile.cols}
    return Launch(batch_norm_act_fwd_kernel, arguments, constexprs, programs, tile)


def bwd_launch(
    gu: Tensor, y: Tensor, gy: Tensor, norm: Norm, to: NormGradients | None, config: Config | None = None
) -> Launch:
    """Prepare gy [M, C] = s dv, and what ``to`` has places for."""
    most = SUMS_REGISTERS if regular(gu, y) and norm.activation not in ("tanh", "sigmoid") else STATS_REGISTERS
    groups, tile = norm.mean.shape[0], config or choose(2048, most, y, gu)
    sums = to is not None and any(vector is not None for vector in to)
    walk, programs = walked(y, groups, tile, sums)
    arguments: dict[str, object] = {"gu": gu, "y": y, "gy": gy, "groups": groups, **walk, **norm_arguments(norm)}
    arguments |= {"g_m": gu.stride(0), "g_n": gu.stride(1)}
    arguments |= dict(zip(("lift", "tilt", "ggamma", "gbeta"), to or (None,) * 4, strict=True))
    arguments |= workspace(y, groups, tile, walk) if sums else {"parts": None, "ticket": None}
    constexprs = {"ACTIVATION": norm.activation, "STAGES": tile.stages, "BM": tile.rows, "BC": tile.cols}
    return Launch(batch_norm_act_bwd_kernel, arguments, constexprs, programs, tile)


def correct_launch(gy: Tensor, y: Tensor, g: Tensor, correction: Correction, config: Config | None = None) -> Launch:
    """Prepare g [M, C] = gy + lift + tilt (y - mean)."""
    tile = config or choose(2048, REGISTERS, y, gy)
    walk, programs = walked(y, correction.mean.shape[0], tile, sums=False)
    arguments: dict[str, object] = {"gy": gy, "y": y, "g": g, **walk, **correction_arguments(correction)}
    arguments |= {"g_m": gy.stride(0), "g_n": gy.stride(1)}
    return Launch(batch_norm_correct_kernel, arguments, {"BM": tile.rows, "BC": tile.cols}, programs, tile)


def choose(elements: int, registers: int, y: Tensor, *others: Tensor) -> Config:
    """Return a tile of so many elements: a line of memory across, or all columns where there are fewer."""
    cols = min(LINE // y.itemsize, max(16, triton.next_power_of_2(y.shape[1])))
    elements //= 1 if regular(y, *others) else 2  # an address for each element takes registers
    return Config(elements // cols, cols, 1, 8, registers)


def walked(y: Tensor, groups: int, tile: Config, sums: bool) -> tuple[dict[str, int], int]:
    """Return how the rows of a group are shared out, as the kernels' arguments, and the number of programs."""
    (M, C), columns = y.shape, groups * -(-y.shape[1] // tile.cols)
    rows = M // groups
    tiles = -(-rows // tile.rows)
    most = max(1, min(PARTS // groups, PROGRAMS // columns)) if sums else tiles
    share = -(-tiles // most) * tile.rows
    pieces = -(-rows // share)
    return {"rows": rows, "C": C, "pieces": pieces, "share": share}, columns * pieces


def workspace(y: Tensor, groups: int, tile: Config, walk: dict[str, int]) -> dict[str, object]:
    """Return room for what each stretch gives, and the tickets of the columns."""
    C = y.shape[1]
    return {"parts": Workspace(groups * walk["pieces"] * 2 * C), "ticket": Tickets(-(-C // tile.cols))}


def batch_norm_stats(y: Tensor, to: Statistics) -> None:
    """Write mean and biased variance of each group of rows of y [M, C], and move the running ones towards them."""
    if y.numel():
        submit(stats_launch, (y,), (), to=to)


def batch_norm_act_fwd(y: Tensor, norm: Norm) -> Tensor:
    """Return phi(s (y - mean) + beta) [M, C] in the dtype of y."""
    u = y.new_empty(y.shape)
    if y.numel():
        submit(fwd_launch, (y,), (u,), norm=norm)
    return u


def batch_norm_act_bwd(gu: Tensor, y: Tensor, norm: Norm, to: NormGradients | None) -> Tensor:
    """Return s dv [M, C] in the dtype of y, and write the vectors that ``to`` has places for: over no rows, 0."""
    gy = y.new_empty(y.shape)
    if y.numel():
        submit(bwd_launch, (gu, y), (gy,), norm=norm, to=to)
    else:
        for vector in to or ():
            if vector is not None:
                vector.zero_()
    return gy


def batch_norm_correct(gy: Tensor, y: Tensor, correction: Correction) -> Tensor:
    """Return gy + lift + tilt (y - mean) [M, C] in the dtype of y: gy as ``batch_norm_act_bwd`` leaves it."""
    g = y.new_empty(y.shape)
    if y.numel():
        submit(correct_launch, (gy, y), (g,), correction=correction)
    return g


@dataclass(frozen=True)
class _Case:
    """Operands that make compiled forms of their own: Triton folds sizes and strides of 1, and asks what 16 divides."""

    activation: str = "leaky_relu"
    layout: str = "rows"  # of the incoming gradient
    C: int = 256
    groups: int = 2
    affine: bool = True
    running: bool = True
    tracked: bool = False
    frozen: bool = False
    sums: bool = True

    def __str__(self) -> str:
        told = (f"{field.name}={getattr(self, field.name)}" for field in fields(self)[1:])
        usual = {f"{field.name}={field.default}" for field in fields(self)}
        return " ".join([self.activation, *(text for text in told if text not in usual)])


_CASES = (
    *(_Case(activation) for activation in ("none", "relu", "leaky_relu", "tanh", "sigmoid")),
    *(_Case("tanh", layout) for layout in ("columns", "steps", "expanded")),
    *(_Case("sigmoid", C=C) for C in (1, 10, 16, 24, 32, 255)),
    _Case("sigmoid", "columns", C=255),
    _Case(groups=1),
    _Case(affine=False, running=False),
    _Case(tracked=True, sums=False),
    _Case(groups=1, frozen=True),
)
_FORMS = ((torch.bfloat16, _CASES), (torch.float32, _CASES), (torch.float16, _CASES[:3]))  # fp16 differs by its casts


def _launches(case: _Case, dtype: torch.dtype) -> Iterator[Launch]:
    """Yield what is launched for such operands, built without storage."""
    M, C, groups = 1024, case.C, case.groups
    strides = {"rows": (C, 1), "columns": (1, M), "steps": (4 * C, 2), "expanded": (0, 0)}[case.layout]
    gu = torch.empty_strided((M, C), strides, dtype=dtype, device="meta")
    y = torch.empty(M, C, dtype=dtype, device="meta")
    rows, vector = torch.empty(groups, C, device="meta"), torch.empty(C, device="meta")
    affine, running = vector if case.affine else None, vector if case.running else None
    tracked = torch.empty((), dtype=torch.int64, device="meta") if case.tracked else None
    norm = Norm(rows, rows, affine, affine, 1e-5, case.activation, 0.2)
    corrected: tuple[Tensor | None, Tensor | None] = (None, None) if case.frozen else (rows, rows)
    yield stats_launch(y, Statistics(rows, rows, running, running, tracked, 0.1))
    yield fwd_launch(y, y, norm)
    yield bwd_launch(gu, y, y, norm, NormGradients(*corrected, affine, affine) if case.sums else None)
    yield correct_launch(gu, y, y, Correction(rows, rows, rows))


def variants(arch: int) -> Iterator[Variant]:
    """Yield every compiled form that can be launched, each once; the same on every architecture."""
    seen = set()
    for dtype, case in ((dtype, case) for dtype, cases in _FORMS for case in cases):
        kind = str(dtype).removeprefix("torch.")
        for launch in _launches(case, dtype):
            variant = launch.variant("batch_norm_act", f"{kind} {case} {launch.config.rows}x{launch.config.cols}", 0)
            form = repr((variant.kernel, variant.signature, variant.constexprs, variant.divisible))
            if form not in seen:
                seen.add(form)
                yield variant
