"""The methods beside the adversarial one, as iterations: replayed, resumed, guarded, configured."""

import pytest
import torch
from torch import nn

import fastgan
from fastgan.errors import UserError
from fastgan.presets import PRESETS, from_dict, preset
from fastgan.presets.methods import METHODS
from fastgan.train import build, checkpoint, pictures
from fastgan.train.capture import strict
from fastgan.train.metrics import COLUMNS
from fastgan.train.networks import load_network
from fastgan.train.replays import Replays

POINTS = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)).clamp(-3, 3) / 3
SCHEDULE = {"discriminator_lr": {"to": 0.0, "steps": 8}}
SMALL = {
    "vae": {"generator.hidden": [8, 8], "generator.norm": True, "discriminator.hidden": [8], "ema": {"decay": 0.9}},
    "nce": {"discriminator.hidden": [8], "z_dim": 6, "noise": 0.1},
    "predictability-minimization": {"discriminator.hidden": [8], "z_dim": 3, "ema": {"decay": 0.9}},
}
BARE = {"vae": {"generator": "mlp", "discriminator": "encoder"}} | {
    method: dict.fromkeys(("generator", "discriminator"), method) for method in ("nce", "predictability")
}


def trainer(name, **keys):
    common = {"batch_size": 20, "log_every": 2, "checkpoint_every": 4, "device": "cpu", "schedules": SCHEDULE}
    return fastgan.Trainer(name, data=POINTS.clone(), **{**SMALL[name], **common, **keys})


def state(run):
    return {
        (side, key): value
        for side in ("generator", "discriminator")
        for key, value in getattr(run, side).state_dict().items()
    }


def rows(run):
    return [[row.get(name) for name in COLUMNS if name not in ("seconds", "memory")] for row in run.history]


def same(left, right):
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert torch.equal(value, right[key]), key


@pytest.mark.parametrize("name", SMALL)
def test_replays_are_the_eager_steps(name):
    before = state(trainer(name))
    with strict():
        eager, replayed = (trainer(name, graph=graph).fit(9, progress=False) for graph in (False, True))
        assert isinstance(replayed._run, Replays)
    same(state(eager), state(replayed))
    assert rows(eager) == rows(replayed)
    moved = {key[0] for key, value in state(eager).items() if not torch.equal(value, before[key])}
    assert moved == ({"discriminator"} if name == "nce" else {"generator", "discriminator"})


@pytest.mark.parametrize("name", SMALL)
def test_resuming_is_exact(name, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_save_figure", lambda *_: None)
    keys = {"on_nan": "skip"}
    whole = trainer(name, out=tmp_path / "a", **keys).fit(9, progress=False)
    trainer(name, out=tmp_path / "b", **keys).fit(5, progress=False)
    rest = trainer(name, out=tmp_path / "b", **keys)
    rest.resume(checkpoint.load(tmp_path / "b/checkpoints/step-00000005"))
    rest.fit(9, progress=False)
    left, right = (checkpoint.load(run.out / "checkpoints/step-00000009") for run in (whole, rest))
    assert left.tensors.keys() == right.tensors.keys()
    for file, tensors in left.tensors.items():
        same(tensors, right.tensors[file])
    assert rows(whole) == rows(rest)
    assert len(rows(whole)) == 5


@pytest.mark.parametrize("name", SMALL)
def test_steps_with_nan_are_skipped(name):
    run = trainer(name, on_nan="skip").fit(4, progress=False)
    before = {key: value.clone() for key, value in state(run).items() if value.is_floating_point()}
    run.data.images[:] = torch.nan
    run.fit(6, progress=False)
    same(before, {key: value for key, value in state(run).items() if key in before})
    assert run.history[-1]["skipped"] == {"vae": 4, "nce": 2, "predictability-minimization": 8}[name]
    assert all(value.isfinite().all() for value in state(run).values())


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_has_no_use_for_is_refused_in_a_line(method):
    keys = {
        "objective": "hinge",
        "penalty": "r1",
        "updates": "shared",
        "balance": "auto",
        "n_critic": 2,
        "noise": 0.1,
        "flip": True,
        "ema": {"decay": 0.9},
        "generator_optimizer": {"lr": 1e-5},
    }
    given = {"method": method, **BARE[method]}
    for key, value in keys.items():
        if key in METHODS[method].refused:
            with pytest.raises(UserError, match=f"^method={method} has no use for {key}: "):
                from_dict({**given, key: value})
        else:
            from_dict({**given, key: value})
    with pytest.raises(UserError, match=r"leave out schedules\.penalty_weight"):
        from_dict({**given, "schedules": {"penalty_weight": {"to": 0, "steps": 5}}})
    for changed, said in (({"latent": "discrete"}, "latent=normal"), ({"keep_best": "diversity"}, "keep_best")):
        with pytest.raises(UserError, match=said):
            from_dict({**given, **changed})
    with pytest.raises(UserError, match=f"method={method} wants"):
        from_dict({**given, "discriminator": "mlp"})


@pytest.mark.parametrize("side, family", [("discriminator", "encoder"), ("generator", "nce")])
def test_networks_of_a_method_are_not_an_adversarys(side, family):
    with pytest.raises(UserError, match=f"method=adversarial wants a {side} of the families"):
        from_dict({side: family})


def test_networks_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"discriminator makes .* means and log variances of shape \(20, 6\)"):
        fastgan.Trainer("vae", data=POINTS, discriminator=nn.Linear(2, 5), z_dim=3, batch_size=20)
    with pytest.raises(UserError, match="noise of its own"):
        fastgan.Trainer("nce", data=POINTS, generator=nn.Linear(10, 2), batch_size=20)
    with pytest.raises(UserError, match="points"):
        fastgan.Trainer("nce", data="digits")
    with pytest.raises(UserError, match="tells no conditions, which CTGANGenerator asks for"):
        fastgan.Trainer("vae", data="people", device="cpu", **{"generator.name": "ctgan"})
    with pytest.raises(UserError, match="z_dim 5"):
        fastgan.Trainer("nce", z_dim=5)


@pytest.mark.parametrize("name", SMALL)
def test_a_run_is_read_back(name, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_save_figure", lambda *_: None)
    run = trainer(name, out=tmp_path / "run")
    run.fit(2, progress=False)
    # data of the user's belong to no configuration, but what was trained has names
    for side in ("generator", "discriminator"):
        module = load_network(tmp_path / "run", side)
        assert not module.training
        same(module.state_dict(), getattr(run, side).state_dict())
    if name == "vae":
        assert fastgan.load(tmp_path / "run")(torch.zeros(3, 8)).shape == run.sample(3).shape == (3, 2)
    else:
        for use in (lambda: fastgan.load(tmp_path / "run"), lambda: run.sample(3)):
            with pytest.raises(UserError, match=r"makes no samples of latents.*load_network"):
                use()


def test_presets_name_every_method_once():
    methods = [config.method for config in PRESETS.values() if config.method != "adversarial"]
    assert sorted(methods) == sorted(METHODS)
    for name in SMALL:
        config = preset(name)
        data = build.dataset(config, torch.device("cpu"))
        generator, discriminator = build.networks(config, data.sample_shape)
        assert isinstance(generator, nn.Module) and isinstance(discriminator, nn.Module)
