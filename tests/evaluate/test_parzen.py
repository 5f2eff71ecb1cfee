"""The Parzen window: one sample's density, an integral of 1, a width that validation finds, splits that are told."""

import math

import pytest
import torch

from fastgan import data
from fastgan.data import Dataset
from fastgan.errors import UserError
from fastgan.evaluate import Subject, metric
from fastgan.evaluate.parzen import SIGMAS, log_likelihoods, window

RANDOM = torch.Generator().manual_seed(0)


def test_one_sample_is_one_normal():
    x, centre = torch.rand(7, 5, generator=RANDOM), torch.rand(1, 5, generator=RANDOM)
    sigmas = torch.tensor([0.1, 0.7], dtype=torch.float64)
    for row, sigma in zip(log_likelihoods(x, centre, sigmas), sigmas, strict=True):
        expected = torch.distributions.Normal(centre.double(), sigma).log_prob(x.double()).sum(1)
        torch.testing.assert_close(row, expected, rtol=1e-12, atol=1e-10)


def test_the_density_integrates_to_one():
    samples = torch.rand(20, 1, generator=RANDOM)
    x = torch.linspace(-2, 3, 2001, dtype=torch.float64)[:, None]
    density = log_likelihoods(x, samples, torch.tensor([0.2], dtype=torch.float64))[0].exp()
    assert torch.trapezoid(density, x[:, 0]) == pytest.approx(1, abs=1e-9)


def test_far_images_have_a_finite_likelihood():
    found = log_likelihoods(torch.full((1, 784), 100.0), torch.zeros(2, 784), SIGMAS[:1])
    assert found.item() == pytest.approx(-784 * 1e4 / 0.02 - 784 * (math.log(0.1) + math.log(2 * math.pi) / 2))


def test_validation_finds_the_width_and_the_entropy():
    """Samples at one point, data normal around it: the likelihood is minus the entropy."""
    sigma, size = float(SIGMAS[4]), 20
    draw = torch.randn(5000, size, generator=RANDOM) * sigma
    found = window(torch.zeros(3, size), draw[:2500], draw[2500:])
    assert found.sigma == sigma
    assert found.error == pytest.approx(math.sqrt(size / 2 / 2500), rel=0.05)
    assert found.mean == pytest.approx(-size * (0.5 + math.log(sigma) + math.log(2 * math.pi) / 2), abs=4 * found.error)


def digits():
    return data.load("digits")


def test_a_data_set_without_a_test_split_says_so():
    images = data.normalise(digits().images)
    subject = Subject.of_samples(images[:100], digits())
    result = metric("parzen").measure(subject, 100)
    assert "train[1497:1647]" in result.protocol and "train[1647:1797] (trained on as well" in result.protocol
    noise = Subject.of_samples(torch.rand(100, 1, 8, 8, generator=RANDOM) * 2 - 1, digits())
    assert result.values["log-likelihood"] > metric("parzen").measure(noise, 100).values["log-likelihood"] + 5


def test_the_oracle_takes_training_images_that_do_not_validate():
    asked = []
    subject = Subject(lambda n: asked.append(n), digits())
    result = metric("parzen").measure(subject, oracle=True)
    assert result.protocol.startswith("train[:1497] of digits in place of samples") and not asked
    with pytest.raises(UserError, match="1497"):
        metric("parzen").measure(subject, 1498, oracle=True)


def test_it_is_the_window_of_pixels_in_0_1_over_the_splits_that_are_named():
    """What the functions give of rows that are cut by hand: of a test split, of what a limit left out, of neither."""
    known = digits()
    rows = known.images.flatten(1).double() / 255
    samples = data.normalise(known.images[:200])
    limited = known.part(0, 1000)
    told = {"rest": known.part(1000)}, {"held_out": lambda: known.part(1700)}, {}
    test = [slice(1000 + 398, None), slice(1700, None), slice(833 + 83, 1000)]
    validation = [slice(1000, 1000 + 398), slice(833, 1000), slice(833, 833 + 83)]
    words = ["train[1398:1797] (not trained on)", "the test split (97)", "train[916:1000] (trained on as well"]
    for more, judged, chosen, word in zip(told, test, validation, words, strict=True):
        result = metric("parzen").measure(Subject.of_samples(samples, limited, **more), 200)
        expected = window(rows[:200], rows[chosen], rows[judged])
        assert result.values["log-likelihood"] == pytest.approx(expected.mean, abs=1e-4)
        assert result.values["sigma"] == expected.sigma and word in result.protocol


def test_colours_do_not_suit():
    assert "grey" in metric("parzen").suits(Dataset.from_tensor(torch.zeros(3, 3, 8, 8)))
    assert "points" in metric("parzen").suits(data.load("ring8"))


@pytest.mark.full
def test_the_oracle_on_mnist_is_241():
    try:
        train, test = (data.load("mnist", split=split, allow_download=False) for split in ("train", "test"))
    except UserError as error:
        pytest.skip(str(error))
    subject = Subject(lambda n: torch.empty(0), train, held_out=lambda: test)
    values = metric("parzen").measure(subject, oracle=True).values
    assert values["log-likelihood"] == pytest.approx(241.2, abs=0.05)
    assert values["standard error"] == pytest.approx(2.1, abs=0.05)
    assert values["sigma"] == pytest.approx(0.167, abs=5e-4)
