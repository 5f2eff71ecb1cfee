"""Likelihood, its bound and a GAN: that the claims hold, and that wrong terms of them are found out."""

import math

import pytest
import torch

from fastgan.evaluate.theory import likelihood, report
from fastgan.evaluate.theory.densities import kullback_leibler, normal


def failed(check):
    return [number.what for number in check().measured if not number.holds]


@pytest.mark.parametrize("check", likelihood.CLAIMS, ids=lambda check: check.__name__)
def test_claims_hold(check):
    assert failed(check) == []


@pytest.mark.parametrize("check", likelihood.CLAIMS, ids=lambda check: check.__name__)
def test_claims_are_drawn(check, tmp_path):
    pytest.importorskip("matplotlib")
    report.picture(check()).savefig(tmp_path / "claim.png")
    assert (tmp_path / "claim.png").stat().st_size > 10_000


def test_the_bound_that_is_trained_is_the_bound_by_the_grid():
    vae = likelihood.trained_vae(0)
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    noise = torch.randn(7, 100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(vae.elbo(x, noise), likelihood.bound(vae, x), atol=0.05, rtol=0)


def test_divergence_of_the_prior_is_that_of_two_normals():
    mean, std = 0.7, 0.4
    value = likelihood.divergence_of_prior(*torch.tensor([mean, math.log(std)], dtype=torch.float64))
    grid = likelihood.LATENTS
    exact = kullback_leibler(normal(mean, std).log_density(grid), normal().log_density(grid), grid)
    assert float(value) == pytest.approx(float(exact), abs=1e-10)


@pytest.mark.parametrize(
    "name, wrong",
    (
        ("divergence_of_prior", lambda mean, log_std: (mean.square() + log_std.exp() - 1) / 2 - log_std),
        ("divergence_of_prior", lambda mean, log_std: (mean.square() + (2 * log_std).exp() - 1) / 4 - log_std / 2),
        ("log_evidence", lambda vae, x: torch.logsumexp(likelihood.log_joint(vae, x), dim=1) - math.log(400)),
        ("log_normal", lambda x, mean, log_std: -((x - mean) / log_std.exp()).square() / 2 - math.log(2 * math.pi) / 2),
    ),
)
def test_a_wrong_term_of_the_bound_is_found_out(monkeypatch, name, wrong):
    likelihood.trained_vae(0)  # with what is right: only the check is led astray
    monkeypatch.setattr(likelihood, name, wrong)
    assert failed(likelihood.elbo_is_below_the_likelihood)


def test_a_bound_above_the_likelihood_is_found_out(monkeypatch):
    evidence = likelihood.log_evidence
    monkeypatch.setattr(likelihood, "bound", lambda vae, x: evidence(vae, x) + 1e-6)
    assert "least of log p(x) - ELBO" in failed(likelihood.elbo_is_below_the_likelihood)


def test_a_gan_that_covers_is_found_out(monkeypatch):
    monkeypatch.setattr(likelihood, "gan_normal", lambda start: ([0.4], [2.02]))
    assert len(failed(likelihood.each_fit_errs_in_its_own_way)) == 5


def test_a_likelihood_that_picks_is_found_out(monkeypatch):
    monkeypatch.setattr(likelihood, "likeliest_normal", lambda data: (2.0, 0.5))
    assert len(failed(likelihood.each_fit_errs_in_its_own_way)) >= 4


def test_the_gan_moves_by_the_loss_of_the_objectives(monkeypatch):
    monkeypatch.setattr(likelihood, "generator_loss", lambda name, logits: -logits.sigmoid().log().mean())
    assert not failed(likelihood.each_fit_errs_in_its_own_way)
    monkeypatch.setattr(likelihood, "generator_loss", lambda name, logits: logits.mean())
    assert failed(likelihood.each_fit_errs_in_its_own_way)
