"""Packs of samples before the discriminator: what it sees, losses, gradients and penalties, beside plain code."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastgan
from fastgan.errors import UserError
from fastgan.objectives import gradient_penalty
from fastgan.presets import from_dict, preset
from fastgan.train import build
from fastgan.train.capture import strict
from fastgan.train.distributed import Team
from fastgan.train.ensemble_plan import Plan
from fastgan.train.mlp_step import applies
from fastgan.train.packs import packed, packed_shape

POINTS = torch.randn(120, 2, generator=torch.Generator().manual_seed(0)).clamp(-3, 3) / 3


def trainer(discriminator=None, **keys):
    torch.manual_seed(1)
    generator = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    discriminator = discriminator or nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0))
    keys = {"z_dim": 3, "batch_size": 12, "pac": 3, "log_every": 1, "device": "cpu", **keys}
    players = {"generator": generator, "discriminator": discriminator}
    optimizers = {side: torch.optim.SGD(network.parameters(), lr=0.1) for side, network in players.items()}
    return fastgan.Trainer(**players, data=POINTS, optimizers=optimizers, **keys)


def test_what_a_pack_is():
    points = torch.randn(12, 5)
    by_hand = torch.stack([torch.cat([points[3 * at + one] for one in range(3)]) for at in range(4)])
    assert torch.equal(packed(points, 3), by_hand)
    images = torch.randn(6, 3, 4, 5)
    by_hand = torch.stack([torch.cat([images[2 * at], images[2 * at + 1]]) for at in range(3)])
    assert torch.equal(packed(images, 2), by_hand)
    last = packed(images.contiguous(memory_format=torch.channels_last), 2)
    assert torch.equal(last, by_hand) and last.is_contiguous(memory_format=torch.channels_last)
    assert packed(images, 1) is images
    assert packed_shape((5,), 3) == (15,) and packed_shape((3, 4, 5), 2) == (6, 4, 5)


def by_hand(updates, steps=4):
    """Plain PyTorch: the trainer's draws, packs by ``view``, binary cross-entropy, a penalty at single packs."""
    run = trainer(updates=updates, penalty="r1")
    g, d, draws = run.generator, run.discriminator, run._draws
    told = []

    def update_g(fake):
        loss = F.binary_cross_entropy_with_logits(d(fake.view(4, 6)), torch.ones(4))
        for p, grad in zip(g.parameters(), torch.autograd.grad(loss, list(g.parameters())), strict=True):
            p.data -= 0.1 * grad
        return loss.item()

    def update_d(real, fake):
        real, fake = real.view(4, 6).requires_grad_(), fake.detach().view(4, 6)
        logits = d(real)
        loss = F.binary_cross_entropy_with_logits(logits, torch.ones(4))
        loss = loss + F.binary_cross_entropy_with_logits(d(fake), torch.zeros(4))
        (at_real,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
        whole = loss + 10 * at_real.square().sum(1).mean() / 2
        weights = list(d.parameters())
        for p, grad in zip(weights, torch.autograd.grad(whole, weights, allow_unused=True), strict=True):
            p.data -= 0.1 * (0 if grad is None else grad)
        return loss.item()

    for _ in range(steps):
        if updates == "generator_first":
            fake, real = g(draws.z(0)), draws.real(0)
            of_g = update_g(fake)
            told.append((update_d(real, fake), of_g))
        else:
            fake, real = g(draws.z(0)), draws.real(0)
            of_d = update_d(real, fake)
            told.append((of_d, update_g(fake if updates == "shared" else g(draws.z(1)))))
    return run, torch.tensor(told)


@pytest.mark.parametrize("updates", ["fresh", "shared", "generator_first"])
def test_losses_and_weights_are_those_of_a_plain_loop(updates):
    run = trainer(updates=updates, penalty="r1").fit(4, progress=False)
    plain, told = by_hand(updates)
    torch.testing.assert_close(torch.tensor([(row["loss_d"], row["loss_g"]) for row in run.history]), told)
    torch.testing.assert_close(run.generator.state_dict(), plain.generator.state_dict())
    torch.testing.assert_close(run.discriminator.state_dict(), plain.discriminator.state_dict())


def test_diversity_is_that_of_single_samples():
    one = trainer(nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)), pac=1)
    told = [run.fit(1, progress=False).history[0]["diversity"] for run in (one, trainer())]
    assert told[0] == told[1] > 0


def test_one_pass_serves_both_players_of_packs():
    whole = {"updates": "generator_first", "objective": "least_squares"}
    once, twice = trainer(**whole), trainer(**whole)
    assert once._iterate.serves_both
    twice._iterate.serves_both = False
    once.fit(5, progress=False), twice.fit(5, progress=False)
    torch.testing.assert_close(once.generator.state_dict(), twice.generator.state_dict())
    torch.testing.assert_close(once.discriminator.state_dict(), twice.discriminator.state_dict())


def test_the_penalty_is_that_of_ctgan():
    """One coefficient a pack, and the norm of the gradient at the whole pack: the public code, beside ours."""
    spec = importlib.util.spec_from_file_location("public", Path(__file__).parents[1] / "models/ctgan.py")
    public = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(public)
    torch.manual_seed(4)
    critic = public.Discriminator(5, (7, 6), pac=10, dropout=0.0)
    real, fake = torch.randn(2, 40, 5)
    torch.manual_seed(9)
    theirs = critic.calc_gradient_penalty(real, fake, torch.rand(4, 1, 1), lambda_=10)
    torch.manual_seed(9)
    ours = gradient_penalty(critic.seq, packed(real, 10), packed(fake, 10)).value * 10
    torch.testing.assert_close(ours, theirs)
    wanted = torch.autograd.grad(theirs, list(critic.parameters()), allow_unused=True)
    torch.testing.assert_close(torch.autograd.grad(ours, list(critic.parameters()), allow_unused=True), wanted)


def test_a_discriminator_by_name_takes_packs():
    config = from_dict({"pac": 4}, preset("ring8"))
    _, critic = build.networks(config, (2,))
    assert critic(torch.zeros(3, 8)).shape == (3,)
    images = from_dict({"pac": 2, "generator": "dcgan", "discriminator": {"name": "dcgan", "width": 2}})
    _, critic = build.networks(images, (3, 8, 8))
    assert critic(torch.zeros(5, 6, 8, 8)).shape == (5,)
    own, common = build.networks(preset("pacgan"), (2,)), build.networks(preset("ring8"), (2,))
    torch.testing.assert_close(own[0].state_dict(), common[0].state_dict())


def test_what_does_not_go_into_packs():
    with pytest.raises(UserError, match=r"batch_size 100 cannot be judged in packs of 3: take a multiple of 3"):
        from_dict({"pac": 3}, preset("ring8"))
    with pytest.raises(UserError, match="pac must be at least 1"):
        from_dict({"pac": 0})
    with pytest.raises(UserError, match="50 samples each, which are no whole packs of 4: take a multiple of 8"):
        Team(torch.device("cpu"), 0, 2).part(100, 4)
    with pytest.raises(UserError, match="not packs of 2"):
        Plan.of(preset("pacgan"), 2)
    with pytest.raises(UserError, match=r"of 4 packs of 3 samples"):
        trainer(nn.Sequential(nn.Unflatten(1, (3, 2)), nn.Linear(2, 1), nn.Flatten(0)))
    with strict():
        run = trainer()
    assert applies(run._iterate, run.config, run.data) == "samples are judged in packs"
