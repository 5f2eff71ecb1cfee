"""The suite ``interpolate``: its plan, its smoke form, no times for what is wrong, ours alone beside auto."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgan.benchmarks import interpolate, main
from fastgan.benchmarks.record import Timed
from fastgan.benchmarks.setting import Setting
from fastgan.errors import UserError


def setting(device: str = "cpu", smoke: bool = True, **options: object) -> Setting:
    return Setting(device=torch.device(device), smoke=smoke, options=Namespace(**options))


def measured(device: str = "cpu") -> dict[str, Timed]:
    rows = interpolate.measure(setting(device), (5, 3, 4), "float32")
    return {row.variant: row for row in rows if isinstance(row, Timed)}


@pytest.mark.full
def test_the_smoke_form_races_what_runs_here(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    assert main(["interpolate", "--smoke", "--device", "cpu", "--json", str(path)]) == 0
    body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    rows = [row for row in body["rows"] if row["workload"] == "interpolate"]
    timed = [row for row in rows if row["wall_us"]]
    assert body["left_out"] == [] and all(row["check"]["passed"] and row["roofline"] for row in timed)
    assert {row["variant"] for row in timed} == {"eager", "lerp", "fastgan auto"}
    assert {(row["shape"], row["dtype"]) for row in timed} == {
        (shape, dtype) for shape in ("5x784", "5x2") for dtype in interpolate.DTYPES
    }
    assert all(row["note"].startswith("not measured: ") for row in rows if not row["wall_us"])


def test_what_people_train_comes_first_and_filters_choose() -> None:
    names = [task.name for task in interpolate.tasks(setting(smoke=False))]
    assert names[0] == "interpolate 64x3x64x64 bfloat16" and len(set(names)) == len(names) == 6 * 2 * 2
    some = interpolate.tasks(setting(smoke=False, dtype=["float32"], batch=[7]))
    assert len(some) == 6 and some[-1].name == "interpolate 7x3x256x256 float32"
    with pytest.raises(UserError, match="at least 1"):
        interpolate.tasks(setting(batch=[0]))


def test_a_contender_that_errs_has_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured()["fastgan auto"].wall_us is not None

    def swapped(real: Tensor, fake: Tensor, rng: Tensor, alpha: Tensor) -> Tensor:
        return interpolate.formula(fake, real, rng, alpha)

    monkeypatch.setattr(interpolate, "ours", swapped)
    rows = measured()
    assert rows["eager"].wall_us is not None
    assert rows["fastgan auto"].wall_us is None and not rows["fastgan auto"].passed


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy interprets what wraps
@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_ours_alone_is_raced_beside_auto(device: str) -> None:
    row = measured(device)["fastgan triton"]
    assert row.passed and row.wall_us is not None
