"""Dropout's random bits against published vectors and an integer-by-integer Philox, its statistics, its gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastgan.errors import UserError
from fastgan.ops import dropout

ONES, PI = (0xFFFFFFFF,) * 6, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0)
KNOWN = [  # Random123's kat_vectors: rounds, counter and key, result
    (7, (0,) * 6, (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
    (7, ONES, (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
    (7, PI, (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A)),
    (10, (0,) * 6, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (10, ONES, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (10, PI, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


def rng(seed: int = 1, offset: int = 2) -> torch.Tensor:
    return torch.tensor([seed, offset])


@pytest.mark.parametrize("rounds, state, result", KNOWN)
def test_published_vectors(rounds: int, state: tuple[int, ...], result: tuple[int, ...]) -> None:
    words = torch.tensor(state).unbind()
    assert tuple(int(word) for word in dropout.philox(words[:4], words[4:], rounds)) == result


def by_integers(seed: int, offset: int, four: int) -> list[int]:
    """The same words, one integer after the other."""
    c0, c1, c2, c3, k0, k1 = (half for value in (four, offset, seed) for half in (value % 2**32, (value >> 32) % 2**32))
    for _ in range(dropout.ROUNDS):
        left, right = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = right >> 32 ^ c1 ^ k0, right % 2**32, left >> 32 ^ c3 ^ k1, left % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


INT64 = st.integers(-(2**63), 2**63 - 1)


@given(INT64, INT64, st.lists(st.integers(0, 2**61), min_size=1, max_size=3))
def test_every_bit_of_seed_offset_and_place_counts(seed: int, offset: int, fours: list[int]) -> None:
    words = dropout.words(rng(seed, offset), torch.tensor(fours))
    assert words.tolist() == [by_integers(seed, offset, four) for four in fours]


def test_the_mask_reads_the_words_in_order() -> None:
    mask = dropout.keep_mask(rng(), (3, 7), 0.4)
    words = [word for four in range(6) for word in by_integers(1, 2, four)]
    assert mask.shape == (3, 7)
    assert mask.flatten().tolist() == [word >= round(0.4 * 2**32) for word in words[:21]]
    assert torch.equal(dropout.keep_mask(rng(), 21, 0.4), mask.flatten())
    assert dropout.keep_mask(rng(), (0, 5), 0.4).shape == (0, 5) and dropout.keep_mask(rng(), (), 0.4).shape == ()


@pytest.mark.parametrize("p", [0.001, 0.3, 0.5, 0.9])
def test_kept_as_often_as_asked_and_independently(p: float) -> None:
    """Within 5 standard deviations: the rate, and products of masks of neighbours, rows, offsets and seeds."""
    count, cols = 2**18, 64
    kept = dropout.keep_mask(rng(), count, p).double() - (1 - p)
    deviation = math.sqrt(p * (1 - p) * count)
    assert abs(kept.sum()) < 5 * deviation
    others = [kept.roll(places) for places in (1, 2, 3, 4, 5, cols, 7 * cols)]
    others += [dropout.keep_mask(rng(*state), count, p).double() - (1 - p) for state in ((1, 3), (2, 2), (2, 1))]
    for other in others:
        assert abs((kept * other).sum()) < 5 * p * (1 - p) * math.sqrt(count)
    by_column = kept.view(-1, cols).sum(0) / math.sqrt(p * (1 - p) * count / cols)
    assert by_column.abs().max() < 5
    if p >= 0.01:  # the sum of squares of 64 standard normal numbers
        assert 20 < by_column.square().sum() < 130


def test_words_are_uniform_and_do_not_repeat() -> None:
    fours = torch.cat([start + torch.arange(2**12) for start in (0, 2**30, 2**32, 2**60)])
    words = torch.cat([dropout.words(rng(1, offset), fours) for offset in (0, 1, 2**32)])
    assert len(words.unique(dim=0)) == len(words)
    for bit in range(32):
        ones = (words >> bit & 1).sum(0)
        assert (ones - len(words) / 2).abs().max() < 5 * math.sqrt(len(words)) / 2


def test_the_ends_of_the_range() -> None:
    v = torch.tensor([1.0, -math.inf, math.nan, 2.0])
    assert torch.equal(dropout.dropped(v, rng(), 1.0), torch.zeros(4))
    torch.testing.assert_close(dropout.dropped(v, rng(), 0.0), v, equal_nan=True)
    assert dropout.threshold(0.0) == 0 and dropout.threshold(1.0) == 2**32 and dropout.threshold(0.5) == 2**31
    assert dropout.scale(0.75) == 4.0 and dropout.scale(1.0) == 0.0


@pytest.mark.parametrize("p", [-0.1, 1.5, math.nan])
def test_no_other_probabilities(p: float) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        dropout.check(p)
    assert dropout.check(1) == 1.0


def test_values_and_gradients() -> None:
    v = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    kept = dropout.keep_mask(rng(), v.shape, 0.4)
    assert torch.equal(dropout.dropped(v, rng(), 0.4), torch.where(kept, v / (1 - 0.4), 0))
    assert torch.autograd.gradcheck(lambda v: dropout.dropped(v, rng(), 0.4), v)
    assert torch.autograd.gradgradcheck(lambda v: dropout.dropped(v, rng(), 0.4).pow(3), v)
    (gradient,) = torch.autograd.grad(dropout.dropped(v, rng(), 1.0).sum(), v)
    assert torch.equal(gradient, torch.zeros_like(v))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_draws_follow_the_seed_of_pytorch(device: str) -> None:
    torch.manual_seed(5)
    first, second = dropout.draw(device), dropout.draw(device)
    torch.manual_seed(5)
    assert torch.equal(dropout.draw(device), first)
    assert first.dtype == torch.int64 and first.shape == (2,) and first.device.type == device
    assert len({*first.tolist(), *second.tolist()}) == 4


@pytest.mark.gpu
def test_each_replay_draws_anew() -> None:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        drawn = dropout.draw("cuda")
        mask = dropout.keep_mask(drawn, 4096, 0.5)
    seen = set()
    for _ in range(3):
        graph.replay()
        assert torch.equal(mask, dropout.keep_mask(drawn, 4096, 0.5))
        seen.add(tuple(drawn.tolist()))
    assert len(seen) == 3
