"""Generators whose paths are known: a straight line, a jump, a constant, and one that looks at its class alone."""

import functools
import math
from dataclasses import replace

import pytest
import torch

from fastgan import data
from fastgan.data import Dataset
from fastgan.errors import UserError
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


def test_few_samples_of_each_class_vary_no_less():
    """Classes with one sample have no variance, and count for none."""
    noise = torch.randn(9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2])
    expected = (noise[:4].var(0).sum() + noise[4:8].var(0).sum()) / 2
    assert variation(noise, labels) == pytest.approx(float(expected))
    assert math.isnan(variation(noise[:3], torch.arange(3)))
    for n in (16, 64, 512):
        share = measure(subject(straight, classes=10), n).values["variation over z / of the data"]
        assert 1 < share < 20  # WEIGHTS are not small
    for n, classes, least in ((15, 10, 16), (5, 3, 6), (1, 0, 2)):
        with pytest.raises(UserError, match=f"takes at least {least} samples"):
            measure(subject(straight, classes=classes), n)


def test_of_data_that_do_not_vary_nothing_is_said():
    still = Dataset.from_tensor(torch.zeros(40, 1, 8, 8), name="still")
    result = measure(replace(subject(straight), data=still), 40)
    assert math.isnan(result.values["variation over z / of the data"]) and "nothing can be said" in result.reading


def test_data_without_labels_are_compared_over_all_and_the_protocol_says_so():
    plain = replace(DIGITS, labels=None)
    result = measure(replace(subject(straight, classes=10), data=plain))
    assert "within each class, of the data over all" in result.protocol
    assert "over all" not in measure(subject(straight, classes=10)).protocol


def test_the_variations_latents_are_others_than_the_paths():
    asked = []

    def latents(n, seed):
        asked.append(seed)
        return drawn("uniform", 4, n, torch.Generator().manual_seed(seed))

    measure(replace(subject(straight), latents=latents, seed=5))
    assert asked == [5, 6]
