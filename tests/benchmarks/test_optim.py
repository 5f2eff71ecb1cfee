"""The suite ``optim``: its plan, its rows, no times for a wrong step, its last lines."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from typing import Any

import pytest
import torch

from fastgan.benchmarks import optim
from fastgan.benchmarks.record import Check, Spread, Timed
from fastgan.benchmarks.setting import Setting
from fastgan.errors import UserError


def setting(**options: object) -> Setting:
    return Setting(device=torch.device("cpu"), smoke=True, options=Namespace(**options))


def test_every_size_is_planned_once() -> None:
    plan = optim.tasks(replace(setting(), smoke=False))
    assert len({task.name for task in plan}) == len(plan) == len(optim.PARAMETERS) * len(optim.TENSORS)
    assert [task.name for task in optim.tasks(setting(parameters=[500], tensors=[5]))] == ["adam 500 in 5"]
    with pytest.raises(UserError, match="at least --tensors"):
        optim.tasks(setting(parameters=[5], tensors=[50]))


def test_rows_are_right_and_timed() -> None:
    rows = list(optim.measure(setting(), 103, 4))
    assert [row.variant for row in rows if isinstance(row, Timed)] == ["fused", "fastgan auto"]
    for row in rows:
        assert isinstance(row, Timed) and row.passed and row.wall_us is not None, row
        assert row.gbs is not None and row.note == "CPU"


@pytest.mark.parametrize("what", ["weights", "average", "shadow"])
def test_a_wrong_step_has_no_times(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build = optim.ours

    def wrong(name: str, weights: list[torch.Tensor], gradients: list[torch.Tensor]) -> optim.Step:
        step, at = build(name, weights, gradients), ("weights", "average", "shadow").index(what)

        def spoilt() -> tuple[torch.Tensor, ...]:
            parts = step()
            third = parts[at * len(parts) // 3]
            third.view(-1)[0] += 0.1
            return parts

        return spoilt

    monkeypatch.setattr(optim, "ours", wrong)
    rows: list[Any] = list(optim.measure(setting(), 103, 4))
    assert rows[0].passed and not rows[1].passed and rows[1].wall_us is None


def test_a_copy_that_is_gone_frees_its_state() -> None:
    contender = optim.Stepping(lambda weights, gradients: lambda: (*weights,))
    inputs = torch.randn(3), torch.randn(3)
    contender(*inputs)
    assert len(contender.steps) == 1
    del inputs
    assert not contender.steps


def test_the_last_lines_tell_small_from_large_and_the_share_of_the_bandwidth() -> None:
    def row(variant: str, size: int, taken: float) -> Timed:
        timed = Timed("adam + average + shadow", variant, f"{size} in 40", "float32", Check(True))
        timed.graph_us = Spread.of([taken])
        timed.roofline = 0.9
        return timed

    rows = [row("fused", 10**5, 3.0), row("fastgan auto", 10**5, 2.0)]
    rows += [row("fused", 10**8, 1200.0), row("fastgan auto", 10**8, 1000.0)]
    lines = list(optim.closing(rows))
    assert [line.partition(":")[0] for line in lines] == [
        "fastgan auto, up to 1 M parameters",
        "fastgan auto, above",
        "100000000 in 40, fastgan auto",
    ]
    assert "1.50x" in lines[0] and "1.20x" in lines[1] and "90%" in lines[2]
