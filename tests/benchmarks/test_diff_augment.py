"""The suite ``diff-augment``: its plan, its smoke form, no times for what is wrong, ours alone beside auto."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastgan.benchmarks import diff_augment, main
from fastgan.benchmarks.baselines import diff_augment as torchs
from fastgan.benchmarks.record import Check, Spread, Timed
from fastgan.benchmarks.setting import Setting
from fastgan.errors import UserError

PAPERS = diff_augment.POLICIES[0]


def setting(device: str = "cpu", smoke: bool = True, **options: object) -> Setting:
    return Setting(device=torch.device(device), smoke=smoke, options=Namespace(**options))


def measured(policy: str, direction: str, device: str = "cpu", dtype: str = "float32") -> dict[str, Timed]:
    rows = diff_augment.measure(setting(device), policy, dtype, direction, 5, 9)
    return {row.variant: row for row in rows if isinstance(row, Timed)}


@pytest.mark.full
def test_the_smoke_form_races_every_policy_both_ways(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    assert main(["diff-augment", "--smoke", "--device", "cpu", "--json", str(path)]) == 0
    body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert body["left_out"] == []
    rows = [row for row in body["rows"] if row["baseline"] == "eager" and row["variant"] != "torch"]
    timed = [row for row in rows if row["wall_us"]]
    assert all(row["check"]["passed"] and row["roofline"] for row in timed)
    assert {row["variant"] for row in timed} == {"eager", "fastgan auto"}
    names = {f"{policy} {way}" for policy in diff_augment.POLICIES for way in diff_augment.DIRECTIONS}
    assert {row["workload"] for row in timed} == names
    assert {row["dtype"] for row in timed} == {"float32", "bfloat16"}
    assert all(row["note"].startswith("not measured: ") for row in rows if not row["wall_us"])


def test_the_papers_policy_comes_first_and_filters_choose() -> None:
    names = [task.name for task in diff_augment.tasks(setting(smoke=False))]
    assert names[0] == f"{PAPERS} both 64x3x64x64 bfloat16" and len(set(names)) == len(names) == 3 * 2 * 2 * 3 * 3
    some = setting(smoke=False, policy=["color"], dtype=["float32"], direction=["forward"], size=[32], batch=[1, 2])
    assert [task.name for task in diff_augment.tasks(some)] == [
        f"color forward {batch}x3x32x32 float32" for batch in (1, 2)
    ]
    with pytest.raises(UserError, match="at least 1"):
        diff_augment.tasks(setting(size=[0]))


def one_pixel_off(policy: str) -> torchs.Forward:
    right = torchs.eager(policy)
    return lambda x, rng, *drawn: right(x, *drawn[:3], drawn[3] + 1, *drawn[4:])


def brightness_left_out(policy: str) -> torchs.Forward:
    right = torchs.eager(policy)
    return lambda x, rng, *drawn: right(x, 0 * drawn[0], *drawn[1:])


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * 1.01


def wrong_gradient(policy: str) -> torchs.Forward:
    right = torchs.eager(policy)
    return lambda x, rng, *drawn: WrongBackward.apply(right(x, *drawn))


@pytest.mark.parametrize("wrong", [one_pixel_off, brightness_left_out, wrong_gradient])
def test_a_contender_that_errs_has_no_times(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(PAPERS, "both")["fastgan auto"].wall_us is not None
    monkeypatch.setattr(diff_augment, "ours", wrong)
    rows = measured(PAPERS, "both")
    assert rows["eager"].wall_us is not None
    assert rows["fastgan auto"].wall_us is None and not rows["fastgan auto"].passed


def test_the_closing_lines_compare_with_the_best_other() -> None:
    def row(variant: str, us: float, note: str | None = None) -> Timed:
        spread = Spread(us, us, us, 20)
        return Timed("color both", variant, "2x3", "float32", Check(True), "eager", wall_us=spread, note=note)

    lines = list(diff_augment.closing([row("eager", 8.0), row("compiled", 4.0), row("fastgan auto", 2.0)]))
    assert lines == [
        "fastgan auto, both: 2.00x the best other over 1 shapes; worst 2.00x: color both 2x3 float32, against compiled"
    ]
    assert "say nothing about a GPU" in next(iter(diff_augment.closing([row("eager", 1.0, "CPU")])))


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy interprets what wraps
@pytest.mark.parametrize(
    ("device", "policy"),
    [
        pytest.param("cpu", PAPERS, marks=pytest.mark.interpret),
        *(pytest.param("cuda", policy, marks=pytest.mark.gpu) for policy in diff_augment.POLICIES),
    ],
)
def test_ours_alone_is_raced_beside_auto(device: str, policy: str) -> None:
    ours = measured(policy, "both", device)["fastgan triton"]
    assert ours.check is not None
    assert ours.passed, ours.check.why
    assert ours.wall_us is not None
