"""A whole iteration as a table of phases: against the engine's own step, in fp64 and in what trainings run in."""

import random

import pytest
import torch
from torch import nn

import fastgan
from fastgan.benchmarks import mlp_step_measure
from fastgan.benchmarks.mlp_step import of_preset
from fastgan.nn import BatchNorm1dAct, Chain, LinearAct
from fastgan.ops import dropout, streams
from fastgan.ops.mlp_step_interpreter import DROPOUT
from fastgan.train import mlp_step
from fastgan.train.capture import strict
from fastgan.train.classes import Classes
from fastgan.train.draws import ClockDraws
from fastgan.train.gradients import Gradients
from fastgan.train.step import Pattern

GENERATOR = torch.Generator().manual_seed(0)
POINTS = torch.randn(70, 6, generator=GENERATOR).clamp(-3, 3) / 3
IMAGES = torch.randint(256, (50, 2, 3), dtype=torch.uint8, generator=GENERATOR)
OPTIMIZERS = {
    "adam": lambda p: fastgan.optim.Adam(p, lr=0.01, betas=(0.5, 0.99), weight_decay=0.01),
    "adamw": lambda p: fastgan.optim.AdamW(p, lr=0.01, weight_decay=0.1, ema=fastgan.optim.EMA(0.9, 10.0)),
    "rmsprop": lambda p: fastgan.optim.RMSprop(p, lr=0.003, weight_clip=0.3),
    "rmsprop whole": lambda p: fastgan.optim.RMSprop(p, lr=0.003, centered=True, momentum=0.5, weight_decay=0.01),
    "sgd": lambda p: fastgan.optim.SGD(p, lr=0.05, weight_decay=0.01),
    "sgd nesterov": lambda p: fastgan.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "sgd dampened": lambda p: fastgan.optim.SGD(p, lr=0.05, momentum=0.9, dampening=0.5, max_norm=0.2),
    "adam guarded": lambda p: fastgan.optim.Adam(p, lr=0.01, skip_non_finite=True, max_norm=0.5),
}


def networks(activation="leaky_relu", norm=True, critic_norm=False, drop=None):
    """Odd widths; the generator's first layer has no bias."""
    torch.manual_seed(3)
    hidden = [LinearAct(5, 9, bias=False, activation="none" if norm else activation)]
    hidden += [nn.BatchNorm1d(9, momentum=0.3), activated(activation)] if norm else []
    hidden += [nn.Linear(9, 13), nn.BatchNorm1d(13, eps=0.1, affine=False), nn.Tanh()]
    critic = [LinearAct(6, 17, activation="none" if critic_norm else activation), *([drop] if drop else [])]
    critic += [BatchNorm1dAct(17, activation=activation)] if critic_norm else []
    critic += [nn.Linear(17, 7), activated(activation), LinearAct(7, 1, activation="none")]
    return Chain(*hidden, LinearAct(13, 6, activation="tanh")), Chain(*critic)


def activated(name):
    return {"none": nn.Identity(), "relu": nn.ReLU(), "tanh": nn.Tanh(), "sigmoid": nn.Sigmoid()}.get(
        name, nn.LeakyReLU(0.2)
    )


class Wide(ClockDraws):
    """The same draws in fp64."""

    def real(self, at):
        return super().real(at).double()

    def z(self, at):
        return super().z(at).double()


def trainer(parts=None, optimizer=None, *, wide=True, data=POINTS, spoilt=None, **keys):
    generator, discriminator = parts or networks()
    if optimizer:
        make = OPTIMIZERS[optimizer]
        keys["optimizers"] = {
            "generator": make(generator.parameters()),
            "discriminator": make(discriminator.parameters()),
        }
    with strict():
        keys = {"z_dim": 5, "batch_size": 12, "device": "cpu", **keys}
        run = fastgan.Trainer(generator=generator, discriminator=discriminator, data=data.clone(), **keys)
    if spoilt is not None:
        run.data.images[spoilt] = float("inf")
    if wide:
        step = run._iterate
        for side in ("generator", "discriminator"):
            getattr(run, side).double()
            setattr(step, f"_to_{side}", Gradients(getattr(run.players, f"{side}_optimizer"), fixed=True))
        step.draws = Wide(run.data, run.config, run.dials)
    return run


def table(run, **how):
    return mlp_step.program(run._iterate, run.config, run.data, **({"dtype": torch.float64} | how))


def by_itself(run, steps=5):
    with strict():
        for _ in range(steps):
            run._iterate(Pattern((False,) * run.config.n_critic))
    return run


def state(run):
    """All that an iteration moves, by name; in front of a norm a bias moves by nothing but rounding."""
    found = {}
    for side in ("generator", "discriminator"):
        network, optimizer = getattr(run, side), getattr(run.players, f"{side}_optimizer")
        found |= {f"{side}.{name}": value for name, value in network.state_dict().items()}
        for at, own in enumerate(optimizer.state.values()):
            found |= {f"{side}.{at}.{name}": value for name, value in own.items() if value is not None}
        found[f"{side}.counters"] = optimizer._counts()
    meter, dials = run._meter, run.dials
    return {**found, "sums": meter.sums, "counts": meter.counts, "clock": dials.clock, "dials": dials.values}


def alike(one, other, rtol=1e-9, atol=1e-10):
    mine, theirs = state(one), state(other)
    extra = mine.keys() ^ theirs.keys()  # torch.optim.SGD counts no steps
    assert all(name.endswith(".step") for name in extra)
    for name in mine.keys() - extra:
        value = mine[name]
        single = value.dtype == torch.float32 or name.endswith(".ema")  # what an average moves by is told in fp32
        loose = {"rtol": 2e-6, "atol": 1e-6} if single and rtol < 1e-6 else {}
        torch.testing.assert_close(
            value, theirs[name], **{"rtol": rtol, "atol": atol, **loose}, msg=lambda told, name=name: f"{name}: {told}"
        )


def both(steps=5, shuffled=0, **how):
    """A training by the engine's step, and the same by its table, whose phases come in any order within a stage."""
    parts = how.pop("parts", networks)
    one, other = (trainer(parts(), **how) for _ in range(2))
    table(other, **({} if how.get("wide", True) else {"dtype": None})).run(steps, random.Random(shuffled))
    by_itself(one, steps)
    return one, other


@pytest.mark.parametrize("updates", ["fresh", "shared", "generator_first"])
@pytest.mark.parametrize("objective", ["minimax", "non_saturating", "wasserstein", "least_squares", "hinge"])
def test_every_objective_in_either_order(objective, updates):
    alike(*both(objective=objective, updates=updates, n_critic=1 if updates == "generator_first" else 2))


@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu", "tanh", "sigmoid"])
def test_every_activation(activation):
    for keys in ({"norm": False}, {"critic_norm": True}):
        for updates in ("fresh", "generator_first"):
            alike(*both(3, parts=lambda keys=keys: networks(activation, **keys), updates=updates))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimiser(optimizer):
    for updates in ("fresh", "generator_first"):
        alike(*both(optimizer=optimizer, updates=updates))


def test_mirrored_images_of_bytes_other_latents_and_a_critic_of_one_layer():
    def parts():
        generator = networks(norm=False)[0]
        return nn.Sequential(*generator, nn.Unflatten(1, (1, 2, 3))), nn.Sequential(nn.Flatten(), nn.Linear(6, 1))

    for latent in ("uniform", "discrete"):
        for updates in ("shared", "generator_first"):
            alike(*both(9, parts=parts, data=IMAGES, flip=True, latent=latent, updates=updates))


def test_schedules_averages_and_the_guard_move_as_they_do():
    schedules = {
        "generator_lr": {"to": 0.0, "steps": 4},
        "discriminator_beta1": {"to": 0.9, "steps": 3, "shape": "cosine"},
        "ema_decay": {"to": 0.9, "steps": 6},
    }
    keys = {"schedules": schedules, "ema": {"decay": 0.5, "warmup": 3}, "generator_optimizer": {"lr": 0.01}}
    for more in ({}, {"on_nan": "skip"}):
        alike(*both(7, **more, **keys), rtol=1e-6, atol=1e-7)  # dials are fp32


def test_a_step_that_would_spoil_weights_is_skipped():
    for updates in ("fresh", "generator_first"):
        parts = lambda: networks(critic_norm=True)  # noqa: E731  # whose running statistics are mended
        one, other = both(9, parts=parts, spoilt=7, on_nan="skip", updates=updates, wide=False)
        alike(one, other, rtol=1e-3, atol=2e-3)  # a bias in front of a norm walks about
        skipped = other.players.discriminator_optimizer.skipped
        assert 0 < skipped < 9
        assert all(value.isfinite().all() for value in state(other).values())


class Dropped(nn.Module):
    """Dropout with the bits that the table takes, of an iteration's passes by so many rows each."""

    def __init__(self, p, passes):
        super().__init__()
        self.p, self.passes, self.rows = p, passes, 0

    def forward(self, input):
        count, row = divmod(self.rows, sum(self.passes))
        self.rows += len(input)
        site, first = (1, row - self.passes[0]) if row >= self.passes[0] else (0, row)
        rng = streams.rng(DROPOUT, torch.tensor(len(self.passes) * count + site), 0)
        mask = dropout.keep_mask(rng, (self.passes[site], input.shape[1]), self.p)[first:][: len(input)]
        return torch.where(mask, input * dropout.scale(self.p), 0.0)


def copied(one, other):
    """``other`` with the weights of ``one``; and forget the rows that a Trainer tried its networks with."""
    with torch.no_grad():
        for side in ("generator", "discriminator"):
            pairs = zip(getattr(one, side).parameters(), getattr(other, side).parameters(), strict=True)
            for mine, its in pairs:
                its.copy_(mine)
            for member in getattr(one, side).modules():
                member.rows = 0
    return other


@pytest.mark.parametrize(("p", "activation"), [(0.3, "leaky_relu"), (0.5, "tanh"), (1.0, "relu"), (0.5, "sigmoid")])
def test_dropout(p, activation):
    act = activated(activation)
    for first in (False, True):
        masked = Dropped(p, (24, 12))  # real and fake, then fake
        members = nn.Linear(6, 9), *((masked, act) if first else (act, masked)), nn.Linear(9, 1)
        layer = LinearAct(6, 9, activation=activation, dropout=p, dropout_first=first)
        check_dropout((networks()[0], Chain(*members)), (networks()[0], Chain(layer, nn.Linear(9, 1))))
    sides = []
    for member in (Dropped(p, (24,)), nn.Dropout(p)):  # for D, then for G
        generator = Chain(nn.Linear(5, 9), nn.BatchNorm1d(9), act, member, nn.Linear(9, 6), nn.Tanh())
        sides.append((generator, networks()[1]))
    check_dropout(*sides)


def check_dropout(masked, dropping):
    one, other = trainer(masked), trainer(dropping)
    table(copied(one, other)).run(4)
    by_itself(one, 4)
    for side in ("generator", "discriminator"):
        pairs = zip(getattr(one, side).named_parameters(), getattr(other, side).parameters(), strict=True)
        for (name, mine), its in pairs:
            loose = 3e-3 if name == "0.bias" and side == "generator" else 1e-10  # in front of a norm
            torch.testing.assert_close(mine, its, rtol=1e-9, atol=loose)
    torch.testing.assert_close(one._meter.sums, other._meter.sums)


def test_a_run_goes_on_where_it_stopped_to_the_bit():
    keys = {"schedules": {"generator_lr": {"to": 0.0, "steps": 9}}, "ema": {"decay": 0.9}, "wide": False}
    whole, first, second = (trainer(networks(), **keys) for _ in range(3))
    one = table(whole, dtype=None)
    one.run(4)
    one.run(3)
    table(first, dtype=None).run(4)
    first.step = 4
    second.resume(first._content())
    table(second, dtype=None).run(3)
    assert all(torch.equal(value, state(second)[name]) for name, value in state(whole).items())


def test_iterations_of_either_kind_may_follow_each_other():
    """What the table leaves in place is what the step goes on with: a watched iteration in between, say."""
    one, other = trainer(), trainer()
    program = table(other)
    for steps in (2, 1, 3):
        program.run(steps)
        by_itself(other, 1)
    by_itself(one, 9)
    alike(one, other)


@pytest.mark.parametrize("preset", ["gan-digits", "ring8"])
def test_presets_in_fp32_and_in_bf16(preset):
    """Losses of 50 steps as the Trainer's own; in bf16 they stay near."""
    with strict():
        keys = {"steps": 50, "device": "cpu", "batch_size": 30}
        keys |= {"discriminator.maxout": 0} if preset == "ring8" else {}
        one, other, rounded = (fastgan.Trainer(preset, **keys) for _ in range(3))
    by_itself(one, 50)
    table(other, dtype=None).run(50)
    table(rounded, dtype=torch.bfloat16).run(50)
    torch.testing.assert_close(other._meter.sums, one._meter.sums, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(rounded._meter.sums, one._meter.sums, rtol=3e-2, atol=1.0)


@pytest.mark.parametrize("name", sorted({*mlp_step_measure.PRESETS} - {"mlp"}))  # which others here train
def test_what_is_measured_by_default_is_taken(name):
    assert of_preset(name, 4).interpreter.phases


def why(parts=None, step=None, **keys):
    run = trainer(parts, wide=False, **keys)
    for name, value in (step or {}).items():
        setattr(run._iterate, name, value)
    return mlp_step.applies(run._iterate, run.config, run.data)


def test_what_is_not_taken_is_said_in_words():
    def critic(*members):
        return networks()[0], Chain(*members)

    assert why() is None
    assert "one logit" in why(critic(nn.Linear(6, 4)))
    assert "contains LayerNorm" in why(critic(nn.LayerNorm(6), nn.Linear(6, 1)))
    assert "in front of" in why(critic(nn.BatchNorm1d(6), nn.Linear(6, 1)))
    assert "behind something other" in why(critic(LinearAct(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)))
    assert "wider than 2048" in why(critic(LinearAct(6, 2049), nn.Linear(2049, 1)))
    assert "below 0" in why(critic(LinearAct(6, 8, negative_slope=-0.1), nn.Linear(8, 1)))
    assert "momentum" in why(critic(nn.Linear(6, 8), nn.BatchNorm1d(8, momentum=None), nn.Linear(8, 1)))
    shared = nn.Linear(6, 6)
    assert "two layers" in why(critic(shared, nn.ReLU(), shared, nn.Linear(6, 1)))
    frozen = nn.Linear(6, 8)
    frozen.bias.requires_grad_(False)
    assert "frozen" in why(critic(frozen, nn.Linear(8, 1)))
    assert "relativistic" in why(objective="relativistic")
    assert "noise" in why(noise=0.1)
    assert "label_smoothing" in why(label_smoothing=0.1)
    assert "updates changes" in why(critic_warmup={"updates": 2})
    told = networks()[0]
    told.num_classes = 3
    assert "told classes" in why(step={"classes": Classes(told, networks()[1])})
    with strict():
        encoded = fastgan.Trainer("vae", device="cpu", batch_size=4)
        assert "method=vae" in mlp_step.applies(encoded._iterate, encoded.config, encoded.data)
    assert "balance" in why(balance="auto")
    generator, discriminator = networks()
    theirs = {
        "generator": torch.optim.Adam(generator.parameters()),
        "discriminator": fastgan.optim.SGD(discriminator.parameters()),
    }
    assert "not one of fastgan.optim" in why((generator, discriminator), optimizers=theirs)
    run = fastgan.Trainer("gan-digits", device="cpu")
    assert "the host draws" in mlp_step.applies(run._iterate, run.config, run.data)
