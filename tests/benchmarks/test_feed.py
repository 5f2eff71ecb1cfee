"""The suite ``feed``: its plan, its rows, no times for batches of other images."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastgan.benchmarks import feed
from fastgan.benchmarks.record import Timed
from fastgan.benchmarks.setting import Setting
from fastgan.errors import UserError


def setting(**options: object) -> Setting:
    return Setting(device=torch.device("cpu"), smoke=True, options=Namespace(**options))


def test_every_source_and_size_is_planned_once() -> None:
    plan = feed.tasks(replace(setting(), smoke=False))
    assert len({task.name for task in plan}) == len(plan) == len(feed.SOURCES) * len(feed.BATCHES) * len(feed.SIZES)
    assert [task.name for task in feed.tasks(setting(batch=[3], size=[7]))] == [
        f"{source}, batch 3 of 7x7" for source in feed.SOURCES
    ]
    with pytest.raises(UserError, match="--batch takes numbers above 0"):
        feed.tasks(setting(batch=[0]))
    with pytest.raises(UserError, match="--step takes numbers above 0"):
        feed.tasks(setting(step=[float("nan")]))
    with pytest.raises(UserError, match="no such folder"):
        feed.tasks(setting(folder="/none of that name"))
    with pytest.raises(UserError, match="more than 512 MiB"):
        list(feed.measure(replace(setting(), smoke=False), "memory", 10**6, 64))


@pytest.mark.parametrize("source", feed.SOURCES)
def test_rows_are_right_and_timed(source: str) -> None:
    rows = list(feed.measure(setting(readers=[1, 3], step=[0.5]), source, 4, 8))
    assert [row.variant for row in rows if isinstance(row, Timed)] == [f"{source}, {n} readers" for n in (1, 3)]
    for row in rows:
        assert isinstance(row, Timed) and row.passed and row.wall_us and row.gbs, row
        assert row.note is not None and "images/s; waits" in row.note and "at steps of 0.5 ms" in row.note


def test_other_images_have_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    build = feed.feeder_of

    def wrong(*given: object) -> tuple[feed.Feeder, Tensor]:
        feeder, order = build(*given)  # type: ignore[arg-type]
        return feeder, order.roll(1)

    monkeypatch.setattr(feed, "feeder_of", wrong)
    (row,) = feed.measure(setting(), "memory", 4, 8)
    assert isinstance(row, Timed) and not row.passed and row.wall_us is None


def test_what_waits_is_counted() -> None:
    """A reader that takes far longer than a step, and one that does not."""
    with feed.images(setting(), "memory", (64, 3, 8, 8)) as data:
        feeder, _ = feed.feeder_of(setting(), data, 4, 1)
        rows = feeder.rows
        assert feed.waiting(feeder, 10.0, 16) < 0.5
        feeder.rows = lambda number: torch.arange(3_000_000).sort().values[:0].sum() + rows(number)
        assert feed.waiting(feeder, 0.1, 16) > 0.3
