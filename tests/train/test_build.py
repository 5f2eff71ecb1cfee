"""From a configuration to the parts: every figure arrives, and the caller's random stream stays where it was."""

import pytest
import torch
from torch import nn

from fastgan.errors import UserError
from fastgan.presets import Config, Optimizer, from_dict, preset
from fastgan.train import build
from fastgan.train.dials import Dials


def test_every_figure_of_adam_arrives():
    figures = {"lr": 0.1, "betas": (0.2, 0.3), "eps": 0.4, "weight_decay": 0.6}
    config = Config(discriminator_optimizer=Optimizer(**figures))
    dials = Dials(config, torch.device("cpu"))
    group = build.optimizer(nn.Linear(2, 2), "discriminator", config, dials).param_groups[0]
    assert {key: group[key] for key in figures} == figures


def test_the_seed_alone_decides_the_networks():
    stream = torch.get_rng_state()
    made = [build.networks(from_dict({"seed": seed}, preset("gan-digits")), (1, 8, 8)) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), stream)
    for side in (0, 1):
        first, again, other = (next(networks[side].parameters()) for networks in made)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


@pytest.mark.parametrize("name, words", [("", "device"), ("meta", "device"), ("gpu", "cuda"), ("cuda:99", "cuda:99")])
def test_devices_that_are_not_here(name, words):
    with pytest.raises(UserError, match=words):
        build.device(name)


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with build.threads(before + 1):
        assert torch.get_num_threads() == before + 1
        with build.threads(0):
            assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_the_image_size_reaches_the_data():
    with pytest.raises(UserError, match=r"8x8.*32x32"):
        build.dataset(from_dict({"data": "digits", "image_size": 32}), torch.device("cpu"))
