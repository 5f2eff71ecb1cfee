"""The Makefile's promises: quick checks first, two processes for the tests, a torch that is never replaced."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "environment.py"
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
CLEAN = {
    name: text for name, text in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "INSTALL", "FASTGAN"))
}

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="GNU make is not installed here")


def load_script() -> ModuleType:
    """tools/environment.py as a module."""
    spec = importlib.util.spec_from_file_location("environment", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


environment = load_script()


def make(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run make in the root, free of the make that may be running these tests."""
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, env={**CLEAN, **variables}, capture_output=True, text=True, timeout=120
    )


def dry(*arguments: str) -> str:
    """The commands that make would run."""
    done = make("-n", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_make
def test_quick_checks_come_first_and_kernels_have_a_process_of_their_own() -> None:
    lines = dry("test", "INSTALL=0", "PYTHON=some-python").splitlines()
    stages = ["--check", "ruff check", "ruff format --check", "mypy -p fastgan", "not interpret", "interpret"]
    assert len(lines) == len(stages)
    assert all(stage in line and "some-python" in line for stage, line in zip(stages, lines, strict=True))
    assert [line.startswith("TRITON_INTERPRET=1 ") for line in lines] == [False] * 5 + [True]
    assert all("not full" in line for line in lines[-2:])
    assert not any("full" in line for line in dry("test-all", "INSTALL=0").splitlines())


@needs_make
def test_set_up_comes_before_everything_unless_refused(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    for target in ("setup", "train", "test", "test-gpu", "bench", "lint"):
        assert f"tools/environment.py --venv '{venv}'" in dry(target, f"VENV={venv}").splitlines()[0]
        assert "--venv" not in dry(target, "INSTALL=0")
    assert "--torch-index 'there'" in dry("setup", f"VENV={venv}", "TORCH_INDEX=there")


@needs_make
def test_arguments_are_passed_on() -> None:
    assert "fastgan train gan-digits --steps 5" in dry("train", "INSTALL=0", "ARGS=--steps 5")
    assert "fastgan.benchmarks audit --smoke" in dry("bench", "INSTALL=0", "SUITE=audit", "ARGS=--smoke")
    assert "runs" not in dry("clean")
    assert ".venv" not in dry("clean")


@needs_make
def test_gpu_tests_without_a_gpu_are_one_line_and_exit_2() -> None:
    command = f"{sys.executable} -m pytest -m gpu --require-gpu"
    assert command in dry("test-gpu", "INSTALL=0", f"PYTHON={sys.executable}")
    done = subprocess.run(
        command.split(),
        cwd=ROOT,
        env={**CLEAN, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "CUDA" in done.stderr


@needs_make
def test_help_lists_every_target() -> None:
    phony = re.findall(r"(?m)^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"))
    listed = re.findall(r"(?m)^  make ([a-z-]+)", make("help").stdout)
    assert {*listed, "usable"} == set(phony[0].split())


def test_script_can_be_read_by_an_old_python() -> None:
    ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 7))


def test_floors_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == f">={environment.dotted(environment.PYTHON_FLOOR)}"
    assert f"torch>={environment.dotted(environment.TORCH_FLOOR)}" in project["dependencies"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    pinned = set(re.findall(r"(?m)^(\S+)==\S+$", CONSTRAINTS.lower()))
    assert {re.split("[>;]", name)[0].lower() for name in needed} <= pinned


@pytest.mark.parametrize("version", [(3, 10), (2, 7)])
def test_old_python_is_refused(version: tuple[int, int]) -> None:
    with pytest.raises(environment.SetupError, match=r"3\.11 or later is needed: mend it"):
        environment.check_python(version, "python3", "mend it")


@pytest.mark.parametrize(
    ("found", "pins", "notes"),
    [
        ({}, {"torch==2.13.0", "triton==3.7.1"}, 0),
        ({"torch": "2.13.0+cpu"}, {"torch==2.13.0+cpu", "triton==3.7.1"}, 0),
        ({"torch": "2.11.0+cu130", "triton": "3.6.0"}, {"torch==2.11.0+cu130", "triton==3.6.0"}, 2),
        ({"torch": "2.14.0"}, {"torch==2.14.0"}, 1),
    ],
)
def test_installed_torch_takes_the_place_of_the_tested_one(found: dict[str, str], pins: set[str], notes: int) -> None:
    constraints, said = environment.constrain(CONSTRAINTS, found)
    assert set(re.findall(r"(?m)^(?:torch|triton)==\S+$", constraints)) == pins
    assert len(said) == notes
    assert set(constraints.splitlines()) >= {line for line in CONSTRAINTS.splitlines() if not line.startswith("t")}


def set_up(venv: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the script as make does."""
    command = [sys.executable, str(SCRIPT), "--venv", str(venv), *options]
    return subprocess.run(command, cwd=venv.parent, env=CLEAN, capture_output=True, text=True, timeout=120)


def pretend(venv: Path, **versions: str) -> None:
    """Make an environment that believes to have these packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=120)
    (site,) = venv.glob("lib/python*/site-packages")
    for name, version in versions.items():
        folder = site / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")


def test_old_torch_stops_set_up_and_stays(tmp_path: Path) -> None:
    pretend(tmp_path / "venv", pip="26.0", torch="2.4.1+cu121")
    done = set_up(tmp_path / "venv")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "torch 2.4.1+cu121" in done.stderr
    assert "older than 2.11" in done.stderr


def test_environment_without_pip_or_python_is_one_line(tmp_path: Path) -> None:
    pretend(tmp_path / "venv")
    done = set_up(tmp_path / "venv")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "has no pip" in done.stderr
    python = tmp_path / "venv" / "bin" / "python"
    python.unlink()
    python.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    python.chmod(0o755)
    assert "does not run" in set_up(tmp_path / "venv").stderr


def test_python_without_ensurepip_names_debians_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(environment.SetupError, match="apt install python3-venv"):
        environment.create(tmp_path / "venv")


def test_this_python_will_do_as_it_is() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--check"], env=CLEAN, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "")
