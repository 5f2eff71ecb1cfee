"""The extension as a library: run on the host by PyTorch, compiled for every card, loaded, or absent with a reason."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / ".pytest_cache" / "kept" / "cuda_extension"
SOURCES = sorted((ROOT / "csrc").glob("*.cu"))
PYTHONS = [sys.executable, *os.environ.get("FASTGAN_TEST_PYTHONS", "").split()]  # others have other versions of torch
ENTRY = re.compile(
    r"Compiling entry function '(\w+)' for 'sm_(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers", re.S
)


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fastgan_cuda_extension", ROOT / "tools" / "cuda_extension.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def library(builder: ModuleType) -> Path:
    """The library for GPUs: compiled again only where a source has changed."""
    try:
        builder.find_nvcc()
    except builder.AbsentError as why:
        pytest.skip(str(why))
    return Path(builder.build(KEPT / "out", work=KEPT))


@pytest.mark.timeout(900)  # 15 seconds of a processor that nobody else wants
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", ["on_the_host.py", "training_on_the_host.py"])
def test_it_runs_on_the_host(cuda_host: ModuleType, tmp_path: Path, name: str, python: str) -> None:
    program, library = str(Path(__file__).with_name(name)), str(cuda_host.build_extension())
    folder = str(tmp_path / "run")
    done = subprocess.run([python, program, library, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "all as it should be" in done.stdout, done.stdout + done.stderr


@pytest.mark.timeout(600)
def test_every_kernel_keeps_to_what_its_head_states(library: Path, builder: ModuleType) -> None:
    kernels = 0
    for source in SOURCES:
        text = source.read_text(encoding="utf-8")
        stated = {name: int(most) for name, most in re.findall(r"(?m)^//     (\w+) +(\d+)$", text)}
        report = (KEPT / f"{source.name}.o.{builder.REPORT}").read_text(encoding="utf-8")
        assert "warning" not in report, report
        entries = re.findall(ENTRY, report)
        assert len(entries) == report.count("Compiling entry function"), "every kernel has its line"
        assert {arch for _, arch, *_ in entries} in (set(), set(builder.ARCHITECTURES))
        for kernel, arch, spilled, registers in entries:
            (name,) = [name for name in stated if f"{source.stem}_{name}" in kernel]
            assert (int(spilled), int(registers) <= stated[name]) == (0, True), (kernel, arch, spilled, registers)
        kernels += len(entries)
    assert kernels > 0


@pytest.mark.parametrize("python", PYTHONS)
def test_the_library_loads_and_brings_its_runtime(library: Path, python: str) -> None:
    program = "import sys, torch; torch.ops.load_library(sys.argv[1]); print(torch.ops.fastgan_cuda.mlp_step.default)"
    done = subprocess.run([python, "-c", program, library], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "fastgan_cuda.mlp_step.default" in done.stdout, done.stderr
    names = library.read_bytes()
    assert b"libcudart.so" not in names and b"libtorch_cpu.so" in names and b"libpython" not in names


def test_why_it_is_absent_is_written_down(builder: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / builder.LIBRARY).write_bytes(b"of an earlier build")
    assert not builder.build_or_say(tmp_path, "0")
    assert [path.name for path in tmp_path.iterdir()] == [builder.ABSENT]
    assert "FASTGAN_BUILD_CUDA=0" in (tmp_path / builder.ABSENT).read_text(encoding="utf-8")

    def nowhere() -> Path:
        raise builder.AbsentError("there is no nvcc")

    monkeypatch.setattr(builder, "find_nvcc", nowhere)
    assert not builder.build_or_say(tmp_path, "auto")
    assert "there is no nvcc" in (tmp_path / builder.ABSENT).read_text(encoding="utf-8")
    with pytest.raises(SystemExit, match="FASTGAN_BUILD_CUDA=1 asks for"):
        builder.build_or_say(tmp_path, "1")
    monkeypatch.setenv("FASTGAN_BUILD_CUDA", "yes")
    with pytest.raises(SystemExit, match="auto, 0 or 1"):
        builder.build_or_say(tmp_path)
