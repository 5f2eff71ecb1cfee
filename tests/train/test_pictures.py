"""Pictures: the pixels that a person would see."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from fastgan.errors import UserError
from fastgan.train import pictures


def test_grid_places_every_image():
    shades = torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, 1, 64, 64)
    sheet = np.asarray(pictures.grid(shades))
    assert sheet.shape == (2 + 2 * 66, 2 + 3 * 66)
    seen = [sheet[2 + 66 * row + 30, 2 + 66 * column + 30] for row in range(2) for column in range(3)]
    assert seen == [0, 64, 128, 191, 255, 32]  # the last place stays empty


def test_a_grid_has_rows_as_long_as_asked():
    shades = torch.linspace(-1, 1, 4).view(4, 1, 1, 1).expand(4, 1, 64, 64)
    sheet = np.asarray(pictures.grid(shades, columns=4))
    assert sheet.shape == (2 + 66, 2 + 4 * 66)
    assert [sheet[32, 34 + 66 * column] for column in range(4)] == [0, 85, 170, 255]


def test_small_images_are_enlarged_without_blur():
    sample = torch.tensor([[[[-1.0, 1.0], [1.0, -1.0]]]]).repeat(1, 1, 4, 4)
    sheet = np.asarray(pictures.grid(sample))
    assert set(np.unique(sheet)) == {0, 32, 255}
    assert min(sheet.shape) >= 64


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels(channels):
    picture = pictures.grid(torch.rand(2, channels, 64, 32) * 2 - 1)
    assert picture.mode == {1: "L", 3: "RGB", 4: "RGBA"}[channels]


def test_values_outside_are_clipped():
    assert pictures.pixels(torch.tensor([-5.0, -1.0, 0.0, 1.0, 5.0])).tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (4, 2, 8, 8), (4, 8)])
def test_what_is_no_picture_is_refused(shape):
    with pytest.raises(UserError, match="sample grid"):
        pictures.grid(torch.zeros(shape))


def test_points_and_curves_are_written_whole(tmp_path):
    pictures.save_samples(torch.randn(50, 2), tmp_path / "deep" / "points.png", real=torch.randn(80, 2), title="step 3")
    rows = [{"step": s, "loss_d": 1.3, "loss_g": None, "d_real": 0.6, "d_fake": 0.4} for s in (1, 2, 3)]
    pictures.save_curves(rows, tmp_path / "curves.png")
    for name in ("deep/points.png", "curves.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 300
            assert len(picture.convert("L").getcolors()) > 20
    assert not list(tmp_path.rglob(".*writing"))


@pytest.mark.parametrize(
    "objective, levels",
    [
        ("non_saturating", [2, 1]),
        ("minimax", [2, -1]),
        ("least_squares", [0.25 / math.log(2), 0.125 / math.log(2)]),
        ("hinge", []),
        ("own: f", []),
    ],
)
def test_losses_at_equilibrium_are_drawn_where_they_are_known(tmp_path, monkeypatch, objective, levels):
    figures = []
    monkeypatch.setattr(pictures, "_save_figure", lambda figure, path: figures.append(figure))
    pictures.save_curves([{"step": 1, "loss_d": 1.3, "d_real": 0.6, "d_fake": 0.4}], tmp_path / "c.png", objective)
    losses = figures[0].axes[0]
    dashed = [line.get_ydata()[0] / math.log(2) for line in losses.lines if line.get_linestyle() == "--"]
    assert dashed == pytest.approx(levels) and ("dashed" in losses.get_title()) == bool(levels)


@pytest.mark.parametrize("score, limits", [(0.6, (0, 1)), (1.7, (0, 1.7)), (-0.3, (-0.3, 1)), (math.nan, (0, 1))])
def test_mean_scores_beyond_0_and_1_are_seen(tmp_path, monkeypatch, score, limits):
    figures = []
    monkeypatch.setattr(pictures, "_save_figure", lambda figure, path: figures.append(figure))
    pictures.save_curves([{"step": 1, "loss_d": 1.3, "d_real": score, "d_fake": 0.4}], tmp_path / "c.png")
    assert figures[0].axes[1].get_ylim() == pytest.approx(limits)


def test_smoothing_starts_at_the_first_value_follows_and_skips_gaps():
    smooth = pictures._smooth([*[2.0] * 100, math.nan, *[5.0] * 100])
    assert smooth[0] == smooth[99] == smooth[100] == 2.0
    assert smooth[-1] == pytest.approx(5.0, abs=0.01)


@pytest.mark.parametrize("shape, verdict", [((3, 8, 8), True), ((2,), True), ((2, 8, 8), False), ((5,), False)])
def test_what_can_be_drawn(shape, verdict):
    assert pictures.drawable(shape) is verdict
