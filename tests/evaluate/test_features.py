"""FID, KID, precision and recall on features with known answers, and extractors that are named and refused."""

import math
import sys
import types

import pytest
import torch

from fastgan import data
from fastgan.data import Dataset
from fastgan.errors import UserError
from fastgan.evaluate import Subject, metric
from fastgan.evaluate.extractors import extractor, pair
from fastgan.evaluate.fid import frechet
from fastgan.evaluate.kid import discrepancy
from fastgan.evaluate.precision_recall import neighbourhoods


@pytest.fixture
def random():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def torchmetrics():
    return pytest.importorskip("torchmetrics")


def test_without_torchmetrics_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(UserError, match=r"fastgan\[eval\]"):
        frechet(torch.zeros(3, 2), torch.zeros(3, 2))


def test_frechet_of_two_boxes_is_its_formula(torchmetrics):
    """Corners of boxes have diagonal covariance: |mean - mean|^2 + the sum of (deviation - deviation)^2."""
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)
    first, second = corners * torch.tensor([1.0, 2.0, 3.0]), corners * torch.tensor([1.0, 5.0, 0.5]) + 1e3
    expected = 3e6 + (9 + 6.25) * 8 / 7
    assert frechet(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet(first + 1e3, second) == pytest.approx((9 + 6.25) * 8 / 7, rel=1e-9)
    assert frechet(first, first) == pytest.approx(0, abs=1e-9)


def test_kid_is_zero_in_the_mean_and_sees_a_dropped_mode(torchmetrics, random):
    centres = torch.eye(4) * 3
    of = torch.randint(4, (2000,), generator=random)
    points = centres[of] + torch.randn(2000, 4, generator=random) * 0.1
    same, deviation = discrepancy(points[:1000], points[1000:], subset=500)
    assert abs(same) < deviation * 2
    assert discrepancy(points[:1000], points[of != 3], subset=500)[0] > 20 * deviation
    assert discrepancy(points[:1000], points[1000:], seed=1, subset=500) != (same, deviation)
    assert discrepancy(points[:1000], points[1000:], subset=500) == (same, deviation)


def test_kid_of_points_is_its_formula(torchmetrics):
    x, y = torch.tensor([[1.0], [1.0]]), torch.tensor([[2.0], [2.0]])
    mean, deviation = discrepancy(x, y)
    assert mean == pytest.approx(2**3 + 5**3 - 2 * 3**3)
    assert math.isnan(deviation)  # one subset, all of them, has none


def test_a_set_beside_itself(random):
    points = torch.randn(300, 8, generator=random)
    found = neighbourhoods(points, points, k=5)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    assert found.density == pytest.approx(6 / 5)  # each ball holds its centre and 5 others


def test_neighbourhoods_on_a_line():
    """Data at 0, 1, 2, 10, whose nearest are 1, 1, 1 and 8 away; samples at 0.5, 5 and 20, 4.5, 4.5 and 15 away."""
    real, fake = torch.tensor([[0.0], [1.0], [2.0], [10.0]]), torch.tensor([[0.5], [5.0], [20.0]])
    found = neighbourhoods(real, fake, k=1)
    assert found.precision == pytest.approx(2 / 3)  # 20 is farther from 10 than 8
    assert found.recall == 1
    assert found.density == pytest.approx(3 / 3)  # 0.5 in two balls, 5 in one
    assert found.coverage == pytest.approx(3 / 4)


def test_a_dropped_mode_costs_recall_and_invented_ones_precision(random):
    left, right = (torch.randn(200, 3, generator=random) + centre for centre in (-50, 50))
    more = torch.randn(200, 3, generator=random) - 50
    both = torch.cat([left, right])
    dropped, invented = neighbourhoods(both, more), neighbourhoods(left, torch.cat([more, right]))
    assert dropped.precision > 0.9 and 0.4 < dropped.recall <= 0.5 and dropped.coverage <= 0.5
    assert invented.recall > 0.9 and 0.4 < invented.precision <= 0.5
    apart = neighbourhoods(left, right)
    assert (apart.precision, apart.recall, apart.density, apart.coverage) == (0, 0, 0, 0)


def test_features_far_from_the_origin_keep_their_neighbours(random):
    points = torch.randn(100, 4, generator=random, dtype=torch.float64)
    fake = torch.randn(100, 4, generator=random, dtype=torch.float64)
    assert neighbourhoods(points, fake) == neighbourhoods(points + 1e4, fake + 1e4)


def own(images):
    return images.mean((2, 3))


def flawed(images):
    return images.flatten(1)[:-1]


def infinite(images):
    return images.flatten(1) / 0


def shifting(images):
    return images.add_(1).flatten(1)


def test_extractors(monkeypatch, tmp_path):
    digits = data.load("digits")
    images = data.normalise(digits.images[:300])
    projection = extractor("random-projection", digits)
    features = projection(images)
    assert features.shape == (300, 64) and features.dtype == torch.float64 and "random-projection" in projection.name
    torch.testing.assert_close(features[257], projection(images[257:258])[0], atol=1e-5, rtol=0)
    module = tmp_path / "features_of_mine.py"
    module.write_text("def extract(images):\n    return images.mean((2, 3))\n")
    monkeypatch.chdir(tmp_path)
    mine = extractor("features_of_mine:extract", digits)
    assert mine.name == "features_of_mine:extract"
    torch.testing.assert_close(mine(images), images.mean((2, 3)).double())


@pytest.mark.parametrize("listed", [False, True])
def test_a_function_may_import_its_neighbours_when_it_is_called(monkeypatch, tmp_path, listed):
    digits = data.load("digits")
    images = data.normalise(digits.images[:300])
    mine, neighbour = f"lazy_features_{listed}", f"neighbour_{listed}"
    (tmp_path / f"{mine}.py").write_text(f"def extract(images):\n    import {neighbour} as n\n    return n.f(images)\n")
    (tmp_path / f"{neighbour}.py").write_text("def f(images):\n    return images.mean((2, 3))\n")
    monkeypatch.chdir(tmp_path)
    path = [str(tmp_path)] * listed + [folder for folder in sys.path if folder]
    monkeypatch.setattr(sys, "path", path.copy())
    lazy = extractor(f"{mine}:extract", digits)
    assert sys.path == path
    torch.testing.assert_close(lazy(images), images.mean((2, 3)).double())
    assert sys.path == path
    with pytest.raises(UserError, match="importable"):
        extractor("no_such_module:f", digits)
    assert sys.path == path


def test_an_extractor_that_works_in_place_leaves_the_samples(torchmetrics, monkeypatch, random):
    monkeypatch.setitem(sys.modules, "in_place_features", types.SimpleNamespace(shifting=shifting))
    squares, samples = torch.rand(2, 30, 1, 3, 3, generator=random) * 2 - 1
    squares = Dataset.from_tensor(squares, name="squares")
    once, twice = (Subject.of_samples(samples.clone(), squares) for _ in range(2))
    found = [
        metric(name).measure(subject, features="in_place_features:shifting").values
        for name, subject in (("kid", once), ("fid", twice), ("kid", twice))
    ]
    assert found[2] == found[0]
    assert torch.equal(twice.sample(30), samples)


def test_extractors_that_are_refused(monkeypatch):
    digits = data.load("digits")
    for name, word in (("random", "did you mean"), ("no_such_module:f", "importable"), ("math:pie", "importable")):
        with pytest.raises(UserError, match=word):
            extractor(name, digits)
    with pytest.raises(UserError, match="no function"):
        extractor("math:pi", digits)
    with pytest.raises(UserError, match="random-projection"):
        extractor("digits-classifier", Dataset.from_tensor(torch.zeros(3, 1, 8, 8), name="squares"))
    here = types.SimpleNamespace(flawed=flawed, infinite=infinite)
    monkeypatch.setitem(sys.modules, "bad_features", here)
    for name, word in (("bad_features:flawed", "must return"), ("bad_features:infinite", "not finite")):
        with pytest.raises(UserError, match=word):
            extractor(name, digits)(torch.ones(4, 1, 8, 8))


def test_which_training_images_follows_from_the_seed_alone():
    digits = data.load("digits")

    def real(seed, state):
        torch.manual_seed(state)
        subject = Subject.of_samples(data.normalise(digits.images[:50]), digits, seed=seed)
        return pair(subject, 50, "random-projection")[0]

    with torch.random.fork_rng(devices=[]):
        first, again, other = real(3, 0), real(3, 1), real(4, 0)
    assert torch.equal(first, again)
    assert len(torch.cat([first, other]).unique(dim=0)) > 90  # of 1,797, so that few are in both


def test_the_extractor_stands_in_the_protocol():
    digits = data.load("digits")
    subject = Subject.of_samples(data.normalise(digits.images), digits, weights="raw weights")
    real, fake, said = pair(subject, None, "random-projection")
    torch.testing.assert_close(real, fake)
    assert "1797 samples (raw weights)" in said and "64 features of random-projection" in said
    with pytest.raises(UserError, match="smaller --n"):
        pair(subject, 1798, "random-projection")
    result = metric("precision-recall").measure(subject, 500, features="random-projection")
    assert math.isclose(result.values["coverage"], 1, abs_tol=0.1) and "k = 5" in result.protocol
