"""Naive Bayes and logistic regression: that the claim holds, that both are what they are called, and planted faults."""

import pytest
import torch

from fastgan.evaluate.theory import discriminative, report
from fastgan.evaluate.theory.discriminative import logistic_regression, naive_bayes, toy


def sample(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (count,), generator=generator).double()
    return toy().draw(y, generator), y


def failed():
    claim = discriminative.generative_is_sooner_discriminative_is_better()
    return [number.what for number in claim.measured if not number.holds]


def test_the_claim_holds():
    assert failed() == []


def test_the_claim_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    report.picture(discriminative.generative_is_sooner_discriminative_is_better()).savefig(tmp_path / "claim.png")
    assert (tmp_path / "claim.png").stat().st_size > 10_000


def test_the_error_is_that_of_samples():
    x, y = sample(200_000)
    weight = torch.linspace(-0.2, 1, discriminative.FEATURES, dtype=torch.float64)
    bias = torch.tensor(0.4, dtype=torch.float64)
    counted = float(((x @ weight + bias > 0) != y.bool()).double().mean())
    assert float(toy().error(weight, bias)) == pytest.approx(counted, abs=0.004)


def test_no_line_errs_less_than_the_true_one():
    law = toy()
    best = torch.linalg.solve(law.covariance, law.shift)
    for seed in range(20):
        bend = 0.2 * torch.randn(discriminative.FEATURES, generator=torch.Generator().manual_seed(seed)).double()
        assert float(law.error(best + bend, bend[0])) > law.least_error()


def test_logistic_regression_is_where_the_likelihood_is_flat():
    x, y = sample(300)
    weight, bias = (part.requires_grad_() for part in logistic_regression(x, y))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(x @ weight + bias, y, reduction="sum")
    loss = loss + discriminative.RIDGE * (weight.square().sum() + bias.square()) / 2
    assert max(slope.abs().max() for slope in torch.autograd.grad(loss, (weight, bias))) < 1e-9


def test_naive_bayes_is_the_ratio_of_its_densities():
    x, y = sample(60)
    weight, bias = naive_bayes(x, y)
    means = [x[y == label].mean(0) for label in (0, 1)]
    spread = sum((x[y == label] - means[label]).square().sum(0) for label in (0, 1)) / (len(y) - 2)
    low, high = (torch.distributions.Normal(mean, spread.sqrt()).log_prob(x).sum(1) for mean in means)
    torch.testing.assert_close(x @ weight + bias, high - low)


def test_models_changed_over_are_found_out(monkeypatch):
    monkeypatch.setattr(discriminative, "naive_bayes", logistic_regression)
    monkeypatch.setattr(discriminative, "logistic_regression", naive_bayes)
    assert len(failed()) >= 4


def test_a_model_without_its_bias_or_variance_is_found_out(monkeypatch):
    def unscaled(x, y):
        weight = x[..., y == 1, :].mean(-2) - x[..., y == 0, :].mean(-2)
        return weight, weight.sum(-1)

    monkeypatch.setattr(discriminative, "naive_bayes", unscaled)
    assert failed()


def test_an_error_that_forgets_the_covariance_is_found_out(monkeypatch):
    def error(law, weight, bias):
        return torch.special.ndtr(-(weight @ law.shift) / weight.norm(dim=-1))

    monkeypatch.setattr(discriminative.Toy, "error", error)
    assert failed()
