"""Parts of the user's own: objectives as functions, and folders of runs that say what they were made of."""

import pytest
import torch
import yaml
from torch import nn
from torch.nn.functional import softplus

import fastgan
from fastgan.errors import UserError
from fastgan.nn import GANLoss
from fastgan.objectives import OBJECTIVES, Objective
from fastgan.presets import from_dict
from fastgan.train import checkpoint, run
from fastgan.train.generate import load_generator
from fastgan.train.own import as_objective

POINTS = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)).clamp(-3, 3) / 3
SMALL = {"z_dim": 4, "generator.hidden": [8], "discriminator.hidden": [8], "batch_size": 16, "device": "cpu"}


def trainer(**keys):
    torch.manual_seed(0)
    generator, critic = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), nn.Linear(2, 1)
    keys = {"z_dim": 3, "batch_size": 20, "log_every": 1, "device": "cpu", **keys}
    return fastgan.Trainer(generator=generator, discriminator=critic, data=POINTS, **keys)


def both(real, fake):
    return softplus(-real).mean() + softplus(fake).mean(), softplus(-fake).mean()


def of_d(real, fake):
    return both(real, fake)[0]


def of_g(fake):
    return softplus(-fake).mean()


def of_g_by_both(fake, real):
    return softplus(-fake).mean() + 0 * real.mean()


@pytest.mark.parametrize(
    "part, given, words",
    [
        ("data", POINTS.numpy(), "not ndarray: torch.from_numpy"),
        ("data", [1, 2], "not list"),
        ("generator", "dcgan", r"\*\*\{'generator.name': 'dcgan'\}"),
        ("generator", {"hidden": [8]}, "not dict"),
        ("discriminator", nn.Linear, "not the class Linear"),
    ],
)
def test_parts_of_a_wrong_kind_are_refused(part, given, words):
    with pytest.raises(UserError, match=words) as caught:
        fastgan.Trainer("ring8", **{part: given}, **SMALL)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given", [both, (of_d, of_g), [of_d, of_g_by_both], GANLoss("non_saturating"), "non_saturating"]
)
def test_an_objective_is_the_same_in_every_form(given):
    usual, own = trainer(), trainer(objective=given)
    usual.fit(5, progress=False)
    own.fit(5, progress=False)
    for left, right in zip(usual.history, own.history, strict=True):
        assert (left["loss_d"], left["loss_g"]) == pytest.approx((right["loss_d"], right["loss_g"]), abs=1e-6)
        assert left["d_real"] == pytest.approx(right["d_real"], abs=1e-6)


def test_forms_ask_for_real_logits_only_where_they_need_them():
    asks = {True: [both, (of_d, of_g_by_both), GANLoss("relativistic")], False: [(of_d, of_g), GANLoss("hinge")]}
    for needs, forms in asks.items():
        assert all(as_objective(form).needs_real is needs for form in forms)
    assert as_objective(OBJECTIVES["hinge"]) is OBJECTIVES["hinge"]


@pytest.mark.parametrize("given", [3, (of_d,), (of_d, 1), lambda real, fake: real.mean()])
def test_what_is_no_objective_is_told_what_is(given):
    with pytest.raises(UserError, match=r"objective takes .*\(real_logits, fake_logits\)") as caught:
        trainer(objective=given).fit(1, progress=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [lambda real: 0, (of_d, lambda: 0), (lambda *, real: 0, of_g), [of_g, of_g]])
def test_a_function_of_too_few_batches_is_refused_before_training(given):
    with pytest.raises(UserError, match=r"objective takes .* cannot be called so: "):
        trainer(objective=given)


def test_a_preset_from_python_leaves_a_folder_like_any_other(tmp_path):
    made = fastgan.Trainer("gan-digits", out=tmp_path / "r", seed=3, **SMALL).fit(2, progress=False)
    assert run.stored(tmp_path / "r") == made.config
    assert load_generator(tmp_path / "r", "cpu").sample(4, seed=1).shape == (4, 1, 8, 8)
    assert not (tmp_path / "r/.lock").exists()


def test_a_run_with_own_parts_says_which_in_its_configuration(tmp_path):
    made = trainer(objective=both, out=tmp_path).fit(2, progress=False)
    stored = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert stored["generator"] == {"name": "own: Sequential"} and stored["discriminator"] == {"name": "own: Linear"}
    assert (stored["data"], stored["objective"]) == ("own: Tensor", "own: both")
    with pytest.raises(UserError, match=r"the run has a generator of its own \(Sequential\).*generator=") as caught:
        load_generator(tmp_path, "cpu")
    assert "\n" not in str(caught.value)
    config = run.stored(tmp_path)
    for missing in ({}, {"data": POINTS}, {"data": POINTS, "objective": both, "generator": made.generator}):
        with pytest.raises(UserError, match="of its own"):
            fastgan.Trainer(config, **missing)
    parts = {"generator": made.generator, "discriminator": made.discriminator}
    rest = fastgan.Trainer(config, **parts, data=POINTS, objective=both, out=tmp_path)
    rest.resume(checkpoint.load(checkpoint.whole(tmp_path / "checkpoints")[-1]))
    assert rest.fit(4, progress=False).step == 4


def test_one_own_network_beside_one_of_a_preset(tmp_path):
    torch.manual_seed(0)
    own = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0))
    made = fastgan.Trainer("gan-digits", discriminator=own, out=tmp_path, **SMALL).fit(1, progress=False)
    plain = fastgan.Trainer("gan-digits", **SMALL)
    fresh = fastgan.Trainer("gan-digits", discriminator=own, **SMALL)
    for left, right in zip(fresh.generator.parameters(), plain.generator.parameters(), strict=True):
        assert torch.equal(left, right)
    other = nn.Sequential(nn.Linear(4, 64), nn.Unflatten(1, (1, 8, 8)))
    beside = fastgan.Trainer("gan-digits", generator=other, **SMALL)
    for left, right in zip(beside.discriminator.parameters(), plain.discriminator.parameters(), strict=True):
        assert torch.equal(left, right)
    assert load_generator(tmp_path, "cpu").sample(4, seed=1).shape == (4, 1, 8, 8)
    again = fastgan.Trainer(run.stored(tmp_path), discriminator=own)
    again.resume(checkpoint.load(checkpoint.whole(tmp_path / "checkpoints")[-1]))
    assert again.step == made.step


def test_an_objective_of_the_house_is_known_by_its_name():
    assert trainer(objective=OBJECTIVES["hinge"]).config.objective == "hinge"
    assert trainer(objective=Objective("hinge", of_d, of_g)).config.objective == "own: Objective"
    assert from_dict({"objective": "own: x"}).objective == "own: x"
