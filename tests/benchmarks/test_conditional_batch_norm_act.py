"""The suite ``sample-norms``: its plan, its smoke form, no times for what is wrong, ours alone beside auto."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgan.benchmarks import conditional_batch_norm_act as suite
from fastgan.benchmarks import main
from fastgan.benchmarks.record import Timed
from fastgan.benchmarks.setting import Setting
from fastgan.errors import UserError


def setting(device: str = "cpu", smoke: bool = True, **options: object) -> Setting:
    return Setting(device=torch.device(device), smoke=smoke, options=Namespace(**options))


def measured(kind: str, device: str = "cpu") -> dict[str, Timed]:
    rows = suite.measure(setting(device), kind, (3, 6, 4, 5), "float32")
    return {row.variant: row for row in rows if isinstance(row, Timed)}


@pytest.mark.full
def test_the_smoke_form_races_what_runs_here(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    assert main(["sample-norms", "--smoke", "--device", "cpu", "--json", str(path)]) == 0
    body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    rows = [row for row in body["rows"] if row["workload"] == "sample-norms"]
    timed = [row for row in rows if row["wall_us"]]
    assert body["left_out"] == [] and all(row["check"]["passed"] and row["note"] == "CPU" for row in timed)
    assert {row["variant"] for row in timed} == {"eager", "fastgan auto"}


def test_filters_choose() -> None:
    names = [task.name for task in suite.tasks(setting(smoke=False))]
    assert names[0] == "sample-norms batch 64x256x16x16 bfloat16" and len(set(names)) == len(names) == 2 * 2 * 5 * 2
    assert len(suite.tasks(setting(smoke=False, dtype=["float32"], batch=[7], kind=["instance"]))) == 5
    with pytest.raises(UserError, match="at least 1"):
        suite.tasks(setting(batch=[0]))


def test_a_contender_that_errs_has_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def larger(x: Tensor, both: Tensor) -> Tensor:
        return suite.by_batch(x, both * 1.01)

    assert measured("batch")["fastgan auto"].wall_us is not None
    monkeypatch.setitem(suite.OURS_BY_KIND, "batch", larger)
    rows = measured("batch")
    assert rows["eager"].wall_us is not None
    assert rows["fastgan auto"].wall_us is None and not rows["fastgan auto"].passed


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_ours_alone_is_raced_beside_auto(device: str) -> None:
    row = measured("instance", device)["fastgan triton"]
    assert row.passed and row.wall_us is not None
