"""CUDA C++ on the CPU: ``cuda_host`` is tests/cuda_host/harness.py, whose ``build`` compiles .cu files with g++."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

HARNESS = Path(__file__).parents[1] / "cuda_host" / "harness.py"


@pytest.fixture(scope="session")
def cuda_host() -> ModuleType:
    name = "fastgan_cuda_host_harness"
    spec = importlib.util.spec_from_file_location(name, HARNESS)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
