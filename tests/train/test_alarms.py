"""Alarms: begin and end once, by rows alone; stay silent on runs where nothing is wrong; survive a resumption."""

import pytest
import torch
from torch import nn

import fastgan
from fastgan.nn import Chain, LinearAct
from fastgan.objectives import OBJECTIVES, Objective
from fastgan.train import alarms, checkpoint, pictures
from fastgan.train.alarms import Alarm, Alarms, read
from fastgan.train.diversity import Diversity

HEALTHY = {"loss_d": 1.3, "loss_g": 0.8, "d_real": 0.55, "d_fake": 0.45, "diversity": 0.9, "gradient_g": 0.5}
WRONG = {
    "discriminator too strong": {"loss_d": 0.01, "d_real": 0.998, "d_fake": 0.002},
    "generator too strong": {"d_real": 0.9, "d_fake": 0.85, "loss_d": 2.0},
    "collapse": {"diversity": 0.02},
}
POINTS = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)).clamp(-3, 3) / 3


def rows(*kinds, first=alarms.GRACE):
    return [{"step": first + 50 * at, **HEALTHY, **kind} for at, kind in enumerate(kinds)]


def seen(given, objective=OBJECTIVES["non_saturating"]):
    watcher = Alarms(objective)
    for row in given:
        watcher.see(row)
    return [(alarm.step, alarm.alarm, alarm.event) for alarm in watcher.raised]


@pytest.mark.parametrize("kind", WRONG)
def test_each_begins_once_and_ends_once(kind):
    wrong = WRONG[kind]
    told = seen(rows(*[{}] * 2, *[wrong] * 10, *[{}] * 5, *[wrong] * 2))
    assert told == [(alarms.GRACE + 4 * 50, kind, "begins"), (alarms.GRACE + 14 * 50, kind, "ends")]


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_brief_or_wavers_is_no_alarm(kind):
    wrong = WRONG[kind]
    assert seen(rows(*[wrong, wrong, {}] * 6)) == []
    assert seen(rows(*[wrong] * 3, *[{}, {}, wrong] * 6)) == [(alarms.GRACE + 100, kind, "begins")]


def test_what_lies_between_the_thresholds_changes_nothing():
    between = [{"diversity": 0.15}] * 5
    assert seen(rows(*between)) == []
    assert len(seen(rows(*[WRONG["collapse"]] * 3, *between))) == 1


def test_the_first_steps_are_not_judged_and_gaps_say_nothing():
    assert seen(rows(*[WRONG["collapse"]] * 5, first=0)) == []
    assert seen(rows(*[dict.fromkeys(HEALTHY)] * 5)) == []


@pytest.mark.parametrize("name", ["hinge", "least_squares", "relativistic", "minimax"])
def test_a_saturated_discriminator_is_told_by_any_bounded_loss(name):
    objective = OBJECTIVES[name]
    even = torch.full((3,), 0.5 if name == "least_squares" else 0.0)
    guess = float(objective.discriminator(even, even))
    assert seen(rows(*[{"loss_d": 0.01 * guess}] * 3), objective)[0][1] == "discriminator too strong"
    assert seen(rows(*[{"loss_d": 0.03 * guess}] * 3), objective) == []


def test_a_critic_is_judged_by_the_gradient_alone():
    critic = {"d_real": None, "d_fake": None, "loss_d": -5.0, "wasserstein": 5.0}
    assert seen(rows(*[critic] * 5), OBJECTIVES["wasserstein"]) == []
    told = seen(rows(*[{**critic, "gradient_g": 1e-9}] * 3), OBJECTIVES["wasserstein"])
    assert [kind for _, kind, _ in told] == ["discriminator too strong"]


def test_of_an_own_objective_nobody_knows_the_level():
    own = Objective("own", lambda real, fake: 1 / 0, torch.mean)
    assert seen(rows(*[WRONG["discriminator too strong"]] * 3, *[WRONG["generator too strong"]] * 3), own) == []


def test_diversity_is_one_for_the_same_and_none_for_one_sample():
    random = torch.Generator().manual_seed(1)
    images = torch.randn(256, 3, 8, 8, generator=random)
    compare = Diversity((3, 8, 8), torch.device("cpu"))
    assert compare(images, images + 5) == pytest.approx(1.0)
    assert compare(images, images / 4) == pytest.approx(0.25)
    assert compare(images, images[:1].repeat(256, 1, 1, 1)) < 1e-6
    assert compare(images, torch.randn(256, 3, 8, 8, generator=random)) == pytest.approx(1.0, abs=0.1)
    assert torch.equal(compare(images, images / 3), Diversity((3, 8, 8), torch.device("cpu"))(images, images / 3))


class Stuck(nn.Module):
    """A generator that makes one point of every latent."""

    def __init__(self):
        super().__init__()
        self.point = nn.Parameter(torch.zeros(2))

    def forward(self, z):
        return self.point.expand(len(z), 2) + 1e-4 * z[:, :2]


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    """They take a second each."""
    monkeypatch.setattr(pictures, "save_curves", lambda *_: None)
    monkeypatch.setattr(pictures, "drawable", lambda _: False)


def stuck(**keys):
    torch.manual_seed(1)
    critic = Chain(LinearAct(2, 8), LinearAct(8, 1, activation="none"))
    keys = {"z_dim": 3, "batch_size": 20, "log_every": 10, "device": "cpu", **keys}
    return fastgan.Trainer(generator=Stuck(), discriminator=critic, data=POINTS, **keys)


def test_a_collapsed_run_says_so_once_and_after_a_resumption_no_more(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(alarms, "GRACE", 20)
    run = stuck(out=tmp_path).fit(45)
    assert [(a.step, a.alarm, a.event) for a in run.alarms] == [(40, "collapse", "begins")]
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if "collapse" in line]
    assert len(lines) == 1 and "step 40" in lines[0] and "diversity" in lines[0] and "penalty" in lines[0]
    assert alarms.read(tmp_path / "alarms.csv") == run.alarms
    assert b"\r" not in (tmp_path / "alarms.csv").read_bytes()
    rest = stuck(out=tmp_path)
    rest.resume(checkpoint.load(checkpoint.whole(tmp_path / "checkpoints")[-1]))
    rest.fit(80, progress=False)
    assert rest.alarms == run.alarms == alarms.read(tmp_path / "alarms.csv")
    assert "collapse" not in capsys.readouterr().err


def test_what_was_raised_after_the_checkpoint_is_raised_again(tmp_path, monkeypatch):
    monkeypatch.setattr(alarms, "GRACE", 20)
    run = stuck(out=tmp_path, checkpoint_every=30).fit(60, progress=False)
    with (tmp_path / "alarms.csv").open("a") as torn:
        torn.write("70,coll")
    rest = stuck(out=tmp_path)
    rest.resume(checkpoint.load(tmp_path / "checkpoints/step-00000030"))
    assert rest.alarms == [] == alarms.read(tmp_path / "alarms.csv")
    assert rest.fit(60, progress=False).alarms == run.alarms == alarms.read(tmp_path / "alarms.csv")


def test_only_the_last_iteration_of_a_row_is_watched():
    run = stuck(log_every=4)
    calls = []
    compare = run._iterate.watch.diversity
    run._iterate.watch.diversity = lambda real, fake: calls.append(run.step) or compare(real, fake)
    run.fit(10, progress=False)
    assert calls == [3, 7]
    assert [row["diversity"] is None for row in run.history] == [False, False, True]
    assert run.history[0]["gradient_g"] > 0


def test_a_rollback_that_a_checkpoint_does_not_know_of_is_forgotten(tmp_path):
    """It is noted at the step of the checkpoint that it goes back to, and happens again when the run goes on there."""
    known = Alarms(OBJECTIVES["non_saturating"])
    known.out = tmp_path
    for alarm in (Alarm(5, "collapse", "begins", ""), *(Alarm(10, "rollback", f"{n} of 5", "") for n in (1, 2))):
        known.note(alarm)
    for count in (2, 1, 0):
        known.rewind([], 10, count)
        assert [alarm.event for alarm in known.raised] == ["begins", "1 of 5", "2 of 5"][: count + 1]
        assert read(tmp_path / "alarms.csv") == known.raised
