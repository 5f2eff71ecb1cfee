"""Similarity against a loop over windows; a memoriser is caught, fresh data are not, nor is a blur."""

import math

import pytest
import torch
import torch.nn.functional as F

from fastgan import data
from fastgan.data import Dataset, normalise
from fastgan.evaluate import Subject
from fastgan.evaluate.diversity import alikeness, measure, suits
from fastgan.evaluate.neighbours import copying, nearest
from fastgan.evaluate.similarity import ms_ssim, name_for, ssim


def images(n, side, channels=1, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.rand(n, channels, side, side, generator=random, dtype=torch.float64) * 2 - 1


def by_patches(a, b, side):
    """Means of contrast times structure, and of SSIM, from each patch's own centred sums, as the papers write them."""
    at = torch.arange(side, dtype=torch.float64) - side // 2
    window = torch.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2)).flatten()[:, None]
    window = window / window.sum()
    x, y = (F.unfold(image, side)[0] for image in (a, b))
    mx, my = ((window * patch).sum(0) for patch in (x, y))
    vx, vy, cov = ((window * product).sum(0) for product in ((x - mx) ** 2, (y - my) ** 2, (x - mx) * (y - my)))
    structure = (2 * cov + 0.06**2) / (vx + vy + 0.06**2)
    luminance = (2 * mx * my + 0.02**2) / (mx**2 + my**2 + 0.02**2)
    return float(structure.mean()), float((structure * luminance).mean())


@pytest.mark.parametrize("side, window", [(14, 11), (8, 7)])
def test_ssim_is_the_papers(side, window):
    a = images(1, side)
    b = a + 0.3 * images(1, side, seed=1)
    assert float(ssim(a, b)) == pytest.approx(by_patches(a, b, window)[1], abs=1e-12)


def test_ms_ssim_is_the_papers_and_needs_room_for_five_scales():
    a = images(1, 176)
    b = a + 0.5 * images(1, 176, seed=1)
    factors = []
    for at in [(a, b)] + [(F.avg_pool2d(a, 2**k), F.avg_pool2d(b, 2**k)) for k in range(1, 5)]:
        factors.append(by_patches(*at, 11))
    expected = factors[-1][1] ** 0.1333
    for (structure, _), weight in zip(factors[:-1], (0.0448, 0.2856, 0.3001, 0.2363), strict=True):
        expected *= structure**weight
    assert float(ms_ssim(a, b)) == pytest.approx(expected, abs=1e-12)
    assert (name_for(175), name_for(176)) == ("SSIM", "MS-SSIM")


def test_pairs_are_those_of_neighbours():
    a = images(5, 12)
    assert alikeness(a)[0] < 0.3
    a[1] = a[0]
    half, error = alikeness(a)
    assert 0.4 < half < 0.6 and error == pytest.approx(1 - half, abs=0.2)
    a[3] = a[2]
    assert alikeness(a) == (pytest.approx(1), pytest.approx(0, abs=1e-9))


def test_nearest_neighbours_are_those_of_a_full_table():
    training, queries = images(700, 4), images(9, 4, seed=1)
    found = nearest(queries, training, 3)
    table = (queries.flatten(1)[:, None] - training.flatten(1)[None]).norm(dim=2)
    distance, index = table.sort(1)
    assert torch.equal(found.index, index[:, :3])
    torch.testing.assert_close(found.distance.double(), distance[:, :3], rtol=1e-5, atol=0)
    assert float(nearest(training[5:6], training).distance[0, 0]) == 0


@pytest.fixture(scope="module")
def split():
    """Digits as training data, as fresh data to compare with, and as samples of a perfect generator."""
    digits = normalise(data.load("digits").images)
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    return digits[order[:1000]], digits[order[1000:1400]], digits[order[1400:1797]]


def test_a_memoriser_is_caught_and_fresh_data_are_not(split):
    training, held_out, perfect = split
    fresh = nearest(held_out, training)
    honest = copying(nearest(perfect, training), fresh)
    assert honest.copied < 0.04 and abs(honest.z) < 3 and abs(honest.nearer - 0.5) < 0.06
    assert "not copied" in honest.told
    noise = 0.1 * torch.randn(300, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for copies in (training[:300], training[:300] + noise):
        caught = copying(nearest(copies, training), fresh)
        assert caught.copied > 0.9 and caught.z < -3 and caught.nearer > 0.95
        assert caught.told == "samples are copies of training data"
    half = torch.cat([perfect[:200], training[:200]])
    assert 0.45 < copying(nearest(half, training), fresh).copied < 0.55
    blurred = copying(nearest(F.avg_pool2d(perfect, 3, 1, 1), training), fresh)
    assert blurred.copied < 0.04  # averages are no copies, however near they lie


def test_the_rank_sum_counts_pairs(split):
    training, held_out, perfect = split
    ours, fresh = nearest(perfect[:30], training), nearest(held_out[:20], training)
    pairs = [
        0.5 * (a < b) + 0.5 * (a <= b) for a in ours.distance[:, 0].tolist() for b in fresh.distance[:, 0].tolist()
    ]
    found = copying(ours, fresh)
    assert found.nearer == pytest.approx(sum(pairs) / 600)
    assert found.z == pytest.approx((300 - sum(pairs)) / math.sqrt(600 * 51 / 12))


def test_the_metric_tells_a_memoriser_with_and_without_a_test_split(split, tmp_path):
    training, held_out, perfect = split
    known = Dataset.from_tensor(training, name="digits")
    others = {"held_out": lambda: Dataset.from_tensor(held_out, name="digits")}
    for more in ({}, others):
        copied = measure(Subject.of_samples(training[:200], known, **more), 200)
        assert copied.values["copies %"] > 90 and copied.reading.startswith("samples are copies")
        honest = measure(Subject.of_samples(perfect[:200], known, **more), 200)
        assert honest.values["copies %"] < 5 and honest.reading.startswith("samples are not copied")
    assert "test split" in honest.protocol and "SSIM (MS-SSIM takes sides of 176)" in honest.protocol
    alike = measure(Subject.of_samples(perfect[:1].expand(200, -1, -1, -1), known), 200)
    assert alike.values["SSIM of pairs, samples"] == pytest.approx(1)
    assert alike.reading.endswith("less varied than the data")
    pytest.importorskip("matplotlib")
    copied.pictures["neighbours.png"](tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_points_do_not_suit():
    assert suits(data.load("ring8")) is not None


def test_copies_are_told_where_the_data_have_images_twice():
    """One in a hundred is enough for the quantile of all fresh ratios to be 0, below which nothing lies."""
    digits = normalise(data.load("digits").images)
    training = torch.cat([digits[:600], digits[:12]])
    fresh = nearest(training, training, 6).without_first()
    assert float((fresh.distance[:, 0] == 0).double().mean()) > 0.01
    assert copying(nearest(training[:300], training, 5), fresh).copied == 1
    assert copying(nearest(training[100:300] + 0.01, training, 5), fresh).copied == 1  # those that it has once
    assert copying(nearest(digits[700:1200], training, 5), fresh).copied < 0.05
    twice = torch.cat([digits[:50], digits[:50]])
    assert copying(nearest(digits[:50], twice, 2), nearest(twice, twice, 3).without_first()).copied == 1


def test_sorted_data_are_not_paired_within_their_classes():
    digits = data.load("digits")
    order = digits.labels[:600].argsort()
    real = normalise(digits.images[:600])
    alike = [
        measure(Subject.of_samples(real, Dataset.from_tensor(images, name="some")), 600).values["SSIM of pairs, data"]
        for images in (real, real[order])
    ]
    within = alikeness(real[order])[0]
    assert alike[1] == pytest.approx(alike[0], abs=0.04) and within > alike[1] + 0.15


def test_random_choices_follow_the_subjects_seed_alone():
    digits = data.load("digits")
    samples = normalise(digits.images[:200])
    found = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        found.append(measure(Subject.of_samples(samples, digits, seed=seed), 200).values["SSIM of pairs, data"])
    assert found[0] == found[1] != found[2]
