"""A configuration's penalty in the discriminator's update: what is added, when, and what is shown of it."""

from typing import get_args, get_type_hints

import pytest
import torch

import fastgan
from fastgan.errors import UserError
from fastgan.objectives import r1
from fastgan.presets import Penalty, from_dict
from fastgan.train.penalties import PENALTIES, weighted
from fastgan.train.step import Pattern

POINTS = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)


def trainer(**keys):
    torch.manual_seed(3)
    networks = {
        "generator": torch.nn.Linear(3, 2),
        "discriminator": torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)),
    }
    optimizers = {side: torch.optim.SGD(module.parameters(), lr=0.1) for side, module in networks.items()}
    settings = {"z_dim": 3, "batch_size": 20, "device": "cpu", "log_every": 1, "objective": "wasserstein"} | keys
    return fastgan.Trainer(**networks, data=POINTS, optimizers=optimizers, **settings)


def test_every_name_of_the_configuration_is_known():
    assert {"none", *PENALTIES} == set(get_args(get_type_hints(Penalty)["name"]))
    cpu = torch.device("cpu")
    assert weighted(Penalty(), 10.0, cpu) is None and weighted(Penalty("r1"), 0.0, cpu) is None


@pytest.mark.parametrize("name", PENALTIES)
def test_each_penalty_trains_and_is_shown(name):
    run = trainer(penalty=name).fit(3, progress=False)
    assert all(row["penalty"] >= 0 and row["wasserstein"] is not None and row["d_real"] is None for row in run.history)
    assert run.config.penalty == Penalty(name)


def test_the_gradient_of_the_whole():
    """Weight times ``every`` times R1's, beside the objective's own; the column has the bare value."""
    run = trainer(penalty={"name": "r1", "weight": 3.0, "every": 2})
    critic, real, fake = run.discriminator, POINTS[:20], POINTS[50:70]
    value = r1(critic, real).value
    loss = critic(fake).mean() - critic(real).mean() + 6.0 * value
    expected = [
        p.detach() - 0.1 * g
        for p, g in zip(
            critic.parameters(), torch.autograd.grad(loss, critic.parameters(), allow_unused=True), strict=True
        )
        if g is not None
    ]
    seen = run._iterate._update_discriminator(real, fake, 0, Pattern((True,)))
    torch.testing.assert_close([*critic.parameters()][: len(expected)], expected)
    assert seen["penalty"] == pytest.approx(value.item())


def test_a_lazy_penalty_is_due_by_the_count_of_updates():
    """Over the whole run, so that one that is resumed goes on in time."""
    run = trainer(penalty={"name": "r1", "every": 3}, n_critic=2)
    due = [run._iterate.pattern(done).penalties for done in range(4)]
    assert due == [(True, False), (False, True), (False, False), (True, False)]
    run.fit(6, progress=False)
    assert [row["penalty"] is not None for row in run.history] == [True, True, False] * 2
    assert trainer(n_critic=2)._iterate.pattern(0).penalties == (False, False)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"name": "r3"}, "did you mean 'r2'"),
        ("gradient_penlty", "did you mean 'gradient_penalty'"),
        ({"weigth": 3}, "did you mean 'weight'"),
        ({"weight": -1}, "at least 0"),
        ({"every": 0}, "at least 1"),
        (3, "is a penalty"),
    ],
)
def test_what_is_no_penalty(given, message):
    with pytest.raises(UserError, match=message):
        from_dict({"penalty": given})
