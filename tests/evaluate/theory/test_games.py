"""The bilinear game: that the claims hold, and that a wrong formula or a wrong game is found out."""

from functools import partial

import pytest
import torch

from fastgan.evaluate.theory import games, report


@pytest.mark.parametrize("check", games.CLAIMS, ids=lambda check: check.__name__)
def test_claims_hold(check):
    claim = check()
    assert claim.holds, [number for number in claim.measured if not number.holds]


@pytest.mark.parametrize("check", games.CLAIMS, ids=lambda check: check.__name__)
def test_claims_are_drawn(check, tmp_path):
    pytest.importorskip("matplotlib")
    report.picture(check()).savefig(tmp_path / "claim.png")
    assert (tmp_path / "claim.png").stat().st_size > 10_000


def test_a_step_is_the_gradient_of_the_product():
    path = games.play(alternating=False, steps=1, rate=0.25)
    assert torch.equal(path, torch.tensor([[1.0, 0.0], [1.0, 0.25]], dtype=torch.float64))
    path = games.play(alternating=True, steps=2, rate=0.5)
    assert path.tolist() == [[1, 0], [1, 0.5], [0.75, 0.875]]


def test_momentum_zero_has_the_radii_that_theory_gives():
    assert games.spectral_radius(0.0, alternating=False) == pytest.approx((1 + games.RATE**2) ** 0.5, abs=1e-12)
    assert games.spectral_radius(0.0, alternating=True) == pytest.approx(1, abs=1e-12)


def test_alternating_steps_are_not_taken_for_simultaneous_ones(monkeypatch):
    play = games.play
    monkeypatch.setattr(games, "play", lambda *args, alternating, **rest: play(*args, alternating=True, **rest))
    assert not games.simultaneous_steps_spiral_out().holds
    monkeypatch.setattr(games, "play", lambda *args, alternating, **rest: play(*args, alternating=False, **rest))
    assert not games.alternating_steps_circle().holds


def test_the_invariant_has_its_sign(monkeypatch):
    monkeypatch.setattr(games, "invariant", partial(games.invariant, rate=-games.RATE))
    assert not games.alternating_steps_circle().holds


def test_momentum_counts(monkeypatch):
    monkeypatch.setattr(games, "spectral_radius", lambda beta, *, alternating: 1.005 if not alternating else 1.0)
    assert not games.momentum_drives_players_apart().holds


def test_beta1_counts(monkeypatch):
    play = games.play

    def deaf(beta=0.0, *, adam=False, **rest):
        return play(0.5 if adam else beta, adam=adam, **rest)

    monkeypatch.setattr(games, "play", deaf)
    claim = games.momentum_drives_players_apart()
    assert [number.what for number in claim.measured if not number.holds] == [
        "Adam's radius after 1000 steps, beta1 0.5 over 0",
        "Adam's radius after 1000 steps, beta1 0.9 over 0.5",
    ]
