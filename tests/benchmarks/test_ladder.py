"""The ladder on a tiny GAN: rungs that exist here are climbed, others say why not, wrong ones are not timed."""

from __future__ import annotations

import copy
from argparse import Namespace
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastgan.benchmarks import ladder
from fastgan.benchmarks.record import Check, Spread, Timed
from fastgan.benchmarks.rungs import Rung, TrainingStep, rungs
from fastgan.benchmarks.setting import Setting

CPU = torch.device("cpu")


def tiny(rung: Rung) -> TrainingStep:
    net_g = rung.network(nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)))
    net_d = rung.network(nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1)))
    opt_g, opt_d = (rung.adam(net.parameters(), lr=1e-4, betas=(0.5, 0.999)) for net in (net_g, net_d))
    z, real = torch.randn(16, 2, device=rung.device), torch.randn(16, 2, device=rung.device) + 3

    def step() -> tuple[Tensor, ...]:
        with rung.autocast():
            fake = net_g(z)
            loss_d = F.softplus(net_d(fake.detach())).mean() + F.softplus(-net_d(real)).mean()
        opt_d.zero_grad()
        loss_d.backward()
        opt_d.step()
        with rung.autocast():
            loss_g = F.softplus(-net_d(fake)).mean()
        opt_g.zero_grad()
        loss_g.backward()
        opt_g.step()
        return loss_d.detach(), loss_g.detach()

    return TrainingStep(step, (net_g, net_d), (opt_g, opt_d))


def climb(build: ladder.Build, **options: object) -> list[Timed]:
    rows = ladder.climb(Setting(smoke=True, options=Namespace(**options)), "tiny", "batch 16", build)
    return [row for row in rows if isinstance(row, Timed)]


def test_without_a_gpu_the_first_two_rungs_are_climbed_and_the_others_say_why_not() -> None:
    rows = climb(tiny)
    assert [row.wall_us is not None for row in rows] == [True, True, False, False, False]
    assert [row.passed for row in rows] == [True] * 5
    assert all("needs a GPU" in (row.note or "") for row in rows[2:])
    assert all(row.check is None and row.l2 is None for row in rows[2:])
    assert ladder.best(rows) is rows[1]
    assert "2 eager, tuned" in "".join(ladder.closing(rows))


def test_a_rung_that_was_not_asked_for_is_left_alone() -> None:
    rows = climb(tiny, rung=[3])
    assert [row.wall_us is not None for row in rows] == [True, False, False, False, False]
    assert rows[1].note == "not measured: not asked for"
    assert ladder.best(rows) is None


class Idle(torch.optim.Adam):
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Forget to train."""


@pytest.mark.parametrize("fault", ["idle", "wrong loss", "not finite", "raises"])
def test_a_wrong_rung_is_not_timed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(rung: Rung) -> TrainingStep:
        if fault == "idle" and rung.number == 2:
            monkeypatch.setattr(Rung, "adam", lambda self, parameters, **options: Idle(parameters, **options))
        if fault == "raises" and rung.number == 2:
            raise RuntimeError("double backward is not supported")
        step = tiny(rung)
        if rung.number == 1 or fault in ("idle", "raises"):
            return step
        change = {"wrong loss": 1.1, "not finite": float("nan")}[fault]
        return replace(step, run=lambda: tuple(change * loss for loss in step.run()))

    first, second, *_ = climb(build)
    assert first.wall_us is not None
    assert (second.wall_us, second.best) == (None, None)
    said = {
        "idle": "did not move",
        "wrong loss": "losses differ",
        "not finite": "not finite",
        "raises": "double backward is not supported",
    }
    assert said[fault] in f"{second.note} {second.check and second.check.why}"
    assert second.passed == (fault == "raises")  # what cannot be climbed is not wrong
    assert ladder.best([first, second]) is None


def test_a_first_rung_that_fails_fails_the_run() -> None:
    def build(rung: Rung) -> TrainingStep:
        raise RuntimeError("planted")

    rows = climb(build)
    assert not rows[0].passed
    assert all(row.wall_us is None for row in rows)


def test_after_a_warm_up_everything_is_as_it_was() -> None:
    torch.manual_seed(0)
    step = tiny(rungs(CPU, None)[1])
    begin = [[tensor.detach().clone() for tensor in ladder.state(network)] for network in step.networks]
    untouched = copy.deepcopy([network.state_dict() for network in step.networks])
    first = [step.run() for _ in range(3)]
    ladder.restore(step, begin)
    for network, before in zip(step.networks, untouched, strict=True):
        assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    again = [step.run() for _ in range(3)]
    assert all(torch.equal(a, b) for one, two in zip(first, again, strict=True) for a, b in zip(one, two, strict=True))


def test_the_rungs_are_what_they_are_called() -> None:
    one, two, three, four, five = rungs(torch.device("cuda"), torch.bfloat16)
    assert [rung.tuned for rung in (one, two, three, four, five)] == [False, True, True, True, True]
    assert [rung.captured for rung in (one, two, three, four, five)] == [False, False, True, False, True]
    assert [one.dtype, two.dtype] == ["float32", "bfloat16"]
    assert (four.compile_mode, five.compile_mode) == ("max-autotune", "max-autotune-no-cudagraphs")
    assert [rung.obstacle for rung in (one, two, three, four, five)] == [None] * 5
    plain, tuned = (rung.adam([nn.Parameter(torch.zeros(1))], lr=1e-3) for rung in rungs(CPU, None)[:2])
    assert (plain.defaults["fused"], tuned.defaults["fused"]) == (None, True)


def test_the_fastest_of_the_upper_rungs_is_to_be_beaten() -> None:
    def row(variant: str, us: float, passed: bool = True) -> Timed:
        return Timed("w", variant, "s", "float32", Check(passed), wall_us=Spread(us, us, us, 20) if passed else None)

    rows = [row("1 eager", 1.0), row("2", 5.0), row("3", 3.0), row("4", 2.0, passed=False), row("5", 4.0)]
    assert ladder.best(rows) is rows[2]


@pytest.mark.gpu
def test_captured_rungs_train_as_the_eager_one_does() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    setting = Setting(device=device, smoke=True, options=Namespace(rung=[2, 3]))
    rows = [row for row in ladder.climb(setting, "tiny", "batch 16", tiny) if isinstance(row, Timed)]
    assert [row.wall_us is not None for row in rows[:3]] == [True, True, True]
    assert rows[2].graph_us is not None
    assert rows[2].device_us is None
