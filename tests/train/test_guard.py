"""NaN in a run: it stops, skips what would spoil a weight, or goes back to a good state; on the host and by graphs."""

import math

import pytest
import torch
from torch import nn

import fastgan
from fastgan import optim
from fastgan.errors import NonFiniteError, UserError
from fastgan.nn import Chain, LinearAct
from fastgan.train import checkpoint
from fastgan.train.balance import MOST
from fastgan.train.capture import strict
from fastgan.train.guard import ROLLBACKS, ROWS

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
POINTS = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)).clamp(-3, 3) / 3


class Failing(nn.Module):
    """A generator that makes NaN at certain passes, which it counts on its device; and has a batch norm to spoil."""

    def __init__(self, first=10**9, last=10**9, above=math.inf):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        self.first, self.last, self.above = first, last, above
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, z):
        if self.training:
            self.passes += 1
        fails = (self.passes >= self.first) & (self.passes <= self.last) | (self.layers[3].weight.norm() > self.above)
        return self.layers(torch.where(fails, math.nan, z))


def trainer(generator=None, *, device="cpu", **keys):
    torch.manual_seed(1)
    critic = Chain(LinearAct(2, 16), LinearAct(16, 1, activation="none"))
    keys = {"z_dim": 3, "batch_size": 20, "log_every": 5, "device": device, "updates": "shared", **keys}
    return fastgan.Trainer(generator=generator or Failing(), discriminator=critic, data=POINTS, **keys)


def finite(run):
    return all(bool(t.isfinite().all()) for n in (run.generator, run.discriminator) for t in n.state_dict().values())


def rates(run):
    optimizers = (run.players.generator_optimizer, run.players.discriminator_optimizer)
    return [float(optimizer.param_groups[0]["lr"]) for optimizer in optimizers]


def ends(run):
    return [t.clone() for n in (run.generator, run.discriminator) for t in n.state_dict().values()]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("updates", ["shared", "fresh", "generator_first"])
def test_what_is_not_finite_is_skipped_and_counted(updates, device):
    with strict():
        run = trainer(Failing(9, 12), on_nan="skip", updates=updates, device=device)
        run.fit(20, progress=False)
    skipped = [row["skipped"] for row in run.history]
    passes = {"shared": 1, "generator_first": 1, "fresh": 2}[updates]
    assert sum(skipped) == (8 if passes == 1 else 4)  # both players' updates in 4 iterations, or one each by own passes
    assert skipped[0] == 0 or passes == 2
    assert finite(run)
    assert all(math.isfinite(row[name]) for row in run.history for name in ("loss_d", "loss_g", "d_real", "d_fake"))


def test_a_skipped_iteration_leaves_no_trace_but_the_count():
    """Weights, moments and statistics after it are those before; the means are those of the others."""
    run = trainer(Failing(6, 6), on_nan="skip", log_every=1).fit(5, progress=False)
    before = [value for value in ends(run) if value.dim()]
    run.fit(6, progress=False)
    after = [value for value in ends(run) if value.dim()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert run.history[5]["skipped"] == 2 and run.history[5]["loss_d"] is None
    states = run.players.generator_optimizer.state.values()
    assert {float(state["step"]) for state in states} == {5.0}
    run.fit(7, progress=False)
    assert run.history[6]["skipped"] == 0 and run.history[6]["loss_d"] > 0


def test_counts_of_skipped_steps_survive_a_resumption(tmp_path):
    keys = {"on_nan": "skip", "checkpoint_every": 8}
    torch.manual_seed(2)  # of the first generator
    whole = trainer(Failing(4, 11), out=tmp_path / "a", **keys).fit(20, progress=False)
    torch.manual_seed(2)
    trainer(Failing(4, 11), out=tmp_path / "b", **keys).fit(8, progress=False)
    rest = trainer(Failing(4, 11), out=tmp_path / "b", **keys)
    rest.resume(checkpoint.load(checkpoint.whole(tmp_path / "b/checkpoints")[-1]))
    rest.fit(20, progress=False)
    assert [row["skipped"] for row in whole.history] == [row["skipped"] for row in rest.history] == [4, 10, 2, 0]
    assert all(torch.equal(a, b) for a, b in zip(ends(whole), ends(rest), strict=True))


def test_a_run_that_skips_everything_stops_at_the_same_step_after_a_resumption(tmp_path):
    keys = {"on_nan": "skip", "checkpoint_every": 14}  # between two rows, when one has gone without an update
    whole = trainer(Failing(8), **keys)
    trainer(Failing(8), out=tmp_path, **keys).fit(21, progress=False)
    rest = trainer(Failing(8), out=tmp_path, **keys)
    rest.resume(checkpoint.load(tmp_path / "checkpoints/step-00000021"))
    for run in (whole, rest):
        with pytest.raises(NonFiniteError, match=r"was skipped in 3 rows up to step 25"):
            run.fit(1000, progress=False)


def test_a_run_that_skips_everything_stops():
    run = trainer(Failing(8), on_nan="skip")
    with pytest.raises(NonFiniteError, match=r"every update of the generator was skipped in 3 rows") as caught:
        run.fit(1000, progress=False)
    assert run.step == 10 + 5 * ROWS and "\n" not in str(caught.value)
    assert "on_nan=rollback" in str(caught.value)
    assert finite(run)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("every, back", [(10, (10, 20)), (1000, (0,))])
def test_a_rollback_goes_on_from_the_last_checkpoint_with_lower_rates(tmp_path, device, every, back):
    """Beyond a norm of its weights the generator fails; slower steps stay below it."""
    keys = {"on_nan": "rollback", "checkpoint_every": every, "out": tmp_path, "device": device}
    optimizer = {"generator_optimizer": {"lr": 0.02, "betas": [0.5, 0.999]}}
    with strict():
        probe = trainer(**optimizer, device=device).fit(20, progress=False)
        limit = float(probe.generator.layers[3].weight.detach().norm())
        run = trainer(Failing(above=limit), **optimizer, **keys)
        former = run._run
        run.fit(30, progress=False)
    assert run._run is not former  # graphs of a state that is gone
    assert run.step == 30 and finite(run)
    told = [alarm for alarm in run.alarms if alarm.alarm == "rollback"]
    assert 1 <= len(told) <= ROLLBACKS and told[0].step in back
    assert run.slowed == 0.5 ** len(told)
    assert rates(run)[0] == pytest.approx(0.02 * run.slowed)
    assert [row["step"] for row in run.history] == [5, 10, 15, 20, 25, 30]
    again = trainer(Failing(above=limit), **optimizer, **keys)
    again.resume(checkpoint.load(checkpoint.whole(tmp_path / "checkpoints")[-1]))
    assert rates(again) == pytest.approx(rates(run)) and again.slowed == run.slowed


@pytest.mark.parametrize("out", [True, False])
def test_without_a_checkpoint_a_rollback_goes_back_to_the_start(tmp_path, out):
    first = trainer(out=tmp_path if out else None, on_nan="rollback")
    states = ends(first)
    seen = []
    first.generator.register_forward_pre_hook(
        lambda module, _: seen.append(ends(first)) if first.slowed == 0.5 and not seen else None
    )
    spoilt = first.generator.layers[0].weight

    def spoil(module, inputs):
        if first.step == 7 and first.slowed == 1:
            with torch.no_grad():
                spoilt.fill_(math.nan)

    first.generator.register_forward_pre_hook(spoil)
    first.fit(12, progress=False)
    assert first.slowed == 0.5 and first.step == 12 and finite(first)
    assert all(torch.equal(a, b) for a, b in zip(states, seen[0], strict=True))
    assert [row["step"] for row in first.history] == [5, 10, 12]


def test_good_states_are_kept_when_they_are_due_however_many_steps_a_graph_holds():
    with strict():
        run = trainer(on_nan="rollback", unroll=3, log_every=9, checkpoint_every=5).fit(12, progress=False)
    assert run._good.step == 10


def test_rollbacks_end_in_vain_after_five():
    run = trainer(Failing(), on_nan="rollback", checkpoint_every=5)
    run.fit(5, progress=False)
    run.generator.above = 0.0
    with pytest.raises(NonFiniteError, match="rolled back 5 times already") as caught:
        run.fit(20, progress=False)
    assert "\n" not in str(caught.value) and "set on_nan" not in str(caught.value)
    assert [alarm.event for alarm in run.alarms] == [f"{n} of 5" for n in range(1, 6)]
    assert run.slowed == 0.5**5


def test_scheduled_rates_are_lowered_in_their_table():
    keys = {"schedules": {"generator_lr": {"to": 1e-4, "steps": 10, "shape": "cosine"}}}
    run, plain = trainer(**keys), trainer(**keys)
    run._guard.lower(0.25)
    for steps in (3, 7):
        run.fit(steps, progress=False)
        plain.fit(steps, progress=False)
        assert rates(run) == pytest.approx([rate / 4 for rate in rates(plain)])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("updates", ["shared", "generator_first"])
def test_updates_are_balanced_by_graphs(updates, device):
    keys = {"discriminator_optimizer": {"lr": 0.05}, "batch_size": 50, "updates": updates, "log_every": 10}
    with strict():
        run = trainer(balance="auto", device=device, **keys).fit(30, progress=False)
    balanced = [row["balanced"] for row in run.history]
    assert 3 < sum(balanced) < 30
    assert all(row["skipped"] is None for row in run.history)
    assert int(run.players.discriminator_optimizer.skipped) == sum(balanced)


def test_balance_holds_back_a_discriminator_that_learns_far_too_fast():
    keys = {"discriminator_optimizer": {"lr": 0.05}, "batch_size": 50, "log_every": 100}
    plain, balanced = (trainer(balance=how, **keys).fit(100, progress=False).history[0] for how in ("none", "auto"))
    assert plain["balanced"] is None and 20 < balanced["balanced"] < 80
    assert balanced["loss_d"] > plain["loss_d"] + 0.1 and balanced["loss_g"] < plain["loss_g"] - 0.2


def test_balance_judges_the_batch_of_the_update_itself():
    run = trainer(balance="auto", log_every=1)
    for step in range(1, 30):
        before = [p.detach().clone() for p in run.discriminator.parameters()]
        told = []
        judge = run._balance.judge
        run._iterate.losses.balance = lambda rightly, told=told, judge=judge: (
            told.append(rightly.clone()) or judge(rightly)
        )
        run.fit(step, progress=False)
        moved = not all(torch.equal(a, b) for a, b in zip(before, run.discriminator.parameters(), strict=True))
        assert moved == (float(told[0].mean()) <= MOST) == (run.history[-1]["balanced"] == 0)


def test_skips_of_both_kinds_are_told_apart():
    run = trainer(Failing(9, 12), on_nan="skip", balance="auto", discriminator_optimizer={"lr": 0.05})
    run.fit(40, progress=False)
    assert sum(row["skipped"] for row in run.history) == 8
    assert sum(row["balanced"] for row in run.history) > 0


@pytest.mark.parametrize("key", [{"on_nan": "skip"}, {"balance": "auto"}])
def test_optimisers_that_cannot_skip_are_refused(key):
    torch.manual_seed(0)
    generator, critic = nn.Linear(3, 2), nn.Linear(2, 1)
    plain = {"discriminator": torch.optim.SGD(critic.parameters(), lr=0.1)}
    keys = {"generator": generator, "discriminator": critic, "data": POINTS, "z_dim": 3, "device": "cpu", **key}
    with pytest.raises(UserError, match=r"discriminator's is SGD: take fastgan\.optim"):
        fastgan.Trainer(optimizers=plain, **keys)
    fastgan.Trainer(optimizers={"discriminator": optim.SGD(critic.parameters(), lr=0.1)}, **keys)


def test_a_critic_has_nothing_to_be_balanced_by():
    with pytest.raises(UserError, match="balance=auto"):
        trainer(balance="auto", objective="wasserstein")
