"""The claims about discriminators, divergences, critics and the generator's losses: they hold, and they can fail."""

from __future__ import annotations

import functools

import pytest
import torch

from fastgan.evaluate.theory import checks, critic, discriminator, divergences, report, saturation
from fastgan.evaluate.theory.densities import (
    LINE,
    Mixture,
    integral,
    jensen_shannon,
    jensen_shannon_by_entropy,
    kullback_leibler,
    normal,
    sorted_distance,
    wasserstein,
)
from fastgan.objectives import generator_loss

MODULES = (discriminator, divergences, critic, saturation)
NAMES = [check.__name__.replace("_", "-") for module in MODULES for check in module.CLAIMS]


@functools.cache
def claim(name):
    if name == "critic-estimates-wasserstein-in-the-plane":
        pytest.importorskip("scipy")
    return checks()[name]()


def failures(check):
    return [number.what for number in check().measured if not number.holds]


@pytest.mark.parametrize("name", NAMES)
def test_claim_holds(name):
    assert claim(name).name == name
    assert [number for number in claim(name).measured if not number.holds] == []


@pytest.mark.parametrize("name", NAMES)
def test_claim_is_drawn(name, tmp_path):
    pytest.importorskip("matplotlib")
    report.picture(claim(name)).savefig(tmp_path / "claim.png")
    assert (tmp_path / "claim.png").stat().st_size > 10_000


def test_claims_leave_the_random_numbers_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    saturation.training(seed=0, steps=2)
    critic.trained(*torch.rand(2, 8, 1, dtype=torch.float64, generator=torch.Generator()), seed=0, steps=2)
    assert torch.equal(torch.rand(4), expected)


def test_closed_forms_of_densities():
    p, q = normal(0.5, 0.8), normal(-1.0, 1.5)
    log_p, log_q = p.log_density(LINE), q.log_density(LINE)
    exact = torch.distributions.kl_divergence(
        torch.distributions.Normal(0.5, 0.8), torch.distributions.Normal(-1.0, 1.5)
    )
    torch.testing.assert_close(kullback_leibler(log_p, log_q), exact.double(), rtol=1e-6, atol=0)
    heaps = Mixture((-2.0, 2.0), (0.5, 0.7), (0.3, 0.7))
    both = jensen_shannon(heaps.log_density(LINE), log_q), jensen_shannon_by_entropy(heaps.density(LINE), log_q.exp())
    torch.testing.assert_close(*both, rtol=1e-12, atol=0)
    mean = integral(LINE * heaps.density(LINE))
    torch.testing.assert_close(heaps.quantiles(4000).mean(), mean, rtol=0, atol=1e-3)
    drawn = heaps.sample(200, 200, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(), mean, rtol=0, atol=0.05)
    torch.testing.assert_close(
        wasserstein(p.density(LINE), normal(3.5, 0.8).density(LINE), LINE), torch.tensor(3.0).double()
    )


def test_a_wrong_optimum_is_seen(monkeypatch):
    def too_sure(p, q, seed):
        return lambda x: 1.2 * (p.log_density(x) - q.log_density(x))

    monkeypatch.setattr(discriminator, "trained", too_sure)
    assert len(failures(discriminator.optimal_discriminator)) == 3


def test_a_wrong_divergence_is_seen(monkeypatch):
    monkeypatch.setattr(
        discriminator, "jensen_shannon_by_entropy", lambda p, q: 1.001 * jensen_shannon_by_entropy(p, q)
    )
    assert len(failures(discriminator.value_is_jensen_shannon)) == 1


def test_a_discriminator_that_could_be_better_is_seen(monkeypatch):
    value = discriminator.value

    def hesitant(p, q, logits=None):
        return value(p, q, 0.9 * (p.log_density(LINE) - q.log_density(LINE)) if logits is None else logits)

    monkeypatch.setattr(discriminator, "value", hesitant)
    monkeypatch.setattr(discriminator, "bent", lambda p, q, seed: [p.log_density(LINE) - q.log_density(LINE)])
    wrong = failures(discriminator.value_is_jensen_shannon)
    assert any("gain" in what for what in wrong)
    assert any("2 JSD" in what for what in wrong)


def test_an_error_that_stops_falling_is_seen(monkeypatch):
    estimates = discriminator.estimates
    monkeypatch.setattr(
        discriminator, "estimates", lambda p, q, repeats, n, generator: estimates(p, q, repeats, min(n, 256), generator)
    )
    assert len(failures(discriminator.error_of_the_value)) == 2


def test_a_divergence_that_sees_distance_is_seen(monkeypatch):
    monkeypatch.setattr(divergences, "jensen_shannon_by_entropy", lambda p, q, line: wasserstein(p, q, line))
    wrong = failures(divergences.jensen_shannon_is_blind_to_distance)
    assert len(wrong) == 3
    assert all("JSD" in what for what in wrong)


def test_a_distance_of_unsorted_samples_is_seen(monkeypatch):
    monkeypatch.setattr(divergences, "sorted_distance", lambda x, y: (x - y.flip(0)).abs().mean() * 1.1)
    monkeypatch.setattr(divergences, "wasserstein", lambda p, q, line: wasserstein(p, q, line).square())
    assert len(failures(divergences.jensen_shannon_is_blind_to_distance)) == 3


def test_noise_that_is_too_little_is_seen(monkeypatch):
    monkeypatch.setattr(divergences, "NOISE", divergences.RESIDUE)
    assert len(failures(divergences.noise_mends_the_gradient)) == 2


@pytest.mark.parametrize(
    "wrong, numbers",
    [
        (lambda x: -x[:, 0], 2),  # straight: too low for two heaps
        (lambda x: -1.5 * x[:, 0], 4),  # too steep: its gap is too large
        (lambda x: x[:, 0], 4),  # the wrong way
    ],
)
def test_a_wrong_critic_is_seen(monkeypatch, wrong, numbers):
    monkeypatch.setattr(critic, "trained", lambda real, fake, seed: wrong)
    assert 0 < len(failures(critic.critic_estimates_wasserstein_on_the_line)) <= numbers


def test_a_bound_that_is_none_is_seen(monkeypatch):
    monkeypatch.setattr(critic, "sorted_distance", lambda x, y: 0.5 * sorted_distance(x, y))
    monkeypatch.setattr(critic, "trained", lambda real, fake, seed: lambda x: -x[:, 0])
    assert any("steepest slope over exact W1, most" in what for what in failures(critic.CLAIMS[0]))


def test_a_dear_matching_is_seen(monkeypatch):
    monkeypatch.setattr(critic, "matching", lambda real, fake: torch.arange(len(real)))
    monkeypatch.setattr(critic, "trained", lambda real, fake, seed: lambda x: x.norm(dim=1))  # next to the best
    assert "gap / steepest slope over exact W1, least" in failures(critic.CLAIMS[1])


def test_the_cheapest_matching_is_found():
    pytest.importorskip("scipy")
    fake = torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    assert torch.equal(critic.matching(fake[order] + 1e-3, fake), order)


def test_losses_in_each_others_place_are_seen(monkeypatch):
    swapped = dict(zip(saturation.LOSSES, reversed(saturation.LOSSES), strict=True))
    monkeypatch.setattr(saturation, "generator_loss", lambda name, logits: generator_loss(swapped[name], logits))
    assert len(failures(saturation.saturating_gradient_vanishes)) == 4
    assert len(failures(saturation.what_each_loss_descends)) == 2


def test_another_fixed_point_is_seen(monkeypatch):
    pull = saturation.pull
    monkeypatch.setattr(saturation, "pull", lambda name, mean, std: pull(name, mean + 0.01, std))
    assert len(failures(saturation.both_losses_share_the_fixed_point)) == 4


def test_a_loss_that_moves_from_afar_is_seen(monkeypatch):
    monkeypatch.setattr(saturation, "generator_loss", lambda name, logits: generator_loss("non_saturating", logits))
    assert failures(saturation.both_losses_share_the_fixed_point) == ["way from distance 8 in 100 steps, saturating"]
