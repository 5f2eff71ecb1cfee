"""Suite ``all``: one order over all timed suites, and what was stopped goes on."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from fastgan.benchmarks import everything, main
from fastgan.benchmarks.environment import state
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.suites import Task, discover
from fastgan.errors import UserError

UNTIMED = {"all", "audit", "ladder", "quality", "tune"}  # compiles; takes minutes a rung; trains; writes tables


def test_every_timed_suite_is_part_of_it() -> None:
    assert set(everything.SUITES) == {*discover()} - UNTIMED


def test_what_matters_most_comes_first_and_nothing_is_lost_or_twice() -> None:
    plan = everything.tasks(Setting(torch.device("cuda"), options=Namespace()))
    names = [(task.suite, task.name) for task in sorted(plan, key=lambda task: task.priority)]
    assert names[:3] == [("step", "mlp batch 64"), ("step", "dcgan-64 batch 128"), ("step", "wgan-gp batch 64")]
    assert len(set(names)) == len(names) > 2000
    assert {suite for suite, _ in names[:90]} == set(everything.SUITES)
    for suite in everything.SUITES:  # each in its own order
        own = [name for of, name in names if of == suite]
        assert own == [task.name for task in everything.plan_of(suite, Setting(torch.device("cuda")))]
    half = names[: len(names) // 2]
    share = {s: sum(of == s for of, _ in half) / sum(of == s for of, _ in names) for s in ("linear", "conv", "loss")}
    assert all(0.4 < part < 0.6 for part in share.values()), share


def test_nobody_waits_for_max_autotune() -> None:
    plan = everything.plan_of("step", Setting(torch.device("cuda")))
    setting = plan[0].run.args[0]  # type: ignore[attr-defined]
    assert setting.options.rung == [1, 2, 3]


def test_the_rest_is_shared_out() -> None:
    plans = {"step": [Task(f"s{at}", list) for at in range(30)], "data": [Task(f"d{at}", list) for at in range(4)]}
    names = [task.name for task in everything.merged(plans)]
    assert names[:6] == ["s0", "s1", "s2", "s3", "s4", "s5"]
    assert names[-1] in ("s29", "d3") and names.index("d2") < names.index("d3")
    assert sorted(names) == sorted(task.name for plan in plans.values() for task in plan)


def test_a_suite_that_is_not_part_of_it() -> None:
    with pytest.raises(UserError, match="unknown suite 'linaer': did you mean 'linear'"):
        everything.tasks(Setting(options=Namespace(suites=["linaer"])))


def test_a_sample_is_measured_stopped_and_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With next to no budget nothing but the ceilings is measured; resumed, the rest is, by the same ceilings."""
    path = tmp_path / "r.json"
    run = ["all", "--suite", "loss", "norm-penalty", "linear-act-stack", "--smoke", "--device", "cpu"]
    assert main([*run, "--budget", "1e-9", "--json", str(path)]) == 0
    begun = json.loads(path.read_text(encoding="utf-8"))
    assert {row["suite"] for row in begun["rows"]} == {"ceilings"}
    assert [entry["name"].split(":")[0] for entry in begun["left_out"]] == [
        *["loss"] * 2,
        *["norm-penalty"] * 2,
        *["linear-act-stack"] * 2,
    ]
    assert main([*run, "--resume", str(path)]) == 0
    whole = json.loads(path.read_text(encoding="utf-8"))
    assert whole["rows"][: len(begun["rows"])] == begun["rows"]
    assert whole["ceilings"] == begun["ceilings"]
    assert whole["left_out"] == []
    rated = [row for row in whole["rows"] if row["suite"] == "norm-penalty" and row["wall_us"]]
    assert rated and all(row["roofline"] for row in rated)
    out = capsys.readouterr().out
    assert "norm-penalty:\n" in out and "these times say nothing" in out


def test_a_cpu_has_no_clocks_to_note() -> None:
    assert set(state(Setting()).values()) == {None}


@pytest.mark.full
def test_every_suite_runs_and_a_run_that_goes_on_is_the_whole(tmp_path: Path) -> None:
    run = ["all", "--smoke", "--device", "cpu"]
    parts, whole = tmp_path / "parts.json", tmp_path / "whole.json"
    assert main([*run, "--json", str(whole)]) == 0
    assert main([*run, "--budget", "2", "--json", str(parts)]) == 0
    begun = json.loads(parts.read_text(encoding="utf-8"))
    assert begun["left_out"]
    assert main([*run, "--resume", str(parts)]) == 0

    def works(path: Path) -> list[tuple[str, ...]]:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return [tuple(row[key] for key in ("suite", "task", "workload", "variant", "shape", "dtype")) for row in rows]

    assert works(parts) == works(whole)
    assert {row["suite"] for row in json.loads(whole.read_text())["rows"]} == {*everything.SUITES}
