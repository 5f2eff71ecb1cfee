"""Trainings whose iterations go in one launch, on the CPU: a program of its own, like on_the_host.py beside it.

Its argument is the library that was compiled for the host, by tests/cuda_host/harness.py.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fastgan
from fastgan import Ensemble, Trainer
from fastgan.benchmarks import mlp_step_measure
from fastgan.errors import UserError
from fastgan.ops import extension, mlp_step_launch, mlp_step_measured
from fastgan.train.capture import strict
from fastgan.train.one_launch import Launches

SMALL: dict[str, Any] = {
    "device": "cpu",
    "precision": "bf16",
    "graph": False,
    "batch_size": 12,
    "z_dim": 5,
    "log_every": 10,
    "generator.hidden": [24],
    "discriminator.hidden": [19],
    "discriminator.maxout": 0,
    **{f"{side}_optimizer.{key}": value for side in ("generator", "discriminator") for key, value in (("lr", 3e-3),)},
}
MOVING: dict[str, Any] = {
    "schedules": {"generator_lr": {"to": 0.0, "steps": 60}, "ema_decay": {"to": 0.99, "steps": 20}},
    "ema.decay": 0.5,
    "on_nan": "skip",
}
GAN = "ring8"


def trained(steps: int, way: str = "always", taken: bool = False, **keys: Any) -> Trainer:
    with strict():
        trainer = Trainer(GAN, **{**SMALL, "one_launch": way, **keys})
        assert trainer.one_launch.taken == isinstance(trainer._run, Launches) == (taken or way == "always")
        return trainer.fit(steps, progress=False)


def bits(trainer: Trainer) -> dict[str, torch.Tensor]:
    """All of a training's state: weights, averages, moments, metrics."""
    found = {}
    for side in ("generator", "discriminator"):
        optimizer = getattr(trainer.players, f"{side}_optimizer")
        found |= {f"{side}.{name}": value for name, value in getattr(trainer, side).state_dict().items()}
        for of, parameter in getattr(trainer, side).named_parameters():
            own = optimizer.state[parameter]
            found |= {f"{side}.{of}.{name}": value for name, value in own.items() if value is not None}
    meter, dials = trainer._meter, trainer.dials
    return {**found, "sums": meter.sums, "counts": meter.counts, "clock": dials.clock, "dials": dials.values}


def same(one: Trainer, other: Trainer) -> None:
    mine, theirs = bits(one), bits(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name


def rows(trainer: Trainer) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in trainer.history]


def near(one: Trainer, other: Trainer, most: float = 0.02) -> None:
    """That the rows of two trainings are as near as bf16 has it."""
    assert len(rows(one)) == len(rows(other)) > 0
    for row, their in zip(rows(one), rows(other), strict=True):
        assert row.keys() == their.keys()
        for name, value in row.items():
            wanted = their[name]
            room = 5 * most if name == "diversity" else most  # a ratio of two spreads of a few samples
            close = value == wanted or abs(value - wanted) <= room * (1 + abs(wanted))
            assert close, (row["step"], name, value, wanted)


def fifty_steps_are_the_ordinary_ones() -> None:
    one, other = (trained(50, way, **MOVING) for way in ("always", "never"))
    near(one, other)
    for name in ("clock", "counts", "dials"):
        torch.testing.assert_close(bits(one)[name], bits(other)[name])
    assert "steps: one launch; those that are watched or penalised: eagerly" in one.describe_device()
    assert one.one_launch.why == "one_launch=always"


def penalties_and_critics_go_by_the_step() -> None:
    keys = {"penalty.name": "r1", "penalty.every": 3, "n_critic": 2, "objective": "wasserstein", "updates": "fresh"}
    near(trained(20, **keys), trained(20, "never", **keys), most=0.04)


def a_run_goes_on_to_the_bit(folder: Path) -> None:
    keys = {**MOVING, "log_every": 5, "checkpoint_every": 1000}
    whole = trained(13, **keys)
    first = trained(6, out=folder, **keys)
    first.save()
    with strict():
        second = Trainer(GAN, **{**SMALL, **keys, "one_launch": "always"}, out=folder)
        second.resume(fastgan.train.checkpoint.load(folder / "checkpoints" / "step-00000006"))
        second.fit(13, progress=False)
    same(whole, second)
    assert rows(whole)[-1] == rows(second)[-1]


def many_iterations_in_a_launch_are_as_many_launches() -> None:
    same(trained(20), trained(20, unroll=5))
    assert "5 in one launch" in trained(1, unroll=5).describe_device()


def what_would_spoil_weights_is_skipped() -> None:
    for way in ("always", "never"):
        with strict():
            trainer = Trainer(GAN, **{**SMALL, "one_launch": way, "on_nan": "skip", "log_every": 40})
            trainer.data.images[3:700] = float("inf")
            trainer.fit(20, progress=False)
        skipped = trainer.players.discriminator_optimizer.skipped
        assert 0 < int(skipped) < 20, skipped
        assert all(bool(value.isfinite().all()) for name, value in bits(trainer).items() if name != "sums")


def members_are_the_runs_that_they_would_be_alone() -> None:
    keys = {**SMALL, **MOVING, "vary": {"discriminator_optimizer.lr": [1e-3, 3e-3, 2e-3]}, "seeds": [3, 8, 9]}
    with strict():
        ensemble = Ensemble(GAN, **keys, one_launch="always").fit(12, progress=False)
        stacked = Ensemble(GAN, **keys, one_launch="never").fit(12, progress=False)
    assert isinstance(ensemble._run, Launches) and "one launch" in ensemble.describe_device()
    for at, member in enumerate(ensemble.members):
        near(member, stacked.members[at])
        with strict():
            alone = Trainer(dataclasses.replace(member.config)).fit(9, progress=False)
        assert alone.one_launch.taken
        near(member, alone.fit(12, progress=False))


def members_of_a_launch_share_nothing() -> None:
    """Without an iteration by the stack in between the bits are a single run's, whatever the grid."""
    keys = {**SMALL, **MOVING, "log_every": 100, "one_launch": "always"}
    with strict():
        ensemble = Ensemble(GAN, members=3, **keys).fit(4, progress=False)
    for member in ensemble.members:
        same(member, trained(4, **{**MOVING, "log_every": 100, "seed": member.config.seed}))


def refused(make: Callable[[], Trainer]) -> str:
    try:
        with strict():
            make().fit(1, progress=False)
    except UserError as error:
        return str(error)
    raise AssertionError("it was taken")


def what_cannot_be_is_said() -> None:
    def why(**keys: Any) -> str:
        return refused(lambda: Trainer(GAN, **{**SMALL, "one_launch": "always", **keys}))

    assert "in fp32: set precision=bf16" in why(precision="fp32")
    assert "noise on the samples" in why(noise=0.1)
    assert "each iteration has a penalty" in why(**{"penalty.name": "r1"})
    assert "each iteration has a penalty or is watched" in why(log_every=1)
    assert "relativistic compares" in why(objective="relativistic")
    generator, discriminator = torch.nn.Linear(5, 2), torch.nn.Linear(2, 1)
    optimizers = {
        side: fastgan.optim.Adam(network.parameters(), lr=1e-3)
        for side, network in (("generator", generator), ("discriminator", discriminator))
    }
    parts = {
        "generator": generator,
        "discriminator": discriminator,
        "data": torch.zeros(8, 2),
        "optimizers": optimizers,
    }
    keys = {"precision": "bf16", "batch_size": 4, "z_dim": 5, "graph": False}
    assert "give it shadow=torch.bfloat16" in refused(
        lambda: Trainer(**parts, device="cpu", one_launch="always", **keys)
    )
    with fastgan.backend("cuda"):
        assert trained(1, "auto", taken=True).one_launch.why == "the backend 'cuda' was asked for"
    with strict():
        trainer = Trainer(GAN, **SMALL)
    assert trainer.one_launch == (False, "it needs a GPU")
    assert trainer.one_launch.why in trainer.describe_one_launch()


def a_measurement_decides() -> None:
    with strict():
        entry = mlp_step_measure.measured(GAN, keys=SMALL, iterations=4, rounds=1)
    assert entry.us > 0 and entry.graph_us > 0 and entry.batch == 12
    size = mlp_step_measured.Size(entry.weights, 12, entry.passes)
    assert mlp_step_measured.nearest([entry], size) == entry


def main(library: str, folder: str) -> None:
    extension.LIBRARY = Path(library)
    mlp_step_launch.BLOCKS = 1
    fifty_steps_are_the_ordinary_ones()
    penalties_and_critics_go_by_the_step()
    a_run_goes_on_to_the_bit(Path(folder))
    many_iterations_in_a_launch_are_as_many_launches()
    what_would_spoil_weights_is_skipped()
    mlp_step_launch.BLOCKS = 2
    members_are_the_runs_that_they_would_be_alone()
    members_of_a_launch_share_nothing()
    what_cannot_be_is_said()
    a_measurement_decides()
    sys.stdout.write("all as it should be\n")


main(*sys.argv[1:])
