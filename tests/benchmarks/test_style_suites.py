"""The suites ``gained-act`` and ``upfirdn2d``: plan, smoke form, no times for what is wrong, ours alone beside auto."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fastgan.benchmarks import gained_act, main, upfirdn2d
from fastgan.benchmarks.record import Timed
from fastgan.benchmarks.setting import Setting
from fastgan.errors import UserError

SUITES = {"gained-act": gained_act, "upfirdn2d": upfirdn2d}
CASES = [
    (gained_act, "lrelu"),
    (gained_act, "swish"),
    *((upfirdn2d, form) for form in ("up", "filter", "down separable")),
]
on_suites = pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)


def setting(device: str = "cpu", smoke: bool = True, **options: object) -> Setting:
    return Setting(device=torch.device(device), smoke=smoke, options=Namespace(**options))


def measured(suite: ModuleType, what: str, direction: str = "both", device: str = "cpu") -> dict[str, Timed]:
    rows = suite.measure(setting(device), what, "float32", direction, (2, 3, 6, 4), "channels_last")
    return {row.variant: row for row in rows if isinstance(row, Timed)}


@pytest.mark.parametrize("name", SUITES)
def test_the_smoke_form_races_what_runs_here(tmp_path: Path, name: str) -> None:
    path = tmp_path / "record.json"
    chosen = ["--form", "up"] if name == "upfirdn2d" else ["--activation", "swish"]
    less = ["--dtype", "float32", "--direction", "both", "--smoke", "--device", "cpu"]
    assert main([name, *chosen, *less, "--json", str(path)]) == 0
    body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    rows = [row for row in body["rows"] if row["workload"].split()[0] == chosen[1]]
    timed = [row for row in rows if row["wall_us"]]
    assert body["left_out"] == [] and timed and all(row["check"]["passed"] and row["roofline"] for row in timed)
    assert {row["variant"] for row in timed} == {"eager", "fastgan auto"}
    assert len({row["shape"] for row in timed}) == 2  # both layouts
    assert all(row["note"].startswith("not measured: ") for row in rows if not row["wall_us"])


@on_suites
def test_names_are_apart_and_filters_choose(suite: ModuleType) -> None:
    names = [task.name for task in suite.tasks(setting(smoke=False))]
    assert len(set(names)) == len(names)
    some = suite.tasks(setting(smoke=False, dtype=["float32"], direction=["forward"], batch=7))
    assert some and all("float32" in task.name and " forward 7x" in task.name for task in some)
    with pytest.raises(UserError, match="at least 1"):
        suite.tasks(setting(batch=-1))


@pytest.mark.parametrize(("suite", "what"), CASES, ids=[what for _, what in CASES])
def test_both_compute_the_same_and_a_contender_that_errs_has_no_times(
    suite: ModuleType, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = suite.DIRECTIONS[1]
    assert measured(suite, what, last)["fastgan auto"].wall_us is not None
    right = suite.ours(what)
    monkeypatch.setattr(suite, "ours", lambda what: lambda *given: right(*given) * 1.01)
    rows = measured(suite, what)
    assert rows["eager"].wall_us is not None
    assert rows["fastgan auto"].wall_us is None and not rows["fastgan auto"].passed


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy interprets what wraps
@pytest.mark.parametrize(("suite", "what"), [(gained_act, "lrelu"), (upfirdn2d, "up")], ids=SUITES)
@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_ours_alone_is_raced_beside_auto(device: str, suite: ModuleType, what: str) -> None:
    row = measured(suite, what, device=device)["fastgan triton"]
    assert row.passed and row.wall_us is not None
