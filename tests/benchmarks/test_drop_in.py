"""Suite ``dropin``: its plan, its smoke form, no times for what is wrong, goals said as they are."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastgan.benchmarks import drop_in, drop_in_goals, drop_in_models, main
from fastgan.benchmarks.drop_in import Race
from fastgan.benchmarks.drop_in_goals import AFTER, BEFORE, CAPTURED, COMPILED
from fastgan.benchmarks.drop_in_models import STYLES
from fastgan.benchmarks.record import Check, Spread, Timed
from fastgan.benchmarks.setting import Setting
from fastgan.errors import UserError
from fastgan.nn import drop_in as conversion

NAMED = {style.name: style for style in STYLES}


def setting(device: str = "cpu", smoke: bool = True, **options: object) -> Setting:
    return Setting(device=torch.device(device), smoke=smoke, options=Namespace(**options))


def measured(name: str, mode: str, device: str = "cpu", dtype: str = "float32") -> dict[str, Timed]:
    style = NAMED[name]
    rows = drop_in.measure(setting(device), Race(style, mode, 2 * style.pack, dtype, full=False))
    return {row.variant: row for row in rows if isinstance(row, Timed)}


def test_the_smoke_form_races_what_runs_here(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    assert main(["dropin", "--smoke", "--device", "cpu", "--style", "ctgan", "--json", str(path)]) == 0
    body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    timed = [row for row in body["rows"] if row["wall_us"]]
    assert body["left_out"] == [] and all(row["check"]["passed"] and row["note"] == "CPU" for row in timed)
    done = {(row["workload"], row["variant"]) for row in timed}
    assert done == {(f"ctgan {mode}", variant) for mode in drop_in.MODES for variant in (BEFORE, AFTER)}
    assert all(row["note"].startswith("not measured: ") for row in body["rows"] if not row["wall_us"])


def test_filters_choose() -> None:
    names = [task.name for task in drop_in.tasks(setting("cuda", smoke=False))]
    assert len(set(names)) == len(names) == len(STYLES) * 2 * 2
    assert {"dcgan training batch 128 bfloat16", "hifigan inference batch 16 float32"} <= set(names)
    chosen = drop_in.tasks(setting(style=["ctgan"], batch=[7], mode=["training"]))
    assert [task.name for task in chosen] == ["ctgan training batch 10 float32"]
    with pytest.raises(UserError, match="hifigan"):
        drop_in.tasks(setting(style=["hifi-gan"]))
    with pytest.raises(UserError, match="at least 1"):
        drop_in.tasks(setting(batch=[0]))


@pytest.mark.parametrize("mode", drop_in.MODES)
def test_a_conversion_that_changes_something_has_no_times(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(network: nn.Module, channels_last: bool = False) -> None:
        next(network.parameters()).data.mul_(1.2)

    monkeypatch.setattr(conversion, "convert", spoilt)
    rows = measured("mlp", mode)
    assert rows[BEFORE].wall_us is not None
    assert rows[AFTER].wall_us is None and not rows[AFTER].passed


def test_autocast_and_a_conversion_that_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured("dcgan", "training", dtype="bfloat16")[AFTER].wall_us is not None

    def broken(network: nn.Module, channels_last: bool = False) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(conversion, "convert", broken)
    row = measured("mlp", "inference")[AFTER]
    assert not row.passed and "planted" in (row.note or "")


def test_without_a_checkout_it_says_so_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drop_in_models, "FOLDER", tmp_path)
    with pytest.raises(UserError, match="come with a checkout"):
        NAMED["mlp"].networks()


def row(style: str, variant: str, us: float, note: str | None = None) -> Timed:
    return Timed(style, variant, "batch 64", "bfloat16", Check(True), wall_us=Spread(us, us, us, 9), note=note)


def test_goals_are_reached_missed_or_not_measured() -> None:
    rows = [row("a", BEFORE, 100), row("a", AFTER, 50), row("a", AFTER + CAPTURED, 20), row("a", AFTER + COMPILED, 40)]
    rows += [row("b", BEFORE, 100), row("b", AFTER, 110), row("b", AFTER + CAPTURED, 100)]
    said = [line for line in drop_in_goals.closing(rows) if line.startswith("goal")]
    assert [line.rpartition(": ")[2] for line in said] == ["missed, 0.91x", "reached, 1.35x", "reached, 2.24x"]
    for some in ([], [row("a", BEFORE, 9, "CPU"), row("a", AFTER, 1, "CPU"), row("a", AFTER + CAPTURED, 1, "CPU")]):
        said = [line for line in drop_in_goals.closing(some) if line.startswith("goal")]
        assert len(said) == 3 and all(line.endswith("not measured") for line in said)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["mlp", "dcgan", "hifigan", "sngan-conditional", "ctgan"])
def test_every_way_runs_on_a_gpu(name: str) -> None:
    for mode in drop_in.MODES:
        rows = measured(name, mode, "cuda")
        for variant in (BEFORE, BEFORE + CAPTURED, AFTER, AFTER + CAPTURED, drop_in_goals.TRITON):
            assert rows[variant].passed, rows[variant].check
            assert rows[variant].wall_us is not None
        assert rows[AFTER + CAPTURED].graph_us is not None and rows[AFTER].launches
