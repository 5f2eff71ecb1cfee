"""The suite of published figures: its systems train, its command writes a record, its page says what records say."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastgan import data
from fastgan.benchmarks import main, quality
from fastgan.benchmarks.environment import environment
from fastgan.benchmarks.quality_page import NOT_MEASURED, page
from fastgan.benchmarks.quality_tables import ORACLE, TABLES, System, Table
from fastgan.benchmarks.record import Record, Row, Scored, write
from fastgan.benchmarks.setting import Setting
from fastgan.data import Dataset
from fastgan.train import Trainer

Output = pytest.CaptureFixture[str]
SHAPES = {"ring": (2,), "parzen": (1, 28, 28), "stacked": (3, 32, 32)}  # the grid's systems are the ring's
SYSTEMS = [(TABLES[name], system) for name in SHAPES for system in TABLES[name].systems]
RING = ["quality", "--device", "cpu", "--smoke", "--table", "ring", "--system", "GAN"]
FOUND = {"modes covered": 7.0, "modes": 8.0, "high quality %": 90.0, "reverse KL": 0.25}


def scored(seed: int, covered: float, system: str = "GAN", table: str = "ring", protocol: str = "so") -> Scored:
    values = {**FOUND, "modes covered": covered}
    row = Scored(table, system, "ring8", seed, 10_000, 400_000, values, protocol, 1.5)
    row.suite, row.task = "quality", f"{table}/{system}/10000 steps/seed {seed}"
    return row


def written(path: Path, rows: Sequence[Row], smoke: bool = False) -> Path:
    write(Record("quality", ["quality"], smoke, None, environment(Setting(torch.device("cpu"))), rows=list(rows)), path)
    return path


@pytest.mark.parametrize(("table", "system"), SYSTEMS, ids=lambda one: one.name)
def test_each_system_trains(table: Table, system: System) -> None:
    images = torch.rand(128, *SHAPES[table.name], generator=torch.Generator().manual_seed(0)) * 2 - 1
    trainer = Trainer(system.preset, data=Dataset("planted", images), **system.keys, limit=None, steps=1)
    assert trainer.fit(progress=False).step == 1
    assert system.published.keys() <= set(table.values)
    if trainer.config.penalty.name != "none":
        norms = [type(m).__name__ for m in trainer.discriminator.modules() if "BatchNorm" in type(m).__name__]
        assert not norms  # a penalty is of each sample by itself


def test_what_a_limit_leaves_out_validates() -> None:
    """Goodfellow et al. trained on 50,000 images, chose sigma by the next 1,000 and judged by the test split."""
    trainer = Trainer("gan-digits", limit=1000, steps=1)
    subject = quality.subject_of(trainer, 0)
    assert subject.rest is not None
    assert (len(subject.data), len(subject.rest)) == (1000, 797)
    assert torch.equal(torch.cat([subject.data.images, subject.rest.images]), data.load("digits").images)
    assert subject.held_out() is None and subject.weights == "raw weights"


def test_the_oracle_trains_nothing() -> None:
    parser = ArgumentParser()
    quality.arguments(parser)
    setting = Setting(torch.device("cpu"), options=parser.parse_args(["--table", "parzen"]))
    names = [task.name for task in quality.tasks(setting)]
    assert names == ["parzen/Goodfellow et al./15000 steps/seed 0", f"parzen/{ORACLE}/0 steps/seed 0"]
    oracle = TABLES["parzen"].systems[1]
    assert oracle.options == {"oracle": True} and not oracle.published


def test_seeds_may_be_shared_out() -> None:
    parser = ArgumentParser()
    quality.arguments(parser)
    words = ["--table", "grid", "--system", "GAN", "--seeds", "2", "--first-seed", "8"]
    tasks = quality.tasks(Setting(torch.device("cpu"), options=parser.parse_args(words)))
    assert [task.name for task in tasks] == ["grid/GAN/10000 steps/seed 8", "grid/GAN/10000 steps/seed 9"]
    assert [task.run.seed for task in tasks] == [8, 9]  # type: ignore[attr-defined]


def test_a_run_that_is_stopped_gives_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(trainer: Trainer, **how: bool) -> None:
        trainer.exit_code = 143

    monkeypatch.setattr(Trainer, "fit", stopped)
    table = TABLES["ring"]
    with pytest.raises(KeyboardInterrupt):
        list(quality.Run(table, table.systems[0], 0, 5, "cpu", True)())


@pytest.mark.full
def test_the_command_writes_a_record_and_goes_on_with_it(tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / "r.json"
    assert main([*RING, "--json", str(path)]) == 0
    (row,) = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert (row["kind"], row["task"], row["published_steps"]) == ("scored", "ring/GAN/20 steps/seed 0", 400_000)
    assert row["values"]["modes"] == 8 and row["protocol"].startswith("200 samples (raw weights)")
    assert "| GAN | 20 | 1 |" in capsys.readouterr().out
    assert main([*RING, "--resume", str(path)]) == 0
    assert "1 of them were there before" in capsys.readouterr().out
    assert json.loads(path.read_text(encoding="utf-8"))["rows"] == [row]  # its seconds, too: it was not run again
    assert main([*RING[:-1], "Gan", "--json", str(path)]) == 2
    assert "the table ring has no such system: it has GAN, PacGAN2" in capsys.readouterr().err


def test_the_page_has_means_and_spreads_beside_what_was_published(tmp_path: Path) -> None:
    longer = replace(scored(0, 8), steps=400_000)
    lost = replace(scored(3, 7), values={"high quality %": 90.0})
    rows = [scored(0, 6), scored(1, 7), scored(2, 8), lost, longer, scored(0, 5, "PacGAN2", protocol="otherwise")]
    written(tmp_path / "a.json", rows)
    written(tmp_path / "smoke.json", [scored(0, 1, "WGAN-GP")], smoke=True)
    lines = list(page(tmp_path))
    assert "| GAN | 10,000 | 4 | 7.0 ± 1.0, 3 runs (6.3) | 90.0 ± 0.0 (98.2) | 0.25 ± 0.00, 3 runs (0.45) |" in lines
    assert "| GAN | 400,000 | 1 | 8.0 (6.3) | 90.0 (98.2) | 0.25 (0.45) |" in lines
    assert f"| WGAN-GP |  |  | {NOT_MEASURED} | {NOT_MEASURED} | {NOT_MEASURED} |" in lines
    assert "GAN: so." in lines and "PacGAN2: otherwise." in lines
    assert sum("`a.json`" in line for line in lines) == 1
    assert f"| DCGAN |  |  | {NOT_MEASURED} (99) | {NOT_MEASURED} (3.40) |" in lines


def test_two_records_are_compared_by_what_was_found(tmp_path: Path, capsys: Output) -> None:
    a = written(tmp_path / "a.json", [scored(0, 6), scored(1, 7), scored(2, 8)])
    b = written(tmp_path / "b.json", [scored(0, 6), scored(1, 8)])
    assert main(["compare", str(a), str(b)]) == 0
    said = capsys.readouterr().out
    assert "differs modes covered 7 -> 8" in said
    assert "2 rows in common: 0 SLOWER, 0 BROKEN, 0 faster, 1 the same, 1 differs" in said
    assert "1 rows of A were not measured in B: ring GAN 10000 steps seed 2" in said
