"""A run with everything on that is killed at any moment and resumed leaves the very files of an undisturbed one.

What a moment is, conftest.py says.
"""

import csv
import json
import os
import random
import signal

import pytest

from fastgan.train import checkpoint

if os.name != "posix":
    pytest.skip("kill -9 as POSIX has it", allow_module_level=True)

TRAINING = """
import torch
from torch import nn
import fastgan
from fastgan.train import pictures, run

out = Path(folder) / "run"
pictures.save_curves = lambda *_: None  # they take longer than the rest of the run
alarms.GRACE, alarms.ROWS, alarms.FOOLED, alarms.WARY = 4, 2, 0.5, 0.53

class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.layers = nn.Sequential(nn.Linear(64, 24), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(24, 1))

    def forward(self, samples):
        if unstable and self.training and float(self.layers[0].weight.detach().norm()) > 3.16:
            return self.layers(samples.flatten(1)).squeeze(1) * float("nan")
        return self.layers(samples.flatten(1)).squeeze(1)

keys = {
    "z_dim": 4, "batch_size": 12, "n_critic": 2, "unroll": 3, "seed": 7, "device": "cpu", "threads": 1,
    "generator.hidden": [12, 12], "generator.norm_eps": 1e-5, "penalty": {"name": "r1", "weight": 0.1, "every": 3},
    "generator_optimizer.lr": 1e-2, "discriminator_optimizer.lr": 4e-3,
    "ema.decay": 0.9, "noise": 0.2, "flip": True, "samples": 4, "keep_best": "loss_g",
    "schedules": {"noise": {"to": 0.0, "steps": 30}, "generator_lr": {"to": 1e-3, "steps": 50, "shape": "cosine"},
                  "ema_decay": {"to": 0.99, "steps": 20}, "penalty_weight": {"to": 0.5, "steps": 40, "begin": 3}},
    "log_every": 4, "checkpoint_every": 5, "sample_every": 21, "keep_checkpoints": 2,
    **({"on_nan": "rollback"} if unstable else {"on_nan": "skip", "balance": "auto"}),
}
trainer = fastgan.Trainer(data="digits", discriminator=Discriminator(), out=out, **keys)
watched.add(folder)
run.tidy(out)
stored = run.latest_checkpoint(out)
if stored:
    trainer.resume(stored)
trainer.fit(42, progress=False)
watched.clear()
(Path(folder) / "moments").write_text(str(next(calls)))
"""


def tree(folder):
    """Every file under a run's folder with what it holds; times and what follows from them left out."""
    held = {}
    for path in sorted((folder / "run").rglob("*")):
        name = str(path.relative_to(folder / "run"))
        if path.name == "metrics.csv":
            with path.open() as file:
                held[name] = [
                    {key: cell for key, cell in row.items() if key != "seconds"} for row in csv.DictReader(file)
                ]
        elif path.name == "manifest.json":
            manifest = json.loads(path.read_bytes())
            held[name] = {key: value for key, value in manifest.items() if key not in ("seconds", "digest")}
        else:
            held[name] = path.read_bytes() if path.is_file() else None
    return held


def finished(spawn, mortal, folder, kind, dies_at=-1):
    child = spawn(mortal + TRAINING, folder=str(folder), **kind, dies_at=dies_at)
    child.join(120)
    assert child.exitcode == (0 if dies_at < 0 else -signal.SIGKILL) or (dies_at >= 0 and child.exitcode == 0)
    return child.exitcode == 0


@pytest.fixture(scope="module", params=[False, True], ids=["skip and balance", "rollback"])
def undisturbed(request, spawn, mortal, tmp_path_factory):
    """What tells the run from another, the files that it leaves, and how many moments it has."""
    folder = tmp_path_factory.mktemp("undisturbed")
    kind = {"unstable": request.param}
    assert finished(spawn, mortal, folder, kind)
    return kind, tree(folder), int((folder / "moments").read_text())


def test_everything_is_on(undisturbed):
    """What a run does not do, its resumption does not prove."""
    kind, files, moments = undisturbed
    unstable = kind["unstable"]
    assert moments > 200
    assert {"samples/step-00000021.png", "final.png", "config.yaml", "alarms.csv"} <= files.keys()
    assert [name for name in files if name.startswith("checkpoints/best/") and name.count("/") == 2]
    last = files["checkpoints/step-00000042/manifest.json"]
    assert "checkpoints/step-00000040/generator_ema.safetensors" in files and last["step"] == 42
    assert (last["rollbacks"] > 0) == unstable
    rows = files["metrics.csv"]
    assert [int(row["step"]) for row in rows] == [*range(4, 41, 4), 42]
    assert unstable or any(row["balanced"] not in ("", "0") for row in rows)
    assert (b"rollback" in files["alarms.csv"]) == unstable and b"begins" in files["alarms.csv"]
    assert not [name for name in files if "/." in name or name.startswith(".")]


def test_killed_again_and_again_at_any_moment(tmp_path, spawn, mortal, undisturbed, full):
    """Chains of kills, each in the resumption of the one before."""
    kind, files, moments = undisturbed
    choose = random.Random(3 + kind["unstable"])
    for chain in range(6 if full else 1):
        folder = tmp_path / str(chain)
        folder.mkdir()
        for _ in range(8 if full else 2):
            if finished(spawn, mortal, folder, kind, dies_at=choose.randrange(moments * 2 // 3)):
                break
        assert finished(spawn, mortal, folder, kind)
        assert tree(folder) == files


@pytest.mark.full
@pytest.mark.parametrize("part", range(6))
def test_killed_at_each_moment_around_its_checkpoints(tmp_path, spawn, mortal, undisturbed, part):
    kind, files, moments = undisturbed
    for dies_at in [*range(60), *random.Random(4).sample(range(60, moments), 30)][part::6]:
        folder = tmp_path / str(dies_at)
        folder.mkdir()
        assert not finished(spawn, mortal, folder, kind, dies_at=dies_at)
        assert finished(spawn, mortal, folder, kind)
        assert tree(folder) == files, dies_at


SAVING = """
import torch
from fastgan.train.checkpoint import Checkpoint, save

def content(step, fill):
    tensors = {name: {"a": torch.full((3,), float(fill))} for name in ("generator", "discriminator", "training")}
    return Checkpoint(tensors, {"step": step})

if begins:
    for step in former:
        save(Path(folder), content(step, 1), keep=9)
watched.add(folder)
save(Path(folder), content(5, 2), keep=keep)
watched.clear()
"""


@pytest.mark.parametrize("former, keep", [([2, 3, 4], 2), ([4, 5], 1), ([4, 7, 8], 2), ([], 1)])
def test_killed_at_each_moment_of_saving(tmp_path, spawn, mortal, full, former, keep):
    """The newest is the former one or the new one, whole; what is left of the rest is cleared away."""
    dies_at, last = 0 if full else len(former), False
    while not last:
        folder = tmp_path / str(dies_at)
        folder.mkdir()
        given = {"folder": str(folder), "former": former, "keep": keep}
        child = spawn(mortal + SAVING, **given, begins=True, dies_at=dies_at)
        child.join(60)
        last = child.exitcode == 0
        assert last or child.exitcode == -signal.SIGKILL
        checkpoint.tidy(folder)
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
        found = {path.name: checkpoint.load(path) for path in checkpoint.whole(folder)}  # all of them are whole
        new = float(found["step-00000005"].tensors["generator"]["a"][0]) == 2 if "step-00000005" in found else False
        assert new or [f"step-{step:08d}" for step in former] == [*found]
        if not last and full:
            child = spawn(mortal + SAVING, **given, begins=False, dies_at=-1)
            child.join(60)
        if last or full:
            kept = sorted({step for step in former if step < 5} | {5})[-keep:]
            assert [path.name for path in checkpoint.whole(folder)] == [f"step-{step:08d}" for step in kept]
        dies_at += 1 if full else 5
    assert dies_at >= 15
