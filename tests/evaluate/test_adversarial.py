"""The metric: a linear discriminator, whose distance is known, and the classifier of digits."""

import pytest
import torch
from torch import nn

from fastgan import data
from fastgan.data import Dataset
from fastgan.errors import UserError
from fastgan.evaluate import Subject
from fastgan.evaluate.adversarial import measure

pytest.importorskip("scipy")


def test_of_a_linear_discriminator_the_distance_is_margin_by_norm(tmp_path):
    random = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    real, made = (torch.rand(60, 1, 4, 4, generator=random) * 0.4 + shift for shift in (-0.05, -0.4))
    with torch.no_grad():
        network[1].weight.copy_(torch.rand(1, 16, generator=random) + 0.5)
    subject = Subject.of_samples(made, Dataset.from_tensor(real, name="squares"), discriminator=network)
    result = measure(subject, 15)
    with torch.no_grad():
        scores = network(made)[:, 0]
        margin = (network(real).mean() + scores.mean()) / 2 - scores
    below = margin[margin > 0][:15]
    distance = float((below / network[1].weight.detach().norm()).mean())
    assert result.values["discriminator: L-BFGS: mean L2"] == pytest.approx(distance, rel=5e-3)
    assert result.values["discriminator: L-BFGS: distortion"] == pytest.approx(distance / 2 / 4, rel=5e-3)
    reach = float(network[1].weight.detach().abs().sum())
    for eps in (0.1, 0.2, 0.5):
        fooled = 100 * float((below < eps * reach).double().mean())
        assert result.values[f"discriminator: FGSM {eps:g}: fooled %"] == pytest.approx(fooled)
    assert all(parameter.requires_grad for parameter in network.parameters())
    pytest.importorskip("matplotlib")
    result.pictures["adversarial-discriminator.png"](tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_digits_are_fooled_by_less_than_random_signs_take():
    digits = data.load("digits")
    values = measure(Subject.of_samples(torch.zeros(4, 1, 8, 8), digits), 12).values
    assert values["classifier: L-BFGS: fooled %"] == 100
    assert values["classifier: FGSM 0.5: fooled %"] >= values["classifier: random signs 0.5: fooled %"] + 40
    assert 0.5 < values["classifier: L-BFGS: mean L2"] < 4


def test_with_nothing_to_attack_it_says_so():
    squares = Dataset.from_tensor(torch.zeros(4, 1, 4, 4), name="squares")
    with pytest.raises(UserError, match="squares has no classifier here"):
        measure(Subject.of_samples(torch.zeros(4, 1, 4, 4), squares))


def test_a_discriminator_that_calls_nothing_fake_is_the_reason_given():
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    torch.nn.init.zeros_(network[1].weight)
    images = torch.rand(20, 1, 4, 4) - 0.5
    subject = Subject.of_samples(images, Dataset.from_tensor(images, name="squares"), discriminator=network)
    with pytest.raises(UserError, match="calls no sample fake"):
        measure(subject, 5)
