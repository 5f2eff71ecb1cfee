"""Latents: that the claim holds, and that a poor fit and a wrong least distance are found out."""

import pytest
import torch

from fastgan.evaluate.theory import latents, report


@pytest.fixture(scope="module")
def fits():
    """Fits by latent, trained once."""
    return {}


@pytest.fixture
def remembered(fits, monkeypatch):
    """Let the claim train each of its generators once in this module."""
    train = latents.fit

    def fit(latent, seed):
        width = latent(256, torch.Generator().manual_seed(0))
        key = (width.shape[1], len(width.unique()), seed)
        if key not in fits:
            fits[key] = train(latent, seed)
        return fits[key]

    monkeypatch.setattr(latents, "fit", fit)
    return fit


@pytest.mark.usefixtures("remembered")
def test_the_claim_holds():
    claim = latents.latents_fit_the_same_target()
    assert claim.holds, [number for number in claim.measured if not number.holds]


@pytest.mark.usefixtures("remembered")
def test_the_claim_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    report.picture(latents.latents_fit_the_same_target()).savefig(tmp_path / "claim.png")
    assert (tmp_path / "claim.png").stat().st_size > 10_000


def test_w1_is_the_distance_of_a_shift_and_sorts_for_itself():
    samples = latents.TARGET.quantiles(512)
    mixed = samples[torch.randperm(512, generator=torch.Generator().manual_seed(0))]
    assert float(latents.wasserstein(mixed)) == pytest.approx(0, abs=1e-12)
    assert float(latents.wasserstein(mixed - 0.3)) == pytest.approx(0.3, abs=1e-12)


@pytest.mark.parametrize("coins", (1, 3))
def test_coins_come_equally_often(coins):
    z = latents.coin_latent(coins)(8, torch.Generator().manual_seed(0))
    values, counts = z.unique(dim=0, return_counts=True)
    assert z.shape == (8, coins) and set(z.unique().tolist()) == {-1, 1}
    assert len(values) == 2**coins and counts.unique().tolist() == [8 // 2**coins]


def test_coins_fall_by_chance_where_they_cannot_come_equally_often():
    z = latents.coin_latent(3)(1001, torch.Generator().manual_seed(0))
    assert z.shape == (1001, 3)
    assert float(z.mean(0).abs().max()) < 0.15


def test_no_points_are_nearer_than_the_least_distance():
    least = latents.least_distance(4)
    for seed in range(20):
        noise = 0.3 * torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        points = latents.quantiles(4) + noise
        assert float(latents.wasserstein(points.repeat_interleave(latents.FINE // 4))) >= least


@pytest.mark.usefixtures("remembered")
def test_a_wrong_least_distance_is_found_out(monkeypatch):
    least = latents.least_distance
    monkeypatch.setattr(latents, "least_distance", lambda values: least(2 * values))
    assert not latents.latents_fit_the_same_target().holds


@pytest.mark.parametrize("lame", (latents.normal_latent, latents.uniform_latent))
def test_a_latent_that_fits_worse_is_found_out(monkeypatch, remembered, lame):
    def fit(latent, seed):
        samples = remembered(latent, seed)
        return samples + 0.15 if latent is lame else samples

    monkeypatch.setattr(latents, "fit", fit)
    assert not latents.latents_fit_the_same_target().holds
