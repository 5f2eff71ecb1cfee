"""The suite ``loss``: every objective and side raced, its plan, no times for what is wrong, both fallbacks said."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgan.benchmarks import loss, main
from fastgan.benchmarks.record import Timed
from fastgan.benchmarks.setting import Setting
from fastgan.objectives import OBJECTIVES

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]


def setting(device: str = "cpu", smoke: bool = True, **options: object) -> Setting:
    return Setting(device=torch.device(device), smoke=smoke, options=Namespace(**options))


def measured(name: str, side: str, dtype: str = "float32", device: str = "cpu") -> dict[str, Timed]:
    rows = loss.measure(setting(device), name, side, 8, dtype)
    return {row.variant: row for row in rows if isinstance(row, Timed)}


def test_every_side_has_a_baseline() -> None:
    assert set(loss.EAGER) == {(name, side) for name in OBJECTIVES for side in loss.SIDES}
    assert set(loss.LABELS) < set(loss.EAGER)


@pytest.mark.full
def test_the_smoke_form_races_every_side(tmp_path: Any) -> None:
    path = tmp_path / "record.json"
    assert main(["loss", "--smoke", "--device", "cpu", "--json", str(path)]) == 0
    rows = [row for row in json.loads(path.read_text(encoding="utf-8"))["rows"] if row["baseline"] == "eager"]
    timed = {(row["workload"], row["variant"]) for row in rows if row["wall_us"] and row["check"]["passed"]}
    for name, side in loss.EAGER:
        assert {(f"{name} {side}", variant) for variant in ("eager", "fastgan auto")} <= timed
        assert ((f"{name} {side}", "bce_with_logits") in timed) == ((name, side) in loss.LABELS)
    untimed = [row for row in rows if not row["wall_us"]]
    assert {row["variant"] for row in untimed} >= {"compiled"}
    assert all(row["check"] is None and row["note"].startswith("not measured: ") for row in untimed)
    assert not any(row[key] for row in rows for key in ("graph_us", "device_us", "kernel_us", "launches"))


def test_the_plan() -> None:
    names = [task.name for task in loss.tasks(setting(smoke=False))]
    assert names[0] == "minimax discriminator batch 64 bfloat16"
    assert len(set(names)) == len(names) == 7 * 2 * 5 * 2
    chosen = loss.tasks(setting(smoke=False, objective=["hinge"], side=["generator"], batch=[7], dtype=["float32"]))
    assert [task.name for task in chosen] == ["hinge generator batch 7 float32"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "side"), loss.EAGER)
def test_our_kernels_pass_the_gate(device: str, name: str, side: str) -> None:
    for dtype in ("float32", "bfloat16") if device == "cuda" else ("float32",):
        rows = measured(name, side, dtype, device)
        assert rows["fastgan triton"].wall_us is not None, rows["fastgan triton"].check


@pytest.mark.parametrize("side", loss.SIDES)
def test_a_contender_that_errs_has_no_times(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class WrongBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, y: Tensor) -> Tensor:
            return y.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
            return grad * 1.01

    right = loss.EAGER["hinge", side]
    for wrong in (lambda *its: right(*its) * 1.01, lambda *its: WrongBackward.apply(right(*its))):
        monkeypatch.setattr(loss, "ours", lambda name, side, wrong=wrong: wrong)
        rows = measured("hinge", side)
        assert rows["eager"].wall_us is not None
        assert rows["fastgan auto"].wall_us is None and not rows["fastgan auto"].passed
