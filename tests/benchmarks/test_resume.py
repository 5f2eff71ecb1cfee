"""A run that was stopped and gone on with is the run that was not stopped; another run's record is refused."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fastgan.benchmarks import main, runner
from fastgan.benchmarks import suites as registry
from fastgan.benchmarks.reading import read
from fastgan.benchmarks.record import Check, Row, Spread, Timed
from fastgan.benchmarks.resume import former, words
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.suites import Suite, Task
from fastgan.errors import UserError

Output = pytest.CaptureFixture[str]
NAMES = ("a", "b", "c", "d")
RUN = ["planted", "--device", "cpu", "--smoke"]


class Plan:
    """Tasks of one row each; ``stop`` interrupts the run in that task, ``fault`` raises there."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.stop = self.fault = self.short = ""

    def tasks(self, setting: Setting) -> Sequence[Task]:
        return [Task(name, lambda name=name: self.run(name), -at) for at, name in enumerate(NAMES)]  # type: ignore[misc]

    def run(self, name: str) -> Iterator[Row]:
        self.ran.append(name)
        if name == self.stop:
            signal.raise_signal(signal.SIGTERM)
        if name == self.fault:
            raise RuntimeError("planted")
        repeats = 3 if name == self.short else 20
        yield Timed(name, "v", "s", "float32", Check(True, 0.0, 0.0), wall_us=Spread(2.0, 1.0, 3.0, repeats))


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Plan:
    made = Plan()
    known = {**registry.discover(), "planted": Suite("planted", "a planted suite", made.tasks)}
    for place in ("suites", "command"):
        monkeypatch.setattr(f"fastgan.benchmarks.{place}.discover", lambda: known)
    return made


def rows(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return found


def test_a_resumed_run_is_a_whole_run(plan: Plan, tmp_path: Path, capsys: Output) -> None:
    whole, path = tmp_path / "whole.json", tmp_path / "r.json"
    assert main([*RUN, "--json", str(whole)]) == 0
    plan.ran.clear()
    plan.stop = "b"
    assert main([*RUN, "--json", str(path)]) == 143
    assert [row["workload"] for row in rows(path)] == ["d", "c"]
    plan.stop = ""
    assert main([*RUN, "--resume", str(path)]) == 0
    assert plan.ran == ["d", "c", "b", "b", "a"]
    assert rows(path) == rows(whole)
    body = json.loads(path.read_text(encoding="utf-8"))
    assert body["left_out"] == []
    assert [session["rows"] for session in body["sessions"]] == [2, 2]
    assert "2 of them were there before" in capsys.readouterr().out
    assert main([*RUN, "--resume", str(path), "--json", str(tmp_path / "copy.json")]) == 0
    assert len(plan.ran) == 5
    assert rows(tmp_path / "copy.json") == rows(whole)


def test_what_failed_or_was_cut_short_is_tried_again(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.json"
    plan.fault, plan.short = "c", "b"
    with monkeypatch.context() as patch:
        patch.setattr(Setting, "remaining", lambda self: 0.0 if plan.ran and plan.ran[-1] == "b" else 1.0)
        assert main([*RUN, "--json", str(path)]) == 1
    why = {entry["name"]: entry["why"] for entry in json.loads(path.read_text())["left_out"]}
    assert why["c"] == "RuntimeError: planted" and "cut short" in why["b"] and "a" in why
    plan.fault = plan.short = ""
    assert main([*RUN, "--resume", str(path)]) == 0
    assert plan.ran == ["d", "c", "b", "c", "b", "a"]
    assert [row["wall_us"]["n"] for row in rows(path)] == [20] * 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"environment": {"device": "NVIDIA H200"}}, "its device was NVIDIA H200, here it is CPU"),
        ({"environment": {"code": "0" * 16}}, "its code was 0000000000000000"),
        ({"command": ["planted", "--seed", "3"]}, "it was made by `planted --seed 3`"),
        ({"format": "fastgan-benchmark/1"}, "its format is 'fastgan-benchmark/1'"),
        ({"rows": [{}]}, "is not a record"),
    ],
)
def test_another_record_is_refused(
    change: dict[str, Any], said: str, plan: Plan, tmp_path: Path, capsys: Output
) -> None:
    path = tmp_path / "r.json"
    assert main([*RUN, "--json", str(path)]) == 0
    body = json.loads(path.read_text(encoding="utf-8"))
    for key, value in change.items():
        body[key] = body[key] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(body))
    capsys.readouterr()
    assert main([*RUN, "--resume", str(path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("text", "said"), [(None, "no record at"), ("{", "is not a record"), ("[1]", "has no format")])
def test_a_file_that_is_no_record(text: str | None, said: str, plan: Plan, tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / "r.json"
    if text is not None:
        path.write_text(text)
    assert main([*RUN, "--resume", str(path)]) == 2
    assert said in capsys.readouterr().err
    assert plan.ran == []


def test_what_a_session_may_change() -> None:
    command = ["all", "--json", "a.json", "--smoke", "--budget=3", "--seed", "2", "--resume", "b", "--jobs", "4"]
    assert words(command) == ["all", "--smoke", "--seed", "2"]


@pytest.mark.parametrize(
    ("before", "now", "goes_on"),
    [
        (["--seeds", "3"], ["--seeds", "10"], True),
        (["--seeds=3"], ["--seeds", "3"], True),
        (["--seeds", "10"], ["--seeds=9"], False),
        ([], ["--seeds", "10"], False),
        (["--seeds", "3"], [], False),
    ],
)
def test_seeds_may_be_more_and_never_fewer(
    before: list[str], now: list[str], goes_on: bool, plan: Plan, tmp_path: Path
) -> None:
    path = tmp_path / "r.json"
    assert main([*RUN, "--json", str(path)]) == 0
    record = read(path)
    path.write_text(json.dumps(record.to_json() | {"command": ["quality", *before, "--steps", "5"]}))
    record.command = ["quality", *now, "--steps", "5"]
    if goes_on:
        assert former(path, record).rows
    else:
        with pytest.raises(UserError, match="it was made by `quality"):
            former(path, record)


def test_a_record_reads_back(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    assert main([*RUN, "--json", str(path)]) == 0
    assert read(path).to_json() == json.loads(path.read_text(encoding="utf-8"))


def test_the_record_grows_while_a_run_goes_on(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a run that is killed has lost little."""
    path, seen = tmp_path / "r.json", []
    monkeypatch.setattr(runner, "KEEP_EVERY", 0.0)
    run: Callable[[str], Iterator[Row]] = plan.run
    monkeypatch.setattr(plan, "run", lambda name: (seen.append(len(rows(path)) if path.exists() else 0), run(name))[1])
    assert main([*RUN, "--json", str(path)]) == 0
    assert seen == [0, 1, 2, 3]
