"""What the trainer costs over a loop written by hand, on a CPU, where it does the same work by the same functions."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastgan.benchmarks.baselines.digits import BATCH, Loop
from fastgan.benchmarks.measure import Call, WallClock, interleave, scaled
from fastgan.benchmarks.record import Check, Row, Timed
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.step_goals import DIGITS as NAME
from fastgan.benchmarks.step_goals import LOOP, TRAINER

STEPS = 100  # of a call
TOLERANCE = 1e-3  # of the mean losses of the first call: the orders of sums differ


def measure(setting: Setting) -> Iterator[Row]:
    """Time both in turns, on one thread, where the same seed has given the same losses."""
    from fastgan.train import Trainer

    steps = 10 if setting.smoke else STEPS
    trainer = Trainer("gan-digits", device="cpu", seed=setting.seed, log_every=steps)
    loop = Loop(trainer.data.images, setting.seed)

    def fit() -> None:
        trainer.fit(trainer.step + steps, progress=False)

    before = torch.get_num_threads()
    torch.set_num_threads(trainer.config.threads)
    try:
        theirs = loop.fit(steps)
        fit()
        check = judge(theirs, (trainer.history[0]["loss_d"], trainer.history[0]["loss_g"]))
        calls: dict[str, list[Call]] = {LOOP: [lambda: loop.fit(steps)], TRAINER: [fit]}
        timed = interleave(calls, WallClock(torch.device("cpu")), setting.effort, 1) if check.passed else {}
    finally:
        torch.set_num_threads(before)
    for variant in calls:
        row = Timed(NAME, variant, f"batch {BATCH}", "float32", check if variant == TRAINER else Check(True), LOOP)
        row.wall_us = scaled(timed[variant], steps) if timed else None
        row.note = f"{steps} steps a call; CPU"
        yield row


def judge(theirs: tuple[float, float], ours: tuple[float | int | None, float | int | None]) -> Check:
    """Compare mean losses."""
    error = max(abs(own - other) if own is not None else float("inf") for own, other in zip(ours, theirs, strict=True))
    why = None if error <= TOLERANCE else f"losses differ from the plain loop's by {error:.1e}"
    return Check(why is None, error, TOLERANCE, why)
