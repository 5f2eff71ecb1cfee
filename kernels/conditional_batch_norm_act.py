"""A norm whose scale and shift are each sample's own: normalised and activated rows, and their backward.

    u  = phi(s (y - mean) + beta),  s = gamma / sqrt(var + eps)      gamma, beta [N, C]
    gy = s dv,  dv = gu phi'(s (y - mean) + beta)                    sums of dv as lift, tilt, ggamma and gbeta

mean and var are the batch's (conditional batch norm: de Vries et al. 2017), [1, C], or each sample's own (adaptive
instance norm: Huang & Belongie 2017), [N, C]. With a = s sum dv and t = s sum dv (y - mean) / (var + eps) of a sample,
lift = -sum a / n and tilt = -sum t / n over the n rows that share statistics: gy + lift + tilt (y - mean), which
``batch_norm_correct`` forms, is the gradient of y. A sample's gbeta is sum dv, its ggamma sum dv (y - mean) / sqrt(var
+ eps).

Contract: bf16, fp16 or fp32 y [M, C], contiguous, its M rows in N equal parts; gu by any strides, results contiguous,
in the dtype of y and formed in fp32. gamma and beta have contiguous rows, N of them by any stride (0: one for all), in
any floating dtype, or are missing; mean, var, lift and tilt are contiguous fp32, or mean and var running statistics in
any floating dtype; gradients of gamma and beta [N, C] are contiguous. M or C may be 0. Addresses are int64. NaN in, NaN
out.

Sums: no more than PROGRAMS programs walk down stretches of one sample's rows, unless columns and samples make more, and
no more than PARTS share a sample's columns; the last of them adds up the sample, and the last of the samples all of
them, LANES at a time. The order is fixed and no atomic adds a float: the same operands give the same bits.

Bytes, for items of s bytes: forward reads and writes s MC, backward reads 2 s MC and writes s MC; accesses are of 16
bytes where 16 divides C, else of one element. What the stretches and samples give comes to it, 8 bytes a column each.

Registers a thread, the most of any variant on sm_80, 86, 89, 90, 100 and 120 (Triton 3.7.1), nothing spilled:
forward 59, backward 123.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels.batch_norm_act import PARTS, PROGRAMS, REGISTERS, STATS_REGISTERS, choose, stretch_of
from fastgan.kernels.launch import Launch, Tickets, Workspace, submit
from fastgan.kernels.norm import Norm, NormGradients, denormalised, norm_arguments, normalised, vectors_of
from fastgan.kernels.ticket import arrives_last
from fastgan.kernels.tile import Config
from fastgan.kernels.variant import Variant


@triton.jit(do_not_specialize=["rows", "pieces", "share"])
def conditional_norm_fwd_kernel(
    y, u, rows, C, pieces, share, in_mean, in_var, in_gamma, in_beta, in_step, gamma_step, beta_step, in_eps, in_slope,
    ACTIVATION: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """One tile of u."""
    column, _, sample, begin, end = stretch_of(tl.program_id(0), rows, C, pieces, share, BC)
    c = column.to(tl.int64) * BC + tl.arange(0, BC)  # [BC]
    row, own = tl.arange(0, BM), sample * in_step
    live = (row < end - begin)[:, None] & (c < C)[None, :]
    at = (sample * rows + begin + row)[:, None] * C + c[None, :]  # [BM, BC]
    raw = tl.load(y + at, mask=live, other=0.0)
    if in_gamma is not None:
        in_gamma += sample * gamma_step
    if in_beta is not None:
        in_beta += sample * beta_step
    centre, s, shift = vectors_of(c, c < C, in_mean + own, in_var + own, in_gamma, in_beta, in_eps)
    value = normalised(raw, centre, s, shift, in_slope, ACTIVATION)
    tl.store(u + at, value.to(u.dtype.element_ty), mask=live)


@triton.jit
def both_sums(parts, count, c, inside, C, BC: tl.constexpr, LANES: tl.constexpr):
    """Both sums [BC] of parts [count, 2, C], in their order."""
    first_sum = tl.zeros([BC], tl.float32)
    second_sum = tl.zeros([BC], tl.float32)
    for first in range(0, count, LANES):
        t = first + tl.arange(0, LANES)
        at = parts + t.to(tl.int64)[:, None] * 2 * C + c[None, :]
        there = (t < count)[:, None] & inside[None, :]
        first_sum += tl.sum(tl.load(at, mask=there, other=0.0, cache_modifier=".cg"), axis=0)
        second_sum += tl.sum(tl.load(at + C, mask=there, other=0.0, cache_modifier=".cg"), axis=0)
    return first_sum, second_sum


@triton.jit(do_not_specialize=["rows", "samples", "pieces", "share"])
def conditional_norm_bwd_kernel(
    gu, y, gy, rows, samples, C, g_m, g_n, pieces, share,
    in_mean, in_var, in_gamma, in_beta, in_step, gamma_step, beta_step, in_eps, in_slope,
    lift, tilt, ggamma, gbeta, parts, totals, ticket,
    ACTIVATION: tl.constexpr, STAGES: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """One stretch of gy; the last program of a sample's columns, and the last of the samples, write what is asked for.

    ``totals``: room for what the samples give where they share statistics; else each has a lift and a tilt.
    """
    column, part, sample, begin, end = stretch_of(tl.program_id(0), rows, C, pieces, share, BC)
    c = column.to(tl.int64) * BC + tl.arange(0, BC)  # [BC]
    inside = c < C
    row, own = tl.arange(0, BM), sample * in_step
    if in_gamma is not None:
        in_gamma += sample * gamma_step
    if in_beta is not None:
        in_beta += sample * beta_step
    centre, s, shift = vectors_of(c, inside, in_mean + own, in_var + own, in_gamma, in_beta, in_eps)

    to_shift = tl.zeros([BM, BC], tl.float32)
    to_scale = tl.zeros([BM, BC], tl.float32)
    for done in tl.range(begin, end, BM, num_stages=STAGES):
        m = sample * rows + done + row  # [BM]
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
        wide = tl.cdiv(C, BC)
        at = parts + part.to(tl.int64) * 2 * C + c
        tl.store(at, tl.sum(to_shift, axis=0), mask=inside)
        tl.store(at + C, tl.sum(to_scale, axis=0), mask=inside)
        if arrives_last(ticket + wide + sample * wide + column, pieces):
            dv_sum, off_sum = both_sums(parts + sample * pieces * 2 * C, pieces, c, inside, C, BC, BM)
            inverse = tl.rsqrt(tl.load(in_var + own + c, mask=inside, other=1.0).to(tl.float32) + in_eps)
            spot = sample * C + c
            if gbeta is not None:
                tl.store(gbeta + spot, dv_sum.to(gbeta.dtype.element_ty), mask=inside)
            if ggamma is not None:
                tl.store(ggamma + spot, (inverse * off_sum).to(ggamma.dtype.element_ty), mask=inside)
            if lift is not None:
                up, slant = s * dv_sum, s * inverse * inverse * off_sum
                if totals is None:
                    tl.store(lift + spot, -up / rows, mask=inside)
                    tl.store(tilt + spot, -slant / rows, mask=inside)
                else:
                    at = totals + sample * 2 * C + c
                    tl.store(at, up, mask=inside)
                    tl.store(at + C, slant, mask=inside)
                    if arrives_last(ticket + column, samples):
                        up, slant = both_sums(totals, samples, c, inside, C, BC, BM)
                        number = rows.to(tl.float32) * samples
                        tl.store(lift + c, -up / number, mask=inside)
                        tl.store(tilt + c, -slant / number, mask=inside)


def fwd_launch(y: Tensor, u: Tensor, norm: Norm, samples: int, config: Config | None = None) -> Launch:
    """Prepare u [M, C] = phi(s (y - mean) + beta), gamma and beta [samples, C]."""
    tile = config or choose(4096, REGISTERS, y)
    walk, programs = walked(y, samples, tile, sums=False)
    arguments: dict[str, object] = {"y": y, "u": u, **walk, **_vectors(norm)}
    constexprs = {"ACTIVATION": norm.activation, "BM": tile.rows, "BC": tile.cols}
    return Launch(conditional_norm_fwd_kernel, arguments, constexprs, programs, tile)


def bwd_launch(
    gu: Tensor,
    y: Tensor,
    gy: Tensor,
    norm: Norm,
    samples: int,
    to: NormGradients | None,
    config: Config | None = None,
) -> Launch:
    """Prepare gy [M, C] = s dv, and what ``to`` has places for: lift and tilt together or not at all."""
    tile = config or choose(2048, STATS_REGISTERS, y, gu)
    sums = to is not None and any(vector is not None for vector in to)
    walk, programs = walked(y, samples, tile, sums)
    C, wide = y.shape[1], -(-y.shape[1] // tile.cols)
    arguments: dict[str, object] = {"gu": gu, "y": y, "gy": gy, "samples": samples, **walk, **_vectors(norm)}
    arguments |= {"g_m": gu.stride(0), "g_n": gu.stride(1), "parts": None, "totals": None, "ticket": None}
    arguments |= dict(zip(("lift", "tilt", "ggamma", "gbeta"), to or (None,) * 4, strict=True))
    if sums:
        arguments |= {"parts": Workspace(samples * walk["pieces"] * 2 * C), "ticket": Tickets((samples + 1) * wide)}
    if to is not None and to.lift is not None and len(to.lift) == 1:
        arguments["totals"] = Workspace(samples * 2 * C)
    constexprs = {"ACTIVATION": norm.activation, "STAGES": tile.stages, "BM": tile.rows, "BC": tile.cols}
    return Launch(conditional_norm_bwd_kernel, arguments, constexprs, programs, tile)


def walked(y: Tensor, samples: int, tile: Config, sums: bool) -> tuple[dict[str, int], int]:
    """Return how the rows of a sample are shared out, as the kernels' arguments, and the number of programs."""
    (M, C), columns = y.shape, samples * -(-y.shape[1] // tile.cols)
    rows = M // samples
    tiles = -(-rows // tile.rows)
    most = max(1, min(PARTS, PROGRAMS // columns)) if sums else tiles
    share = -(-tiles // most) * tile.rows
    pieces = -(-rows // share)
    return {"rows": rows, "C": C, "pieces": pieces, "share": share}, columns * pieces


def _vectors(norm: Norm) -> dict[str, object]:
    steps = [0 if vector is None else vector.stride(0) for vector in (norm.gamma, norm.beta)]
    return {**norm_arguments(norm), "gamma_step": steps[0], "beta_step": steps[1]}


def conditional_norm_fwd(y: Tensor, norm: Norm, samples: int) -> Tensor:
    """Return phi(s (y - mean) + beta) [M, C] in the dtype of y; ``norm`` has gamma and beta [samples, C]."""
    u = y.new_empty(y.shape)
    if y.numel():
        submit(fwd_launch, (y,), (u,), samples=samples, norm=norm)
    return u


def conditional_norm_bwd(gu: Tensor, y: Tensor, norm: Norm, samples: int, to: NormGradients | None) -> Tensor:
    """Return s dv [M, C] in the dtype of y, and write the vectors that ``to`` has places for: over no rows, 0.

    Gradients of gamma and beta are [samples, C]; lift and tilt [1, C] where the samples share statistics, else as many.
    """
    gy = y.new_empty(y.shape)
    if y.numel():
        submit(bwd_launch, (gu, y), (gy,), samples=samples, norm=norm, to=to)
    else:
        for vector in to or ():
            if vector is not None:
                vector.zero_()
    return gy


@dataclass(frozen=True)
class _Case:
    """Operands that make compiled forms of their own: Triton folds sizes and strides of 1, and asks what 16 divides."""

    activation: str = "leaky_relu"
    layout: str = "rows"  # of the incoming gradient
    C: int = 256
    adaptive: bool = False  # statistics of each sample
    one: bool = False  # a scale and a shift for all samples
    affine: bool = True
    sums: bool = True
    frozen: bool = False

    def __str__(self) -> str:
        told = (f"{field.name}={getattr(self, field.name)}" for field in fields(self)[1:])
        usual = {f"{field.name}={field.default}" for field in fields(self)}
        return " ".join([self.activation, *(text for text in told if text not in usual)])


_CASES = (
    *(_Case(activation) for activation in ("none", "relu", "leaky_relu", "tanh", "sigmoid")),
    *(_Case("tanh", layout) for layout in ("columns", "steps", "expanded")),
    *(_Case("sigmoid", C=C) for C in (1, 10, 16, 24, 32, 255)),
    _Case("sigmoid", "columns", C=255),
    _Case(adaptive=True),
    _Case(adaptive=True, one=True),
    _Case(adaptive=True, affine=False),
    _Case(sums=False),
    _Case(frozen=True),
)
_FORMS = ((torch.bfloat16, _CASES), (torch.float32, _CASES), (torch.float16, _CASES[:3]))  # fp16 differs by its casts


def _launches(case: _Case, dtype: torch.dtype) -> Iterator[Launch]:
    """Yield what is launched for such operands, built without storage."""
    samples, M, C = 16, 1024, case.C
    strides = {"rows": (C, 1), "columns": (1, M), "steps": (4 * C, 2), "expanded": (0, 0)}[case.layout]
    gu = torch.empty_strided((M, C), strides, dtype=dtype, device="meta")
    y = torch.empty(M, C, dtype=dtype, device="meta")
    step = 0 if case.one else 2 * C
    vector = torch.empty_strided((samples, C), (step, 1), device="meta") if case.affine else None
    own = torch.empty(samples if case.adaptive else 1, C, device="meta")
    norm = Norm(own, own, vector, vector, 1e-5, case.activation, 0.2)
    gradient = None if vector is None else torch.empty(samples, C, device="meta")
    moved = None if case.frozen else own
    yield fwd_launch(y, y, norm, samples)
    yield bwd_launch(gu, y, y, norm, samples, NormGradients(moved, moved, gradient, gradient) if case.sums else None)


def variants(arch: int) -> Iterator[Variant]:
    """Yield every compiled form that can be launched, each once; the same on every architecture."""
    seen = set()
    for dtype, case in ((dtype, case) for dtype, cases in _FORMS for case in cases):
        kind = str(dtype).removeprefix("torch.")
        for launch in _launches(case, dtype):
            tile = f"{launch.config.rows}x{launch.config.cols}"
            variant = launch.variant("conditional_batch_norm_act", f"{kind} {case} {tile}", 0)
            form = repr((variant.kernel, variant.signature, variant.constexprs, variant.divisible))
            if form not in seen:
                seen.add(form)
                yield variant
