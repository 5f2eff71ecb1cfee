"""What the presets of the literature are made of, against loops written by hand and the papers' formulas."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastgan
from fastgan.data import Dataset
from fastgan.errors import UserError
from fastgan.nn import Chain, LinearAct
from fastgan.presets import CriticWarmup, Optimizer
from fastgan.train import checkpoint

DICE = torch.Generator().manual_seed(0)
POINTS = torch.randn(200, 2, generator=DICE).clamp(-3, 3) / 3
IMAGES = torch.full((40, 1, 8, 8), 0.7)
WARMUP = {"updates": 4, "first": 2, "every": 5}


def trainer(data=POINTS, generator=None, discriminator=None, **keys):
    torch.manual_seed(1)
    generator = generator or Chain(LinearAct(3, 16), LinearAct(16, 2, activation="none"))
    discriminator = discriminator or Chain(LinearAct(2, 16), LinearAct(16, 1, activation="none"))
    keys = {"z_dim": 3, "batch_size": 20, "log_every": 1, "device": "cpu", "threads": 1, **keys}
    return fastgan.Trainer(generator=generator, discriminator=discriminator, data=data, **keys)


def of_images(**keys):
    generator = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8)))
    critic = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
    return trainer(IMAGES, generator, critic, batch_size=8, **keys)


def close(run, networks, tolerance=1e-6):
    for own, theirs in zip((run.generator, run.discriminator), networks, strict=True):
        torch.testing.assert_close([*own.parameters()], [*theirs.parameters()], rtol=1e-5, atol=tolerance)


@pytest.fixture
def by_hand():
    """Copies of a run's networks and functions that draw what it draws."""

    def made(run):
        twin = copy.deepcopy(run._draws)
        return copy.deepcopy((run.generator, run.discriminator)), lambda: twin.z(0), lambda: twin.real(0)

    return made


def test_wgan_is_algorithm_1_with_the_authors_schedule(by_hand):
    """RMSprop, n_critic updates of the critic and 4 in some iterations, its weights clamped after each."""
    own = {"lr": 0.01, "alpha": 0.9, "momentum": 0.3}
    keys = {f"{side}_optimizer": {"name": "rmsprop", **own} for side in ("generator", "discriminator")}
    # where a gradient is 0 but for rounding, as of a last bias or of ReLUs that are all on, RMSprop makes whole steps
    critic = Chain(LinearAct(2, 16, activation="tanh"), LinearAct(16, 1, bias=False, activation="none"))
    run = trainer(discriminator=critic, **keys, objective="wasserstein", n_critic=2, critic_warmup=WARMUP, clip=0.05)
    (g, d), z, real = by_hand(run)
    of_g, of_d = torch.optim.RMSprop(g.parameters(), **own), torch.optim.RMSprop(d.parameters(), **own)
    updates = 0
    for iteration in range(12):
        for _ in range(4 if iteration < 2 or iteration % 5 == 0 else 2):
            fake = g(z()).detach()
            of_d.zero_grad()
            (d(fake).mean() - d(real()).mean()).backward()
            of_d.step()
            with torch.no_grad():
                for p in d.parameters():
                    p.clamp_(-0.05, 0.05)
            updates += 1
        of_g.zero_grad()
        (-d(g(z())).mean()).backward()
        of_g.step()
    run.fit(12, progress=False)
    close(run, (g, d), tolerance=1e-4)  # rounding, divided by small roots
    assert run.images == updates * 20 == (4 * 4 + 8 * 2) * 20


@pytest.mark.parametrize("keys", [{}, {"on_nan": "skip"}, {"discriminator_optimizer.name": "sgd"}])
def test_weights_are_within_the_clip_after_each_update(keys):
    run = trainer(**keys, objective="wasserstein", clip=0.02, n_critic=2, **{"discriminator_optimizer.lr": 0.1})
    assert max(p.abs().max() for p in run.discriminator.parameters()) > 0.02
    optimizer, widest = run.players.discriminator_optimizer, []
    step = optimizer.step

    def watched():
        step()
        widest.append(max(p.abs().max().item() for p in run.discriminator.parameters()))

    optimizer.step = watched
    run.fit(3, progress=False)
    assert len(widest) == 6 and all(w == pytest.approx(0.02, rel=1e-6) for w in widest)
    assert max(p.abs().max() for p in run.generator.parameters()) > 0.02


@pytest.mark.parametrize("warmup", [CriticWarmup(100), CriticWarmup(7, 3, 0), CriticWarmup(4, 0, 5), CriticWarmup()])
def test_the_critic_s_schedule_counts(warmup):
    """100 updates while iteration < 25 or iteration % 500 == 0, else n_critic."""
    total = 0
    for iteration in range(1600):
        assert warmup.before(iteration, 5) == total
        warm = iteration < warmup.first or (warmup.every and iteration % warmup.every == 0)
        expected = warmup.updates if warm and warmup.updates else 5
        assert warmup.at(iteration, 5) == expected
        total += expected


def test_momentum_and_rates_move_as_they_are_told(by_hand):
    keys = {
        "generator_optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.5, "nesterov": True},
        "discriminator_optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.5, "weight_decay": 0.01},
        "schedules": {
            "generator_momentum": {"to": 0.9, "steps": 6, "begin": 2},
            "discriminator_lr": {"to": 0.005, "steps": 10, "shape": "exponential"},
        },
    }
    run = trainer(**keys)
    (g, d), z, real = by_hand(run)
    of_g = torch.optim.SGD(g.parameters(), lr=0.1, momentum=0.5, nesterov=True)
    of_d = torch.optim.SGD(d.parameters(), lr=0.05, momentum=0.5, weight_decay=0.01)
    for step in range(12):
        of_g.param_groups[0]["momentum"] = 0.5 + 0.4 * min(max((step - 2) / 6, 0.0), 1.0)
        of_d.param_groups[0]["lr"] = 0.05 * 0.1 ** min(step / 10, 1.0)
        fake = g(z())
        of_d.zero_grad()
        (F.softplus(-d(real())).mean() + F.softplus(d(fake.detach())).mean()).backward()
        of_d.step()
        of_g.zero_grad()
        F.softplus(-d(g(z()))).mean().backward()
        of_g.step()
    close(run.fit(12, progress=False), (g, d))


@pytest.mark.parametrize("updates", ["fresh", "generator_first"])
def test_the_real_label_is_smoothed_on_one_side(by_hand, updates):
    run = trainer(label_smoothing=0.1, updates=updates)
    (g, d), z, real = by_hand(run)
    x, y = d(real()), d(g(z()))
    expected = F.binary_cross_entropy_with_logits(x, torch.full_like(x, 0.9)) + F.softplus(y).mean()
    of_d = torch.optim.Adam(d.parameters(), lr=2e-4, betas=(0.5, 0.999))
    expected.backward()
    of_d.step()
    run.fit(1, progress=False)
    assert run.history[0]["loss_d"] == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close([*run.discriminator.parameters()], [*d.parameters()], rtol=1e-5, atol=1e-6)
    if updates == "generator_first":
        assert run.history[0]["loss_g"] == pytest.approx(F.softplus(-y).mean().item(), rel=1e-6)


def test_the_discriminator_sees_augmented_images_in_both_updates():
    run = of_images(augment="cutout")
    seen, hook = [], run.discriminator.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    slopes = []
    generate = run._iterate.generate

    def watched(z):
        made = generate(z)
        if made.requires_grad:
            made.register_hook(slopes.append)
        return made

    run._iterate.generate = watched
    run.fit(2, progress=False)
    hook.remove()
    assert [len(batch) for batch in seen] == [8, 8, 8] * 2  # real, fake of D; fake of G
    assert all((batch == 0).flatten(1).any(1).all() for batch in seen)  # a window of each is cut out, none is alike
    assert len({tuple((image == 0).flatten().tolist()) for batch in seen for image in batch}) > 10
    for slope, batch in zip(slopes, seen[2::3], strict=True):  # gradients flow where the image is seen, and only there
        assert slope[batch == 0].abs().max() == 0 and (slope[batch != 0] != 0).all()


@pytest.mark.parametrize("keys", [{"augment": "color,translation,cutout"}, {"critic_warmup": WARMUP, "clip": 0.1}])
def test_resuming_is_exact(tmp_path, keys):
    keys = {**keys, "generator_optimizer": {"name": "sgd", "momentum": 0.5}, "discriminator_optimizer": "rmsprop"}
    keys["schedules"] = {"generator_momentum": {"to": 0.9, "steps": 5}}
    whole = of_images(out=tmp_path / "a", **keys).fit(8, progress=False)
    of_images(out=tmp_path / "b", **keys).fit(3, progress=False)
    rest = of_images(out=tmp_path / "b", **keys)
    rest.resume(checkpoint.load(tmp_path / "b/checkpoints/step-00000003"))
    rest.fit(8, progress=False)
    left, right = (checkpoint.load(run.out / "checkpoints/step-00000008") for run in (whole, rest))
    for file, tensors in left.tensors.items():
        assert all(torch.equal(tensor, right.tensors[file][name]) for name, tensor in tensors.items()), file
    assert (left.values["images"], left.values["drawn"]) == (right.values["images"], right.values["drawn"])


def test_only_the_first_samples_are_trained_on():
    points = torch.arange(100.0).view(50, 2) / 100
    run = trainer(Dataset.from_tensor(points, torch.arange(50) % 3), limit=30, batch_size=10)
    assert torch.equal(run.data.images, points[:30]) and len(run.data.labels) == 30
    drawn = torch.cat([run._draws.real(0) for _ in range(3)])
    assert torch.equal(drawn.sort(0).values, points[:30])
    assert len(fastgan.Trainer("gan-digits", limit=100, device="cpu").data) == 100


def test_goodfellows_first_samples_are_the_mean_image():
    images = torch.randint(1, 256, (5000, 1, 2, 5), dtype=torch.uint8, generator=DICE)
    images[:, 0, 0, 0] = 0  # always black: the logit of 1e-7, as in pylearn2
    for data in (images, images.float() / 127.5 - 1):
        run = fastgan.Trainer(data=data, z_dim=3, device="cpu", **{"generator.name": "goodfellow"})
        mean = images.double().mean(0).flatten() / 255
        expected = torch.log(mean / (1 - mean))
        expected[0] = math.log(1e-7 / (1 - 1e-7))
        torch.testing.assert_close(run.generator.layers[-1].bias.double(), expected, rtol=1e-4, atol=1e-4)
        shown = run.generator(torch.zeros(1, 3)).flatten()  # hidden biases are 0
        torch.testing.assert_close(shown.double(), 2 * mean.clamp(min=1e-7) - 1, rtol=1e-4, atol=1e-5)


def test_goodfellows_discriminator_is_the_papers():
    torch.manual_seed(0)
    critic = fastgan.models.discriminator("goodfellow", (1, 2, 3), {"hidden": [4, 5], "pieces": 3}).eval()
    x = torch.rand(7, 1, 2, 3) * 2 - 1
    first, second, last = [member for member in critic.layers if isinstance(member, nn.Linear)]
    h = ((x.flatten(1) + 1) / 2 @ first.weight.T).view(7, 4, 3).max(-1)[0]
    h = (h @ second.weight.T).view(7, 5, 3).max(-1)[0]
    torch.testing.assert_close(critic(x), (h @ last.weight.T).squeeze(1))
    assert [member.p for member in critic.layers if isinstance(member, nn.Dropout)] == [0.2, 0.5, 0.5]


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"label_smoothing": 0.1, "objective": "hinge"}, "hinge has no labels for label_smoothing"),
        ({"label_smoothing": 0.1, "objective": lambda x, y: (x.mean(), y.mean())}, "smooth the labels in your own"),
        ({"augment": "color"}, "augment is for images"),
        ({"augment": "colour"}, "did you mean 'color'"),
        ({"limit": 201}, "limit 201 is more than"),
        ({"critic_warmup.updates": 3, "resident": "never"}, "critic_warmup.updates=0"),
        ({"critic_warmup.updates": 3, "updates": "generator_first"}, "critic_warmup.updates=0 or updates=fresh"),
        ({"generator_optimizer": "adagrad"}, "generator_optimizer.name"),
        ({"generator_optimizer": {"name": "sgd", "betas": [0.1, 0.2]}}, "sgd does not read betas"),
        ({"generator_optimizer.momentum": 0.5}, "adam does not read momentum: leave it out, or take rmsprop, sgd"),
        ({"generator_optimizer": {"name": "sgd", "nesterov": True}}, "set momentum too"),
        ({"schedules.generator_momentum": {"to": 0.5, "steps": 3}}, "optimiser adam has none"),
        ({"schedules.generator_beta1": {"to": 0.5, "steps": 3}, "generator_optimizer": "sgd"}, "sgd has none"),
        ({"schedules.generator_momentum": {"to": 0.5, "steps": 3}, "generator_optimizer": "sgd"}, "starts from 0"),
        ({"clip": -1}, "clip is at least 0"),
    ],
)
def test_mistakes_are_one_clear_line(keys, words):
    objective = keys.pop("objective", None)
    with pytest.raises(UserError, match=words) as caught:
        trainer(objective=objective, **keys)
    assert "\n" not in str(caught.value)


def test_another_optimiser_keeps_the_rate():
    config = fastgan.presets.from_dict({"generator_optimizer": "rmsprop"}, fastgan.presets.preset("ring8"))
    assert config.generator_optimizer == Optimizer("rmsprop", lr=1e-4)
    optimizers = {"discriminator": torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)}
    with pytest.raises(UserError, match=r"give yours weight_clip=0\.1"):
        trainer(clip=0.1, optimizers=optimizers)
