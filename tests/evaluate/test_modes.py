"""Mode coverage: the data cover all, a dropped mode is missed, and two histograms have a known divergence."""

import math

import pytest
import torch

from fastgan import data
from fastgan.data import Modes
from fastgan.evaluate import Subject, metric
from fastgan.evaluate.modes import coverage, reverse_kl

RING = data.load("ring8")


def measured(points, n=2500):
    return metric("modes").measure(Subject.of_samples(points, RING), n)


@pytest.mark.parametrize("name, modes", [("ring8", 8), ("grid25", 25)])
def test_fresh_data_cover_every_mode_and_98_9_percent_lie_within_3_sigma(name, modes):
    fresh = data.load(name, split="test")
    values = metric("modes").measure(Subject.of_samples(fresh.images, data.load(name)), 20_000).values
    assert values["modes covered"] == values["modes"] == modes
    assert values["high quality %"] == pytest.approx(100 * (1 - math.exp(-4.5)), abs=0.4)  # a Rayleigh's law
    assert values["reverse KL"] == pytest.approx(0, abs=2e-3)


def test_dropped_modes_are_missed():
    points = RING.images[(RING.labels != 2) & (RING.labels != 5)]
    values = measured(points).values
    assert values["modes covered"] == 6
    assert values["reverse KL"] == pytest.approx(math.log(8 / 6), abs=0.01)


def test_points_of_no_mode():
    values = measured(torch.zeros(2500, 2)).values
    assert values["modes covered"] == values["high quality %"] == 0
    assert values["reverse KL"] == pytest.approx(math.log(8), abs=0.01)  # all nearest to one centre


def test_the_edge_is_three_sigma_and_one_sample_covers():
    modes = Modes(torch.tensor([[0.0, 0.0], [10.0, 0.0]]), 1.0)
    found = coverage(torch.tensor([[2.99, 0.0], [3.01, 0.0], [10.0, 2.99], [torch.nan, 0.0]]), modes)
    assert (found.covered, found.high_quality, found.counts[1].item()) == (2, 0.5, 1)
    assert coverage(torch.tensor([[3.01, 0.0]]), modes).covered == 0


def test_reverse_kl_is_that_of_the_generated_from_the_data():
    p, q = torch.tensor([3, 1, 0]), torch.tensor([1, 1, 2])
    assert reverse_kl(p, q) == pytest.approx(0.75 * math.log(3))
    assert reverse_kl(q, p) == math.inf


def test_the_picture_shows_what_was_counted(tmp_path):
    pytest.importorskip("matplotlib")
    from PIL import Image

    (draw,) = measured(RING.images).pictures.values()
    draw(tmp_path / "modes.png")
    with Image.open(tmp_path / "modes.png") as picture:
        assert picture.size == (660, 660)


def test_images_have_no_modes():
    assert "no mixture" in metric("modes").suits(data.load("digits"))
