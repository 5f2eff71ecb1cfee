"""The Trainer from Python: own parts, own data, history, samples, and a random stream that is nobody else's."""

import math

import pytest
import torch
from torch import nn

import fastgan
from fastgan.errors import NonFiniteError, UserError
from fastgan.objectives import Objective
from fastgan.train import checkpoint

POINTS = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)).clamp(-3, 3) / 3


class Noisy(nn.Module):
    """A discriminator with dropout: its updates draw from the global stream."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(16, 1))

    def forward(self, x):
        return self.layers(x).squeeze(1)


def parts(seed=0):
    torch.manual_seed(seed)
    generator = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    return {"generator": generator, "discriminator": Noisy()}


def trainer(seed=0, **keys):
    keys = {"z_dim": 3, "batch_size": 20, "log_every": 4, "device": "cpu", **keys}
    return fastgan.Trainer(**parts(seed), data=POINTS, **keys)


def weights(run):
    return [parameter.detach().clone() for parameter in (*run.generator.parameters(), *run.discriminator.parameters())]


def test_own_parts_and_history():
    run = trainer().fit(10, progress=False)
    assert [row["step"] for row in run.history] == [4, 8, 10]
    assert [row["images"] for row in run.history] == [80, 160, 200]
    assert all(math.isfinite(row["loss_d"]) and 0 < row["d_real"] < 1 for row in run.history)
    assert run.sample(5).shape == (5, 2)
    assert run.generator.training


def test_fit_counts_steps_in_total():
    once, twice = trainer().fit(9, progress=False), trainer().fit(4, progress=False)
    twice.fit(4, progress=False)
    assert twice.step == 4
    twice.fit(9, progress=False)
    for left, right in zip(weights(once), weights(twice), strict=True):
        assert torch.equal(left, right)


def test_the_callers_random_stream_is_left_alone():
    run = trainer(seed=5)
    before = torch.get_rng_state()
    run.fit(3, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    first = weights(run)
    again = trainer(seed=5)
    torch.rand(7)  # the caller's stream does not matter to the run either
    again.fit(3, progress=False)
    assert all(torch.equal(left, right) for left, right in zip(first, weights(again), strict=True))


def test_checkpoint_restores_everything(tmp_path):
    whole = trainer(out=tmp_path / "a").fit(11, progress=False)
    half = trainer(out=tmp_path / "b").fit(6, progress=False)
    stored = checkpoint.load(checkpoint.whole(half.out / "checkpoints")[-1])
    rest = trainer(seed=99, out=tmp_path / "b")
    rest.resume(stored)
    rest.fit(11, progress=False)
    for left, right in zip(weights(whole), weights(rest), strict=True):
        assert torch.equal(left, right)
    assert whole.history[-1]["loss_d"] == rest.history[-1]["loss_d"]


def test_foreign_checkpoint_changes_nothing(tmp_path):
    trainer(out=tmp_path / "a").fit(2, progress=False)
    stored = checkpoint.load(checkpoint.whole(tmp_path / "a/checkpoints")[-1])
    other = fastgan.Trainer("gan-digits", device="cpu")
    before = weights(other)
    with pytest.raises(UserError, match="another generator"):
        other.resume(stored)
    assert all(torch.equal(left, right) for left, right in zip(before, weights(other), strict=True))
    assert other.step == 0


@pytest.mark.parametrize(
    "updates, critic, expected", [("fresh", 3, (3, 1)), ("shared", 2, (2, 1)), ("generator_first", 1, (1, 1))]
)
def test_a_step_is_k_discriminator_updates_and_one_of_the_generator(updates, critic, expected):
    counted = {"generator": 0, "discriminator": 0}
    run = trainer(updates=updates, n_critic=critic)
    for side in counted:
        optimizer = getattr(run.players, f"{side}_optimizer")
        optimizer.register_step_post_hook(lambda *_, side=side: counted.__setitem__(side, counted[side] + 1))
    run.fit(2, progress=False)
    assert (counted["discriminator"], counted["generator"]) == (2 * expected[0], 2 * expected[1])
    assert run.images == 2 * critic * 20


def test_the_generators_update_forms_no_gradient_of_the_discriminator():
    run = trainer()
    run.fit(1, progress=False)
    kept = [parameter.grad.clone() for parameter in run.discriminator.parameters()]
    run._iterate._update_generator(run._iterate._generate())
    assert all(torch.equal(old, p.grad) for old, p in zip(kept, run.discriminator.parameters(), strict=True))
    assert all(parameter.requires_grad for parameter in run.discriminator.parameters())


def test_frozen_parameters_of_the_user_stay_frozen():
    given = parts()
    given["discriminator"].layers[0].weight.requires_grad_(False)
    run = fastgan.Trainer(**given, data=POINTS, z_dim=3, batch_size=20, device="cpu")
    before = given["discriminator"].layers[0].weight.clone()
    run.fit(3, progress=False)
    assert not given["discriminator"].layers[0].weight.requires_grad
    assert torch.equal(before, given["discriminator"].layers[0].weight)


def test_own_objective_and_optimizers():
    given = parts()
    optimizers = {side: torch.optim.SGD(module.parameters(), lr=0.1) for side, module in given.items()}
    wasserstein = Objective("mine", lambda real, fake: fake.mean() - real.mean(), lambda fake: -fake.mean())
    run = fastgan.Trainer(
        **given,
        data=POINTS,
        z_dim=3,
        batch_size=20,
        objective=wasserstein,
        optimizers=optimizers,
        device="cpu",
        log_every=1,
    )
    run.fit(2, progress=False)
    assert run.players.generator_optimizer is optimizers["generator"]
    assert run.history[0]["loss_d"] != pytest.approx(2 * math.log(2), abs=0.3)


def test_non_finite_weights_are_never_saved(tmp_path):
    run = trainer(out=tmp_path, checkpoint_every=2, log_every=100)
    run.fit(2, progress=False)
    with torch.no_grad():
        run.generator[0].weight.fill_(math.nan)
    with pytest.raises(NonFiniteError):
        run.fit(4, progress=False)
    assert [path.name for path in checkpoint.whole(tmp_path / "checkpoints")] == ["step-00000002"]


def test_every_epoch_shows_every_sample_once():
    run = trainer(batch_size=30)
    seen = [run._batches.draw() for _ in range(12)]
    for epoch in (torch.cat(seen[:6]), torch.cat(seen[6:])):
        assert len(torch.unique(epoch, dim=0)) == 180
    assert not torch.equal(seen[0], seen[6])


def test_sample_follows_the_seed():
    run = trainer().fit(1, progress=False)
    assert torch.equal(run.sample(4, seed=1), run.sample(4, seed=1))
    assert not torch.equal(run.sample(4, seed=1), run.sample(4, seed=2))
    torch.manual_seed(3)
    first = run.sample(4)
    torch.manual_seed(3)
    assert torch.equal(first, run.sample(4))


def test_uniform_latents_fill_their_range():
    run = trainer(latent="uniform")
    z = run._latents.draw(4000)
    assert z.min() < -0.99
    assert z.max() > 0.99
    assert z.abs().max() <= 1


def test_saving_without_a_folder_is_refused():
    with pytest.raises(UserError, match="out="):
        trainer().save()
