"""The kernels' dropout against the reference's, bit for bit, wherever an element stands."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastgan.ops import dropout as reference

pytest.importorskip("triton")
import triton
import triton.language as tl

from fastgan.kernels.philox import dropout, dropout_tile, kept, words

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
on_devices = pytest.mark.parametrize("device", DEVICES)
PLACES = (0, 1, 2**31 - 3, 2**32 - 2, 2**33 + 5, 2**34 - 1, 2**40 + 2, 2**62 + 3)
INT64 = st.integers(-(2**63), 2**63 - 1)


@triton.jit
def words_kernel(rng, four, out, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    first, second, third, fourth = words(rng, tl.load(four + at))
    tl.store(out + 4 * at, first.to(tl.int64))
    tl.store(out + 4 * at + 1, second.to(tl.int64))
    tl.store(out + 4 * at + 2, third.to(tl.int64))
    tl.store(out + 4 * at + 3, fourth.to(tl.int64))


@triton.jit
def dropout_kernel(v, rng, at, y, stays, threshold, scale, COUNT: tl.constexpr):
    here = tl.arange(0, COUNT)
    place = tl.load(at + here)
    tl.store(y + here, dropout(tl.load(v + here), rng, place, threshold, scale))
    tl.store(stays + here, kept(rng, place, threshold))


@triton.jit
def tile_kernel(v, rng, y, N, first, column, threshold, scale, FOURS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    m = tl.arange(0, BM)
    here = m[:, None] * BN + tl.arange(0, BN)[None, :]
    row = (first + m.to(tl.int64)) * N
    tl.store(y + here, dropout_tile(tl.load(v + here), rng, row, column, threshold, scale, FOURS))


def expected(rng: Tensor, at: Tensor, p: float) -> Tensor:
    """Whether elements anywhere are kept, by the reference's words."""
    return reference.words(rng, at >> 2).gather(-1, at.unsqueeze(-1) & 3).squeeze(-1) >= reference.threshold(p)


def around(places: tuple[int, ...], device: str) -> Tensor:
    """64 elements on from each of these places."""
    return torch.cat([place + torch.arange(64) for place in places]).to(device)


@on_devices
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy interprets what wraps around
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=INT64, offset=INT64, four=st.integers(0, 2**61))
def test_the_same_words(device: str, seed: int, offset: int, four: int) -> None:
    rng = torch.tensor([seed, offset], device=device)
    fours = four + torch.arange(16, device=device)
    out = torch.full((16, 4), -1, device=device)
    words_kernel[(1,)](rng, fours, out, 16)
    assert torch.equal(out, reference.words(rng, fours))


@on_devices
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("p", [0.0, 1e-9, 0.3, 0.5, 0.75, 1.0])
def test_the_same_elements_fall_out_everywhere(device: str, p: float) -> None:
    rng, at = torch.tensor([2**40 + 7, 2**35 + 3], device=device), around(PLACES, device)
    v = torch.randn(len(at), generator=torch.Generator().manual_seed(0)).to(device)
    y, stays = torch.full_like(v, math.nan), torch.zeros(len(at), dtype=torch.bool, device=device)
    dropout_kernel[(1,)](v, rng, at, y, stays, reference.threshold(p), reference.scale(p), len(at))
    keep = expected(rng, at, p)
    assert torch.equal(stays, keep)
    assert torch.equal(y, torch.where(keep, v * reference.scale(p), 0))
    assert keep.all() if p == 0 else not keep.any() if p == 1 else p < 0.1 or 0.05 < keep.double().mean() < 0.95


@on_devices
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_what_falls_out_is_0_and_what_stays_is_not(device: str) -> None:
    rng, at = torch.tensor([3, 4], device=device), around((0,), device)
    for bad in (math.nan, math.inf):
        v, y = torch.full((64,), bad, device=device), torch.full((64,), 5.0, device=device)
        stays = torch.zeros(64, dtype=torch.bool, device=device)
        dropout_kernel[(1,)](v, rng, at, y, stays, 2**31, 2.0, 64)
        torch.testing.assert_close(y, torch.where(stays, v, 0), equal_nan=True)
        assert 10 < stays.sum() < 54


@on_devices
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("N, fours", [(64, True), (36, True), (2**33 + 8, True), (64, False), (33, False)])
def test_tiles_fall_out_as_their_elements_do(device: str, N: int, fours: bool) -> None:
    rng = torch.tensor([11, 12], device=device)
    v = torch.randn(8, 16, generator=torch.Generator().manual_seed(1)).to(device)
    y = torch.full_like(v, math.nan)
    tile_kernel[(1,)](v, rng, y, N, 2**27 + 3, 16, reference.threshold(0.3), reference.scale(0.3), fours, 8, 16)
    at = (2**27 + 3 + torch.arange(8)[:, None]) * N + 16 + torch.arange(16)
    assert torch.equal(y, torch.where(expected(rng, at.to(device), 0.3), v * reference.scale(0.3), 0))
