"""Presets: each is listed, builds and trains in tiny form; those of the literature hold its figures."""

import math
from contextlib import nullcontext

import pytest
import torch

from fastgan import Trainer, models
from fastgan.data import Dataset
from fastgan.errors import UserError
from fastgan.presets import ABOUT, PRESETS, preset
from fastgan.train import pictures, run
from fastgan.train.capture import strict
from fastgan.train.export import SUFFIXES, write
from fastgan.train.generate import load_generator

SIDES = ("generator", "discriminator")
BUILT_IN = ("people", "patterns8")  # data that are small anyway, and of a kind of their own
SLICE = ("dcgan", "ctgan")  # convolutions, which lie channels last where steps are captured; a table


def sliced(names):
    """Presets as cases, most of them for the full counts only."""
    return [pytest.param(name, marks=[] if name in SLICE else pytest.mark.full) for name in names]


def narrow(name, side):
    """Options that make a network of that family small."""
    known = models.options_of(name, side=side)
    small = {"width": 4} if "width" in known else {"hidden": [8, 8]}
    return {key: value for key, value in {**small, "pieces": 2}.items() if key in known}


def tiny(name, **more):
    """A preset with narrow networks, a few random samples of its kind, and no more than a few updates a step."""
    config = preset(name)
    keys = {f"{side}.{key}": own for side in SIDES for key, own in narrow(getattr(config, side).name, side).items()}
    keys |= {"batch_size": 4 * config.pac, "device": "cpu", "z_dim": 4, "threads": 1}
    if config.critic_warmup.updates:
        keys |= {"critic_warmup.updates": 4, "critic_warmup.first": 2, "n_critic": 2}
    generator = torch.Generator().manual_seed(0)
    shape = (40, 2) if config.data in ("ring8", "grid25") else (40, 1, *[config.image_size or 8] * 2)
    samples = torch.rand(shape, generator=generator) * 2 - 1
    data = config.data if config.data in BUILT_IN else Dataset.from_tensor(samples, torch.arange(40) % 3)
    return Trainer(name, data=data, **(keys | ({"limit": 30} if config.limit else {}) | more))


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_trains(name):
    trainer = tiny(name)
    before = [[p.detach().clone() for p in net.parameters()] for net in (trainer.generator, trainer.discriminator)]
    trainer.fit(3, progress=False)
    for network, former in zip((trainer.generator, trainer.discriminator), before, strict=True):
        moved = [not torch.equal(p, old) for p, old in zip(network.parameters(), former, strict=True)]
        assert all(p.isfinite().all() for p in network.parameters()) and sum(moved) >= len(moved) / 2
    if trainer.config.method in ("adversarial", "vae"):
        assert trainer.sample(5).shape == (5, *trainer.data.sample_shape)


def written(trainer):
    """All that a checkpoint holds of a training's networks and optimisers."""
    tensors = trainer._content().tensors
    return {f"{file} {name}": value for file, named in tensors.items() for name, value in named.items()}


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("name", sliced(PRESETS))
def test_each_preset_goes_on_as_if_nothing_had_happened(name, captured, tmp_path, monkeypatch):
    """Under the rules of a CUDA graph too."""
    monkeypatch.setattr(pictures, "save_curves", lambda *_, **__: None)
    with strict() if captured else nullcontext():
        whole, first, rest = (tiny(name, log_every=2, out=tmp_path / at) for at in "abb")
        whole.fit(5, progress=False)
        first.fit(3, progress=False)
        rest.resume(run.latest_checkpoint(rest.out))
        rest.fit(5, progress=False)
    wanted, found = written(whole), written(rest)
    assert wanted.keys() == found.keys()
    assert [key for key, value in wanted.items() if not torch.equal(value, found[key])] == []


@pytest.mark.parametrize("format", ["safetensors", "torch", "onnx"])
@pytest.mark.parametrize("name", sliced(name for name in PRESETS if preset(name).method in ("adversarial", "vae")))
def test_each_generator_is_exported(name, format, tmp_path, monkeypatch):
    """What is written is what the module computes: ``write`` compares, and refuses where the two differ."""
    if format == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    monkeypatch.setattr(pictures, "save_curves", lambda *_, **__: None)
    trainer = tiny(name, log_every=2, out=tmp_path / "run")
    trainer.fit(2, progress=False)
    generator = load_generator(trainer.out, "cpu")
    path = tmp_path / f"g{SUFFIXES[format]}"
    if format != "safetensors" and getattr(generator.module, "random", False):
        with pytest.raises(UserError, match="format safetensors"):
            write(generator, path, format)
        return
    found = write(generator, path, format)
    assert path.stat().st_size > 0 and found.difference is not None


def test_each_preset_has_a_line():
    assert ABOUT.keys() == PRESETS.keys()
    assert all(config.preset == name and "\n" not in ABOUT[name] for name, config in PRESETS.items())


def test_goodfellows_schedules_are_those_of_his_file():
    """mnist.yaml: a rate divided by 1.000004 at each step down to 1e-6; momentum .5, from epoch 1 to 250 up to .7."""
    dials = tiny("gan-mnist-2014").dials
    for step in (0, 1, 500, 60_000, 1_000_000, 2_800_000, 3_000_000):
        dials.set(step)
        rate = max(0.1 / 1.000004**step, 1e-6)
        assert float(dials["generator_lr"]) == pytest.approx(rate, rel=1e-5)
        assert float(dials["discriminator_lr"]) == pytest.approx(rate / 2, rel=1e-5)
        share = min(max((step / 500 - 1) / 249, 0.0), 1.0)
        assert float(dials["generator_momentum"]) == pytest.approx(0.5 * (1 - share) + 0.7 * share, rel=1e-6)


def test_networks_have_the_published_sizes():
    config = preset("gan-mnist-2014")
    trainer = Trainer(config, data=torch.zeros(50_000, 1, 28, 28, dtype=torch.uint8), device="cpu")
    sizes = [sum(p.numel() for p in network.parameters()) for network in (trainer.generator, trainer.discriminator)]
    assert sizes == [101 * 1200 + 1201 * 1200 + 1201 * 784, 785 * 1200 + 241 * 1200 + 241]
    bounds = [p.detach().abs().max().item() for p in trainer.generator.parameters() if p.dim() == 2]
    assert all(bound == pytest.approx(0.05, rel=1e-3) for bound in bounds)
    ring = Trainer("ring8", device="cpu")
    sizes = [sum(p.numel() for p in network.parameters()) for network in (ring.generator, ring.discriminator)]
    assert sizes == [3 * 400 + 3 * 401 * 400 + 4 * 800 + 401 * 2, 3 * 1000 + 2 * 201 * 1000 + 201]
    for network in (ring.generator, ring.discriminator):
        weights = torch.cat([p.detach().flatten() for p in network.parameters() if p.dim() == 2])
        assert weights.std().item() == pytest.approx(0.02, rel=0.01) and math.isclose(weights.mean(), 0.0, abs_tol=1e-3)
