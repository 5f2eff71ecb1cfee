"""The film of figure 1: it ends where the theory says, and its last frame stays on the GIF."""

import pytest
import torch

from fastgan.evaluate.theory.figure_1 import DATA, GRID, HOLD, PACE, animate, figure_1, film, play, shown


def test_the_game_ends_at_the_data_and_starts_far_from_them():
    assert figure_1().holds
    moments = play()
    assert abs(moments[-1].mean - DATA.means[0]) < 1e-3 and abs(moments[-1].std - DATA.stds[0]) < 1e-3
    at = GRID.abs() < 3
    best = DATA.density(GRID) / (DATA.density(GRID) + moments[30].generated(GRID))
    assert (torch.sigmoid(moments[30].logits) - best)[at].abs().mean() < 0.06  # D is near its best, and not 1/2
    assert (best - 0.5)[at].abs().mean() > 0.3


def test_frames_become_a_gif_that_stays_at_its_ends(tmp_path):
    pytest.importorskip("matplotlib")
    from PIL import Image

    moments = play()
    assert [moment.step for moment in (shown(moments)[0], shown(moments)[-1])] == [0, len(moments) - 1]
    few = [moments[0], moments[60], moments[-1]]
    paths = []
    for number, figure in enumerate(film(few)):
        paths.append(tmp_path / f"{number}.png")
        figure.savefig(paths[-1], format="png")
    animate(paths, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 3
        times = []
        for frame in range(3):
            gif.seek(frame)
            times.append(gif.info["duration"])
    assert times == [HOLD, PACE, HOLD]
