"""What an iteration in one launch moves and computes, stage by stage, and how long it is expected to take.

    python -m fastgan.benchmarks.mlp_step                     # mlp at batch 64; --preset ring-8 --batch 100
    python -m fastgan.benchmarks.mlp_step --stages            # a line for each stage
    python -m fastgan.benchmarks.mlp_step --preset ring-8 --members 132      # one GAN to a block

Counted from the table that the kernel interprets; no GPU is needed. Times are estimates by the constants below, not
measured: a block's tile waits for its first bytes, then for all of them through L2, and each stage ends in a barrier.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

import torch

from fastgan.benchmarks.step_workloads import ring
from fastgan.ops.mlp_step import Program
from fastgan.ops.mlp_step_form import COLS, ROWS, STRIP, WIDE, Op, Param, Phase
from fastgan.presets import Config, preset
from fastgan.train import mlp_step
from fastgan.train.capture import strict
from fastgan.train.trainer import Trainer

BLOCKS = 132  # one to an SM of an H200
BARRIER = 1.3  # us, of the whole grid
BEGINNING = 0.8  # us: a tile's row of the table, its first bytes, its epilogue's round trip
RATE = 0.112  # MB a us that an SM draws from L2: 64 bytes a clock
L2 = 5.5  # MB a us that all SMs together draw from it


class Stage(NamedTuple):
    """A stage: what is done, multiply-adds twice, bytes from and to L2, and the expected time."""

    what: str
    tiles: int
    flops: float
    bytes: float
    microseconds: float


def tile_bytes(phase: Phase, params: Sequence[Param]) -> float:
    """Return what a tile of a phase moves between L2 and its block."""
    if phase.op in (Op.LINEAR, Op.BACK):
        rows = phase.rows if phase.stats >= 0 else min(ROWS, phase.rows)
        turns = -(-rows // ROWS)
        kept = 2 * (3 if phase.stats >= 0 else 1) + (2 if phase.op == Op.BACK else 0)
        return 2.0 * phase.depth * (rows + turns * COLS) + kept * rows * COLS
    if phase.op == Op.WEIGHT:
        state = 0.0
        if phase.moves == 1:
            param = params[phase.weight]
            states = sum(at >= 0 for at in (param.value, param.first, param.second, param.third, param.average))
            state = 8.0 * states + 2 * (param.shadow >= 0)
        own = min(WIDE, phase.cols) * min(WIDE, phase.depth)
        return 2.0 * phase.rows * (min(WIDE, phase.cols) + min(WIDE, phase.depth)) + own * (state or 4.0)
    if phase.op == Op.LOSS:
        return 2.0 * phase.depth * (phase.rows + 1)
    if phase.op == Op.REAL:
        return 3.0 * 8 * phase.cols
    if phase.op == Op.STEP:
        return 34.0 * STRIP
    return 4.0 * STRIP if phase.op == Op.NORM else 2.0 * STRIP if phase.op == Op.LATENT else 1e3


def flops(phase: Phase) -> float:
    """Return the multiply-adds of a phase, twice."""
    products = (Op.LINEAR, Op.BACK, Op.WEIGHT, Op.LOSS)
    return 2.0 * phase.rows * phase.cols * phase.depth if phase.op in products else 0.0


def stages(program: Program) -> list[Stage]:
    """Return the stages of an iteration, with their tiles dealt out as the kernel deals them."""
    found = []
    params = program.interpreter.params
    for _, rows in groupby(program.interpreter.phases, key=lambda phase: phase.stage):
        own, busy, dealt = list(rows), [0.0] * BLOCKS, 0
        for phase in own:
            each = BEGINNING + tile_bytes(phase, params) / 1e6 / RATE
            for _ in range(phase.tiles):
                busy[dealt % BLOCKS] += each
                dealt += 1
        moved = sum(tile_bytes(phase, params) * phase.tiles for phase in own)
        what = " + ".join(dict.fromkeys(Op(phase.op).name for phase in own))
        found.append(Stage(what, dealt, sum(map(flops, own)), moved, max(busy) + BARRIER))
    return found


def of_members(program: Program, members: int) -> float:
    """Return the expected microseconds of an iteration of so many GANs, each on a block that makes all its tiles."""
    params, phases = program.interpreter.params, program.interpreter.phases
    rounds, rate = -(-members // BLOCKS), min(RATE, L2 / min(members, BLOCKS))
    each = (phase.tiles * (BEGINNING + tile_bytes(phase, params) / 1e6 / rate) for phase in phases)
    return rounds * sum(each)


def config_of(name: str) -> Config:
    """Return a preset, or the workload ``ring-8`` of suite ``step``: one launch has no maxout, which ``ring8`` has."""
    return ring() if name == "ring-8" else preset(name)


def of_preset(name: str, batch: int | None = None) -> Program:
    """Return the table of the iteration of what ``config_of`` knows in bf16, over random data of its shape."""
    config = config_of(name)
    shape = {"mnist": (28, 28), "digits": (8, 8)}.get(config.data)
    if shape is None:
        data = torch.randn(4096, 2).clamp(-1, 1)
    else:
        data = torch.randint(256, (4096, *shape), dtype=torch.uint8)
    config = replace(config, precision="bf16", device="cpu", batch_size=batch or config.batch_size)
    with strict():
        trainer = Trainer(config, data=data)
    return mlp_step.program(trainer._iterate, trainer.config, trainer.data)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the account of a preset."""
    parser = argparse.ArgumentParser(prog="python -m fastgan.benchmarks.mlp_step", description=__doc__)
    parser.add_argument("--preset", default="mlp", help="a fully connected one, or ring-8, as suite step has it")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--stages", action="store_true")
    parser.add_argument("--members", type=int, help="of an ensemble, one to a block")
    given = parser.parse_args(arguments)
    program = of_preset(given.preset, given.batch)
    found = stages(program)
    if given.stages:
        print("| stage | what | tiles | MFLOP | MB | us |\n|---:|---|---:|---:|---:|---:|")
        for at, own in enumerate(found):
            print(
                f"| {at} | {own.what} | {own.tiles} | {own.flops / 1e6:.1f} | {own.bytes / 1e6:.2f} |"
                f" {own.microseconds:.1f} |"
            )
    tiles, total = sum(own.tiles for own in found), sum(own.microseconds for own in found)
    work, moved = sum(own.flops for own in found) / 1e9, sum(own.bytes for own in found) / 1e6
    print(
        f"{given.preset}: {len(found)} stages, {tiles} tiles, {work:.2f} GFLOP, {moved:.0f} MB through L2; expected on"
        f" an H200, not measured: {total:.0f} us an iteration, {BARRIER * len(found):.0f} of it barriers"
    )
    if given.members:
        print(
            f"{given.members} members, one to a block, in a launch: {of_members(program, given.members):.0f} us an"
            " iteration of all of them, expected, not measured"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
