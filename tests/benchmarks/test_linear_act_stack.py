"""The suite ``linear-act-stack``: its plan, its smoke form, no times for what is wrong."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgan.benchmarks import linear_act_stack, main
from fastgan.benchmarks.record import Timed
from fastgan.benchmarks.setting import Setting
from fastgan.errors import UserError


def setting(smoke: bool = True, **options: object) -> Setting:
    return Setting(device=torch.device("cpu"), smoke=smoke, options=Namespace(**options))


def test_the_smoke_form_races_what_runs_here(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    assert main(["linear-act-stack", "--smoke", "--device", "cpu", "--json", str(path)]) == 0
    body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    rows = [row for row in body["rows"] if row["workload"].startswith("linear_act_stack")]
    timed = [row for row in rows if row["wall_us"]]
    assert body["left_out"] == [] and all(row["check"]["passed"] for row in timed)
    assert {row["variant"] for row in timed} == {"eager", "batched", "fastgan auto"}
    assert {(row["workload"], row["dtype"]) for row in timed} == {
        (f"linear_act_stack {way}", dtype) for way in linear_act_stack.DIRECTIONS for dtype in linear_act_stack.DTYPES
    }


def test_the_plan() -> None:
    names = [task.name for task in linear_act_stack.tasks(setting(smoke=False))]
    assert names[0] == "linear_act_stack 10x100x400x400 bfloat16 forward" and len(set(names)) == len(names) == 32
    with pytest.raises(UserError, match="at least 1"):
        linear_act_stack.tasks(setting(members=[0]))


def test_a_contender_that_errs_has_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_act_stack.batched(x, weight.roll(1, 0), bias)

    monkeypatch.setattr(linear_act_stack, "ours", shifted)
    measured = linear_act_stack.measure(setting(), (3, 5, 8, 6), "float32", "forward+backward")
    rows = {row.variant: row for row in measured if isinstance(row, Timed)}
    assert rows["eager"].wall_us is not None and rows["batched"].wall_us is not None
    assert rows["fastgan auto"].wall_us is None and not rows["fastgan auto"].passed
