"""Noise-contrastive estimation by the engine: its noise, its optimum, and a normal law that it finds."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

import fastgan
from fastgan.errors import UserError
from fastgan.models.nce import LogDensity, Noise
from fastgan.train import pictures

MEAN, SCALE = torch.tensor([0.5, -1.0]), torch.tensor([[1.0, 0.0], [0.6, 0.5]])
LAW = MultivariateNormal(MEAN, scale_tril=SCALE)


def trainer(data, **keys):
    keys = {"noise": 0.0, "discriminator.hidden": [], "z_dim": 6, "device": "cpu", "threads": 1, **keys}
    return fastgan.Trainer("nce", data=data, **keys)


def put_true(density):
    """Make a density without hidden layers LAW's; return what c then is."""
    with torch.no_grad():
        density.m.copy_(MEAN)
        density.A.copy_(SCALE.inverse())
        density.c.copy_(-math.log(2 * math.pi) - SCALE.diagonal().log().sum())
    return density.c.item()


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_the_noise_is_fitted_to_the_data(kind):
    torch.manual_seed(0)
    data, noise = LAW.sample((4000,)), Noise(6, (2,))
    noise.fit(data, kind)
    z = torch.randn(3000, 6) if kind == "normal" else torch.rand(3000, 6) * 2 - 1
    made = noise(z)
    assert made.shape == (9000, 2)
    if kind == "normal":
        torch.testing.assert_close(noise.loc, data.mean(0))
        torch.testing.assert_close(noise.scale @ noise.scale.T, data.T.cov())
        wanted = MultivariateNormal(data.mean(0), data.T.cov()).log_prob(made)
    else:
        low, high = made.amin(0), made.amax(0)
        assert (low < data.amin(0)).all() and (high > data.amax(0)).all()
        wanted = (-(high - low).log().sum()).expand(9000)
    torch.testing.assert_close(noise.log_density(made), wanted, atol=2e-3, rtol=1e-4)


def test_data_that_do_not_vary_are_refused():
    for kind in ("normal", "uniform"):
        with pytest.raises(UserError, match="vary in every direction"):
            trainer(torch.zeros(200, 2), latent=kind)


def test_a_density_without_hidden_layers_is_normal():
    density = LogDensity((2,), hidden=[])
    put_true(density)
    points = LAW.sample((100,))
    torch.testing.assert_close(density(points), LAW.log_prob(points))


def test_at_the_truth_the_log_odds_are_those_of_data_against_noise_and_nothing_moves():
    torch.manual_seed(0)
    run = trainer(LAW.sample((60_000,)), batch_size=50_000, log_every=1)
    put_true(run.discriminator)
    points = LAW.sample((100,)) * 2
    noise = MultivariateNormal(run.generator.loc, scale_tril=run.generator.scale)
    logits = run._iterate.logits(points)
    torch.testing.assert_close(logits, LAW.log_prob(points) - noise.log_prob(points) - math.log(3), atol=1e-4, rtol=0)
    slopes = {}
    for shift in (0.0, 0.3):
        with torch.no_grad():
            run.discriminator.c += shift
        run._to_see = run._iterate._to_discriminator
        run._to_see.clear = lambda: None  # gradients stay to be looked at
        run._iterate.players.discriminator_optimizer.step = lambda: None
        run._iterate(run._iterate.pattern(0))
        slopes[shift] = float(run.discriminator.c.grad)
        run.discriminator.zero_grad()
    assert abs(slopes[0.0]) < 0.01 < 0.1 < slopes[0.3]


@pytest.mark.parametrize("latent", ["normal", "uniform"])
def test_it_finds_a_normal_law_and_its_normaliser(latent):
    torch.manual_seed(0)
    rates = {"discriminator_optimizer.lr": 2e-2, "schedules": {"discriminator_lr": {"to": 0.0, "steps": 800}}}
    run = trainer(LAW.sample((20_000,)), latent=latent, batch_size=400, **rates).fit(800, progress=False)
    density = run.discriminator
    torch.testing.assert_close(density.m.detach(), MEAN, atol=0.05, rtol=0)
    precision = (density.A.T @ density.A).detach()
    torch.testing.assert_close(precision, LAW.precision_matrix, atol=0.1, rtol=0.06)
    wanted = put_true(LogDensity((2,), hidden=[]))
    assert density.c.item() == pytest.approx(wanted, abs=0.06)
    row = run.history[-1]
    assert row["loss_g"] is None
    if latent == "normal":  # then noise and data are one law, and one of four is data
        assert row["d_fake"] == pytest.approx(0.25, abs=0.01) and row["d_real"] == pytest.approx(0.25, abs=0.01)
    else:
        assert 0 < row["d_fake"] < row["d_real"] - 0.1


def test_the_picture_shows_the_density_and_what_it_sums_to(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(pictures, "_save_figure", lambda figure, path: figures.append(figure))
    run = trainer(LAW.sample((2000,)), out=tmp_path)
    put_true(run.discriminator)
    assert run._album.draw(tmp_path / "final.png", 0)
    title = figures[0].axes[0].get_title()
    assert 0.97 < float(title.partition("sums to ")[2].split()[0]) < 1.01
    shown = figures[0].axes[0].images[0].get_array()
    places = [(axis[0] + axis[1]) / 2 for axis in (figures[0].axes[0].get_xlim(), figures[0].axes[0].get_ylim())]
    middle = float(LAW.log_prob(torch.tensor([places])))
    assert float(shown[99:101, 99:101].mean()) == pytest.approx(middle, abs=0.02)
