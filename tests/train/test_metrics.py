"""Means on the device, and a CSV that a crash cannot spoil."""

import math
from types import SimpleNamespace

import pytest
import torch

from fastgan.errors import UserError
from fastgan.presets import Config
from fastgan.train import metrics
from fastgan.train.dials import Dials
from fastgan.train.metrics import COLUMNS, Meter, MetricsFile, finite


def row(step, **values):
    return {"step": step, "images": step * 4, "loss_d": 1 / 3, "seconds": 0.5, **values}


def meter(**keys):
    return Meter(Dials(Config(), torch.device("cpu")), **keys)


def test_meter_averages_and_starts_anew():
    seen = meter()
    for value in (1.0, 2.0, 6.0):
        seen.observe(ends=False, loss_d=torch.tensor(value))
    seen.observe(ends=True, loss_g=torch.tensor(5.0))
    assert int(seen.dials.clock) == 1
    read = seen.read()
    assert read["loss_d"] == 3.0
    assert read["loss_g"] == 5.0
    assert read["penalty"] is None
    assert seen.read()["loss_d"] is None


def test_a_reading_is_of_its_own_moment():
    seen = meter()
    seen.observe(ends=True, loss_d=torch.tensor(2.0))
    extra = torch.tensor(3)
    reading = seen.reading(extra)
    seen.observe(ends=True, loss_d=torch.tensor(8.0))
    extra.fill_(9)
    assert reading.ready and reading.row()["loss_d"] == 2.0 and reading.more == [3]
    assert seen.read()["loss_d"] == 8.0


def test_a_reading_waits_for_the_device_that_sends_it(monkeypatch):
    """Which need not be the current one: an event of another device would be there at once."""
    asked = []
    monkeypatch.setattr(metrics, "_sent", lambda tensor: tensor)
    stream = SimpleNamespace(record_event=lambda: SimpleNamespace(query=lambda: False))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: asked.append(device) or stream)
    sums = SimpleNamespace(is_cuda=True, device=torch.device("cuda:1"))
    assert not metrics.Reading(sums, sums, (), False).ready
    assert asked == [torch.device("cuda:1")]


def test_a_critic_has_a_distance_and_no_scores():
    seen = meter(critic=True)
    seen.observe(ends=True, d_real=torch.tensor(3.0), d_fake=torch.tensor(-1.0))
    read = seen.read()
    assert (read["wasserstein"], read["d_real"], read["d_fake"]) == (4.0, None, None)


def test_file_returns_what_was_written(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv")
    for step in (10, 20, 30):
        file.append(row(step))
    assert file.path.read_text().splitlines()[0] == ",".join(COLUMNS)
    rows = file.read(last_step=20)
    assert [r["step"] for r in rows] == [10, 20]
    assert rows[0]["loss_d"] == 1 / 3
    assert rows[0]["loss_g"] is None


def test_rewind_drops_later_and_torn_lines(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv")
    for step in (10, 20, 30):
        file.append(row(step))
    with file.path.open("a") as torn:
        torn.write("40,160,0.3")
    assert [r["step"] for r in file.rewind(20)] == [10, 20]
    file.append(row(30, loss_d=9.0))
    rows = file.read(100)
    assert [(r["step"], r["loss_d"]) for r in rows] == [(10, 1 / 3), (20, 1 / 3), (30, 9.0)]


@pytest.mark.parametrize("start", ["", "step,ima", ",".join(COLUMNS)])
def test_a_header_that_a_crash_cut_short_is_written_again(tmp_path, start):
    file = MetricsFile(tmp_path / "metrics.csv")
    file.path.write_text(start)
    assert file.rewind(5) == []
    file.append(row(10))
    assert file.path.read_text().splitlines()[0] == ",".join(COLUMNS)
    assert [r["step"] for r in file.read(100)] == [10]


def test_one_spoilt_line_costs_only_itself(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv")
    for step in (10, 20, 30):
        file.append(row(step))
    file.path.write_text(file.path.read_text().replace("20,80", "2o,80") + "x" * 200_000)
    assert [r["step"] for r in file.rewind(100)] == [10, 30]


def test_a_last_row_without_its_line_break_was_cut_short(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv")
    for step in (10, 20):
        file.append(row(step, gradient_g=0.125))
    file.path.write_text(file.path.read_text()[:-2])  # 0.12 is a number too
    assert [r["step"] for r in file.rewind(20)] == [10]


def test_a_step_is_there_once(tmp_path):
    file = MetricsFile(tmp_path / "metrics.csv")
    for step in (10, 20, 10, 20, 30):
        file.append(row(step))
    assert [r["step"] for r in file.rewind(30)] == [10, 20, 30] == [r["step"] for r in file.read(99)]


def test_rewind_without_a_file(tmp_path):
    assert MetricsFile(tmp_path / "metrics.csv").rewind(5) == []
    assert not (tmp_path / "metrics.csv").exists()


def test_foreign_file_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,loss\n1,2\n")
    with pytest.raises(UserError, match="not a metrics file"):
        MetricsFile(path).rewind(5)
    assert path.read_text() == "epoch,loss\n1,2\n"


@pytest.mark.parametrize("value, verdict", [(1.0, True), (None, True), (math.nan, False), (math.inf, False)])
def test_finite(value, verdict):
    assert finite(row(1, loss_g=value)) is verdict
