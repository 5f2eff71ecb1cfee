"""The lag of a discriminator: that the claim holds, and that a wrong optimum, rate or count of steps is found out."""

import pytest
import torch

from fastgan.evaluate.theory import report, staleness
from fastgan.objectives import discriminator_loss


@pytest.fixture(scope="module")
def claim():
    return staleness.more_discriminator_steps_make_it_less_stale()


def test_the_claim_holds(claim):
    assert claim.holds, [number for number in claim.measured if not number.holds]


def test_the_claim_is_drawn(claim, tmp_path):
    pytest.importorskip("matplotlib")
    report.picture(claim).savefig(tmp_path / "claim.png")
    assert (tmp_path / "claim.png").stat().st_size > 10_000


def test_the_optimum_is_where_the_loss_is_flat():
    z = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    place = torch.tensor(0.8, dtype=torch.float64)
    d = staleness.optimal(place).requires_grad_()
    loss = discriminator_loss("non_saturating", staleness.logits(d, z), staleness.logits(d, z + place))
    assert torch.autograd.grad(loss, d)[0].abs().max() < 0.01


def test_the_sample_has_mean_0_and_variance_1():
    z = staleness.normal_sample()
    assert float(z.mean()) == pytest.approx(0, abs=1e-12)
    assert float(z.square().mean()) == pytest.approx(1, abs=1e-12)


def test_a_wrong_optimum_is_found_out(monkeypatch):
    monkeypatch.setattr(staleness, "optimal", lambda place: torch.stack([place, -place.square() / 2]))
    assert not staleness.more_discriminator_steps_make_it_less_stale().holds


def test_k_counts(monkeypatch):
    play = staleness.play
    monkeypatch.setattr(staleness, "play", lambda k, *, start: play(2, start=start))
    assert not staleness.more_discriminator_steps_make_it_less_stale().holds


def test_a_wrong_curvature_is_found_out(monkeypatch):
    predicted = staleness.predicted

    def twice_as_curved(k, *, start):
        with monkeypatch.context() as patch:
            patch.setattr(staleness, "RATE_D", 2 * staleness.RATE_D)
            return predicted(k, start=start)

    monkeypatch.setattr(staleness, "predicted", twice_as_curved)
    assert not staleness.more_discriminator_steps_make_it_less_stale().holds
