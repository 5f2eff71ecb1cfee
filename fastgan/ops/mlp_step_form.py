"""The phase table of a whole training iteration: what a row says, and how rows are put into integers.

``csrc/mlp_step.cuh`` reads the same integers. A tensor is named by its slot, a number of the list that lies beside the
table; -1 is none. A real number is the bits of its fp64.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

NONE = -1
ACTIVATIONS = ("none", "relu", "leaky_relu", "tanh", "sigmoid")
LATENTS = ("normal", "uniform", "discrete")
TERMS = ("cross_entropy", "least_squares", "hinge", "linear")
RULES = ("adam", "rmsprop", "sgd")
DECOUPLED, MOMENTUM, NESTEROV, CENTERED = 1, 2, 4, 8  # of a rule
ROWS, COLS = 64, 16  # of a tile of LINEAR and BACK; where a norm follows, a tile has all rows of its columns
WIDE = 64  # of a tile of WEIGHT, either way
STRIP = 4096  # elements of a tile of STEP and NORM
RATES = 13  # numbers of a parameter in a step: see ``rate`` in mlp_step_optimizer.py


class Op(IntEnum):
    """What a phase does."""

    REAL = 0  # out = real samples, chosen, normalised, mirrored
    LATENT = 1  # out = latents
    LINEAR = 2  # out = dropout(phi(norm(a W^T + b)))
    LOSS = 3  # the discriminator's last layer, the loss, and the slopes of all logits; one tile
    BACK = 4  # out = gradient of the pre-norm output of the layer below, from that of the layer above
    WEIGHT = 5  # gradients of a weight and its bias, with the optimiser's step or into memory
    RATE = 6  # what all elements of a parameter share in a step; one tile
    NORM = 7  # of gradients: squares summed, and whether all are finite; a tile to a strip
    STEP = 8  # the optimiser's step from gradients in memory
    TICK = 9  # metrics summed, the clock and the schedules move; one tile
    MEND = 10  # a buffer that is not finite takes back what it had; one tile


class Phase(NamedTuple):
    """One row. What a field means to an op stands beside the op in mlp_step_interpreter.py."""

    op: int
    stage: int = 0  # no barrier between phases of one stage
    tiles: int = 1
    rows: int = 0
    cols: int = 0
    depth: int = 0
    group: int = 0  # rows that share statistics
    a: int = NONE
    a_row: int = 0
    b: int = NONE
    b_row: int = 0
    out: int = NONE
    out_row: int = 0
    out_step: int = 0  # from the first row of a group to that of the next
    weight: int = NONE  # parameters, by their rows of the other table
    bias: int = NONE
    gamma: int = NONE
    beta: int = NONE
    moves: int = 0  # 1: their optimiser's step is made here; 2: their gradients go to memory; 0: neither
    still: int = 0  # the bias stands in front of a norm: its gradient is 0
    raw: int = NONE  # the output in front of the norm
    raw_row: int = 0  # which row of the layer's own pass the first one is
    stats: int = NONE  # (groups, 2, cols): mean, 1 / sqrt(var + eps)
    stats_row: int = 0
    mean: int = NONE
    var: int = NONE
    batches: int = NONE
    momentum: int = 0
    eps: int = 0
    activation: int = 0
    slope: int = 0
    drop: int = 0  # words, of 2^32, that drop an element
    kept: int = 0  # what the others are multiplied by
    drop_first: int = 0
    seed: int = 0
    site: int = 0
    sites: int = 1
    kind: int = 0
    total: int = 0  # samples there are
    flip: int = 0  # the length of a line that is mirrored; 0: none is
    scale: int = NONE  # a factor for each row of ``out``
    term: int = 0
    other: int = 0  # the generator's term
    sides: int = 0  # 1: the discriminator's slopes, 2: the generator's, 3: both
    label: int = 0
    sign: int = 0
    critic: int = 0
    seen: int = NONE
    at: int = 0
    clock: int = NONE
    table: int = NONE
    values: int = NONE
    sums: int = NONE
    counts: int = NONE
    finite: int = 0
    first: int = 0  # of a range of parameters
    last: int = 0
    verdict: int = NONE  # partial sums and flags of all strips
    most: int = 0  # norm that gradients are scaled to; 0: none
    guards: int = 0


class Param(NamedTuple):
    """One parameter, and what moves with it."""

    value: int
    first: int = NONE  # its states
    second: int = NONE
    third: int = NONE
    step: int = NONE
    average: int = NONE
    shadow: int = NONE  # what products read
    gradient: int = NONE
    size: int = 0
    group: int = 0  # of numbers
    rule: int = 0
    form: int = 0  # DECOUPLED | ...
    counters: int = NONE
    side: int = 0
    strip: int = 0  # the first of its strips among its side's


def bits(value: float) -> int:
    """Return a real number as the table has it."""
    found: int = struct.unpack("<q", struct.pack("<d", value))[0]
    return found


def real(bits: int) -> float:
    """Return the number whose bits stand in the table."""
    found: float = struct.unpack("<d", struct.pack("<q", bits))[0]
    return found


def packed(rows: Sequence[tuple[int, ...]], width: int) -> Tensor:
    """Return rows as int64 (rows, width)."""
    return torch.tensor([list(row) for row in rows], dtype=torch.int64).reshape(-1, width)


def phases(table: Tensor) -> list[Phase]:
    """Return the rows of a table."""
    return [Phase(*row) for row in table.tolist()]


def params(table: Tensor) -> list[Param]:
    """Return the rows of the parameters' table."""
    return [Param(*row) for row in table.tolist()]


Span = tuple[str, int, int, int]  # what, which slot or parameter, from a row up to another


class Touched(NamedTuple):
    """What a phase reads and writes."""

    reads: frozenset[Span]
    writes: frozenset[Span]


def touched(phase: Phase) -> Touched:
    """Return what a phase reads and writes: two may share a stage where neither writes what the other touches."""
    reads, writes = set(_read(phase)), set(_written(phase))
    return Touched(frozenset(reads), frozenset(writes))


def _read(p: Phase) -> Iterator[Span]:
    if p.op in (Op.LINEAR, Op.LOSS, Op.BACK, Op.WEIGHT):
        yield _rows(p.a, p.a_row, p.rows)
    if p.op in (Op.BACK, Op.WEIGHT):
        yield _rows(p.b, p.b_row, p.rows)
    if p.op == Op.BACK:
        yield from (_rows(p.raw, p.raw_row, p.rows), _whole("slot", p.stats), _whole("slot", p.scale))
    if p.op in (Op.LINEAR, Op.LOSS, Op.BACK):
        yield from (_whole("param", at) for at in (p.weight, p.bias, p.gamma, p.beta))
    if p.op in (Op.BACK, Op.WEIGHT, Op.STEP) and p.moves == 1:
        yield from (_whole("rate", at) for at in _moved(p))
    if p.op in (Op.STEP, Op.NORM):
        yield from (_whole("gradient", at) for at in _moved(p))
    if p.op == Op.RATE:
        yield from (_whole("slot", p.verdict), _whole("slot", p.values))
    if p.op in (Op.REAL, Op.LATENT) or (p.op in (Op.LINEAR, Op.BACK) and p.drop):
        yield _whole("slot", p.clock)
    if p.op == Op.TICK:
        yield _whole("slot", p.seen)


def _written(p: Phase) -> Iterator[Span]:
    if p.op == Op.LINEAR:
        for group in range(p.rows // p.group):
            yield _rows(p.out, p.out_row + group * p.out_step, p.group)
        yield from (_whole("slot", at) for at in (p.raw, p.stats, p.mean, p.var, p.batches))
    elif p.op in (Op.REAL, Op.LATENT, Op.BACK):
        yield _rows(p.out, p.out_row, p.rows)
    elif p.op == Op.LOSS:
        yield from (_whole("slot", at) for at in (p.out, p.scale, p.seen))
    elif p.op == Op.RATE:
        yield from (_whole("rate", at) for at in range(p.first, p.last))
    elif p.op == Op.NORM:
        yield _whole("slot", p.verdict)
    elif p.op == Op.TICK:
        yield from (_whole("slot", at) for at in (p.clock, p.values, p.sums, p.counts))
    elif p.op == Op.MEND:
        yield from (_whole("slot", at) for at in (p.a, p.out))
    if p.op in (Op.BACK, Op.WEIGHT, Op.STEP):
        yield from (_whole("gradient" if p.moves == 2 else "param", at) for at in _moved(p))


def _moved(p: Phase) -> list[int]:
    """Return the parameters that a phase moves, or whose gradients it has to do with."""
    if p.op in (Op.STEP, Op.NORM):
        return list(range(p.first, p.last))
    if not p.moves:
        return []
    return [p.weight, p.bias] if p.op == Op.WEIGHT else [p.gamma, p.beta]


def _rows(slot: int, first: int, rows: int) -> Span:
    return "slot", slot, first, first + rows


def _whole(kind: str, at: int) -> Span:
    return kind, at, 0, 2**62


def staged(rows: Sequence[Phase]) -> list[Phase]:
    """Return phases, which are right one after the other, each in the first stage that lets nothing get in its way."""
    done: list[tuple[int, Touched]] = []
    result = []
    for phase in rows:
        own = touched(phase)
        stage = max((at + 1 for at, other in done if _in_the_way(own, other)), default=0)
        done.append((stage, own))
        result.append(phase._replace(stage=stage))
    return sorted(result, key=lambda phase: phase.stage)


def _in_the_way(one: Touched, other: Touched) -> bool:
    """Whether two phases may not be made side by side."""
    return any(
        _meet(mine, theirs)
        for mine, theirs in (
            *((write, span) for write in one.writes for span in other.reads | other.writes),
            *((write, span) for write in other.writes for span in one.reads),
        )
    )


def _meet(one: Span, other: Span) -> bool:
    return one[1] != NONE and one[:2] == other[:2] and one[2] < other[3] and other[2] < one[3]
