"""The hidden Markov model: that the claim holds, and that a recursion with a slip is found out."""

import math

import pytest
import torch

from fastgan.evaluate.theory import hidden_markov, report
from fastgan.evaluate.theory.hidden_markov import HiddenMarkov


def failed(seed=0):
    claim = hidden_markov.a_hidden_chain_joins_what_samples_say(seed)
    return [number.what for number in claim.measured if not number.holds]


@pytest.mark.parametrize("seed", range(3))
def test_the_claim_holds(seed):
    assert failed(seed) == []


def test_the_claim_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    report.picture(hidden_markov.a_hidden_chain_joins_what_samples_say()).savefig(tmp_path / "claim.png")
    assert (tmp_path / "claim.png").stat().st_size > 10_000


def test_two_labels_by_hand():
    model = HiddenMarkov(torch.tensor([0.7, 0.3]).log(), torch.tensor([[0.9, 0.1], [0.4, 0.6]]).log())
    emission = torch.tensor([[0.5, 0.2], [0.1, 0.8]]).log()
    shares = torch.tensor(
        [[0.7 * 0.5 * 0.9 * 0.1, 0.7 * 0.5 * 0.1 * 0.8], [0.3 * 0.2 * 0.4 * 0.1, 0.3 * 0.2 * 0.6 * 0.8]]
    )
    assert float(model.evidence(emission).exp()) == pytest.approx(float(shares.sum()), rel=1e-5)
    posterior = model.posterior(emission)
    torch.testing.assert_close(posterior, torch.stack([shares.sum(1), shares.sum(0)]) / shares.sum())


def test_labels_stay_as_often_as_they_should():
    y = hidden_markov.labels(2000, torch.Generator().manual_seed(0))
    assert float((y[:, 1:] == y[:, :-1]).double().mean()) == pytest.approx(hidden_markov.STAY, abs=0.005)
    assert float(y.mean()) == pytest.approx(0.5, abs=0.02)
    assert hidden_markov.counted(y).transition.exp().diagonal().tolist() == pytest.approx([0.9, 0.9], abs=0.01)


def test_emissions_are_densities():
    generator = torch.Generator().manual_seed(0)
    learnt, y = torch.randn(50, 3, generator=generator).double(), torch.arange(50) % 2
    x = torch.randn(5, 4, 3, generator=generator).double()
    emission = hidden_markov.naive_emission(learnt, y, x)
    mean = learnt[y == 1].mean(0)
    centred = torch.cat([learnt[y == label] - learnt[y == label].mean(0) for label in (0, 1)])
    law = torch.distributions.Normal(mean, centred.square().mean(0).sqrt())
    torch.testing.assert_close(emission[..., 1], law.log_prob(x).sum(-1))


def transposed(model, emission):
    steps = [model.initial + emission[..., 0, :]]
    for own in emission.unbind(-2)[1:]:
        steps.append(torch.logsumexp(steps[-1][..., None, :] + model.transition, dim=-1) + own)
    return torch.stack(steps, dim=-2)


def shifted(model, emission):
    steps = [torch.zeros_like(emission[..., 0, :])]
    for own in reversed(emission.unbind(-2)[:-1]):
        steps.append(torch.logsumexp(model.transition + (own + steps[-1])[..., None, :], dim=-1))
    return torch.stack(steps[::-1], dim=-2)


@pytest.mark.parametrize("name, slip", (("forward", transposed), ("backward", shifted)))
def test_a_slip_in_a_recursion_is_found_out(monkeypatch, name, slip):
    monkeypatch.setattr(HiddenMarkov, name, slip)
    assert failed()


def test_a_chain_that_knows_nothing_is_found_out(monkeypatch):
    half = torch.full((2, 2), -math.log(2), dtype=torch.float64)
    monkeypatch.setattr(hidden_markov, "counted", lambda y: HiddenMarkov(half[0], half))
    assert len(failed()) == 2


def test_models_changed_over_are_found_out(monkeypatch):
    monkeypatch.setattr(hidden_markov, "naive_bayes", hidden_markov.logistic_regression)
    assert failed() == ["error, naive Bayes: its limit"]
