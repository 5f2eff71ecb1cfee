"""Iterations by graphs: what a graph forbids does not occur in them, and replays are the eager steps, to the bit."""

import pytest
import torch
from torch import nn

import fastgan
from fastgan.errors import UserError
from fastgan.nn import Chain, LinearAct
from fastgan.ops.shadow import shadow_of
from fastgan.train import checkpoint
from fastgan.train.capture import strict
from fastgan.train.draws import ClockDraws, HostDraws
from fastgan.train.metrics import COLUMNS
from fastgan.train.replays import Eagerly, Replays
from fastgan.train.step import Pattern

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
POINTS = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)).clamp(-3, 3) / 3
SETTINGS = {
    "plain": {},
    "everything": {
        "ema": {"decay": 0.9},
        "noise": 0.3,
        "penalty": {"name": "gradient_penalty", "every": 3},
        "n_critic": 2,
        "objective": "wasserstein",
        "schedules": {
            "noise": {"to": 0.0, "steps": 5},
            "discriminator_lr": {"to": 1e-3, "steps": 4, "shape": "cosine"},
        },
    },
    "shared": {"updates": "shared", "latent": "uniform", "objective": "hinge"},
    "generator first": {"updates": "generator_first", "objective": "relativistic_average"},
    "recipes": {
        "n_critic": 2,
        "critic_warmup": {"updates": 4, "first": 2, "every": 5},
        "label_smoothing": 0.1,
        "clip": 0.1,
        "generator_optimizer": {"name": "sgd", "momentum": 0.5},
        "discriminator_optimizer": "rmsprop",
        "schedules": {"generator_momentum": {"to": 0.9, "steps": 5}},
    },
    "several at a time": {"unroll": 3, "log_every": 4, "penalty": {"name": "r1", "every": 2}},
}


def trainer(*, mixing=False, device="cpu", generator=None, **keys):
    torch.manual_seed(1)
    generator = generator or nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    critic = Chain(LinearAct(2, 16), LinearAct(16, 8), *[nn.Dropout(0.3)] * mixing, LinearAct(8, 1, activation="none"))
    keys = {"z_dim": 3, "batch_size": 20, "log_every": 1, "device": device, **keys}
    return fastgan.Trainer(generator=generator, discriminator=critic, data=POINTS, **keys)


def state(run):
    return [*run.generator.state_dict().values(), *run.discriminator.state_dict().values()]


def rows(run):
    return [[row.get(name) for name in COLUMNS if name not in ("seconds", "memory")] for row in run.history]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SETTINGS)
def test_replays_are_the_eager_steps(name, device):
    with strict():
        replayed = trainer(device=device, **SETTINGS[name], mixing=name == "shared")
        eager = trainer(device=device, **SETTINGS[name], mixing=name == "shared", graph=False)
        assert isinstance(replayed._run, Replays) and isinstance(eager._run, Eagerly)
        assert isinstance(eager._draws, ClockDraws)
        for run in (eager, replayed):
            run.fit(11, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(state(eager), state(replayed), strict=True))
    assert rows(eager) == rows(replayed)
    assert int(replayed.dials.clock) == 11


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["plain", "everything"])
def test_without_kernels_a_gpu_replays_pytorchs_own_steps(name):
    """Where Triton is missing, or the GPU is too old for the kernels."""
    keys = {**SETTINGS[name], "ema": {"decay": 0.9, "warmup": 10}, "device": "cuda"}
    with fastgan.backend("reference"):
        replayed, eager = trainer(**keys), trainer(**keys, graph=False)
        for run in (eager, replayed):
            run.fit(6, progress=False)
    assert isinstance(replayed._run, Replays)
    assert all(torch.equal(a, b) for a, b in zip(state(eager), state(replayed), strict=True))


def test_weights_that_somebody_sets_between_two_stretches_are_those_that_are_trained():
    with strict():
        run = trainer(precision="bf16").fit(2, progress=False)
        for network in (run.generator, run.discriminator):
            network.load_state_dict({name: value * 2 for name, value in network.state_dict().items()})
        run.fit(2, progress=False)  # nothing is left to do, but to make ready
        for optimizer in (run.players.generator_optimizer, run.players.discriminator_optimizer):
            for parameter in optimizer.param_groups[0]["params"]:
                assert torch.equal(optimizer.shadow(parameter), parameter.to(torch.bfloat16))


def test_one_graph_for_each_pattern():
    with strict():
        run = trainer(penalty={"name": "r1", "every": 3}, n_critic=2, log_every=7)
        run.fit(7, progress=False)
        due = {(True, False), (False, True), (False, False)}
        assert set(run._run._graphs) == {*((Pattern(kind),) for kind in due), (Pattern((True, False), watched=True),)}
        several = trainer(unroll=4, log_every=8)
        several.fit(15, progress=False)  # what is left, 3, goes one by one: no graph of its own for each remainder
        assert {len(patterns) for patterns in several._run._graphs} == {4, 1}
        assert [row["step"] for row in several.history] == [8, 15]


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("updates, sites", [("fresh", 3), ("shared", 2)])
def test_no_draw_of_a_run_is_drawn_twice(updates, sites, warm):
    """Each update of either player has latents of its own, and each of the discriminator's real samples of its own."""
    with strict():
        more = {"critic_warmup": {"updates": 4, "first": 1, "every": 3}} if warm else {}
        run, drawn = trainer(updates=updates, n_critic=2, batch_size=10, graph=False, **more), {"z": [], "real": []}
        for name, kept in drawn.items():
            draw = getattr(run._draws, name)
            setattr(run._draws, name, lambda at, draw=draw, kept=kept: kept.append(draw(at)) or kept[-1])
        run.fit(4, progress=False)
    added = 2 * 2 * warm  # of which the iterations 0 and 3 have two more
    assert (len(drawn["z"]), len(drawn["real"])) == (4 * sites + added, 4 * 2 + added)
    assert len(torch.unique(torch.cat(drawn["z"]), dim=0)) == (4 * sites + added) * 10
    assert len(torch.unique(torch.cat(drawn["real"]), dim=0)) == (4 * 2 + added) * 10


def test_resuming_is_exact_with_graphs(tmp_path):
    keys = {"ema": {"decay": 0.9}, "noise": 0.3, "schedules": {"noise": {"to": 0.0, "steps": 10}}, "mixing": True}
    with strict():
        whole = trainer(out=tmp_path / "a", **keys).fit(9, progress=False)
        trainer(out=tmp_path / "b", **keys).fit(4, progress=False)
        rest = trainer(out=tmp_path / "b", **keys)
        rest.resume(checkpoint.load(tmp_path / "b/checkpoints/step-00000004"))
        rest.fit(9, progress=False)
    left, right = (checkpoint.load(run.out / "checkpoints/step-00000009") for run in (whole, rest))
    for file, tensors in left.tensors.items():
        for key, tensor in tensors.items():
            assert torch.equal(tensor, right.tensors[file][key]), (file, key)
    assert rows(whole) == rows(rest)


class Curious(nn.Module):
    """A generator that asks the device for a value in the middle of a step."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, z):
        made = self.layer(z)
        return made / 2 if made.abs().max().item() > 9 else made


def test_a_network_that_cannot_be_captured_is_named_with_its_line():
    with strict():
        run = trainer(generator=Curious())
        before = [value.clone() for value in state(run)]
        with pytest.raises(UserError, match=r"test_replays.py:\d+ .*item.*graph=false") as caught:
            run.fit(3, progress=False)
        assert "\n" not in str(caught.value)
        assert all(torch.equal(a, b) for a, b in zip(before, state(run), strict=True))
        assert run.step == 0
        trainer(generator=Curious(), graph=False).fit(3, progress=False)


def test_without_a_gpu_steps_run_eagerly_on_the_hosts_draws():
    run = trainer()
    assert isinstance(run._run, Eagerly) and isinstance(run._draws, HostDraws)


def test_gradients_lie_in_one_buffer_and_bf16_weights_have_shadows():
    """Both where steps are captured; the averages and a checkpoint are of the weights themselves."""
    with strict():
        run = trainer(precision="bf16", ema={"decay": 0.9}).fit(3, progress=False)
        for optimizer, buffer in zip(vars(run.players).values(), [None, None, *run._iterate.buffers], strict=True):
            if buffer is None:
                continue
            inside = range(buffer.data_ptr(), buffer.data_ptr() + buffer.nbytes)
            for parameter in optimizer.param_groups[0]["params"]:
                assert parameter.grad.data_ptr() in inside and parameter.dtype == parameter.grad.dtype == torch.float32
                shadow = shadow_of(parameter, torch.bfloat16)
                assert torch.equal(shadow, parameter.to(torch.bfloat16)) and shadow is optimizer.shadow(parameter)
        eager = trainer(precision="bf16", ema={"decay": 0.9}, graph=False).fit(3, progress=False)
        assert all(torch.equal(a, b) for a, b in zip(state(eager), state(run), strict=True))
    plain = trainer(precision="bf16")
    assert not plain._iterate.buffers and shadow_of(plain.discriminator[0].weight, torch.bfloat16) is None
