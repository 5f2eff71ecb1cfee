"""The Trainer from Python: own parts, own data, history, samples, and a random stream that is nobody else's."""

import math

import pytest
import torch
from torch import nn

import fastgan
from fastgan.errors import NonFiniteError, UserError
from fastgan.objectives import Objective
from fastgan.train import checkpoint, pictures
from fastgan.train.generate import samples
from fastgan.train.step import Pattern

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
    assert run.history[0]["seconds"] <= run.history[1]["seconds"] <= run.seconds
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


@pytest.mark.parametrize(
    "keys",
    [
        {"updates": "shared", "n_critic": 3},
        {"updates": "generator_first"},
        {"n_critic": 2, "latent": "uniform", "keep_checkpoints": 1, "log_every": 5, "checkpoint_every": 3},
    ],
)
def test_resuming_twice_is_exact(tmp_path, keys):
    whole = trainer(out=tmp_path / "a", **keys).fit(14, progress=False)
    trainer(out=tmp_path / "b", **keys).fit(4, progress=False)
    for total in (7, 14):  # 4, 7: a checkpoint between two rows of the metrics, and in the middle of an epoch
        rest = trainer(seed=99, out=tmp_path / "b", **keys)
        torch.rand(3)
        rest.resume(checkpoint.load(checkpoint.whole(tmp_path / "b/checkpoints")[-1]))
        rest.fit(total, progress=False)
    left, right = (checkpoint.load(run.out / "checkpoints/step-00000014") for run in (whole, rest))
    for file in checkpoint.FILES:
        for name, tensor in left.tensors[file].items():
            assert torch.equal(tensor, right.tensors[file][name]), name
    assert whole.images == rest.images == rest.history[-1]["images"]
    assert whole.sample(3, seed=1).equal(rest.sample(3, seed=1))


def test_sums_of_an_interrupted_row_are_kept(tmp_path):
    whole = trainer(out=tmp_path / "a", log_every=5, checkpoint_every=3)
    whole.fit(5, progress=False)
    rest = trainer(seed=99, out=tmp_path / "b", log_every=5)
    stored = checkpoint.load(tmp_path / "a/checkpoints/step-00000003")
    rest.resume(checkpoint.Checkpoint(stored.tensors, {**stored.values, "seconds": 1000.0}))
    rest.fit(5, progress=False)
    assert rest.history[0]["seconds"] > 1000
    assert {**whole.history[0], "seconds": 0} == {**rest.history[0], "seconds": 0}


class Restless(nn.Module):
    """A generator that draws from the global stream in evaluation mode too."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, z):
        return self.layer(z) + 0.1 * torch.randn(len(z), 2)


def test_pictures_do_not_change_the_run(tmp_path):
    runs = []
    for every in (1, 1000):
        given = {**parts(), "generator": Restless()}
        given["generator"].layer.load_state_dict({"weight": torch.eye(2, 3), "bias": torch.zeros(2)})
        keys = {"z_dim": 3, "batch_size": 20, "device": "cpu", "sample_every": every}
        runs.append(fastgan.Trainer(**given, data=POINTS, out=tmp_path / str(every), **keys).fit(3, progress=False))
    for left, right in zip(weights(runs[0]), weights(runs[1]), strict=True):
        assert torch.equal(left, right)


def test_parts_that_do_not_fit_are_found_at_once():
    keys = {"data": POINTS, "z_dim": 3, "batch_size": 20, "device": "cpu"}
    cases = {
        "generator cannot take a batch of shape": {"z_dim": 4},
        "generator makes": {"generator": nn.Linear(3, 5)},
        "discriminator cannot take a batch": {"discriminator": nn.Linear(7, 1)},
        "discriminator makes": {"discriminator": nn.Sequential(nn.Linear(2, 2), nn.Flatten(0))},
        "Expected more than 1 value per channel": {"batch_size": 1},
        "nothing to train": {"discriminator": nn.Flatten(0)},
        "unknown side of optimizers 'G'": {"optimizers": {"G": None}},
    }
    for words, change in cases.items():
        with pytest.raises(UserError, match=words) as caught:
            fastgan.Trainer(**{**parts(), **keys, **change})
        assert "\n" not in str(caught.value)


def test_building_a_trainer_moves_no_buffer_and_no_stream():
    given = parts()
    before = {name: value.clone() for name, value in given["generator"].state_dict().items()}
    stream = torch.get_rng_state()
    fastgan.Trainer(**given, data=POINTS, z_dim=3, batch_size=20, device="cpu")
    assert torch.equal(torch.get_rng_state(), stream)
    for name, value in given["generator"].state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_folder_with_another_run_is_refused(tmp_path):
    trainer(out=tmp_path).fit(4, progress=False)
    before = (tmp_path / "metrics.csv").read_bytes()
    with pytest.raises(UserError, match="holds the checkpoints of a run already"):
        trainer(out=tmp_path).fit(4, progress=False)
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_samples_that_cannot_be_drawn_are_no_reason_to_stop(tmp_path):
    given = {"generator": nn.Linear(3, 5), "discriminator": nn.Sequential(nn.Linear(5, 1), nn.Flatten(0))}
    run = fastgan.Trainer(**given, data=torch.randn(50, 5), z_dim=3, batch_size=10, device="cpu", out=tmp_path)
    run.fit(2, progress=False)
    assert (tmp_path / "curves.png").exists()
    assert not (tmp_path / "final.png").exists()


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
    run._iterate._update_generator(run._draws.real(0), run._iterate.generate(run._draws.z(0)), Pattern((False,)))
    assert all(parameter.grad is None for parameter in run.discriminator.parameters())
    assert all(parameter.requires_grad for parameter in run.discriminator.parameters())


def test_the_discriminators_update_forms_no_graph_of_the_generator():
    run, seen = trainer(), []
    run.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].requires_grad))
    run.fit(1, progress=False)
    assert seen == [False, False, True]  # real, fake; then the generator's own update


def test_scores_are_those_of_the_logits():
    seen = {}

    def watched(real, fake):
        seen.update(d_real=real.detach(), d_fake=fake.detach())
        return (fake - real).mean()

    run = trainer(objective=Objective("watched", watched, lambda fake: -fake.mean()), log_every=1)
    run.fit(1, progress=False)
    for name, logits in seen.items():
        assert run.history[0][name] == pytest.approx(logits.sigmoid().mean().item(), abs=1e-6)
    assert run.history[0]["loss_d"] == pytest.approx((seen["d_fake"] - seen["d_real"]).mean().item(), abs=1e-6)


def test_bf16_is_the_networks_affair_and_the_losses_are_fp32():
    dtypes, losses = [], []
    for precision in ("bf16", "fp32"):
        run = trainer(precision=precision, log_every=1)
        objective, judged = run._iterate.objective.discriminator, []
        watched = Objective("watched", lambda r, f, o=objective, j=judged: j.append(r.dtype) or o(r, f), torch.mean)
        run._iterate.losses.objective = watched
        run.discriminator.register_forward_hook(lambda _, inputs, output: dtypes.append(output.dtype))
        run.fit(1, progress=False)
        assert judged == [torch.float32]
        losses.append(run.history[0]["loss_d"])
    assert dtypes == [torch.bfloat16] * 3 + [torch.float32] * 3
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_pictures_show_the_latents_that_the_docstring_names(tmp_path):
    run = fastgan.Trainer("gan-digits", device="cpu", out=tmp_path, seed=5, samples=9).fit(1, progress=False)
    pictures.save_samples(run.sample(9, seed=5 + 2), tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "final.png").read_bytes()


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
        run.fit(6, progress=False)  # the checkpoint of step 4 comes before the next row of the metrics
    assert [path.name for path in checkpoint.whole(tmp_path / "checkpoints")] == ["step-00000002"]


def test_every_epoch_shows_every_sample_once():
    run = trainer(batch_size=30)
    seen = [run._draws.batches.draw() for _ in range(12)]
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


def test_samples_are_drawn_in_evaluation_mode():
    run = trainer().fit(3, progress=False)
    z, before = torch.randn(6, 3), run.generator[1].running_mean.clone()
    together = samples(run.generator, z)
    torch.testing.assert_close(together[:1], samples(run.generator, z[:1]))  # no sample depends on its batch
    assert torch.equal(run.generator[1].running_mean, before)
    assert run.generator.training


def test_uniform_latents_fill_their_range():
    run = trainer(latent="uniform")
    z = run._draws.latents.draw(4000)
    assert z.min() < -0.99
    assert z.max() > 0.99
    assert z.abs().max() <= 1


def test_saving_without_a_folder_is_refused():
    with pytest.raises(UserError, match="out="):
        trainer().save()


def test_training_takes_its_number_of_threads():
    seen, before = [], torch.get_num_threads()
    run = trainer(threads=before + 1)
    run.generator.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    run.fit(1, progress=False)
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before
