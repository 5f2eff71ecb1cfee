"""Measures an iteration in one launch against a replayed graph, and writes the table that ``one_launch=auto`` goes by.

    python -m fastgan.benchmarks.mlp_step_measure                          # mlp, ring-8, gan-digits at their batches
    python -m fastgan.benchmarks.mlp_step_measure --preset mlp --batch 32 64 128 256
    python -m fastgan.benchmarks.mlp_step_measure --preset ring-8 --members 132      # one GAN to a block

Both ways make true iterations of the same training, in turns; an iteration's time is the least of some rounds'.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fastgan.benchmarks.measure import synchronize
from fastgan.benchmarks.mlp_step import config_of
from fastgan.ops import mlp_step_measured
from fastgan.ops.mlp_step_measured import Entry
from fastgan.train import mlp_step
from fastgan.train.ensemble import Ensemble
from fastgan.train.step import Pattern
from fastgan.train.trainer import Trainer

PRESETS = ("mlp", "ring-8", "gan-digits")
ITERATIONS, ROUNDS = 200, 7
UNROLL = 10


def measured(
    name: str,
    members: int = 0,
    keys: Mapping[str, Any] | None = None,
    iterations: int = ITERATIONS,
    rounds: int = ROUNDS,
) -> Entry:
    """Return what an iteration of a preset takes by either way. ``members``: of an ensemble; 0: one training."""
    runs = [_made(name, members, {"unroll": UNROLL, **(keys or {}), "one_launch": way}) for way in ("always", "never")]
    times: list[list[float]] = [[], []]
    for _ in range(1 + rounds):  # the first is there to compile and to capture
        for own, run in zip(times, runs, strict=True):
            own.append(_time(run, iterations))
    us, graph_us = (min(own[1:]) for own in times)
    first = runs[0].members[0] if isinstance(runs[0], Ensemble) else runs[0]
    return Entry(*mlp_step.size(first._iterate, first.config, members), us, graph_us)


def _made(name: str, members: int, keys: dict[str, Any]) -> Trainer | Ensemble:
    config = config_of(name)
    return Ensemble(config, members=members, **keys) if members else Trainer(config, **keys)


def _time(run: Trainer | Ensemble, iterations: int) -> float:
    """Microseconds of an iteration that is neither watched nor penalised."""
    config = run.config
    stretch = (Pattern((False,) * config.n_critic),) * config.unroll
    synchronize(run.device)
    begun = time.perf_counter_ns()
    for _ in range(max(1, iterations // config.unroll)):
        run._run(stretch)
    synchronize(run.device)
    return (time.perf_counter_ns() - begun) / 1e3 / (max(1, iterations // config.unroll) * config.unroll)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the table. Exit codes: 0, or 1 where there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m fastgan.benchmarks.mlp_step_measure", description=__doc__)
    parser.add_argument("--preset", nargs="+", default=PRESETS)
    parser.add_argument("--batch", type=int, nargs="+", help="else the preset's")
    parser.add_argument("--members", type=int, default=0, help="an ensemble of so many, one to a block")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.stderr.write("fastgan: nothing is measured: PyTorch sees no CUDA device here\n")
        return 1
    entries = []
    for name in given.preset:
        for batch in given.batch or [config_of(name).batch_size]:
            entries.append(measured(name, given.members, {"batch_size": batch}))
            print(f"{name}, batch {batch}: {entries[-1].us:.1f} us, a replayed graph {entries[-1].graph_us:.1f} us")
    print(mlp_step_measured.write(torch.cuda.get_device_name(), entries))
    return 0


if __name__ == "__main__":
    sys.exit(main())
