"""Predictability minimization by the engine: what predictors see, what codes share, and codes that share nothing."""

import pytest
import torch

import fastgan
from fastgan.data import load
from fastgan.models.predictability import Predictors
from fastgan.train import codes, pictures

BITS = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 2)


def test_a_predictor_does_not_see_its_own_unit():
    torch.manual_seed(0)
    predictors, code = Predictors(4, hidden=[6]), torch.rand(1, 4)
    slopes = torch.autograd.functional.jacobian(lambda given: predictors(given)[0], code)[:, 0]
    assert (slopes.diagonal() == 0).all()
    assert (slopes[~torch.eye(4, dtype=torch.bool)] != 0).all()


def test_information_of_known_codes():
    apart = codes.information(BITS)
    torch.testing.assert_close(apart, torch.eye(2, dtype=torch.float64))
    alike = torch.stack((BITS[:, 0], 1 - BITS[:, 0], (BITS[:, 0] + BITS[:, 1]) % 2), 1)
    assert codes.information(alike)[0].tolist() == pytest.approx([1.0, 1.0, 0.0])
    assert codes.largest_information(alike) == pytest.approx(1.0)
    skewed = torch.tensor([[0, 0], [0, 0], [1, 1], [0, 1]]).float()  # by hand: H(1/4) + H(1/2) - H(1/2, 1/4, 1/4)
    assert codes.largest_information(skewed) == pytest.approx(0.8112781 + 1 - 1.5)
    names, seen, factors = codes.shares(skewed)
    assert (names[0], float(seen[0]), float(factors[0])) == ("00", 0.5, 0.375)


def test_patterns8_are_unit_vectors_each_as_often():
    data = load("patterns8")
    assert torch.equal(data.images.sum(0), torch.full((8,), 512.0))
    assert torch.equal(data.images.argmax(1), data.labels) and (data.images.sort(1).values[:, :7] == 0).all()


def trained(steps, seed=0, **keys):
    data = torch.eye(4).repeat(64, 1)  # four patterns, as often: Schmidhuber's first ones
    rates = {"generator_optimizer.lr": 2e-2, "discriminator_optimizer.lr": 2e-2, "discriminator.hidden": [16]}
    common = {"data": data, "z_dim": 2, "n_critic": 3, "seed": seed, "device": "cpu", "threads": 1, "log_every": 10}
    run = fastgan.Trainer("predictability-minimization", **common, **{**rates, **keys}).fit(steps, progress=False)
    return run, run.generator(torch.eye(4)).detach()


def test_codes_become_binary_and_factorial():
    before, (run, after) = trained(0)[1], trained(400)
    assert codes.sharpness(after) > 0.9 and codes.largest_information(after) < 1e-6
    assert len(codes.shares(after)[0]) == 4  # each pattern has a code of its own
    assert codes.sharpness(before) < 0.5 and codes.largest_information(before) > 0.1
    assert run.history[-1]["loss_d"] == pytest.approx(0.5, abs=0.05)  # two units of variance 1/4: nothing to predict


def test_predictors_learn_what_units_tell_of_each_other():
    run, _ = trained(0, **{"generator_optimizer.lr": 0.0})
    with torch.no_grad():  # both units say the same
        weight = run.generator.layers[0].weight
        weight.copy_(torch.tensor([-4.0, -4.0, 4.0, 4.0]).expand_as(weight))
    run.fit(100, progress=False)
    errors = [row["loss_d"] for row in run.history]
    assert errors[0] > 0.1 and errors[-1] < 0.02
    assert torch.equal(weight, torch.tensor([-4.0, -4.0, 4.0, 4.0]).expand_as(weight))


def test_the_picture_tells_what_units_share(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(pictures, "_save_figure", lambda figure, path: figures.append(figure))
    run, _ = trained(0)
    run._album.draw(tmp_path / "final.png", 0)
    bits = codes.information(run.generator(run.data.images).detach())
    torch.testing.assert_close(torch.as_tensor(figures[0].axes[2].images[0].get_array()), bits)
