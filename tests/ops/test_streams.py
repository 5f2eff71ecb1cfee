"""Where random bits come from: which counters, their reading by numpy, and the numbers that are made of them."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastgan.errors import UserError
from fastgan.ops import dropout, host_draws, streams

INT64 = st.integers(-(2**63), 2**63 - 1)
PURPOSES = (streams.ORDER, streams.FLIP, streams.NOISE, streams.LATENT, streams.LABEL)


def test_no_two_draws_share_a_counter() -> None:
    """Purpose and count are the counter's upper half, each in bits of its own; the place is the lower half."""
    counts = [0, 1, 2, 2**31, 2**32 + 1, 2**40, 2**56 - 1]
    pairs = [(purpose, streams.rng(purpose, torch.tensor(count), 7)) for purpose, count in product(PURPOSES, counts)]
    offsets = [int(rng[1]) for _, rng in pairs]
    assert len(set(offsets)) == len(offsets) == len(set(PURPOSES)) * len(counts)
    assert all(offset >> streams.COUNT_BITS == purpose for (purpose, _), offset in zip(pairs, offsets, strict=True))
    assert all(rng[0] == 7 for _, rng in pairs)


def test_sites_of_a_step_share_no_count() -> None:
    counts = [int(streams.count(torch.tensor(clock), (3, index))) for clock in range(5) for index in range(3)]
    assert counts == list(range(15))


@pytest.mark.parametrize("seed, key", [(0, 0), (-1, -1), (2**64 - 1, -1), (2**63, -(2**63)), (2**63 - 1, 2**63 - 1)])
def test_a_seed_has_64_bits(seed: int, key: int) -> None:
    assert streams.key(seed) == key


def test_what_is_no_seed_clock_or_site() -> None:
    for seed in (2**64, -(2**63) - 1):
        with pytest.raises(UserError, match="64 bits"):
            streams.key(seed)
    for site in ((0, 0), (1, 1), (2, -1), (2**31, 0)):
        with pytest.raises(UserError, match="site"):
            streams.check_site(site)
    for clock in (
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(()),
        torch.zeros((), dtype=torch.int64, device="meta"),
    ):
        with pytest.raises(UserError, match="clock has to be int64"):
            streams.check_clock(clock, torch.device("cpu"))


@given(seed=INT64, offset=INT64, first=st.integers(0, 2**62))
def test_numpy_has_the_same_words(seed: int, offset: int, first: int) -> None:
    rng, places = torch.tensor([seed, offset]), first + torch.arange(6).view(2, 3)
    assert torch.equal(host_draws.words(rng, places), dropout.words(rng, places))


def test_the_extremes_of_a_word_are_finite() -> None:
    ends = torch.tensor([0, 1, 2**29 - 1, 2**29, 2**30, 2**31 - 1, 2**31, 3 * 2**30, 2**32 - 2**29, 2**32 - 1])
    pairs = torch.cartesian_prod(ends, ends).view(-1, 4)
    for dtype in (torch.float32, torch.float64):
        numbers = streams.normals(pairs, dtype)
        assert numbers.isfinite().all() and abs(numbers.abs().max().item() - math.sqrt(66 * math.log(2))) < 1e-5
    units = streams.units(ends)
    assert units.min() == -1 and units.max() == 1 - 2.0**-23
    assert streams.below(ends, 10).min() == 0 and streams.below(ends, 10).max() == 9


def test_normal_numbers_are_normal() -> None:
    """Shares of twenty equal parts, moments, tails, and no correlation of the two that one radius makes."""
    numbers = streams.normals(streams.words(streams.rng(streams.LATENT, torch.tensor(3), 11), 400_000)).double()
    parts = (torch.special.ndtr(numbers) * 20).long().flatten().bincount(minlength=20)
    assert (parts - 20_000).square().sum() / 20_000 < 52  # chi-square of 19 at 1e-4
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(numbers.pow(power).mean() - moment) < 4.5 * math.sqrt(spread / 400_000)
    assert 60 < (numbers.abs() > 3.89).sum() / 400_000 * 1e6 < 145  # 100 of a million
    assert torch.corrcoef(numbers.T).fill_diagonal_(0).abs().max() < 0.015
    assert torch.corrcoef(numbers.abs().T).fill_diagonal_(0).abs().max() < 0.015
