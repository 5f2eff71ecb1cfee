"""The package as people install it: a wheel built from the tree, in an environment and a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILT_FROM = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "fastgan", "kernels", "benchmarks")
TABLE = """{"format": "fastgan-tuned/1", "gpu": "a-card", "entries": [
 {"op": "linear_fwd", "kind": "16-bit", "masked": false, "vectors": true, "rows": 64, "cols": 64, "depth": 64,
  "config": {"rows": 16, "cols": 64, "depth": 64, "warps": 4, "registers": 255, "stages": 4, "split": 1},
  "us": 5, "library_us": 7, "by": "a test"}]}"""
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command to its end; its output."""
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # it would lead to the tree
    words = [str(part) for part in command]
    done = subprocess.run(words, cwd=cwd, env=alone, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources: what an earlier build left in the tree must not show."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in BUILT_FROM:
        origin = ROOT / name
        if origin.is_dir():
            shutil.copytree(origin, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        elif origin.exists():
            shutil.copy(origin, source)
    tuned = source / "kernels" / "tuned"
    tuned.mkdir(exist_ok=True)
    (tuned / "a-card.json").write_text(TABLE, encoding="utf-8")
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment that has the wheel, and sees the packages of the one that runs the tests."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=ROOT)
    python = folder / "bin" / "python"
    run(*PIP, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    outer = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "outer.pth").write_text("\n".join(outer), encoding="utf-8")
    return python


def test_wheel_holds_each_source_once_and_the_data(wheel: Path) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert len(names) == len(set(names))
    sources = {
        PurePosixPath("fastgan", *path.relative_to(ROOT).parts[(top == "fastgan") :])
        for top in ("fastgan", "kernels", "benchmarks")
        for path in (ROOT / top).rglob("*.py")
        if top != "fastgan" or path.relative_to(ROOT).parts[1] not in ("kernels", "benchmarks")
    }
    data = {"fastgan/py.typed", "fastgan/data/digits.npz", "fastgan/benchmarks/schema.json"}
    data |= {"fastgan/kernels/tuned/a-card.json"}
    assert {str(source) for source in sources} | data <= set(names)
    assert {PurePosixPath(name).parts[0] for name in names} == {"fastgan"}
    assert [name for name in names if "test" in PurePosixPath(name).stem] == []


def test_wheel_says_what_it_is(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = archive.read(path).decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Dist: torch>=2.11" in metadata
    assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())


def test_installed_package_works_from_another_folder(installed: Path, tmp_path: Path) -> None:
    code = """
import torch
import fastgan, fastgan.kernels, fastgan.benchmarks
from fastgan.data import load
assert load("digits").images.shape == (1797, 1, 8, 8)
assert fastgan.nn.LinearAct(3, 2)(torch.randn(1, 3)).shape == (1, 2)
print(fastgan.__file__, fastgan.__version__)
"""
    where, version = run(installed, "-c", code, cwd=tmp_path).split()
    assert Path(where).is_relative_to(installed.parent.parent)
    assert version == "0.1.0"


def test_installed_tables_are_chosen_by(installed: Path, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    code = """
from fastgan.kernels.tile import Problem, Target, choose
print(choose(Problem("linear_fwd", 60, 60, 60, 2, Target(90, "tf32", "a-card"))))
"""
    assert run(installed, "-c", code, cwd=tmp_path).strip() == "16x64x64"


def test_installed_doctor_runs(installed: Path, tmp_path: Path) -> None:
    assert "torch" in run(installed, "-m", "fastgan", "doctor", cwd=tmp_path)
