"""Sliced Wasserstein distances: a pyramid, a shift of known distance, and the scale at which sets differ."""

import math

import pytest
import torch

from fastgan import data
from fastgan.data import Dataset
from fastgan.errors import UserError
from fastgan.evaluate import Subject, metric
from fastgan.evaluate.swd import distances, levels_of, patches, pyramid, sliced, standardised


def random():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def images():
    return torch.rand(40, 1, 32, 32, generator=random()) * 2 - 1


def test_levels_end_at_16():
    assert [levels_of(side) for side in (8, 16, 28, 32, 64, 128, 1024)] == [1, 1, 1, 2, 3, 4, 7]


def test_differences_of_a_constant_are_zero():
    fine, rest = pyramid(torch.full((2, 3, 32, 32), 0.7), 2)
    torch.testing.assert_close(fine, torch.zeros(2, 3, 32, 32), atol=1e-6, rtol=0)  # up to the edges
    torch.testing.assert_close(rest, torch.full((2, 3, 16, 16), 0.7))


def test_edges_are_mirrored():
    """The second column stands on both sides of the first, each time with weight 4 / 16."""
    image = torch.zeros(1, 1, 32, 32)
    image[..., 1] = 1
    expected = torch.zeros(1, 1, 16, 16)
    expected[..., :2] = torch.tensor([8.0, 4.0]) / 16
    for turned, answer in ((image, expected), (image.mT, expected.mT)):
        torch.testing.assert_close(pyramid(turned, 2)[1], answer)


def test_patches_are_pieces_of_the_image():
    image = torch.arange(2 * 100.0).view(1, 2, 10, 10)
    for patch in patches(image, random(), 20).view(20, 2, 7, 7):
        first = int(patch[0, 0, 0])
        top, left = divmod(first, 10)
        torch.testing.assert_close(patch, image[0, :, top : top + 7, left : left + 7])
    assert len({int(patch[0]) for patch in patches(image, random(), 100)}) == 16  # each of 4 x 4 places


def test_each_channel_has_mean_0_and_deviation_1():
    found = torch.tensor([[0.0, 2.0, 10.0, 10.0], [0.0, 2.0, 30.0, 30.0]])  # two patches of two channels
    expected = torch.tensor([[-1.0, 1.0, -1.0, -1.0], [-1.0, 1.0, 1.0, 1.0]])
    torch.testing.assert_close(standardised(found, 2), expected)


def test_a_shift_is_its_mean_projection():
    """Points moved by v: the distance along a direction u is |u.v|, in the mean |v| sqrt(2 / pi / d) for many d."""
    points = torch.randn(50, 200, generator=random())
    shift = torch.randn(200, generator=random())
    expected = float(shift.norm()) * math.sqrt(2 / math.pi / 200)
    assert sliced(points, points + shift, random()) == pytest.approx(expected, rel=0.1)
    assert sliced(points, points.flip(0), random()) == 0  # sets have no order


def test_a_set_has_no_distance_to_itself_and_halves_of_one_law_little(images):
    assert distances(images, images, random()) == [0, 0]
    near = distances(images[:20], images[20:], random())
    far = distances(images[:20], torch.nn.functional.avg_pool2d(images[20:], 3, 1, 1), random())
    assert far[0] > 2 * near[0] > 0


def test_brightness_and_contrast_of_a_channel_cost_nothing():
    first, second = torch.rand(2, 20, 3, 32, 32, generator=random(), dtype=torch.float64)
    contrast, brightness = torch.tensor([[[[4.0]], [[1.0]], [[0.1]]], [[[1.0]], [[-2.0]], [[0.0]]]]).double()
    expected = distances(first, second, random())
    assert distances(first, second * contrast + brightness, random()) == pytest.approx(expected, rel=1e-6)


def test_what_is_smoothed_differs_at_the_fine_level(images):
    smooth = torch.nn.functional.avg_pool2d(images, 3, 1, 1)
    fine, coarse = distances(images, smooth, random())
    assert fine > 2 * coarse > 0


def test_the_unit_is_a_thousandth_of_a_deviation():
    """Pixels -1, -1, 1, 1 beside -1, 1, 1, 1, which are -3, 1, 1, 1 over sqrt(3) when standardised."""
    found = Dataset.from_tensor(torch.tensor([-1.0, -1.0, 1.0, 1.0]).view(4, 1, 1, 1))
    samples = torch.tensor([-1.0, 1.0, 1.0, 1.0]).view(4, 1, 1, 1)
    result = metric("swd").measure(Subject.of_samples(samples, found))
    expected = 1000 * (1 + 1 / math.sqrt(3)) / 2
    assert result.values == pytest.approx({"swd x1000, side 1": expected, "swd x1000, mean": expected}, rel=1e-5)


def test_the_verb_names_each_side():
    found = data.load("digits")
    result = metric("swd").measure(Subject.of_samples(data.normalise(found.images), found), 64)
    assert list(result.values) == ["swd x1000, side 8", "swd x1000, mean"]
    with pytest.raises(UserError, match="one shape"):
        distances(torch.zeros(2, 1, 8, 8), torch.zeros(3, 1, 8, 8), random())
