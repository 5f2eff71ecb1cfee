"""The order of an epoch: each sample once, whatever n; no order like another; and nothing that a statistic sees."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastgan.errors import UserError
from fastgan.ops.permutation import permuted


class NothingOfTheHost(TorchDispatchMode):
    """Runs what a capture would record, and refuses what it could not."""

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert call not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), call
        return call(*args, **(kwargs or {}))


def order(n: int, seed: int, epoch: int) -> Tensor:
    return permuted(torch.arange(n), n, seed, epoch)


@given(n=st.integers(1, 5000), seed=st.integers(-(2**63), 2**64 - 1), epoch=st.integers(0, 2**40))
def test_each_sample_stands_somewhere_once(n: int, seed: int, epoch: int) -> None:
    assert torch.equal(order(n, seed, epoch).sort().values, torch.arange(n))


@given(n=st.integers(1, 2**31 - 1), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 2**40), data=st.data())
def test_captures_see_the_same_order(n: int, seed: int, epoch: int, data: st.DataObject) -> None:
    position = torch.tensor(data.draw(st.lists(st.integers(0, n - 1), min_size=4, max_size=4))).view(2, 2)
    with NothingOfTheHost():
        plain = permuted(position, n, seed, torch.tensor(epoch))
    assert torch.equal(plain, permuted(position, n, seed, epoch))
    assert plain.min() >= 0 and plain.max() < n


def test_no_two_epochs_are_alike() -> None:
    """Nor where the bits of a seed and of an epoch could be taken for each other's."""
    pairs = [(seed, epoch) for seed in (0, 1, 2**32, 2**33, 2**32 + 1) for epoch in (0, 1, 2, 2**32, 2**32 + 1)]
    orders = {tuple(order(30, *pair).tolist()) for pair in pairs}
    assert len(orders) == len(pairs)


@pytest.mark.parametrize("n", [0, -1, 2**31])
def test_what_cannot_be_shuffled(n: int) -> None:
    with pytest.raises(UserError, match="cannot be shuffled"):
        permuted(torch.zeros(1, dtype=torch.int64), n, 0, 0)


def surplus(counts: Tensor) -> float:
    """Chi-square of equal shares in standard deviations from what chance gives."""
    freedom, share = counts.numel() - 1, counts.double().mean()
    return float(((counts - share).square().sum() / share - freedom) / math.sqrt(2 * freedom))


@pytest.fixture(scope="module")
def orders() -> Callable[[int, int], Tensor]:
    def orders(n: int, epochs: int) -> Tensor:
        return torch.stack([order(n, 5, epoch) for epoch in range(epochs)])

    return orders


def test_every_order_of_a_few_is_as_frequent(orders: Callable[[int, int], Tensor]) -> None:
    digits = orders(4, 2400) @ torch.tensor([64, 16, 4, 1])
    kinds, counts = digits.unique(return_counts=True)
    assert len(kinds) == 24 and abs(surplus(counts)) < 4


def test_positions_and_distances_are_even(orders: Callable[[int, int], Tensor]) -> None:
    n, epochs = 40, 1500
    drawn = orders(n, epochs)
    places = torch.stack([drawn[:, at].bincount(minlength=n) for at in range(n)])
    assert abs(surplus(places)) < 4
    distances = (drawn.diff(dim=1) % n).flatten().bincount(minlength=n)
    assert distances[0] == 0 and abs(surplus(distances[1:])) < 4


def test_large_orders_leave_nothing_of_themselves(orders: Callable[[int, int], Tensor]) -> None:
    """Neighbours part, samples move on, and an epoch says nothing of the next: all within chance."""
    n, epochs = 30_000, 12
    drawn = orders(n, epochs)
    neighbours, unmoved = (drawn.diff(dim=1).abs() == 1).sum(), (drawn == torch.arange(n)).sum()
    assert neighbours < 2 * epochs + 25 and unmoved < epochs + 18  # Poisson's 24 and 12
    again = (drawn[1:] == drawn[:-1]).sum()
    assert again < 11 + 18
    numbers = drawn.double()
    limit = 4.5 / math.sqrt(n)
    for epoch in range(epochs):
        assert abs(torch.corrcoef(torch.stack((numbers[epoch, 1:], numbers[epoch, :-1])))[0, 1]) < limit
    assert torch.corrcoef(numbers).fill_diagonal_(0).abs().max() < limit
    blocks = torch.zeros(30, 30).index_put_(
        (torch.arange(n).repeat(epochs) // 1000, drawn.flatten() // 1000), torch.ones(n * epochs), accumulate=True
    )
    assert abs(surplus(blocks)) < 4
