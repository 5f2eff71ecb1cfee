"""What the proofs of the kernels share: numbers, tiles of a test's own choice, orders of arrival, a file with holes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

Numbers = Callable[..., Tensor]


@pytest.fixture(scope="session")
def numbers() -> Numbers:
    """``numbers(seed, *size, dtype, device)``: the same normal numbers on every device."""

    def numbers(seed: int, *size: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
        return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype).to(device)

    return numbers


@pytest.fixture
def set_tile(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``set_tile(rows, cols, depth, split)``: the tile of every launch of the linear kernels from now on."""
    from fastgan.kernels import launch, linear, linear_bwd_input, linear_bwd_weight
    from fastgan.kernels.tile import Config

    def set_tile(rows: int, cols: int, depth: int, split: int = 1) -> None:
        tile = Config(rows, cols, depth, 4, 255, 3, split)
        monkeypatch.setattr(launch, "_replays", {})  # of launches with another tile
        for module in (linear, linear_bwd_input, linear_bwd_weight):
            monkeypatch.setattr(module, "choose", lambda problem: tile)

    return set_tile


@pytest.fixture
def shared_tickets(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Tensor]:
    """``shared_tickets(device)``: the one buffer that every launch gets its tickets from."""
    from fastgan.kernels import launch

    def shared_tickets(device: str) -> Tensor:
        buffer = torch.zeros(4096, dtype=torch.int32, device=device)
        monkeypatch.setattr(launch, "tickets", lambda operand, count: buffer)
        return buffer

    return shared_tickets


@pytest.fixture
def renumber(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int, int], int]], None]:
    """``renumber(f)``: the interpreter's i-th program of n is number f(i, n) from now on, not number i."""
    from triton.runtime.interpreter import interpreter_builder as builder

    def renumber(number: Callable[[int, int], int]) -> None:
        def start(x: int, y: int, z: int) -> None:
            builder.grid_idx = (number(x, builder.grid_dim[0]), y, z)

        monkeypatch.setattr(builder, "set_grid_idx", start)

    return renumber


@pytest.fixture
def sparse(tmp_path: Path) -> Callable[[torch.dtype], Tensor]:
    """``sparse(dtype)``: 19 GB of zeros in a file with holes, of which only the pages that are written take room."""
    size = 2**34 + 2**31
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", size)

    def sparse(dtype: torch.dtype) -> Tensor:
        return torch.from_file(str(tmp_path / "sparse"), shared=True, size=size // dtype.itemsize, dtype=dtype)

    return sparse
