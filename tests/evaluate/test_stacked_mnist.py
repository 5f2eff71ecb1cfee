"""Modes of stacked digits: against binomials by simulation, one number alone, and the digits themselves."""

import math

import pytest
import torch

from fastgan import data
from fastgan.data import Dataset, normalise
from fastgan.evaluate import Subject
from fastgan.evaluate.stacked_mnist import expected, measure, numbers_in, spread, suits


def test_one_number_alone_is_one_mode_and_log_1000():
    found = spread(torch.full((500,), 123), 1000)
    assert found.modes == 1
    assert found.kl == pytest.approx(math.log(1000))
    even = spread(torch.arange(3000) % 1000, 1000)
    assert (even.modes, even.kl) == (1000, pytest.approx(0, abs=1e-12))
    half = spread(torch.arange(1000) % 500, 1000)
    assert half.kl == pytest.approx(math.log(2))


@pytest.mark.parametrize("even", [True, False])
def test_what_a_perfect_generator_gives_is_that_of_multinomial_draws(even):
    random = torch.Generator().manual_seed(0)
    shares = torch.ones(40) if even else torch.arange(1, 41)
    shares = shares.double() / shares.sum()
    drawn = [spread(torch.multinomial(shares, 120, True, generator=random), 40) for _ in range(3000)]
    theory = expected(shares, 120)
    assert theory.modes == pytest.approx(sum(found.modes for found in drawn) / 3000, abs=0.15)
    assert theory.kl == pytest.approx(sum(found.kl for found in drawn) / 3000, abs=5e-3)


def test_the_published_protocol_covers_all_modes_and_its_bias_is_known():
    theory = expected(torch.full((1000,), 1e-3), 26_000)
    assert theory.modes == pytest.approx(1000, abs=1e-6)
    assert theory.kl == pytest.approx(999 / (2 * 26_000), rel=0.02)  # Miller and Madow's term


def stacked(n, seed=0):
    """Three random digits as channels, and the numbers that they are."""
    digits = data.load("digits")
    index = torch.randint(len(digits), (n, 3), generator=torch.Generator().manual_seed(seed))
    labels = digits.labels[index]
    return normalise(digits.images[index].squeeze(2)), (labels * torch.tensor([100, 10, 1])).sum(1)


def test_the_data_themselves_cover_what_draws_of_their_number_would():
    images, numbers = stacked(4000)
    known = Dataset.from_tensor(images, name="stacked-digits")
    result = measure(Subject.of_samples(stacked(4000, 1)[0], known), 4000)
    values = result.values
    assert values["modes covered"] == pytest.approx(values["modes covered, of a perfect generator"], abs=15)
    assert values["KL to uniform"] == pytest.approx(values["KL to uniform, of a perfect generator"], rel=0.1)
    assert values["KL to uniform"] == pytest.approx(values["KL to uniform, real data"], rel=0.1)
    assert "a classifier of digits that is right on" in result.protocol

    from fastgan.evaluate.classifier import load_classifier

    assert (numbers_in(images, load_classifier("digits")) == numbers).double().mean() > 0.97
    alone = measure(Subject.of_samples(images[:1].expand(400, -1, -1, -1), known), 400).values
    assert alone["modes covered"] == 1
    assert alone["KL to uniform"] == pytest.approx(math.log(1000))


def test_other_data_do_not_suit():
    assert suits(data.load("digits")) is not None
    assert suits(Dataset.from_tensor(stacked(4)[0], name="stacked-digits")) is None
