"""The suite ``data``: its plan, its rows, no rate for wrong pixels."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastgan.benchmarks import data
from fastgan.benchmarks.record import Row, Timed
from fastgan.benchmarks.setting import Setting
from fastgan.errors import UserError

pytest.importorskip("PIL.Image")


def setting(**options: object) -> Setting:
    return Setting(device=torch.device("cpu"), smoke=True, options=Namespace(**options))


def timed(rows: list[Row]) -> list[Timed]:
    return [row for row in rows if isinstance(row, Timed)]


def test_the_plan_follows_the_options() -> None:
    names = [task.name for task in data.tasks(replace(setting(sizes=[64], batches=[32]), smoke=False))]
    assert names == [f"decode {kind} {side}" for side in data.SIDES for kind in data.KINDS] + ["gather 64 32"]
    with pytest.raises(UserError, match="at least 1"):
        data.tasks(setting(threads=[0]))


def test_every_row_is_checked_and_says_images_a_second() -> None:
    rows = [row for task in data.tasks(setting()) for row in timed(list(task.run()))]
    assert {row.workload for row in rows} == {*(f"decode {kind}" for kind in data.KINDS), "gather"}
    assert {row.variant for row in rows} == {"1 thread", "2 threads", "memory", "memory map"}
    for row in rows:
        assert row.check is not None and row.check.passed and row.wall_us is not None
        assert row.note is not None and row.note.endswith(" images/s")
    assert len(list(data.closing(rows))) == len(data.KINDS) + 1


def test_wrong_pixels_have_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    right = data.decoded

    def wrong(items: object, image_size: int, threads: int) -> list[np.ndarray]:
        pictures = list(right(items, image_size, threads))  # type: ignore[arg-type]
        return [*pictures[:-1], 255 - pictures[-1]] if threads == 2 else pictures

    monkeypatch.setattr(data, "decoded", wrong)
    one, two = timed(list(data.measure_decoding(setting(), data.SMOKE, "png", 8)))
    assert one.passed and one.wall_us is not None
    assert not two.passed and two.wall_us is None


def test_wrong_batches_have_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = data.Dataset.batch
    monkeypatch.setattr(
        data.Dataset, "batch", lambda self, index: batch(self, index) + (0.01 if self.name == "map" else 0)
    )
    memory, mapped = timed(list(data.measure_gather(setting(), data.SMOKE, 8, 4)))
    assert memory.wall_us is not None and not mapped.passed and mapped.wall_us is None
