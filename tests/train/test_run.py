"""Run folders: which is the newest, and what may change when a run goes on."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from fastgan.errors import UserError
from fastgan.presets import Average, Config, CriticWarmup, Network, Optimizer, Penalty, Schedule, preset
from fastgan.train import checkpoint, run
from fastgan.train.checkpoint import Checkpoint

FREE = {
    "steps": 7,
    "log_every": 7,
    "sample_every": 7,
    "checkpoint_every": 7,
    "keep_checkpoints": 7,
    "device": "cuda",
    "threads": 7,
    "graph": False,
    "unroll": 7,
    "one_launch": "never",
    "resident": "never",
    "readers": 7,
    "keep_best": "diversity",
    "tensorboard": True,
    "on_nan": "skip",
}
BOUND = {
    "data": "ring8",
    "image_size": 8,
    "limit": 7,
    "label_smoothing": 0.7,
    "critic_warmup": CriticWarmup(7),
    "clip": 7.0,
    "augment": "color",
    "method": "vae",
    "pac": 4,
    "class_weight": 7.0,
    "z_dim": 7,
    "latent": "uniform",
    "generator": Network("mlp", {"hidden": [7]}),
    "discriminator": Network("dcgan"),
    "objective": "minimax",
    "penalty": Penalty("r1"),
    "n_critic": 7,
    "updates": "shared",
    "generator_optimizer": Optimizer(lr=7.0),
    "discriminator_optimizer": Optimizer(betas=(0.7, 0.7)),
    "ema": Average(0.7),
    "noise": 7.0,
    "flip": True,
    "balance": "auto",
    "schedules": {"generator_lr": Schedule(7.0, 7)},
    "precision": "bf16",
    "batch_size": 7,
    "seed": 7,
    "samples": 7,
}


def test_every_key_but_a_few_needs_force():
    assert FREE.keys() | BOUND.keys() | {"preset", "method"} == {field.name for field in fields(Config)}
    for key, value in FREE.items():
        assert len(run.agree(Config(), replace(Config(), **{key: value}), force=False)) == 1
    for key, value in BOUND.items():
        more = {"discriminator": Network("encoder")} if key == "method" else {}  # which the method wants
        changed = replace(Config(), **{key: value}, **more)
        with pytest.raises(UserError, match=rf"{key}.*--force"):
            run.agree(Config(), changed, force=False)
        assert run.agree(Config(), changed, force=True)


def test_newest_is_the_highest_number_that_holds_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run.newest("ring8") is None
    made = [run.create(preset("ring8"), None) for _ in range(11)]
    assert [path.name for path in made[:2]] == ["ring8", "ring8-2"]
    (run.ROOT / "ring8-12").mkdir()  # a start that was killed
    (run.ROOT / "ring8-old").mkdir()
    assert run.newest("ring8") == made[-1]
    assert run.create(preset("ring8"), None).name == "ring8-13"


def test_a_checkpoint_that_a_run_removes_while_it_is_read_gives_way_to_the_next(tmp_path, monkeypatch):
    """Samples may be drawn from a run that goes on."""
    content = [Checkpoint({name: {} for name in checkpoint.FILES}, {"step": step}) for step in (1, 2)]
    checkpoint.save(tmp_path / "checkpoints", content[0], 1)
    load, loaded = checkpoint.load, []

    def slow(path):
        if not loaded:
            checkpoint.save(tmp_path / "checkpoints", content[1], 1)
        loaded.append(path.name)
        return load(path)

    monkeypatch.setattr(checkpoint, "load", slow)
    assert run.latest_checkpoint(tmp_path).step == 2
    assert loaded == ["step-00000001", "step-00000002"]


def test_what_a_killed_start_has_left_is_cleared_away(tmp_path):
    left = [
        ".config.yaml.123",
        ".final.png.writing",
        "samples/.step-00000001.png.writing",
        "checkpoints/.writing-step-1",
    ]
    for name in [*left, "mine.txt", ".mine"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("half")
    (tmp_path / left[-1]).unlink()
    (tmp_path / left[-1]).mkdir()
    run.tidy(tmp_path)
    assert not [name for name in left if (tmp_path / name).exists()]
    assert (tmp_path / "mine.txt").exists() and (tmp_path / ".mine").exists()


def test_checkpoints_that_a_killed_process_had_no_time_to_remove_go_at_its_next_start(tmp_path):
    for place, steps in (("checkpoints", (1, 2, 3)), ("checkpoints/best", (1, 3))):
        for step in steps:
            content = Checkpoint({name: {} for name in checkpoint.FILES}, {"step": step})
            checkpoint.save(tmp_path / place, content, 9)
    left = lambda: [path.name for path in sorted(tmp_path.rglob("step-*"))]  # noqa: E731
    run.tidy(tmp_path)
    assert len(left()) == 5
    run.tidy(tmp_path, keep=2)
    assert sorted(left()) == ["step-00000002", "step-00000003", "step-00000003"]


def test_a_configuration_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    write = Path.write_text

    def full(path, text, **named):
        write(path, text[:20], **named)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="No space left on device"):
        run.create(Config(), tmp_path / "r")
    assert list((tmp_path / "r").iterdir()) == []


def test_a_checkpoint_is_found_from_within_its_run(tmp_path, monkeypatch):
    run.write_config(tmp_path / "r", Config())
    checkpoint.save(tmp_path / "r/checkpoints", Checkpoint({name: {} for name in checkpoint.FILES}, {"step": 3}), 1)
    for folder, path in ((".", "r/checkpoints/step-00000003"), ("r/checkpoints", "step-00000003"), ("r", ".")):
        monkeypatch.chdir(tmp_path / folder)
        config, stored = run.opened(Path(path))
        assert config == Config() and stored.step == 3
