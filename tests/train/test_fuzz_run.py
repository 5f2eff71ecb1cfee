"""Mutated files of a run: what is read is right, or one clear line says what is wrong and nothing was changed."""

import copy
import hashlib
import json
import random
import time

import pytest
import torch
from safetensors.torch import load

import fastgan
from fastgan.errors import NonFiniteError, UserError
from fastgan.train import alarms, checkpoint, manifest
from fastgan.train.alarms import Alarm
from fastgan.train.metrics import COLUMNS, MetricsFile
from fastgan.train.state import SIDES

KEYS = {
    "z_dim": 2,
    "generator.hidden": [4, 4],
    "discriminator.hidden": [4],
    "batch_size": 6,
    "ema": {"decay": 0.9},
    "noise": 0.1,
    "keep_best": "loss_g",
    "log_every": 2,
    "checkpoint_every": 5,
    "device": "cpu",
}
NASTY = [
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2**53,
        2**64,
        10**400,
        0.5,
        -0.0,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "3",
        "a/../b",
    ),
    *([], [[]], [-1, 0], [1, 2, 3], [None], {}, {"": 0}, {"a": {"a": {}}}, {"../x.safetensors": "0" * 64}, "x" * 9999),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trainer in memory that checkpoints are put back into, and the files of one of its own."""
    folder = tmp_path_factory.mktemp("run")
    fastgan.Trainer("ring8", out=folder, samples=2, **KEYS).fit(5, progress=False)
    (path,) = checkpoint.whole(folder / "checkpoints")
    trainer = fastgan.Trainer("ring8", **KEYS).fit(1, progress=False)
    return trainer, {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def state(trainer):
    optimizers = [getattr(trainer.players, f"{side}_optimizer").state_dict()["state"] for side in SIDES]
    tensors = [
        *(t for side in SIDES for t in getattr(trainer, side).state_dict().values()),
        *(t for states in optimizers for entries in states.values() for t in entries.values()),
    ]
    content = b"".join(t.detach().numpy().tobytes() for t in tensors)
    return hashlib.sha256(content).hexdigest(), trainer.step, trainer.images, trainer.dials.clock.item()


def sealed(files, changed):
    """The files with checksums and sizes that agree with them."""
    told = {key: value for key, value in changed.items() if key != "digest"}
    if isinstance(told.get("sha256"), dict) and isinstance(told.get("bytes"), dict):
        for name in told["sha256"].keys() & files.keys():
            told["sha256"][name] = hashlib.sha256(files[name]).hexdigest()
            told["bytes"][name] = len(files[name])
    return {**files, "manifest.json": json.dumps({**told, "digest": manifest.digest(told)}).encode()}


def nodes(tree):
    """Where a value stands in nested data: its holder and its key there."""
    found = [(tree, key) for key in (tree if isinstance(tree, dict) else range(len(tree)))]
    return found + [
        place for holder, key in found if isinstance(holder[key], dict | list) for place in nodes(holder[key])
    ]


def mutation(files, rng, mutate):
    """Files that were damaged as they are, or in what their checksums are then made to agree with."""
    told = json.loads(files["manifest.json"])
    kind, victim = rng.randrange(4), rng.choice([name for name in files if name != "manifest.json"])
    if kind == 0:
        victim = rng.choice(sorted(files))
        return {**files, victim: mutate(files[victim], rng)}
    if kind == 1:  # mostly the header, where the names and shapes are
        content = files[victim]
        size = min(len(content), int.from_bytes(content[:8], "little") + 40)
        return sealed({**files, victim: mutate(content[:size], rng) + content[size:]}, told)
    if kind == 2:
        for _ in range(rng.choice((1, 1, 2))):
            holder, key = rng.choice(nodes(told))
            if rng.random() < 0.2:
                del holder[key]
            else:
                holder[key] = copy.deepcopy(rng.choice(NASTY))
        return sealed(files, told)
    try:
        changed = json.loads(mutate(files["manifest.json"], rng))
        return sealed(files, changed) if isinstance(changed, dict) else files
    except (ValueError, RecursionError):
        return files


@pytest.mark.parametrize("part", range(4))
def test_checkpoints(trained, scratch, mutate, full, part):
    trainer, files = trained
    folder = scratch / "step-00000005"
    folder.mkdir()
    read, continued, held = 0, 0, {}
    for seed in range(part, 100_000 if full else 2_000, 4):
        rng = random.Random(seed)
        mutated = mutation(files, rng, mutate)
        for name, content in mutated.items():
            if held.get(name) != content:
                (folder / name).write_bytes(content)
        held, began, before, complaint = mutated, time.monotonic(), None, ""
        try:
            stored = checkpoint.load(folder)
            read, before = read + 1, state(trainer)
            trainer.resume(stored)
        except UserError as error:
            complaint = str(error)
        if complaint:
            assert len(complaint.splitlines()) == 1 and 20 < len(complaint) < 1000, complaint
            assert before in (None, state(trainer))
            continue
        continued += 1
        assert trainer.step == 5 == len(trainer.generator(torch.zeros(5, 2)))
        if continued % 40 == 0:
            try:
                trainer.fit(7, progress=False)
            except NonFiniteError:  # a number of the weights may have become infinite
                trainer.resume(pristine(files))
        assert time.monotonic() - began < 60
    assert read > continued > 25


def pristine(files):
    """The original's content."""
    tensors = {name.partition(".")[0]: load(raw) for name, raw in files.items() if name != "manifest.json"}
    return checkpoint.Checkpoint(tensors, json.loads(files["manifest.json"]))


ROW = dict.fromkeys(COLUMNS, 0.25) | {"skipped": 0, "memory": None, "balanced": 1}


def test_metrics_and_alarms(scratch, mutate, full):
    """Rows that are kept are in order, beyond no checkpoint, and read back as they were written."""
    file, told = MetricsFile(scratch / "metrics.csv"), scratch / "alarms.csv"
    for step in range(4, 33, 4):
        file.append({**ROW, "step": step, "images": step * 10, "loss_d": step / 7})
    whole = file.path.read_bytes()
    lines = [Alarm(step, "collapse", "begins", 'diversity 0.01, "x"') for step in (8, 24)]
    written = (alarms.HEAD + alarms._lines(lines)).encode()
    for seed in range(100_000 if full else 2_000):
        rng = random.Random(seed)
        file.path.write_bytes(mutate(whole, rng))
        told.write_bytes(mutate(written, rng))
        rows, complaint = None, ""
        try:
            rows = file.rewind(24)
        except UserError as error:
            complaint = str(error)
        assert bool(complaint) == (rows is None) and "\n" not in complaint
        if rows is not None:
            steps = [row["step"] for row in rows]
            assert steps == sorted(set(steps)) and all(0 < step <= 24 for step in steps)
            assert repr(file.read(24)) == repr(rows)
        assert all(type(alarm.step) is int for alarm in alarms.read(told))
