"""CTGAN's networks: shapes, one-hots, conditions, the generator's own loss, and the public discriminator's logits."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fastgan import models
from fastgan.errors import UserError

SPANS = [(0, 1, "alpha"), (1, 4, "onehot"), (4, 6, "onehot"), (6, 9, "onehot")]  # a number, and two categories


def generator(**options: Any) -> Any:
    torch.manual_seed(2)
    return models.generator("ctgan", 5, (9,), {"hidden": (8, 7), **options}, spans=SPANS)


def conditions(*which: int) -> torch.Tensor:
    return torch.eye(5)[list(which)]


def test_rows_are_points_of_the_table() -> None:
    """What was told is passed on; one-hots sum to 1; the mode of a number is no condition."""
    made = generator()
    assert made.conditions == 5 and made.categories == [(4, 6), (6, 9)]
    told = conditions(*[at % 5 for at in range(40)])
    rows, missed = made(torch.cat((torch.randn(40, 5), told), 1))
    assert torch.equal(rows[:, 9:], told) and missed.dim() == 0
    assert rows[:, 0].abs().max() <= 1
    for start, stop, what in SPANS[1:]:
        assert what == "onehot"
        torch.testing.assert_close(rows[:, start:stop].sum(1), torch.ones(40))
    assert [layer.layers[0].in_features for layer in made.layers[:2]] == [10, 18]
    assert made.layers[2].in_features == 25


def test_the_loss_of_a_condition_is_the_cross_entropy_of_its_column() -> None:
    made = generator(hidden=())
    with torch.no_grad():
        made.layers[0].weight.zero_()
        made.layers[0].bias.copy_(torch.tensor([0.0, 0, 0, 0, 1.0, -1.0, 0.0, 2.0, 0.0]))
    _, missed = made(torch.cat((torch.randn(2, 5), conditions(0, 4)), 1))
    first, second = math.log(math.exp(1) + math.exp(-1)) - 1, math.log(2 + math.exp(2))
    assert float(missed.detach()) == pytest.approx((first + second) / 2)


def test_categories_come_as_often_as_their_logits_say() -> None:
    """Gumbel's noise: the largest of a one-hot is a draw from the softmax, whatever tau is."""
    made = generator(hidden=(), conditional=False).eval()
    logits = torch.tensor([0.0, 0, 0, 0, 0, 1.0, -1.0, 0.5, 0.0])
    with torch.no_grad():
        made.layers[0].weight.zero_()
        made.layers[0].bias.copy_(logits)
        rows = made(torch.randn(20_000, 5))
    for start, stop, _ in SPANS[1:]:
        found = rows[:, start:stop].argmax(1).bincount(minlength=stop - start) / 20_000
        torch.testing.assert_close(found, logits[start:stop].softmax(0), atol=0.015, rtol=0)


def test_in_evaluation_a_condition_is_given_or_drawn_by_its_share() -> None:
    made = generator().eval()
    made.shares.copy_(torch.tensor([0.5, 0.0, 0.1, 0.3, 0.1]))
    drawn = made._drawn(10_000).float()
    torch.testing.assert_close(drawn.mean(0), made.shares, atol=0.02, rtol=0)
    z = torch.randn(3, 5)
    torch.manual_seed(1)
    free = made(z)
    torch.manual_seed(1)
    assert torch.equal(free, made(z)) and free.shape == (3, 9)
    assert made(torch.cat((z, conditions(1, 1, 1)), 1)).shape == (3, 9)


def test_the_discriminator_is_the_public_one() -> None:
    spec = importlib.util.spec_from_file_location("public", Path(__file__).with_name("ctgan.py"))
    assert spec and spec.loader
    public: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(public)
    theirs = public.Discriminator(9, (8, 7), pac=4)
    ours = models.discriminator("ctgan", (36,), {"hidden": (8, 7)})
    ours.load_state_dict({key.replace("seq", "layers"): value for key, value in theirs.state_dict().items()})
    rows = torch.randn(20, 9)
    torch.manual_seed(3)
    wanted = theirs(rows).squeeze(1)
    torch.manual_seed(3)
    torch.testing.assert_close(ours(rows.view(5, 36)), wanted)


def test_without_a_table_or_with_options_that_are_none() -> None:
    with pytest.raises(UserError, match="makes rows of a table, and the data are none: take csv:FILE"):
        models.generator("ctgan", 5, (9,), {})
    with pytest.raises(UserError, match="tau"):
        generator(tau=0.0)
    with pytest.raises(UserError, match="dropout"):
        models.discriminator("ctgan", (9,), {"dropout": 1.0})
    with pytest.raises(UserError, match="at least 1"):
        generator(hidden=(0,))
    assert generator(conditional=False).conditions == 0
    assert set(models.options_of("ctgan", side="generator")) == {"hidden", "tau", "conditional"}
