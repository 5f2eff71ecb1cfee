"""Attacks on linear classifiers, where the least step that fools them is known."""

import pytest
import torch

from fastgan.evaluate.attacks import fgsm, nearest_fooling, random_signs, two_classes

SHAPE = (1, 4, 4)


def linear(seed=0, scale=1.0):
    """A score <w, x> + b and its w; images whose steps stay within the box."""
    random = torch.Generator().manual_seed(seed)
    w = torch.randn(16, generator=random, dtype=torch.float64) * scale
    images = (torch.rand(6, *SHAPE, generator=random, dtype=torch.float64) - 0.5) * 0.4
    return w, 0.3, images


def test_fgsm_moves_a_linear_score_by_eps_times_the_l1_norm():
    w, b, images = linear()

    def score(x):
        return x.flatten(1) @ w + b

    labels = (score(images) > 0).long()
    moved = fgsm(two_classes(score), images, labels, 0.1)
    change = (score(moved) - score(images)) * torch.where(labels == 1, -1.0, 1.0)
    torch.testing.assert_close(change, torch.full_like(change, 0.1 * float(w.abs().sum())), rtol=0, atol=1e-12)
    blind = random_signs(images, 0.1, torch.Generator().manual_seed(1))
    assert float((blind - images).abs().min()) == pytest.approx(0.1)
    assert (score(blind) - score(images)).abs().max() < 0.8 * change.min()


def test_fgsm_stays_in_the_box():
    w, b, images = linear()
    moved = fgsm(two_classes(lambda x: x.flatten(1) @ w + b), images, torch.ones(6, dtype=torch.int64), 5.0)
    assert set(moved.flatten().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_the_nearest_image_across_a_line_lies_at_margin_by_norm(scale):
    pytest.importorskip("scipy")
    w, b, images = linear(1, scale)

    def score(x):
        return x.flatten(1) @ w + b

    margin = score(images)
    found = nearest_fooling(two_classes(score), images, (margin <= 0).long())
    assert found.fooled.all()
    assert torch.equal(score(found.images) > 0, margin <= 0)
    distance = (found.images - images).flatten(1).norm(dim=1)
    torch.testing.assert_close(distance, margin.abs() / w.norm(), rtol=2e-3, atol=0)


def test_of_several_classes_the_distance_is_that_of_the_pair():
    pytest.importorskip("scipy")
    _, _, images = linear()
    w = torch.randn(3, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def logits(x):
        flat = x.flatten(1)
        return torch.stack([flat @ w[0], flat @ w[1], torch.full((len(x),), -50.0, dtype=x.dtype)], 1)

    gap = (logits(images)[:, 0] - logits(images)[:, 1]).abs()
    targets = 1 - logits(images)[:, :2].argmax(1)
    found = nearest_fooling(logits, images, targets)
    distance = (found.images - images).flatten(1).norm(dim=1)
    torch.testing.assert_close(distance, gap / (w[0] - w[1]).norm(), rtol=2e-3, atol=0)


def test_where_the_box_binds_the_step_is_longer_and_stays_inside():
    pytest.importorskip("scipy")
    w = torch.ones(16, dtype=torch.float64)
    w[0] = 4.0
    images = torch.zeros(1, *SHAPE, dtype=torch.float64)
    images.flatten()[0] = 0.9  # the steepest direction leads out of the box at once

    def score(x):
        return x.flatten(1) @ w - 5.5

    found = nearest_fooling(two_classes(score), images, torch.tensor([1]))
    step = (found.images - images).flatten()
    # along w the step would be 1.9 / |w| * 4 / |w| = 0.24 at the first value, of which 0.1 is left: the others do 1.5
    assert step[0] == pytest.approx(0.1, abs=2e-3)
    assert step[1:].sum() == pytest.approx(1.5, rel=1e-2)
    assert step[1:].std() < 1e-4
    assert found.images.abs().max() <= 1


def test_what_nothing_can_fool_is_left_as_it_is():
    pytest.importorskip("scipy")
    _, _, images = linear()
    found = nearest_fooling(
        lambda x: torch.stack([x.flatten(1).sum(1) * 0 + 9, x.flatten(1).sum(1) * 0], 1), images, torch.ones(6).long()
    )
    assert not found.fooled.any()
    assert torch.equal(found.images, images)
