"""The end of an iteration in one launch: the clock moves on, schedules take their new values, monitors are summed.

    sums[k]   += observed[k],   counts[k] += 1                                 for every k that is observed
    clock     += 1,             values[s]  = schedule s at the new clock       where ADVANCE

A schedule is a row (kind, first, last, begin, length): ``first`` until the clock is ``begin``, ``last`` from ``begin +
length`` on, exactly both, and between them, p = (clock - begin) / length,

    linear        first + (last - first) p
    cosine        last + (first - last) (1 + cos(pi p)) / 2
    exponential   first (last / first)^p                                       first, last > 0
    constant      first, whatever the clock

A length of 0 is a jump at ``begin``: there it is ``last`` already.

Contract: clock int64 scalar; table fp64 [S, COLUMNS] and values fp32 [S], S at least 1, or both None; sums fp32 and
counts int64 [K], K at most MOST, dense, or None where nothing is observed; up to MOST floating scalars by their
addresses, which need no alignment. Schedules are formed in fp64 and rounded once; what is observed is added in fp32,
NaN and infinity included. What is observed is read before anything is written and may lie in values; nothing else may
overlap. One program of one warp; no atomics.

Bytes: 44 S + 28 K. FLOPs: about 20 S, 150 S in fp64 where a curve is bent. What it costs is the launch.

Registers a thread, the most of the variants on sm_80, 86, 89, 90, 100 and 120 (Triton 3.7.1): 44; nothing spilled.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels.launch import Launch, submit
from fastgan.kernels.tile import Config
from fastgan.kernels.variant import Variant

MOST = 16  # scalars that a launch observes
CONSTANT, LINEAR, COSINE, EXPONENTIAL = map(tl.constexpr, range(4))  # kinds of schedules
COLUMNS = tl.constexpr(5)  # kind, first, last, begin, length
BLOCK = 32  # schedules at a time: a warp's
REGISTERS = 64  # the cap
OBSERVED = tuple(f"observed_{k}" for k in range(MOST))
HALF_PI = tl.constexpr(1.5707963267948966)


@triton.jit
def half_cosine(p):
    """(1 + cos(pi p)) / 2 for p in [0, 1], in fp64: cos^2 or 1 - sin^2 of an angle of at most pi / 4, by its series.

    The cosine of CUDA's library keeps an array for huge angles, which costs every launch local memory.
    """
    early = p <= 0.5
    angle = HALF_PI * tl.where(early, p, 1.0 - p)
    square = angle * angle
    sine = tl.full(p.shape, 1.0, tl.float64)
    for k in tl.static_range(7, 0, -1):  # what an eighth term would add is below 1e-16
        sine = 1.0 - square * (1 / (2 * k * (2 * k + 1))) * sine
    sine *= angle
    return tl.where(early, 1.0 - sine * sine, sine * sine)


@triton.jit
def scheduled(row, there, clock):
    """Values [BLOCK] of schedules at a clock, in fp64."""
    kind = tl.load(row, mask=there, other=0.0)
    first = tl.load(row + 1, mask=there, other=0.0)
    last = tl.load(row + 2, mask=there, other=0.0)
    age = clock.to(tl.float64) - tl.load(row + 3, mask=there, other=0.0)
    length = tl.load(row + 4, mask=there, other=0.0)
    inside = (age > 0) & (age < length)
    p = tl.where(inside, age, 0.0) / tl.where(inside, length, 1.0)
    between = first + (last - first) * p
    bent = kind == COSINE
    if tl.max((bent & inside).to(tl.int32), axis=0) > 0:
        between = tl.where(bent, last + (first - last) * half_cosine(p), between)
    bent = kind == EXPONENTIAL
    if tl.max((bent & inside).to(tl.int32), axis=0) > 0:
        ratio = tl.where(bent, last, 1.0) / tl.where(bent, first, 1.0)
        between = tl.where(bent, first * tl.exp(p * tl.log(ratio)), between)
    value = tl.where(age >= length, last, tl.where(inside, between, first))
    return tl.where(kind == CONSTANT, first, value)


@triton.jit(do_not_specialize=["S", *OBSERVED])
def tick_kernel(
    clock, table, values, sums, counts,
    observed_0, observed_1, observed_2, observed_3, observed_4, observed_5, observed_6, observed_7,
    observed_8, observed_9, observed_10, observed_11, observed_12, observed_13, observed_14, observed_15,
    S, ADVANCE: tl.constexpr, MOST: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Read all, then write; loads follow each other and wait for nothing."""
    observed = (
        observed_0, observed_1, observed_2, observed_3, observed_4, observed_5, observed_6, observed_7,
        observed_8, observed_9, observed_10, observed_11, observed_12, observed_13, observed_14, observed_15,
    )  # fmt: skip
    at = tl.arange(0, MOST)
    seen = tl.zeros([MOST], tl.float32)
    there = at < 0
    for k in tl.static_range(MOST):
        if observed[k] is not None:
            seen = tl.where(at == k, tl.load(observed[k]).to(tl.float32), seen)
            there = there | (at == k)
    if sums is not None:
        total = tl.load(sums + at, mask=there, other=0.0) + seen
        count = tl.load(counts + at, mask=there, other=0) + 1
    now = tl.load(clock) + 1
    tl.debug_barrier()  # all threads have read
    if sums is not None:
        tl.store(sums + at, total, mask=there)
        tl.store(counts + at, count, mask=there)
    if ADVANCE:
        tl.store(clock, now)
        if table is not None:
            for start in range(0, S, BLOCK):
                which = start + tl.arange(0, BLOCK)  # [BLOCK]
                value = scheduled(table + which * COLUMNS, which < S, now)
                tl.store(values + which, value.to(tl.float32), mask=which < S)


def launch(
    clock: Tensor,
    table: Tensor | None,
    values: Tensor | None,
    sums: Tensor | None,
    counts: Tensor | None,
    advance: bool,
    observed: tuple[Tensor | None, ...],
) -> Launch:
    """Prepare the end of one iteration."""
    arguments: dict[str, object] = {"clock": clock, "table": table, "values": values, "sums": sums, "counts": counts}
    arguments |= dict.fromkeys(OBSERVED)
    arguments |= zip(OBSERVED, observed, strict=False)  # the rest of them is None
    arguments |= {"S": 0 if table is None else table.shape[0]}
    constexprs = {"ADVANCE": advance, "MOST": MOST, "COLUMNS": COLUMNS.value, "BLOCK": BLOCK}
    return Launch(tick_kernel, arguments, constexprs, 1, Config(1, BLOCK, 1, 1, REGISTERS, stages=1))


def tick(
    clock: Tensor,
    table: Tensor | None,
    values: Tensor | None,
    sums: Tensor,
    counts: Tensor,
    observed: tuple[Tensor | None, ...],
    *,
    advance: bool = True,
) -> None:
    """End an iteration in place, as the file's contract has it; without anything to do nothing is launched.

    Args:
        clock: int64 scalar.
        table, values: fp64 [S, 5] and fp32 [S], dense, or None; S may be 0.
        sums, counts: fp32 and int64 [K], dense, K at most MOST.
        observed: for each of K one element of any floating dtype, or None; no object twice.
        advance: whether the clock and the schedules move; otherwise sums and counts alone.
    """
    if not advance or table is None or not len(table):
        table = values = None
    observing = any(value is not None for value in observed)
    if advance or observing:
        monitors = (sums, counts) if observing else (None, None)
        submit(launch, (clock, table, values, *monitors), (), advance, observed=observed)


_KINDS: tuple[tuple[torch.dtype | None, ...], ...] = (
    (torch.float32,) * 5,
    (),
    (torch.float32, None, torch.float32, torch.bfloat16, None, torch.float16),
    (torch.float32,) * MOST,
    (torch.bfloat16,) * MOST,
)


def variants(arch: int) -> Iterator[Variant]:
    """Yield the compiled forms of some sets of scalars, with and without schedules; the same on every architecture."""
    clock = torch.empty((), dtype=torch.int64, device="meta")
    table = torch.empty(6, COLUMNS.value, dtype=torch.float64, device="meta")
    for kinds in _KINDS:
        observed = tuple(None if kind is None else torch.empty((), dtype=kind, device="meta") for kind in kinds)
        sums = torch.empty(len(kinds), device="meta") if kinds else None
        counts = torch.empty(len(kinds), dtype=torch.int64, device="meta") if kinds else None
        for advance, rows in ((True, table), (True, None), (False, None)):
            values = None if rows is None else torch.empty(len(rows), device="meta")
            if not advance and not kinds:
                continue
            names = " ".join("-" if kind is None else str(kind).removeprefix("torch.") for kind in dict.fromkeys(kinds))
            moves = "advances" if advance else "stands"
            label = f"{moves}{'' if rows is None else ' with schedules'}, {len(kinds)} observed {names}".rstrip()
            yield launch(clock, rows, values, sums, counts, advance, observed).variant("tick", label, 0)
