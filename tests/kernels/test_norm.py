"""What finishes a norm's statistics, by itself: tiles of unequal numbers of rows, merged a few at a time."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
import triton
import triton.language as tl

from fastgan.kernels.norm import finish_statistics

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]


@triton.jit
def finish(parts, tiles, rows, groups, C, mean, var, share, BC: tl.constexpr, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    c = tl.arange(0, BC)
    finish_statistics(parts, tiles, rows, groups, c, c < C, C, mean, var, None, None, None, 0.0, share, BC, LANES)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows, share", [(2, 7), (7, 7), (8, 7), (29, 7), (57, 7), (58, 7), (64, 16), (65, 1)])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_merged_tiles_are_the_whole(device: str, rows: int, share: int, offset: float) -> None:
    """Also where the last tile has fewer rows, the last lanes no tile, and the means are large and far apart."""
    groups, C = 2, 5
    y = torch.randn(groups, rows, C, generator=torch.Generator().manual_seed(rows)).double()
    y += offset + torch.arange(rows)[:, None]
    tiles = [list(group.split(share)) for group in y]
    parts = [torch.stack([tile.mean(0), tile.var(0, unbiased=False) * len(tile)]) for own in tiles for tile in own]
    stored = torch.stack(parts).float().to(device)
    mean, var = torch.full((2, groups, C), float("nan"), device=device)
    finish[(1,)](stored, len(tiles[0]), rows, groups, C, mean, var, share, BC=8, LANES=4)
    torch.testing.assert_close(mean.cpu().double(), y.mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var.cpu().double(), y.var(1, unbiased=False), rtol=1e-5, atol=0)
