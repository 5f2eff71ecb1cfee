"""Binary cross-entropy: that the claim holds of ours and of PyTorch's, and of no cost that is something else."""

import pytest
import torch
import torch.nn.functional as F

from fastgan.evaluate.theory import report
from fastgan.evaluate.theory.cross_entropy import cross_entropy_counts_what_is_unlike, entropy

bce = F.binary_cross_entropy_with_logits

OTHERS = {
    "a sum": lambda logits, labels: bce(logits, labels, reduction="sum"),
    "bounded": lambda logits, labels: bce(logits, labels, reduction="none").clamp(max=100).mean(),
    "of clipped predictions": lambda logits, labels: F.binary_cross_entropy(
        logits.sigmoid().clamp(1e-7, 1 - 1e-7), labels
    ),
    "squared": lambda logits, labels: (logits.sigmoid() - labels).square().mean(),
    "labels changed over": lambda logits, labels: bce(logits, 1 - labels),
    "in bits": lambda logits, labels: bce(logits, labels) / 0.6931471805599453,
    "hinge": lambda logits, labels: F.relu(1 - (2 * labels - 1) * logits).mean(),
}


@pytest.mark.parametrize("seed", (0, 1))
def test_the_claim_holds(seed):
    claim = cross_entropy_counts_what_is_unlike(seed)
    assert claim.holds, [number for number in claim.measured if not number.holds]


def test_the_claim_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    report.picture(cross_entropy_counts_what_is_unlike()).savefig(tmp_path / "claim.png")
    assert (tmp_path / "claim.png").stat().st_size > 10_000


def test_it_holds_of_pytorch():
    assert cross_entropy_counts_what_is_unlike(cost=bce).holds


@pytest.mark.parametrize("name", OTHERS)
def test_another_cost_is_found_out(name):
    assert not cross_entropy_counts_what_is_unlike(cost=OTHERS[name]).holds


def test_a_wrong_mean_is_found_out():
    def without_one(logits, labels):
        return bce(logits, labels) * len(logits) / max(1, len(logits) - 1)

    claim = cross_entropy_counts_what_is_unlike(cost=without_one)
    assert any("a batch" in number.what for number in claim.measured if not number.holds)


def test_entropy_is_that_of_a_coin():
    assert entropy(1) == 0
    share = torch.tensor(0.3, dtype=torch.float64)
    coin = torch.distributions.Bernoulli(share)
    assert entropy(0.3) == pytest.approx(float(coin.entropy()), abs=1e-12)
