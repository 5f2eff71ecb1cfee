"""The step's arithmetic: one pass for real and fake, one for both players, what moves, noise, averages."""

import copy
import math

import pytest
import torch
from torch import nn

import fastgan
from fastgan.errors import UserError
from fastgan.models.dcgan import DCGANDiscriminator
from fastgan.nn import Chain, LinearAct, sample_by_sample
from fastgan.objectives import OBJECTIVES
from fastgan.presets import from_dict
from fastgan.train import build, checkpoint
from fastgan.train.dials import Dials
from fastgan.train.draws import HostDraws
from fastgan.train.losses import Losses
from fastgan.train.metrics import COLUMNS

POINTS = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)).clamp(-3, 3) / 3


def trainer(discriminator=None, generator=None, *, plain=False, **keys):
    torch.manual_seed(1)
    generator = generator or nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    critic = Chain(LinearAct(2, 16), LinearAct(16, 8), LinearAct(8, 1, activation="none"))
    keys = {"z_dim": 3, "batch_size": 20, "log_every": 1, "device": "cpu", **keys}
    discriminator = discriminator or critic
    if plain:  # rounding stays rounding: Adam makes steps of its size even where a gradient is 0 but for rounding
        players = {"generator": generator, "discriminator": discriminator}
        keys["optimizers"] = {side: torch.optim.SGD(net.parameters(), lr=0.1) for side, net in players.items()}
    return fastgan.Trainer(generator=generator, discriminator=discriminator, data=POINTS, **keys)


def weights(run):
    return [parameter.detach().clone() for parameter in (*run.generator.parameters(), *run.discriminator.parameters())]


def losses(run):
    return torch.tensor([(row["loss_d"], row["loss_g"], row["d_real"] or 0.0) for row in run.history])


def apart(run):
    """Have real and fake judged one after the other, and each player updated by passes of its own."""
    run._iterate._folds = run._iterate.serves_both = False
    return run


@pytest.mark.parametrize("objective", ["minimax", "non_saturating", "hinge", "least_squares", "relativistic_average"])
def test_one_pass_serves_both_players(objective):
    keys = {"objective": objective, "updates": "generator_first", "plain": True}
    once, twice = trainer(**keys), apart(trainer(**keys))
    passes = []
    once.discriminator.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    assert once._iterate.serves_both
    once.fit(30, progress=False)
    assert passes == [40] * 30
    twice.fit(30, progress=False)
    torch.testing.assert_close(losses(once), losses(twice), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights(once), weights(twice), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("objective", ["minimax", "non_saturating", "least_squares", "wasserstein", "hinge"])
def test_mean_scores_are_those_of_the_papers_d(objective):
    """The sigmoid of a logit; the output itself where its targets are values."""
    losses = Losses(OBJECTIVES[objective], critic=objective == "wasserstein")
    real, fake = torch.tensor([0.9, 1.3]), torch.tensor([-0.4, 0.2])
    score = (lambda x: x) if objective in ("least_squares", "wasserstein") else torch.sigmoid
    seen = losses.discriminator(real, fake)[1]
    assert float(seen["d_real"]) == pytest.approx(float(score(real).mean()))
    assert float(seen["d_fake"]) == pytest.approx(float(score(fake).mean()))
    told = []
    balanced = Losses(OBJECTIVES[objective], balance=lambda shares: told.append(shares.tolist()) or shares)
    seen = balanced.discriminator(torch.tensor([0.2, 0.7]), torch.tensor([0.4, 0.6]))[1]
    assert told == [[0.5, 0.5] if objective == "least_squares" else [1.0, 0.0]]
    if objective != "wasserstein":
        assert float(seen["d_real"]) == pytest.approx(float(score(torch.tensor([0.2, 0.7])).mean()))


@pytest.mark.parametrize("objective", ["non_saturating", "hinge"])
def test_the_generator_learns_from_a_discriminator_that_is_certain(objective):
    """Where D's own slope is 0, or all but 0, the generator's gradient is still the right one."""
    gradients = []
    for split in (False, True):
        run = trainer(objective=objective, updates="generator_first")
        run._iterate._to_generator.clear = lambda: None
        with torch.no_grad():
            run.discriminator[-1].bias.fill_(-60.0)
        if split:
            apart(run)
        run._iterate(run._iterate.pattern(0))
        gradients.append([p.grad.clone() for p in run.generator.parameters()])
    assert max(g.abs().max() for g in gradients[0]) > 1e-4
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "member",
    [
        nn.Dropout(0.5),
        nn.BatchNorm1d(8),
        LinearAct(8, 8, dropout=0.2),
        nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)),
    ],
)
def test_what_mixes_samples_or_moves_gets_passes_of_its_own(member):
    mixing = nn.Sequential(nn.Linear(2, 8), member, nn.Linear(8, 1))
    assert not sample_by_sample(mixing)
    assert not trainer(mixing, updates="generator_first")._iterate.serves_both
    hooked = nn.Sequential(nn.Linear(2, 1))
    hooked[0].register_forward_hook(lambda *_: None)
    assert not sample_by_sample(hooked)
    assert sample_by_sample(nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1)))


def test_several_logits_a_sample_get_passes_of_their_own():
    patches = nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(0.2), nn.Linear(8, 4))
    assert sample_by_sample(patches)
    assert not trainer(patches, updates="generator_first")._iterate.serves_both


@pytest.mark.parametrize("updates", ["fresh", "shared"])
def test_real_and_fake_go_through_in_one_pass(updates):
    keys = {"updates": updates, "n_critic": 2, "plain": True}
    together, separate = trainer(**keys), apart(trainer(**keys))
    passes = []
    together.discriminator.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    together.fit(3, progress=False)
    assert passes == [40, 40, 20] * 3
    separate.fit(3, progress=False)
    torch.testing.assert_close(losses(together), losses(separate), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights(together), weights(separate), rtol=1e-4, atol=1e-5)


def test_a_folded_pass_keeps_statistics_apart():
    torch.manual_seed(0)
    one = DCGANDiscriminator((3, 8, 8), width=4)
    two = copy.deepcopy(one)
    real, fake = torch.randn(6, 3, 8, 8), torch.randn(6, 3, 8, 8) + 1
    torch.testing.assert_close(one(torch.cat((real, fake)), groups=2), torch.cat((two(real), two(fake))))
    torch.testing.assert_close(one.state_dict(), two.state_dict())


def test_a_rate_that_falls_to_nothing_stops_its_player():
    run = trainer(schedules={"generator_lr": {"to": 0.0, "steps": 2, "begin": 1}})
    rates, moved = [], []
    for step in range(1, 6):
        before = weights(run)
        run.fit(step, progress=False)
        moved.append([torch.equal(a, b) for a, b in zip(before, weights(run), strict=True)])
        rates.append(float(run.players.generator_optimizer.param_groups[0]["lr"]))
    assert rates == pytest.approx([2e-4, 1e-4, 0.0, 0.0, 0.0])
    parameters = len([*run.generator.parameters()])
    assert not any(moved[1][:parameters]) and all(moved[4][:parameters]) and not any(moved[4][parameters:])


def test_every_quantity_can_move():
    names = ("generator_lr", "discriminator_lr", "generator_beta1", "discriminator_beta1", "ema_decay", "noise")
    schedules = {name: {"to": 0.5, "steps": 4} for name in (*names, "penalty_weight")}
    run = trainer(schedules=schedules, penalty="r1").fit(4, progress=False)
    assert run.dials.values.tolist() == [0.5] * 7
    assert all(math.isfinite(row["penalty"]) for row in run.history)
    for optimizer in (run.players.generator_optimizer, run.players.discriminator_optimizer):
        assert float(optimizer.param_groups[0]["lr"]) == 0.5 == float(optimizer.param_groups[0]["betas"][0])


def test_averages_follow_and_are_what_samples_are_drawn_with():
    run = trainer(ema={"decay": 0.9, "warmup": 0})
    expected = [p.detach().clone() for p in run.generator.parameters()]
    for step in range(1, 6):
        run.fit(step, progress=False)
        expected = [0.9 * e + 0.1 * p.detach() for e, p in zip(expected, run.generator.parameters(), strict=True)]
    averages = run.players.generator_optimizer.ema
    torch.testing.assert_close([averages[p] for p in run.generator.parameters()], expected)
    before = weights(run)
    drawn = run.sample(5, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(run), strict=True))
    averages.copy_to(run.generator)
    run.players.generator_optimizer._ema = None
    assert torch.equal(run.sample(5, seed=3), drawn)


def test_noise_is_on_what_the_discriminator_sees():
    run, seen = trainer(noise=0.5, batch_size=100), []
    run.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    run.fit(1, progress=False)
    of_g = trainer(noise=0.5, batch_size=100)
    assert [len(batch) for batch in seen] == [200, 100]
    clean = {tuple(point) for point in POINTS.tolist()}
    assert not any(tuple(point) in clean for point in seen[0][:100].tolist())
    draws = of_g._draws
    shifts = draws.noisy(torch.zeros(4000, 2), 0)
    assert shifts.std().item() == pytest.approx(0.5, abs=0.02)
    assert not torch.equal(draws.noisy(torch.zeros(4, 2), 0), draws.noisy(torch.zeros(4, 2), 0))


def test_half_of_the_images_are_mirrored():
    config = from_dict({"flip": True, "batch_size": 500, "data": "digits"})
    data = build.dataset(config, torch.device("cpu"))
    drawn = HostDraws(data, config, Dials(config, torch.device("cpu")), torch.device("cpu")).real(0)
    plain = HostDraws(data, from_dict({"flip": False}, config), Dials(config, torch.device("cpu")), torch.device("cpu"))
    straight = plain.real(0)
    mirrored = torch.tensor(
        [torch.equal(a, b.flip(-1)) and not torch.equal(a, b) for a, b in zip(drawn, straight, strict=True)]
    )
    assert 180 < mirrored.sum() < 320
    assert all(torch.equal(a, b) for a, b, m in zip(drawn, straight, mirrored, strict=True) if not m)
    with pytest.raises(UserError, match="flip"):
        trainer(flip=True)


@pytest.mark.parametrize(
    "keys",
    [
        {"ema": {"decay": 0.9}, "noise": 0.3, "schedules": {"noise": {"to": 0.0, "steps": 10}}},
        {"ema": {"decay": 0.99}, "updates": "generator_first", "penalty": {"name": "r1", "every": 3}},
    ],
)
def test_resuming_is_exact_with_all_of_it(tmp_path, keys):
    whole = trainer(out=tmp_path / "a", **keys).fit(12, progress=False)
    trainer(out=tmp_path / "b", **keys).fit(5, progress=False)
    rest = trainer(out=tmp_path / "b", **keys)
    rest.resume(checkpoint.load(tmp_path / "b/checkpoints/step-00000005"))
    rest.fit(12, progress=False)
    left, right = (checkpoint.load(run.out / "checkpoints/step-00000012") for run in (whole, rest))
    assert left.tensors.keys() == right.tensors.keys() == {*checkpoint.FILES, *checkpoint.OPTIONAL}
    for file, tensors in left.tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, right.tensors[file][name]), (file, name)
    assert (left.values["drawn"], left.values["images"]) == (right.values["drawn"], right.values["images"])
    for left, right in zip(whole.history, rest.history, strict=True):
        assert all(left.get(name) == right.get(name) for name in COLUMNS if name != "seconds")
