"""Labels in a step: they belong to the samples beside them, decide what is made, and are refused where they lack."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastgan
from fastgan.data import Dataset
from fastgan.errors import UserError
from fastgan.nn import sample_by_sample
from fastgan.objectives import r1
from fastgan.presets import from_dict, preset
from fastgan.train import checkpoint
from fastgan.train.capture import strict
from fastgan.train.dials import Dials
from fastgan.train.draws import ClockDraws, HostDraws
from fastgan.train.generate import load_discriminator
from fastgan.train.networks import load_network
from fastgan.train.state import SIDES
from fastgan.train.step import Pattern

CLASSES = 3
CPU = torch.device("cpu")
ANGLES = 2 * math.pi * torch.arange(CLASSES) / CLASSES
CENTRES = torch.stack((ANGLES.cos(), ANGLES.sin()), 1) * 0.7


def toy(n=192, roll=0):
    """Points about a centre that their label names; under ``roll`` the labels are those of other samples."""
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (n,), generator=random)
    points = CENTRES[labels] + 0.05 * torch.randn(n, 2, generator=random)
    return Dataset.from_tensor(points, labels.roll(roll))


def belongs(points, labels):
    return torch.equal(torch.cdist(points, CENTRES).argmin(1), labels)


class Maker(nn.Module):
    """z and labels -> points."""

    num_classes = CLASSES

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 + CLASSES, 32), nn.ReLU(), nn.Linear(32, 2))
        self.told = []

    def forward(self, z, labels):
        self.told.append(labels)
        kinds = torch.eye(CLASSES, device=z.device)[labels]
        return self.layers(torch.cat((z, kinds), 1))


class Judge(nn.Module):
    """Points and labels -> logits; ``groups`` are told apart by nobody."""

    num_classes = CLASSES

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 + CLASSES, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
        self.shown = []

    def forward(self, points, labels, groups=1):
        self.shown.append((points.detach(), labels, groups))
        kinds = torch.eye(CLASSES, device=points.device)[labels]
        return self.layers(torch.cat((points, kinds), 1)).squeeze(1)


class Guesser(nn.Module):
    """Points -> logits and class logits."""

    classifies, num_classes = True, CLASSES

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1 + CLASSES))

    def forward(self, points, groups=1):
        both = self.layers(points)
        return both[:, 0], both[:, 1:]


def trainer(data=None, discriminator=Judge, plain=False, **keys):
    torch.manual_seed(1)
    players = {"generator": Maker(), "discriminator": discriminator()}
    if plain:
        keys["optimizers"] = {side: torch.optim.SGD(net.parameters(), lr=0.1) for side, net in players.items()}
    keys = {"z_dim": 2, "batch_size": 16, "log_every": 1, "device": "cpu", **keys}
    return fastgan.Trainer(**players, data=toy() if data is None else data, **keys)


@pytest.mark.parametrize("updates", ["fresh", "shared", "generator_first"])
@pytest.mark.parametrize("resident", ["auto", "never"])
@pytest.mark.parametrize("captured", [False, True])
def test_labels_are_those_of_the_samples(updates, resident, captured):
    """By the host's draws and the clock's, from memory and read ahead, over several epochs."""
    keys = {"updates": updates, "resident": resident, "n_critic": 1 if updates == "generator_first" else 2}
    with strict() if captured else nullcontext():
        run, shifted = (trainer(toy(roll=roll), graph=False, **keys) for roll in (0, 1))
        for each in (run, shifted):
            each.generator.told.clear()
            each.discriminator.shown.clear()
            each.fit(15, progress=False)
    assert isinstance(run._draws, ClockDraws if captured else HostDraws)
    folded = [(points[:16], labels) for points, labels, groups in run.discriminator.shown if groups == 2]
    assert len(folded) == 15 * keys["n_critic"]
    assert all(belongs(points, labels[:16]) and torch.equal(labels[:16], labels[16:]) for points, labels in folded)
    assert len({tuple(labels.tolist()) for _, labels in folded}) == len(folded)
    alone = [labels for _, labels, groups in run.discriminator.shown if groups == 1]  # the generator's updates
    last = folded[keys["n_critic"] - 1 :: keys["n_critic"]]
    assert [labels.tolist() for labels in alone] == [labels[:16].tolist() for _, labels in last]
    of_fakes = {tuple(labels.tolist()) for labels in run.generator.told}
    assert of_fakes == {tuple(labels[:16].tolist()) for _, labels in folded}
    assert not any(belongs(p[:16], labels[:16]) for p, labels, groups in shifted.discriminator.shown if groups == 2)


@pytest.mark.parametrize("kind", [HostDraws, ClockDraws])
def test_a_part_of_a_batch_has_its_own_labels(kind):
    config = from_dict({"batch_size": 12, "z_dim": 2})
    dials, more = Dials(config, CPU), (() if kind is ClockDraws else (CPU,))
    whole, part = (kind(toy(), config, dials, *more, part=part) for part in (None, (4, 5)))
    for _ in range(3):
        (points, labels), (own, kinds) = whole.labelled(0), part.labelled(0)
        assert torch.equal(own, points[4:9]) and torch.equal(kinds, labels[4:9]) and belongs(own, kinds)


def test_the_label_decides_what_is_made():
    rates = {f"{side}_optimizer": {"lr": 2e-3} for side in ("generator", "discriminator")}
    run = trainer(toy(2048), batch_size=64, objective="least_squares", **rates).fit(300, progress=False)
    for label in range(CLASSES):
        made = run.sample(100, seed=3, labels=label)
        assert (made - CENTRES[label]).norm(dim=1).median() < 0.3
    labels = torch.arange(CLASSES).repeat(20)
    assert (torch.cdist(run.sample(60, labels=labels), CENTRES).argmin(1) == labels).float().mean() > 0.9


def test_labels_that_samples_cannot_have():
    run = trainer()
    assert run.sample(4).shape == (4, 2)
    assert torch.equal(run.sample(4, seed=1, labels=2), run.sample(4, seed=1, labels=[2, 2, 2, 2]))
    for labels in (3, -1, [0, 1], 0.5):
        with pytest.raises(UserError, match="labels"):
            run.sample(4, labels=labels)
    plain = fastgan.Trainer(generator=nn.Linear(2, 2), discriminator=nn.Linear(2, 1), data=toy(), z_dim=2, device="cpu")
    with pytest.raises(UserError, match="takes no labels"):
        plain.sample(4, labels=1)


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_losses_of_an_auxiliary_classifier(weight):
    """Odena et al., eq. 2 and 3: D lowers both cross-entropies, G the fake samples' one."""
    run = trainer(discriminator=Guesser, plain=True, class_weight=weight)
    step, guesser, maker = run._iterate, run.discriminator, run.generator
    real, labels = toy().images[:16], toy().labels[:16]
    step.classes.labels, z = labels, torch.randn(16, 2)

    fake = step.generate(z)
    (on_real, kinds), (on_fake, guessed) = guesser(real), guesser(fake.detach())
    bce = F.binary_cross_entropy_with_logits
    loss = bce(on_real, torch.ones(16)) + bce(on_fake, torch.zeros(16))
    total = loss + weight * (F.cross_entropy(kinds, labels) + F.cross_entropy(guessed, labels))
    expected = moved(guesser, total)
    seen = step._update_discriminator(real, fake.detach(), 0, Pattern((False,)))
    torch.testing.assert_close([*guesser.parameters()], expected)
    assert seen["loss_d"].item() == pytest.approx(loss.item(), rel=1e-6)

    on_fake, guessed = guesser(fake)
    expected = moved(maker, bce(on_fake, torch.ones(16)) + weight * F.cross_entropy(guessed, labels))
    step._update_generator(real, fake, Pattern((False,)))
    torch.testing.assert_close([*maker.parameters()], expected)


def moved(network, loss):
    """What plain gradient descent at 0.1 makes of the weights."""
    gradients = torch.autograd.grad(loss, [*network.parameters()], retain_graph=True)
    return [p.detach() - 0.1 * g for p, g in zip(network.parameters(), gradients, strict=True)]


def test_an_objective_that_needs_real_samples_has_the_classifier_guess_the_fakes():
    run = trainer(discriminator=Guesser, plain=True, objective="relativistic")
    step, guesser = run._iterate, run.discriminator
    step.classes.labels, real = toy().labels[:16], toy().images[:16]
    fake = step.generate(torch.randn(16, 2))
    (on_real, _), (on_fake, guessed) = guesser(real), guesser(fake)
    total = F.softplus(on_real - on_fake).mean() + F.cross_entropy(guessed, step.classes.labels)
    expected = moved(run.generator, total)
    step._update_generator(real, fake, Pattern((False,)))
    torch.testing.assert_close([*run.generator.parameters()], expected)


def test_one_pass_for_both_players_is_not_for_a_classifier():
    class Composed(Guesser):
        composes = True

    assert sample_by_sample(Composed())
    assert not trainer(discriminator=Composed, updates="generator_first")._iterate.serves_both


def test_penalties_see_the_critic_with_the_labels_bound():
    run = trainer(penalty={"name": "r1", "weight": 2.0}, plain=True)
    step, judge = run._iterate, run.discriminator
    real, labels = toy().images[:16], toy().labels[:16]
    step.classes.labels = labels
    value = r1(judge, real, labels).value
    other = r1(judge, real, labels.roll(1)).value
    seen = step._update_discriminator(real, torch.randn(16, 2), 0, Pattern((True,)))
    assert seen["penalty"].item() == pytest.approx(value.item(), rel=1e-6) != pytest.approx(other.item(), rel=1e-3)
    run = trainer(penalty="gradient_penalty", objective="wasserstein").fit(3, progress=False)
    assert all(row["penalty"] > 0 for row in run.history)


SMALL = {
    "cgan": {"generator": {"name": "cgan", "hidden": [8, 8]}, "discriminator": {"name": "cgan", "hidden": [8, 8]}},
    **{
        name: {side: {"name": name, "width": 4} for side in ("generator", "discriminator")}
        for name in ("cdcgan", "acgan", "resnet", "cresnet")
    },
}


@pytest.mark.parametrize("name", SMALL)
def test_an_iteration_can_be_captured_and_resumed(name, tmp_path):
    """A graph's rules hold, and a run that goes on from a checkpoint has the bits of one that never stopped."""
    keys = {"batch_size": 8, "z_dim": 4, "device": "cpu", "ema": {"decay": 0.9}, "log_every": 2, "samples": 20}
    config = from_dict({**SMALL[name], **keys})
    with strict():
        fastgan.Trainer(config).fit(3, progress=False)
    whole = fastgan.Trainer(config, out=tmp_path / "a").fit(6, progress=False)
    fastgan.Trainer(config, out=tmp_path / "b").fit(4, progress=False)
    rest = fastgan.Trainer(config, out=tmp_path / "b")
    rest.resume(checkpoint.load(tmp_path / "b/checkpoints/step-00000004"))
    rest.fit(6, progress=False)
    left, right = (checkpoint.load(run.out / "checkpoints/step-00000006") for run in (whole, rest))
    for file, tensors in left.tensors.items():
        assert all(torch.equal(value, right.tensors[file][key]) for key, value in tensors.items()), file
    assert left.values.get("classes") == right.values.get("classes") == (None if name == "resnet" else 10)
    assert (tmp_path / "a/final.png").read_bytes() == (tmp_path / "b/final.png").read_bytes()


def test_networks_of_a_run_are_built_with_its_classes(tmp_path):
    """Also where the discriminator alone knows them; but what judges no samples alone is no judge of samples."""
    guessed = {"generator": SMALL["resnet"]["generator"], "discriminator": SMALL["acgan"]["discriminator"]}
    for name, sides in {"cgan": SMALL["cgan"], "guessed": guessed, "resnet": SMALL["resnet"]}.items():
        config = from_dict({**sides, "batch_size": 8, "z_dim": 4, "device": "cpu"})
        run = fastgan.Trainer(config, out=tmp_path / name).fit(1, progress=False)
        for side in SIDES:
            network, built = load_network(run.out, side), getattr(run, side)
            assert all(torch.equal(value, built.state_dict()[key]) for key, value in network.state_dict().items())
        assert (load_discriminator(run.out, "cpu") is not None) == (name == "resnet")


def test_data_without_labels_or_with_too_many_are_refused():
    points = toy().images
    with pytest.raises(UserError, match="has no labels: take data that have some"):
        trainer(points)
    with pytest.raises(UserError, match="has no labels"):
        trainer(points, discriminator=type("Bare", (Guesser,), {"num_classes": None}))
    with pytest.raises(UserError, match=r"Maker tells 3 classes apart.* has 5: set its num_classes to 5"):
        trainer(Dataset.from_tensor(points, torch.arange(len(points)) % 5))
    with pytest.raises(UserError, match=r"CGANGenerator tells classes apart, and the data have no labels"):
        fastgan.Trainer(preset("cgan"), data=points, device="cpu")
    with pytest.raises(UserError, match="class_weight"):
        from_dict({"class_weight": -1.0})


def test_a_discriminator_returns_what_it_says():
    class Silent(Guesser):
        classifies = False

        def forward(self, points, labels, groups=1):
            return super().forward(points)

    with pytest.raises(UserError, match="the discriminator returned tuple: let it return logits"):
        trainer(discriminator=Silent)
    with pytest.raises(UserError, match=r"let it return .logits, class_logits"):
        trainer(discriminator=type("Mute", (Guesser,), {"forward": lambda self, points: self.layers(points)[:, 0]}))


def test_an_ensemble_of_conditional_networks_is_refused():
    with pytest.raises(UserError, match="the generator is cgan: train each run by itself"):
        fastgan.Ensemble("cgan", members=2)
