"""Statistics of each sample by itself, without a last program that has them all to finish.

    mean, var [N, C] of y [M, C], of each of N equal parts of its rows

What is normalised by them, and its backward, is of conditional_batch_norm_act.py, where the last program of a sample
finishes its sums, too. batch_norm_act.py, for few groups of many rows, finishes one group after the other.

Contract: bf16, fp16 or fp32 y [M, C], contiguous; mean and biased var in fp32, contiguous. M or C may be 0, but nothing
has no statistics. Addresses are int64. NaN in, NaN out. Each place of a program's tile keeps a mean and a sum of
squared distances (Welford), merged at the stretch's end and then over a sample's stretches by Chan's formula. The order
is fixed: the same operands give the same bits.

Bytes, for items of s bytes: s MC read, by 16 bytes where 16 divides C, and 8 a column for each stretch.

Registers a thread, the most of any variant on sm_80, 86, 89, 90, 100 and 120 (Triton 3.7.1), nothing spilled: 114.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels.batch_norm_act import STATS_REGISTERS, choose, stretch_of
from fastgan.kernels.conditional_batch_norm_act import walked
from fastgan.kernels.launch import Launch, Tickets, Workspace, submit
from fastgan.kernels.norm import finish_statistics
from fastgan.kernels.ticket import arrives_last
from fastgan.kernels.tile import Config
from fastgan.kernels.variant import Variant


@triton.jit(do_not_specialize=["rows", "pieces", "share"])
def instance_norm_stats_kernel(
    y, rows, C, pieces, share, mean, var, parts, ticket, STAGES: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr
):
    """Mean and squared distances of one stretch; the last program of a sample's columns finishes its statistics."""
    column, part, sample, begin, end = stretch_of(tl.program_id(0), rows, C, pieces, share, BC)
    c = column.to(tl.int64) * BC + tl.arange(0, BC)  # [BC]
    inside = c < C
    row = tl.arange(0, BM)  # [BM], in the tile

    centre = tl.zeros([BM, BC], tl.float32)
    squares = tl.zeros([BM, BC], tl.float32)
    seen = 0.0
    for done in tl.range(begin, end, BM, num_stages=STAGES):
        m = sample * rows + done + row  # [BM]
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
    if arrives_last(ticket + sample * tl.cdiv(C, BC) + column, pieces):
        finish_statistics(
            parts + sample * pieces * 2 * C, pieces, rows, 1, c, inside, C, mean + sample * C, var + sample * C,
            None, None, None, 0.0, share, BC, BM,
        )  # fmt: skip


def stats_launch(y: Tensor, mean: Tensor, var: Tensor, config: Config | None = None) -> Launch:
    """Prepare mean and biased variance [samples, C] of y [M, C]."""
    samples, tile = mean.shape[0], config or choose(4096, STATS_REGISTERS, y)
    walk, programs = walked(y, samples, tile, sums=True)
    arguments: dict[str, object] = {"y": y, **walk, "mean": mean, "var": var}
    arguments["parts"] = Workspace(samples * walk["pieces"] * 2 * y.shape[1])
    arguments["ticket"] = Tickets(samples * -(-y.shape[1] // tile.cols))
    constexprs = {"STAGES": tile.stages, "BM": tile.rows, "BC": tile.cols}
    return Launch(instance_norm_stats_kernel, arguments, constexprs, programs, tile)


def instance_norm_stats(y: Tensor, mean: Tensor, var: Tensor) -> None:
    """Write mean and biased variance [samples, C] of each sample's rows of y [M, C]."""
    if y.numel():
        submit(stats_launch, (y, mean, var), ())


def variants(arch: int) -> Iterator[Variant]:
    """Yield every compiled form that can be launched, each once; the same on every architecture."""
    seen = set()
    for dtype in (torch.bfloat16, torch.float32, torch.float16):
        for C in (1, 10, 16, 24, 32, 255, 256):
            vectors = torch.empty(16, C, device="meta")
            launch = stats_launch(torch.empty(1024, C, dtype=dtype, device="meta"), vectors, vectors)
            label = f"{str(dtype).removeprefix('torch.')} C={C} {launch.config.rows}x{launch.config.cols}"
            variant = launch.variant("instance_norm_act", label, 0)
            form = repr((variant.signature, variant.constexprs, variant.divisible))
            if form not in seen:
                seen.add(form)
                yield variant
