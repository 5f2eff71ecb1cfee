"""Lazy regularisation: when it is due, how heavy it is, and what StyleGAN2 gives Adam for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastgan.errors import UserError
from fastgan.objectives.lazy import Lazy
from fastgan.objectives.penalties import Penalty, r1


def critic(x: Tensor) -> Tensor:
    return x.square().sum(1)


@pytest.mark.parametrize("every", [1, 4, 16])
def test_due_every_so_many_steps_and_as_heavy_on_average(every: int) -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    lazy, want = Lazy(r1, every), r1(critic, x)
    given = [lazy(step, critic, x) for step in range(32)]
    assert [step for step, now in enumerate(given) if now is not None] == list(range(0, 32, every))
    assert [lazy.due(step) for step in range(32)] == [now is not None for now in given]
    torch.testing.assert_close(sum(now.value for now in given if now is not None) / 32, want.value)
    assert isinstance(given[0], Penalty)
    torch.testing.assert_close(given[0].norm, want.norm)
    torch.testing.assert_close(lazy.heavy(critic, x).value, every * want.value)


def test_a_penalty_that_is_a_number_and_keywords() -> None:
    lazy = Lazy(lambda x, *, scale: x.sum() * scale, 8)
    assert lazy(8, torch.ones(3), scale=2.0).item() == 48
    assert lazy(9, torch.ones(3), scale=2.0) is None


def test_nothing_runs_where_it_is_not_due() -> None:
    def never(*operands: object) -> Tensor:
        raise AssertionError

    assert all(Lazy(never, 16)(step) is None for step in range(1, 16))


def test_adam_as_in_stylegan2() -> None:
    lr, betas = Lazy(r1, 16).adam(0.002, (0.0, 0.99))
    assert lr == pytest.approx(0.002 * 16 / 17) and betas == (0.0, pytest.approx(0.99 ** (16 / 17)))


def test_fewer_than_one_step() -> None:
    with pytest.raises(UserError, match="every 1 or more steps, not every 0"):
        Lazy(r1, 0)
