"""Generators read back: which weights, from a run and from an exported file, and what is refused."""

import json

import pytest
import torch

from fastgan.errors import UserError
from fastgan.presets import from_dict
from fastgan.train import build, checkpoint, run
from fastgan.train.export import write
from fastgan.train.generate import HEADER, load, load_generator

KEYS = {"z_dim": 4, "generator": {"hidden": [6, 5]}, "discriminator": {"hidden": [3]}}
SHAPE = (1, 2, 2)


@pytest.fixture
def write_run(tmp_path):
    """Write a run of step 7 whose averages are the weights plus 1; return its folder, the weights and the averages."""

    def write(decay=0.0, averaged=True):
        config = from_dict({**KEYS, "ema": {"decay": decay}})
        folder = run.create(config, tmp_path / "run")
        module = build.networks(config, SHAPE)[0]
        module(torch.randn(64, 4))  # statistics of its own
        raw = {key: value.clone() for key, value in module.state_dict().items()}
        parameters = dict(module.named_parameters())
        ema = {key: value + 1 if key in parameters else value for key, value in raw.items()}  # buffers are copied
        tensors = {
            "generator": raw,
            "discriminator": {},
            "training": {},
            **({"generator_ema": ema} if averaged else {}),
        }
        stored = checkpoint.Checkpoint(tensors, {"step": 7, "sample_shape": list(SHAPE)})
        checkpoint.save(folder / "checkpoints", stored, 1)
        return folder, raw, ema

    return write


def same(module, tensors):
    state = module.state_dict()
    return state.keys() == tensors.keys() and all(torch.equal(state[key], tensors[key]) for key in state)


def test_the_average_is_loaded_unless_the_raw_weights_are_asked_for(write_run):
    folder, raw, ema = write_run(decay=0.9)
    module = load(folder)
    assert same(module, ema)
    assert same(load(str(folder), "ema"), ema)
    assert same(load(folder, which="raw"), raw)
    assert not module.training
    assert not same(module, raw)
    assert module(torch.randn(3, 4)).shape == (3, *SHAPE)
    assert load_generator(folder, "cpu").which == "ema"


def test_a_checkpoint_within_a_run_is_loaded_by_its_folder(write_run):
    folder, raw, _ = write_run(averaged=False)
    best = {key: value * 2 for key, value in raw.items()}
    stored = checkpoint.Checkpoint(
        {"generator": best, "discriminator": {}, "training": {}}, {"step": 3, "sample_shape": list(SHAPE)}
    )
    checkpoint.save(folder / "checkpoints/best", stored, 1)
    for place, step, tensors in (
        ("", 7, raw),
        ("checkpoints", 7, raw),
        ("checkpoints/step-00000007", 7, raw),
        ("checkpoints/best", 3, best),
        ("checkpoints/best/step-00000003", 3, best),
    ):
        found = load_generator(folder / place, "cpu")
        assert found.step == step and same(found.module, tensors), place
    (folder / "checkpoints/none").mkdir()
    with pytest.raises(UserError, match="has no checkpoint yet"):
        load_generator(folder / "checkpoints/none", "cpu")
    with pytest.raises(UserError, match="there is no run at"):
        load_generator(folder / "checkpoints/step-00000099", "cpu")


def test_without_an_average_the_weights_are_the_average(write_run):
    folder, raw, _ = write_run(averaged=False)
    assert same(load(folder), raw)
    assert same(load(folder, "raw"), raw)
    generator = load_generator(folder, "cpu", "ema")
    assert generator.which == "raw"  # and is called so
    assert (generator.step, generator.sample_shape, generator.classes) == (7, SHAPE, 0)


def test_an_average_that_should_be_there_and_is_not_is_no_silent_matter(write_run):
    folder, raw, _ = write_run(decay=0.9, averaged=False)
    with pytest.raises(UserError, match=r"holds no average.*raw"):
        load(folder)
    assert same(load(folder, "raw"), raw)


@pytest.mark.parametrize("which", ["ema", "raw"])
def test_an_exported_file_is_loaded_like_its_run(write_run, tmp_path, which):
    folder, *_ = write_run(decay=0.9)
    generator = load_generator(folder, "cpu", which)
    file = tmp_path / "g.safetensors"
    write(generator, file, "safetensors")
    again = load_generator(file, "cpu", which)
    assert same(load(file), generator.module.state_dict())
    assert (again.step, again.which, again.sample_shape) == (7, which, SHAPE)
    assert torch.equal(again.sample(5, seed=1), generator.sample(5, seed=1))
    if which == "ema":
        with pytest.raises(UserError, match="averaged weights only"):
            load(file, "raw")


def header(**changes):
    good = {"version": 1, "step": 7, "which": "raw", "sample_shape": list(SHAPE), "z_dim": 4, "latent": "normal"}
    return json.dumps({**good, "generator": {"name": "mlp", "hidden": [6, 5]}, **changes})


@pytest.mark.parametrize(
    "metadata, word",
    [
        (None, "not written by"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "version None"),
        (header(version=2), "version 2"),
        (header(step="7"), "not whole"),
        (header(which="best"), "not whole"),
        (header(sample_shape=[1, -2, 2]), "not whole"),
        (header(sample_shape=[True, 2, 2]), "not whole"),
        (header(generator=None), "not whole"),
        (header(generator={"name": "os"}), "unknown network"),
        (header(generator={"name": "mlp", "depth": 3}), "unknown"),
        (header(latent="gamma"), "gamma"),
        (header(z_dim=5), "belongs to another generator"),
    ],
)
def test_a_file_with_another_header_is_refused_in_one_line(tmp_path, metadata, word):
    safetensors = pytest.importorskip("safetensors.torch")
    told = {} if metadata is None else {HEADER: metadata}
    safetensors.save_file({"weight": torch.ones(2)}, tmp_path / "g.safetensors", told)
    with pytest.raises(UserError, match=word) as caught:
        load(tmp_path / "g.safetensors")
    assert len(str(caught.value).splitlines()) == 1


def test_what_cannot_be_loaded(write_run, tmp_path):
    (tmp_path / "g.safetensors").write_bytes(b"\x80\x04pickle")
    for path, word in (
        (tmp_path / "g.safetensors", "no safetensors file"),
        (tmp_path / "h.safetensors", "no such file"),
    ):
        with pytest.raises(UserError, match=word):
            load(path)
    with pytest.raises(UserError, match="no run at"):
        load(tmp_path / "nothing")
    folder, *_ = write_run()
    with pytest.raises(UserError, match="did you mean 'ema'"):
        load(folder, "emma")


@pytest.mark.gpu
def test_a_generator_on_the_gpu_makes_the_same(write_run):
    folder, *_ = write_run(decay=0.9)
    here, there = load_generator(folder, "cpu"), load_generator(folder, "cuda")
    assert next(there.module.parameters()).is_cuda
    torch.testing.assert_close(there.sample(300, seed=3), here.sample(300, seed=3), rtol=0, atol=5e-3)
