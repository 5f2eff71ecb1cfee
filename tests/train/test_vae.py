"""A variational autoencoder by the engine: its bound, its gradient, and the likelihood that the bound is one of."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

import fastgan
from fastgan.models.encoder import Encoder
from fastgan.train import pictures
from fastgan.train.vae import divergence_of_prior, surprise

RANDOM = torch.Generator().manual_seed(0)


def test_the_divergence_is_that_of_torch():
    mean, log_variance = torch.randn(2, 50, 4, generator=RANDOM, dtype=torch.float64)
    wanted = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(divergence_of_prior(mean, log_variance), wanted)


def test_the_surprise_is_that_of_torch():
    x, made = torch.randn(2, 5, 1, 3, 3, generator=RANDOM)
    torch.testing.assert_close(surprise(x, made, 0.3), -Normal(made, 0.3).log_prob(x).flatten(1).sum(1))


def test_a_step_goes_along_the_gradient_of_the_bound():
    def run():
        torch.manual_seed(3)
        networks = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), Encoder(3, (2,), hidden=[4], std=0.5)
        slow = {
            side: torch.optim.SGD(network.parameters(), lr=1.0)
            for side, network in zip(("generator", "discriminator"), networks, strict=True)
        }
        data = torch.randn(64, 2, generator=torch.Generator().manual_seed(1)) / 4
        keys = {"z_dim": 3, "batch_size": 16, "log_every": 1, "seed": 7, "device": "cpu", "generator": networks[0]}
        return fastgan.Trainer("vae", discriminator=networks[1], data=data, optimizers=slow, **keys)

    plain, trained = run(), run().fit(1, progress=False)
    x, noise = plain._draws.real(0), plain._draws.z(0)
    mean, log_variance = plain.discriminator(x).chunk(2, 1)
    q, std = Normal(mean, (log_variance / 2).exp()), plain.discriminator.std
    likelihood = Normal(plain.generator(q.loc + q.scale * noise), std).log_prob(x).sum(1)
    loss = -(likelihood - kl_divergence(q, Normal(0.0, 1.0)).sum(1)).mean()
    loss.backward()
    for side in ("generator", "discriminator"):
        pairs = zip(getattr(plain, side).parameters(), getattr(trained, side).parameters(), strict=True)
        for before, after in pairs:
            torch.testing.assert_close(after, before - before.grad)
    row = trained.history[-1]
    assert row["loss_g"] == pytest.approx(loss.item(), rel=1e-5)
    assert row["loss_d"] + row["penalty"] == pytest.approx(row["loss_g"], rel=1e-5)
    assert row["d_real"] is None and row["diversity"] is None


def toy():
    """p(x|z) = N(W z, std^2) with the true posterior: that of a z of one number is normal, its mean linear in x."""
    weight, std = torch.tensor([[0.8], [-0.5]]), 0.4
    variance = 1 / (1 + float(weight.square().sum()) / std**2)
    law = MultivariateNormal(torch.zeros(2), weight @ weight.T + std**2 * torch.eye(2))
    return weight, std, variance, law


def test_the_bound_of_the_true_posterior_is_the_likelihood_and_of_others_is_below():
    weight, std, variance, law = toy()
    x, noise = law.sample((500,)), torch.randn(500, 400, generator=RANDOM)

    def bound(mean, log_variance):
        z = mean + (log_variance / 2).exp() * noise
        made = z.unsqueeze(2) * weight.T
        apart = surprise(x.repeat_interleave(400, 0), made.flatten(0, 1), std).view(500, 400).mean(1)
        return float((-apart - divergence_of_prior(mean, log_variance)).mean())

    mean, log_variance = variance / std**2 * x @ weight, torch.full((500, 1), math.log(variance))
    exact = float(law.log_prob(x).mean())
    assert bound(mean, log_variance) == pytest.approx(exact, abs=0.01)
    assert bound(mean + 0.3, log_variance) < exact - 0.1
    assert bound(mean, log_variance + 1) < exact - 0.1


def test_training_brings_the_bound_to_the_likelihood_of_a_linear_decoder():
    _, std, _, law = toy()
    torch.manual_seed(0)
    networks = nn.Linear(1, 2), Encoder(1, (2,), hidden=[], std=std)
    rates = {f"{side}_optimizer": {"lr": 1e-2, "betas": (0.9, 0.999)} for side in ("generator", "discriminator")}
    data = law.sample((5000,)).clamp(-3, 3)
    keys = {"z_dim": 1, "batch_size": 200, "log_every": 200, "generator": networks[0], "discriminator": networks[1]}
    run = fastgan.Trainer("vae", data=data, device="cpu", threads=1, **keys, **rates).fit(600, progress=False)
    weight = run.generator.weight.detach()
    learnt = MultivariateNormal(run.generator.bias.detach(), weight @ weight.T + std**2 * torch.eye(2))
    likelihood, bound = float(learnt.log_prob(data).mean()), -run.history[-1]["loss_g"]
    assert likelihood - 0.05 < bound < likelihood + 0.01  # a mean of samples: it may lie a little above
    assert likelihood == pytest.approx(float(law.log_prob(data).mean()), abs=0.02)


def test_inputs_stand_above_their_reconstructions(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(pictures, "save_samples", lambda samples, path, **how: drawn.update({path.name: samples}))
    run = fastgan.Trainer("vae", device="cpu", log_every=1, out=tmp_path)
    run._album.draw(tmp_path / "final.png", 0)
    rows, real = drawn["reconstruction-final.png"], run.data.batch(torch.arange(20))
    assert torch.equal(rows[:10], real[:10]) and torch.equal(rows[20:30], real[10:])
    made = run.generator(run.discriminator(real).chunk(2, 1)[0]).detach()
    torch.testing.assert_close(rows[10:20], made[:10])
    assert drawn["final.png"].shape == (64, 1, 8, 8)
