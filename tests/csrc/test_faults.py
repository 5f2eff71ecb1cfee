"""Faults planted in the CUDA sources: each is caught by what the other tests look at."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
Plant = Callable[[str, str, str, str], Any]


def beside(name: str) -> ModuleType:
    """Another file of tests, whose cases are used here."""
    spec = importlib.util.spec_from_file_location(f"planted_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def plant(cuda_host: ModuleType, tmp_path: Path) -> Iterator[Plant]:
    """A function that builds a kernel with some text in one of its files replaced."""
    built = []

    def planted(kernel: str, file: str, right: str, wrong: str) -> Any:
        for source in (ROOT / "csrc").glob("*.cu*"):
            text = source.read_text(encoding="utf-8")
            if source.name == file:
                assert text.count(right) >= 1, f"{right!r} is not in {file}"
                text = text.replace(right, wrong, 1)
            (tmp_path / source.name).write_text(text, encoding="utf-8")
        built.append(cuda_host.build(tmp_path / kernel))
        return built[-1]

    yield planted
    for kernels in built:
        kernels.close()


def test_in_an_iteration(plant: Plant) -> None:
    """The last operands of a product are used before they are there."""
    kernels = plant("mlp_step.cu", "mlp_step_products.cuh", "copy_wait<0>();", ";")
    cases = beside("test_mlp_step")
    with pytest.raises(AssertionError):
        cases.check(kernels, cases.program, blocks=1)


def test_in_a_linear_layer(plant: Plant, cuda_host: ModuleType) -> None:
    """Warps that add up before the others have put their sums down: orders of the threads tell it."""
    cases, right = beside("test_linear_act"), "= sum[e / 4][e % 4];\n        __syncthreads();"
    kernels = plant("linear_act.cu", "linear_act_tiles.cuh", right, "= sum[e / 4][e % 4];")
    with pytest.raises((AssertionError, cuda_host.HostError)):
        cases.test_the_order_of_threads_and_blocks_changes_no_bit(kernels)
    x, w = torch.randn(4, 320).bfloat16(), torch.randn(8, 320).bfloat16()
    wrong = [cases.forward(kernels, x, w, None, "none", seed).float() for seed in range(3)]
    assert any(not torch.allclose(y, x.float() @ w.float().t(), rtol=0.05, atol=0.5) for y in wrong)
