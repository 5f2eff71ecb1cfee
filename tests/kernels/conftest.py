"""What the proofs of the kernels share: numbers, layouts, geometries, tiles, orders of arrival, a file with holes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
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
    """``set_tile(rows, cols, depth, split)``: the tile of every product's launch from now on."""
    from fastgan.kernels import conv_bwd_weight, conv_product, launch, linear, linear_bwd_input, linear_bwd_weight
    from fastgan.kernels.tile import Config

    def set_tile(rows: int, cols: int, depth: int, split: int = 1) -> None:
        tile = Config(rows, cols, depth, 4, 255, 3, split)
        monkeypatch.setattr(launch, "_replays", {})  # of launches with another tile
        for module in (linear, linear_bwd_input, linear_bwd_weight, conv_product, conv_bwd_weight):
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


@pytest.fixture
def ieee() -> Iterator[None]:
    """Convolutions of fp32 keep all its bits."""
    conv = torch.backends.cudnn.conv
    before, conv.fp32_precision = conv.fp32_precision, "ieee"
    yield
    conv.fp32_precision = before


@pytest.fixture(scope="session")
def laid() -> Callable[[Tensor, str], Tensor]:
    """``laid(images, layout)``: the same values in one of the layouts that people pass; what lies between is NaN."""

    def laid(images: Tensor, layout: str) -> Tensor:
        n, c, h, w = images.shape
        if layout == "steps":
            return images.new_full((2 * n, 2 * c, h + 1, 3 * w), float("nan"))[::2, 1::2, 1:, ::3].copy_(images)
        if layout == "expanded":
            return images[:1, :1, :1, :1].expand(images.shape)
        if layout == "turned":
            return images.transpose(2, 3).contiguous().transpose(2, 3)
        return images.contiguous(memory_format=torch.channels_last if layout == "last" else torch.contiguous_format)

    return laid


@pytest.fixture(scope="session")
def convolved() -> Callable[..., Tensor]:
    """``convolved(x, weight, geometry, transposed)``: what torch makes of it, as autograd can see."""

    def convolved(x: Tensor, weight: Tensor, geometry: Any, transposed: bool) -> Tensor:
        h, w = geometry
        stride, padding, dilation = (h.stride, w.stride), (h.padding, w.padding), (h.dilation, w.dilation)
        if transposed:
            reach = [(a.grid - 1) * a.stride - 2 * a.padding + (a.kernel - 1) * a.dilation + 1 for a in geometry]
            extra = (h.image - reach[0], w.image - reach[1])
            return F.conv_transpose2d(x, weight, None, stride, padding, extra, 1, dilation)
        x = x.repeat_interleave(h.up, 2).repeat_interleave(w.up, 3)
        return F.conv2d(x, weight, None, stride, padding, dilation)

    return convolved


@pytest.fixture(scope="session")
def geometries() -> Callable[..., st.SearchStrategy[Any]]:
    """``geometries(transposed, up)``: samples and a geometry; at least 8 positions a channel, or sums have no scale."""
    from fastgan.kernels.conv_map import Axis, Geometry

    def axis(draw: Any, kernels: int, strides: int, transposed: bool, up: int) -> Axis:
        kernel, dilation = draw(st.integers(1, kernels)), draw(st.sampled_from((1, 1, 1, 2, 3, 4)))
        stride = 1 if up > 1 else draw(st.sampled_from((1, 1, 2, 2, 3, strides)))
        reach, more = (kernel - 1) * dilation + 1, draw(st.integers(0, 3))
        padding = draw(st.integers(0, reach // 2 + 1))
        if transposed:
            grid, extra = 1 + more, draw(st.integers(0, max(stride, dilation) - 1))
            padding = min(padding, (more * stride + reach - 1) // 2)
            return Axis(more * stride - 2 * padding + reach + extra, grid, kernel, stride, padding, dilation)
        image = max(1, -(-(reach - 2 * padding) // up)) + more
        return Axis(image, (image * up + 2 * padding - reach) // stride + 1, kernel, stride, padding, dilation, up)

    @st.composite
    def geometries(draw: Any, transposed: bool, up: int = 1) -> tuple[int, Geometry]:
        first = axis(draw, draw(st.sampled_from((3, 4, 16))), 8, transposed, up)
        others = max(1, min(4, 12 // first.kernel)), max(1, 8 // first.stride)  # of both axes together: not too many
        both = [first, axis(draw, *others, transposed, up)]
        geometry = Geometry(*draw(st.permutations(both)))
        positions = min(geometry.h.image * geometry.w.image, geometry.h.grid * geometry.w.grid)
        return max(draw(st.integers(1, 3)), -(-8 // positions)), geometry

    return geometries
