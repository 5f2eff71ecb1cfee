"""The command line: lists, exit codes, one clear line for a mistake; every suite's smoke form, on a CPU."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fastgan.benchmarks import main
from fastgan.benchmarks import suites as registry
from fastgan.benchmarks.record import Check, Row, Timed, validate
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.suites import Suite, Task

ROOT = Path(__file__).resolve().parents[2]
Output = pytest.CaptureFixture[str]


def test_without_a_suite_they_are_listed(capsys: Output) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} >= {"audit", "ceilings", "host-overhead", "ladder"}
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize("suite", ["step", "all"])
def test_help_names_the_options_of_the_suite(suite: str, capsys: Output) -> None:
    assert main([suite, "--help"]) == 0
    assert {"step": "--workload", "all": "--suite"}[suite] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["all", "--suite", "linaer"], "unknown suite 'linaer': did you mean 'linear'?"),
        (["all", "--budget", "soon"], "--budget"),
        (["all", "--resume", "none.json"], "no record at none.json"),
        (["step", "--workload", "dcgan-46"], "unknown workload 'dcgan-46': did you mean 'dcgan-64'?"),
        (["ladder", "--workload", "mpl"], "unknown workload 'mpl': did you mean 'mlp'?"),
        (["ladder", "--batch", "1"], "--batch must be at least 2"),
        (["repotr"], "unknown suite 'repotr': did you mean 'report'?"),
        (["ceiling"], "unknown suite 'ceiling': did you mean 'ceilings'?"),
        (["audit", "--arch", "91"], "unknown architecture '91'"),
        (["audit", "--kernel", "liner"], "unknown kernel file 'liner'"),
        (["audit", "--kernel", "nowhere.py"], "no kernel file at nowhere.py"),
        (["audit", "--kernel", "variant"], "states no variants"),
        (["ladder", "--rung", "6"], "invalid choice: 6"),
        (["ceilings", "--budget", "0"], "a positive number of seconds"),
        (["ceilings", "--jobs", "0"], "at least 1"),
        (["ceilings", "--colour"], "unrecognized arguments: --colour"),
        (["ceilings", "--json", "."], "is a folder: name a file"),
        (["ceilings", "--json", "/dev/null/r.json"], "cannot be written"),
    ],
)
def test_a_mistake_is_answered_in_one_line(arguments: list[str], said: str, capsys: Output) -> None:
    if arguments[0] == "audit":
        pytest.importorskip("triton")
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert said in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_a_missing_gpu_is_answered_in_one_line(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["ceilings", "--device", "cuda"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_an_interpreted_kernel_cannot_be_audited() -> None:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-m", "fastgan.benchmarks", "audit"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: TRITON_INTERPRET=1 leaves nothing to compile")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("suite", ["ceilings", "ladder", "host-overhead"])
def test_the_smoke_form_runs_on_a_cpu_and_writes_a_valid_record(suite: str, tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / "record.json"
    assert main([suite, "--smoke", "--device", "cpu", "--json", str(path)]) == 0
    body = json.loads(path.read_text(encoding="utf-8"))
    if importlib.util.find_spec("jsonschema"):
        validate(body)
    assert body["suite"] == suite
    assert body["environment"]["device"] == "CPU"
    assert body["smoke"] is True
    assert body["left_out"] == []
    assert any(row["wall_us"] for row in body["rows"])
    assert not any(row[key] for row in body["rows"] for key in ("graph_us", "device_us", "kernel_us", "launches"))
    output = capsys.readouterr().out
    assert "on CPU" in output
    assert "these times say nothing" in output


def test_the_ceilings_of_the_run_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    assert main(["ceilings", "--smoke", "--device", "cpu", "--json", str(path)]) == 0
    ceilings = json.loads(path.read_text(encoding="utf-8"))["ceilings"]
    assert ceilings["copy_gbs"] > 0
    assert set(ceilings["tflops"]) == {"bfloat16", "float16", "float32"}
    assert set(ceilings["launch_us"]) == {"eager"}


Plant = Callable[[Callable[[Setting], Sequence[Task]]], None]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Put a suite called ``planted`` among the others."""

    def put(tasks: Callable[[Setting], Sequence[Task]]) -> None:
        suite = Suite("planted", "a planted suite", tasks, needs_ceilings=True)
        known = {**registry.discover(), "planted": suite}
        monkeypatch.setattr(registry, "discover", lambda: known)
        monkeypatch.setattr("fastgan.benchmarks.command.discover", lambda: known)

    return put


def test_a_failed_check_ends_with_1_and_the_ceilings_come_first(plant: Plant, tmp_path: Path, capsys: Output) -> None:
    def tasks(setting: Setting) -> list[Task]:
        def job() -> list[Row]:
            assert setting.ceilings.copy_gbs is not None
            return [Timed("w", "v", "s", "float32", Check(False, 1.0, 0.1, "off"))]

        return [Task("t", job)]

    plant(tasks)
    path = tmp_path / "r.json"
    assert main(["planted", "--smoke", "--device", "cpu", "--json", str(path)]) == 1
    assert "FAILED: off" in capsys.readouterr().out
    assert json.loads(path.read_text(encoding="utf-8"))["rows"][0]["workload"] == "copy"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_with_its_code_and_a_record(number: int, code: int, plant: Plant, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def interrupted() -> list[Row]:
        signal.raise_signal(number)
        return []

    plant(lambda setting: [Task("t", interrupted)])
    path = tmp_path / "r.json"
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may have it ignored
    try:
        assert main(["planted", "--smoke", "--device", "cpu", "--json", str(path)]) == code
    finally:
        signal.signal(signal.SIGINT, former)
    assert json.loads(path.read_text(encoding="utf-8"))["left_out"] == [{"name": "t", "why": "interrupted"}]
    assert signal.getsignal(signal.SIGTERM) is before
