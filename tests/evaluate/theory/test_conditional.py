"""Generators of a class: that the claim holds, and that a poor mean, hidden noise and lost variety are found out."""

import pytest
import torch

from fastgan.evaluate.theory import conditional, report


@pytest.fixture(scope="module")
def trained():
    """Images by loss and latent, drawn from generators that were trained once."""
    return {}


@pytest.fixture
def remembered(trained, monkeypatch):
    """Let the claim train each of its generators once in this module."""
    train = conditional.train

    def once(loss, latent, seed):
        if (loss, latent, seed) not in trained:
            trained[loss, latent, seed] = train(loss, latent, seed)
        return trained[loss, latent, seed]

    monkeypatch.setattr(conditional, "train", once)
    return once


@pytest.mark.usefixtures("remembered")
def test_the_claim_holds():
    claim = conditional.without_noise_a_class_is_one_image()
    assert claim.holds, [number for number in claim.measured if not number.holds]


@pytest.mark.usefixtures("remembered")
def test_the_claim_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    report.picture(conditional.without_noise_a_class_is_one_image()).savefig(tmp_path / "claim.png")
    assert (tmp_path / "claim.png").stat().st_size > 10_000


def test_without_a_latent_all_draws_of_a_class_are_equal():
    images = conditional.train(conditional.energy_distance, 0, 0, steps=3)
    assert images.shape == (10, 200, 64)
    assert torch.equal(images, images[:, :1].expand_as(images))
    assert not torch.equal(images[0, 0], images[1, 0])


def test_energy_distance_is_unbiased_and_least_for_equal_laws():
    generator = torch.Generator().manual_seed(0)
    real, same, other = torch.randn(3, 400, 50, 4, generator=generator, dtype=torch.float64).unbind()
    own = float(torch.cdist(real, real).mean()) * 50 / 49
    assert float(conditional.energy_distance(real, same)) == pytest.approx(own, abs=0.02)
    assert float(conditional.energy_distance(real, other + 1)) > own + 0.5
    assert float(conditional.energy_distance(real, 0 * other)) > own + 0.5


def test_a_noise_that_was_not_asked_for_is_found_out(monkeypatch, remembered):
    monkeypatch.setattr(conditional, "train", lambda loss, latent, seed: remembered(loss, conditional.LATENT, seed))
    failed = {number.what for number in conditional.without_noise_a_class_is_one_image().measured if not number.holds}
    assert {"of it G(class) has, least squares", "of it G(class) has, distance between laws"} <= failed


def test_a_lost_variety_is_found_out(monkeypatch, remembered):
    monkeypatch.setattr(conditional, "train", lambda loss, latent, seed: remembered(loss, 0, seed))
    claim = conditional.without_noise_a_class_is_one_image()
    assert [number.what for number in claim.measured if not number.holds] == [
        "share of the variance with z, distance between laws"
    ]


def test_another_image_than_the_mean_is_found_out(monkeypatch, remembered):
    monkeypatch.setattr(
        conditional, "train", lambda loss, latent, seed: remembered(conditional.energy_distance, latent, seed)
    )
    failed = {number.what for number in conditional.without_noise_a_class_is_one_image().measured if not number.holds}
    assert "RMS distance of G(class) from the class's mean, least squares" in failed


def test_the_picture_has_a_column_for_each_class():
    images = torch.arange(10, dtype=torch.float64)[:, None, None].expand(10, 2, 64)
    sheet = conditional.sheet(images)
    assert sheet.shape == (2 * 9, 10 * 9)
    assert sheet[0, ::9].tolist() == list(range(10)) and sheet[10, 9:18].tolist() == [1] * 8 + [-1]
