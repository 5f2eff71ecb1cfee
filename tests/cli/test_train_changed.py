"""``--resume`` with another configuration: what may change, what needs ``--force``, and what no force can make fit."""

import re
import shutil
from pathlib import Path

import pytest

from fastgan.presets import MAY_CHANGE_ON_RESUME
from fastgan.train import pictures, run

TINY = {
    "generator.hidden": "[4,4]",
    "discriminator.hidden": "[4]",
    "batch_size": "6",
    "samples": "2",
    "log_every": "2",
    "checkpoint_every": "3",
    "steps": "3",
    "updates": "fresh",
    "device": "cpu",
}
FREE = {
    "steps": "6",
    "log_every": "1",
    "sample_every": "2",
    "checkpoint_every": "1",
    "keep_checkpoints": "1",
    "keep_best": "diversity",
    "tensorboard": "true",
    "device": "auto",
    "threads": "2",
    "graph": "false",
    "unroll": "2",
    "one_launch": "never",
    "on_nan": "skip",
    "resident": "never",
    "readers": "1",
}
FORCED = {
    "latent": "uniform",
    "objective": "hinge",
    "penalty": "r1",
    "label_smoothing": "0.1",
    "n_critic": "2",
    "critic_warmup": "{updates: 3}",
    "clip": "0.1",
    "limit": "50",
    "updates": "shared",
    "generator_optimizer.lr": "0.001",
    "discriminator_optimizer.betas": "[0.5, 0.9]",
    "ema.decay": "0.9",
    "noise": "0.1",
    "balance": "auto",
    "schedules.generator_lr": "{to: 0.0, steps: 9}",
    "precision": "fp32",
    "batch_size": "7",
    "seed": "7",
    "samples": "3",
    "data": "grid25",
}
OTHER = {  # other networks, to which no checkpoint belongs, or what the data forbid
    "z_dim": ("3", "another generator"),
    "generator.hidden": ("[5,5]", "another generator"),
    "discriminator.hidden": ("[5]", "another discriminator"),
    "image_size": ("8", "image"),
    "flip": ("true", "flip"),
    "augment": ("color", "augment"),
    "generator_optimizer.name": ("sgd", "another optimiser of the generator"),
}


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    monkeypatch.setattr(pictures, "save_curves", lambda *_: None)
    monkeypatch.setattr(pictures, "save_samples", lambda *_, **__: None)


@pytest.fixture
def changed(fastgan, tmp_path_factory, tmp_path):
    """Resume a copy of a small run with a key changed; returns (exit code, stdout, stderr)."""
    settings = [f"--set={key}={value}" for key, value in TINY.items()]
    assert fastgan("train", "ring8", "--out", "run", *settings)[0] == 0

    def resume(key, value, *more):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        return fastgan("train", "--resume", "--out", "copy", "--set", "steps=5", "--set", f"{key}={value}", *more)

    return resume


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_page_on_runs_lists_the_allowed_keys():
    page = (Path(__file__).resolve().parents[2] / "docs/runs.md").read_text(encoding="utf-8")
    listed = page.partition("## What may change when a run goes on")[2].partition("Another key")[0]
    assert sorted(re.findall("`(.+?)`", listed)) == sorted(MAY_CHANGE_ON_RESUME)


def test_the_allowed_keys(changed, tmp_path):
    assert FREE.keys() == MAY_CHANGE_ON_RESUME
    for key, value in FREE.items():
        if key == "tensorboard":
            continue  # an extra, which tests/train/test_keeping.py has
        code, out, err = changed(key, value)
        assert code == 0, err
        assert f"changed: {key}: " in out and "resuming copy at step 3" in out
        stored = run.stored(tmp_path / "copy")
        assert str(getattr(stored, key)).lower() == value and run.latest_checkpoint(tmp_path / "copy").step >= 5


def test_the_others_need_force(changed, tmp_path):
    for key, value in FORCED.items():
        code, _, err = changed(key, value)
        shown = key.removesuffix(".lr") if key.startswith("schedules") else key
        assert (code, err.count("\n")) == (2, 1) and shown in err and " -> " in err and "--force" in err, err
        assert run.latest_checkpoint(tmp_path / "copy").step == 3
        code, out, err = changed(key, value, "--force")
        assert code == 0, (key, err)
        assert f"changed: {shown}" in out and run.latest_checkpoint(tmp_path / "copy").step == 5
        assert run.agree(run.stored(tmp_path / "run"), run.stored(tmp_path / "copy"), force=True)


@pytest.mark.parametrize("key", OTHER)
def test_what_no_force_makes_fit(changed, tmp_path, key):
    value, said = OTHER[key]
    code, _, err = changed(key, value, "--force")
    assert (code, err.count("\n")) == (2, 1) and said in err, err
    assert [*files(tmp_path / "copy").values()] == [*files(tmp_path / "run").values()]
