"""Generators whose paths are known: a straight line, a jump, a constant, and one that looks at its class alone."""

import functools
import math

import pytest
import torch

from fastgan import data
from fastgan.evaluate import Subject
from fastgan.evaluate.interpolation import STEPS, jumps, measure, variation
from fastgan.train.latents import between, drawn

DIGITS = data.load("digits")
WEIGHTS = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))


def subject(make, **others):
    def latents(n, seed):
        return drawn("uniform", 4, n, torch.Generator().manual_seed(seed))

    return Subject(
        lambda n: make(latents(n, 0)), DIGITS, make, latents, functools.partial(between, "uniform"), **others
    )


def straight(z, labels=None):
    return (z @ WEIGHTS).view(-1, 1, 8, 8)


def test_an_even_pace_is_1_and_a_jump_is_the_number_of_steps():
    line = torch.linspace(0, 1, 11, dtype=torch.float64)[None, :, None].expand(3, -1, 5)
    torch.testing.assert_close(jumps(line), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(jumps((line > 0.5).float()), torch.full((3,), 10.0, dtype=torch.float64))
    assert jumps(line * 0).isnan().all()


def test_variation_is_that_within_classes():
    labels = torch.arange(400) % 4
    noise = torch.randn(400, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    apart = noise + 10 * labels[:, None]
    assert variation(noise) == pytest.approx(3, rel=0.1)
    assert variation(apart) > 300
    assert variation(apart, labels) == pytest.approx(3, rel=0.1)


def test_a_straight_generator_follows_the_latent():
    values = measure(subject(straight)).values
    assert values["largest step / mean step, worst path"] == pytest.approx(1, abs=1e-4)
    expected = 4 / 3 * float(WEIGHTS.square().sum()) / 4 / variation(DIGITS.batch(torch.arange(len(DIGITS))))
    assert values["variation over z / of the data"] == pytest.approx(expected, rel=0.1)


def test_a_generator_that_jumps_is_told():
    result = measure(subject(lambda z, labels=None: torch.sign(z[:, :1]).expand(-1, 64).reshape(-1, 1, 8, 8)))
    assert result.values["largest step / mean step, worst path"] == pytest.approx(STEPS)
    assert "jump" in result.reading and "without" not in result.reading


@pytest.mark.parametrize("classes", [0, 10])
def test_an_ignored_latent_is_told(classes):
    def of_class(z, labels=None):
        shown = torch.zeros(len(z)) if labels is None else labels / 10
        return shown.view(-1, 1, 1, 1).expand(-1, 1, 8, 8) + 1e-3 * straight(z)

    result = measure(subject(of_class, classes=classes))
    assert result.values["variation over z / of the data"] < 1e-4
    assert result.reading.startswith("the latent is ignored")
    constant = measure(subject(lambda z, labels=None: torch.zeros(len(z), 1, 8, 8), classes=classes))
    assert constant.reading.startswith("the latent is ignored")


def test_the_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    measure(subject(straight)).pictures["interpolation.png"](tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_generator_that_stands_still_has_no_pace():
    values = measure(subject(lambda z, labels=None: torch.zeros(len(z), 2))).values
    assert math.isnan(values["largest step / mean step, worst path"])
