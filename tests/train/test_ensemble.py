"""fastgan.Ensemble: its members are the runs that they would be alone, through NaN, resumption and every option."""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastgan
from fastgan import Ensemble, Trainer
from fastgan.errors import NonFiniteError, UserError
from fastgan.presets import preset
from fastgan.train import capture, checkpoint, ensemble_folder, ensemble_pictures, pictures
from fastgan.train.ensemble_plan import Plan
from fastgan.train.metrics import Row
from fastgan.train.state import SIDES

SMALL: dict[str, Any] = {
    "device": "cpu",
    "batch_size": 16,
    "steps": 20,
    "log_every": 5,
    "generator.hidden": [16, 16, 16],
    "discriminator.hidden": [16, 12],
    # so that Adam makes no steps of rounding errors: a bias in front of a batch norm has a gradient of 0
    **{f"{side}_optimizer.{key}": value for side in SIDES for key, value in (("lr", 3e-3), ("eps", 1e-3))},
}
SEEDS = [3, 8]


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which take longer than all the rest; the command line's tests have them drawn."""
    torch.set_num_threads(1)
    for module, names in ((pictures, ("save_samples", "save_curves")), (ensemble_pictures, ("save_summary",))):
        for name in names:
            monkeypatch.setattr(module, name, lambda *given, **keys: None)


def alike(member: Trainer, single: Trainer) -> None:
    """Assert that two trainings are one up to rounding."""
    for side in SIDES:
        own, other = getattr(member, side).state_dict(), getattr(single, side).state_dict()
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)
    assert len(member.history) == len(single.history)
    for row, other in zip(member.history, single.history, strict=True):
        assert {name for name, value in row.items() if value is None} == {n for n, v in other.items() if v is None}
        for name, value in seen(row).items():
            assert value is None or value == pytest.approx(other[name], rel=1e-3, abs=1e-4), name


def seen(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "seconds"}


def bits(trainer: Trainer) -> list[Tensor]:
    networks = trainer.generator, trainer.discriminator
    return [tensor.clone() for network in networks for tensor in network.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


WASSERSTEIN = {"objective": "wasserstein", "updates": "fresh"}


@pytest.mark.parametrize(
    "name, keys",
    [
        ("ring8", {}),
        ("gan-digits", {"updates": "shared", "n_critic": 2, "latent": "uniform", "noise": 0.1, "ema.decay": 0.9}),
        ("ring8", {"updates": "fresh", "objective": "relativistic_average", "noise": 0.05}),
        ("ring8", {**WASSERSTEIN, "n_critic": 2, "penalty.name": "gradient_penalty", "penalty.every": 2}),
        (
            "ring8",
            {
                **WASSERSTEIN,
                "generator_optimizer.name": "rmsprop",
                "discriminator_optimizer.name": "sgd",
                "discriminator_optimizer.eps": 1e-8,
                "clip": 0.05,
                "n_critic": 2,
                "critic_warmup": {"updates": 4, "first": 3, "every": 8},
            },
        ),
        (
            "gan-digits",
            {
                "label_smoothing": 0.2,
                "discriminator_optimizer.name": "sgd",
                "discriminator_optimizer.eps": 1e-8,
                "discriminator_optimizer.momentum": 0.5,
                "schedules": {"discriminator_momentum": {"to": 0.9, "steps": 15}},
            },
        ),
        ("gan-digits", {"objective": "relativistic", "updates": "generator_first", "penalty.name": "dragan"}),
        ("ring8", {"balance": "auto", "on_nan": "skip", "discriminator_optimizer.lr": 0.01, "objective": "minimax"}),
        ("ring8", {"balance": "auto", "discriminator_optimizer.lr": 0.01, "objective": "least_squares"}),
        ("gan-digits", {"flip": True, "schedules": {"noise": {"to": 0.3, "steps": 10}}, "objective": "hinge"}),
    ],
)
def test_members_are_the_single_runs(name: str, keys: dict[str, Any]) -> None:
    ensemble = Ensemble(name, seeds=SEEDS, **SMALL | keys).fit(progress=False)
    for seed, member in zip(SEEDS, ensemble.members, strict=True):
        alike(member, Trainer(name, seed=seed, **SMALL | keys).fit(progress=False))
    assert ensemble.step == 20 and [len(rows) for rows in ensemble.history] == [4] * 2


def test_each_member_has_its_own_numbers() -> None:
    vary: dict[str, list[Any]] = {
        "generator_optimizer.lr": [1e-2, 1e-3, 3e-3],
        "generator_optimizer.betas": [[0.0, 0.9], [0.5, 0.99], [0.9, 0.999]],
        "penalty.weight": [0.0, 1.0, 10.0],
        "noise": [0.1, 0.0, 0.3],
        "ema.decay": [0.5, 0.0, 0.99],
    }
    keys = SMALL | {"penalty.name": "r1"}
    ensemble = Ensemble("ring8", vary=vary, **keys).fit(progress=False)
    assert ensemble.plan.seeds == (0, 0, 0)  # what varies is compared on the same draws
    for at, member in enumerate(ensemble.members):
        own = {key: values[at] for key, values in vary.items()}
        single = Trainer("ring8", **keys | own).fit(progress=False)
        alike(member, single)
        torch.testing.assert_close(member.sample(5, seed=1), single.sample(5, seed=1), rtol=1e-3, atol=1e-4)


def test_members_whose_data_are_read_ahead() -> None:
    read = [
        Ensemble("ring8", seeds=SEEDS, resident=where, **SMALL).fit(7, progress=False) for where in ("never", "auto")
    ]
    assert all(same(bits(one), bits(other)) for one, other in zip(*(e.members for e in read), strict=True))


def test_what_members_draw_is_drawn_as_a_graph_would() -> None:
    """Under the rules of a CUDA graph: nothing that a capture forbids, and the members' own draws by the clock."""
    keys = SMALL | {"steps": 4, "log_every": 2, "noise": 0.1}
    with capture.strict():
        ensemble = Ensemble("ring8", seeds=SEEDS, **keys).fit(progress=False)
        for seed, member in zip(SEEDS, ensemble.members, strict=True):
            alike(member, Trainer("ring8", seed=seed, **keys).fit(progress=False))


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_members_by_the_kernels(device: str) -> None:
    """Interpreted; on a GPU in a graph."""
    keys = SMALL | {"generator.hidden": [8, 8], "discriminator.hidden": [8], "precision": "fp32", "batch_size": 8}
    keys |= {"device": device, "log_every": 1}
    with fastgan.backend("triton"):
        ensemble = Ensemble("ring8", seeds=SEEDS, **keys).fit(1, progress=False)
    for seed, member in zip(SEEDS, ensemble.members, strict=True):
        with fastgan.backend("reference"):
            alike(member, Trainer("ring8", seed=seed, **keys).fit(1, progress=False))


def test_a_member_that_is_lost_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    seeds, vary = [3, 8, 4], {"discriminator_optimizer.lr": [1e-4, 1e38, 2e-4]}
    keys = SMALL | {"checkpoint_every": 10}
    ensemble = Ensemble("ring8", seeds=seeds, vary=vary, out=tmp_path / "all", **keys).fit(progress=False)
    assert ensemble.gone == {1: 5} and ensemble.exit_code == 0
    for at in (0, 2):
        own = {"seed": seeds[at], "discriminator_optimizer.lr": vary["discriminator_optimizer.lr"][at]}
        alike(ensemble.members[at], Trainer("ring8", **keys | own).fit(progress=False))
    assert [len(rows) for rows in ensemble.history] == [4, 1, 4]  # the last row of the lost one says so
    assert not all(math.isfinite(value) for value in ensemble.history[1][-1].values() if value is not None)
    assert not (tmp_path / "all/member-01/checkpoints").exists()
    text = str(ensemble.summary())
    assert "member-01 at step 5" in text and ensemble.summary().lines[0].values[1] is None
    with (tmp_path / "all/summary.csv").open() as file:
        table = {row[0]: row for row in csv.reader(file)}
    assert table["gone at step"][6:] == ["", "5", ""] and table["loss_d"][1] == "2" and table["loss_d"][7] == ""
    again = Ensemble("ring8", seeds=seeds, vary=vary, out=tmp_path / "all", **keys | {"steps": 30})
    assert again.resume() == 20 and again.gone == {1: 5}
    again.fit(progress=False)
    assert len(again.history[1]) == 1 and again.step == 30


def test_all_lost_is_an_error(tmp_path: Path) -> None:
    ensemble = Ensemble("ring8", members=2, out=tmp_path / "all", **SMALL | {"discriminator_optimizer.lr": 1e38})
    with pytest.raises(NonFiniteError, match="no member of the ensemble is left"):
        ensemble.fit(progress=False)
    assert ensemble_folder.read(tmp_path / "all").gone == {0: 5, 1: 5}


def test_resumes_to_the_bit(tmp_path: Path) -> None:
    keys = SMALL | {"checkpoint_every": 5, "noise": 0.1, "ema.decay": 0.9, "penalty.name": "gradient_penalty"}
    whole = Ensemble("ring8", members=3, **keys).fit(20, progress=False)
    Ensemble("ring8", members=3, out=tmp_path / "all", **keys).fit(13, progress=False)
    again = Ensemble("ring8", members=3, out=tmp_path / "all", **keys)
    assert again.resume() == 13
    again.fit(20, progress=False)
    for one, other in zip(whole.members, again.members, strict=True):
        assert same(bits(one), bits(other))
        assert [seen(row) for row in one.history] == [seen(row) for row in other.history]


def test_resumes_from_the_newest_step_that_all_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends between two members' checkpoints, the first ones too, has done no harm."""
    keys = SMALL | {"checkpoint_every": 5, "keep_checkpoints": 1}  # of which an ensemble makes 2
    whole = Ensemble("ring8", members=3, **keys).fit(20, progress=False)
    save = checkpoint.save
    for dies, step in ((1, 0), (4, 5)):
        out = tmp_path / str(dies)

        def dying(*given: Any, dies: int = dies, left: Iterator[int] = iter(range(100))) -> Path:  # noqa: B008
            if next(left) == dies:
                raise KeyboardInterrupt
            return save(*given)

        monkeypatch.setattr(checkpoint, "save", dying)
        with pytest.raises(KeyboardInterrupt):
            Ensemble("ring8", members=3, out=out, **keys).fit(20, progress=False)
        monkeypatch.setattr(checkpoint, "save", save)
        assert ensemble_folder.steps(out, 0) != ensemble_folder.steps(out, 2)
        again = Ensemble("ring8", members=3, out=out, **keys)
        assert again.resume() == step
        again.fit(20, progress=False)
        for at, (one, other) in enumerate(zip(whole.members, again.members, strict=True)):
            assert same(bits(one), bits(other))
            with (ensemble_folder.member(out, at) / "metrics.csv").open() as file:
                assert [int(row["step"]) for row in csv.DictReader(file)] == [5, 10, 15, 20]


def test_goes_on_from_its_very_beginning(tmp_path: Path) -> None:
    """Where it was stopped before the first step, and where not all members' checkpoints of that were written."""
    keys = SMALL | {"checkpoint_every": 5}
    whole = Ensemble("ring8", members=2, **keys).fit(5, progress=False)
    for left in (2, 1):
        out = tmp_path / str(left)
        Ensemble("ring8", members=2, out=out, **keys).fit(0, progress=False)
        for at in range(left, 2):
            shutil.rmtree(ensemble_folder.at_step(out, at, 0))
        again = Ensemble("ring8", members=2, out=out, **keys)
        assert again.resume() == 0
        again.fit(5, progress=False)
        for one, other in zip(whole.members, again.members, strict=True):
            assert same(bits(one), bits(other))


def test_a_member_is_a_run_of_its_own(tmp_path: Path) -> None:
    """Sampled, loaded and continued alone; the ensemble then goes back only when told to."""
    keys = SMALL | {"checkpoint_every": 10, "keep_best": "loss_g"}
    ensemble = Ensemble("ring8", members=2, out=tmp_path / "all", **keys).fit(progress=False)
    path = tmp_path / "all/member-01"
    z = torch.randn(4, 2)
    loaded = fastgan.load(path)
    assert torch.equal(loaded(z), ensemble.member(1)(z))
    stored = fastgan.train.run.latest_checkpoint(path)
    assert stored is not None
    single = Trainer("ring8", out=path, **keys | {"seed": 1, "steps": 30})
    single.resume(stored)
    single.fit(progress=False)
    alike(single, Trainer("ring8", seed=1, **keys | {"steps": 30}).fit(progress=False))
    again = Ensemble("ring8", members=2, out=tmp_path / "all", **keys)
    with pytest.raises(UserError, match=r"member-01 has been trained on alone to step 30.*--force"):
        again.resume()
    assert ensemble_folder.steps(tmp_path / "all", 1) == [10, 20, 30]
    best = path / "checkpoints" / checkpoint.BEST
    checkpoint.whole(best)[0].rename(best / "step-00000030")  # as if that one had been the best
    assert again.resume(force=True) == 20 and not checkpoint.whole(best)


def test_from_python() -> None:
    ensemble = Ensemble(replace(preset("gan-digits"), seed=7), members=2, **SMALL)
    assert len(ensemble) == 2 and ensemble.plan.seeds == (7, 8) and len(Ensemble("ring8", **SMALL)) == 10
    assert Plan.of(preset("ring8"), seeds=range(3, 5)).seeds == (3, 4)
    assert ensemble.fit(5, progress=False).sample(3).shape == (2, 3, 1, 8, 8)
    assert torch.equal(ensemble.sample(3, seed=1), ensemble.sample(3, seed=1))
    generator = ensemble.member(-1)
    assert isinstance(generator, nn.Module) and not generator.training
    before = generator.state_dict()["layers.0.weight"].clone()
    ensemble.fit(10, progress=False)
    assert torch.equal(generator.state_dict()["layers.0.weight"], before)  # a copy
    line = ensemble.summary().lines[0]
    assert line.metric == "loss_d" and line.mean == pytest.approx(sum(line.known) / 2)
    assert line.std == pytest.approx(abs(line.known[0] - line.known[1]) / math.sqrt(2))
    assert ensemble.members[0].data is ensemble.members[1].data  # read once


def test_mistakes(tmp_path: Path) -> None:
    ring = preset("ring8")
    for keys, said in [
        ({"members": 0}, "1 or more members"),
        ({"members": 3, "seeds": [1, 2]}, "members 3, seeds 2"),
        ({"seeds": []}, "1 or more members"),
        ({"vary": {"noise": [0.1], "ema.decay": [0.1, 0.2]}}, "vary noise 1, vary ema.decay 2"),
        ({"vary": {"batch_size": [1, 2]}}, "not in batch_size"),
        ({"vary": {"noise": 0.1}}, "a value for each member"),
        ({"vary": {"generator_optimizer.speed": [1, 2]}}, "speed"),
        ({"seeds": [-1, 2]}, "seed must be"),
        ({"seeds": [1, 2.5]}, "seeds takes a whole number"),
        ({"seeds": 5}, "seeds takes a list"),
        ({"members": "many"}, "members takes a number"),
        ({"vary": [1, 2]}, "a value for each member"),
    ]:
        with pytest.raises(UserError, match=said):
            Plan.of(ring, **keys)
    with pytest.raises(
        UserError, match=r"family mlp \(presets gan-digits, mlp, ring8, grid25, wgan\), and the generator is dcgan"
    ):
        Ensemble("dcgan")
    with pytest.raises(UserError, match="none rolls back"):
        Ensemble("ring8", on_nan="rollback")
    ensemble = Ensemble("ring8", members=2, **SMALL)
    with pytest.raises(UserError, match="no 7"):
        ensemble.member(7)
    with pytest.raises(UserError, match="out="):
        ensemble.save()
    with pytest.raises(UserError, match="no ensemble"):
        Ensemble("ring8", members=2, out=tmp_path / "none", **SMALL).resume()
    Trainer("ring8", out=tmp_path / "single", **SMALL).fit(1, progress=False)
    with pytest.raises(UserError, match="holds a run"):
        Ensemble("ring8", members=2, out=tmp_path / "single", **SMALL).fit(1, progress=False)
    Ensemble("ring8", members=2, out=tmp_path / "all", **SMALL).fit(1, progress=False)
    with pytest.raises(UserError, match="an ensemble of 2, not of 3"):
        Ensemble("ring8", members=3, out=tmp_path / "all", **SMALL).resume()
    with pytest.raises(UserError, match="other seeds"):
        Ensemble("ring8", seeds=[5, 6], out=tmp_path / "all", **SMALL).resume()
    with pytest.raises(UserError, match="checkpoints of a run already"):
        Ensemble("ring8", members=2, out=tmp_path / "all", **SMALL).fit(1, progress=False)
    shutil.rmtree(tmp_path / "all/member-01")
    with pytest.raises(UserError, match="member-01 is not there"):
        Ensemble("ring8", members=2, out=tmp_path / "all", **SMALL).resume()
    assert ensemble_folder.steps(tmp_path / "all", 0) == [1] and not (tmp_path / "all/member-01").exists()
    ensemble.members[0].fit(2, progress=False)
    with pytest.raises(UserError, match="trained on alone"):
        ensemble.fit(progress=False)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "fastgan-ensemble", "version": 2}', None])
def test_a_damaged_manifest_is_one_line(tmp_path: Path, content: str | None) -> None:
    plan = Plan.of(preset("ring8"), 2)
    ensemble_folder.write(tmp_path, ensemble_folder.Stored(plan, {1: 5}, 10))
    assert ensemble_folder.read(tmp_path) == ensemble_folder.Stored(plan, {1: 5}, 10)
    file = tmp_path / ensemble_folder.MANIFEST
    file.write_text(file.read_text().replace('"seeds"', '"sees"') if content is None else content)
    with pytest.raises(UserError):
        ensemble_folder.read(tmp_path)
