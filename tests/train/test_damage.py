"""Damaged, foreign, newer and older checkpoints: one clear line that says how to mend it, or the very state."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch

import fastgan
from fastgan.errors import UserError
from fastgan.train import Trainer, checkpoint, manifest, run, state
from fastgan.train.checkpoint import Checkpoint
from fastgan.train.guard import copied as copied_state

FIRST = Path(__file__).parent / "version-1"  # a run of six steps, as version 1 wrote it
STEP = "checkpoints/step-00000006"


@pytest.fixture
def small(scratch):
    """A checkpoint of few bytes, in memory, behind an older one."""
    for step in (1, 2):
        tensors = {name: {"a": torch.arange(3.0), "b": torch.ones(2)} for name in (*checkpoint.FILES, "generator_ema")}
        path = checkpoint.save(scratch, Checkpoint(tensors, {"step": step, "images": 7, "skipped": [0, 1]}), keep=2)
    return path


def refused(path, match=None):
    """The one line with which a checkpoint is refused."""
    with pytest.raises(UserError, match=match) as caught:
        checkpoint.load(path)
    told = str(caught.value)
    assert "\n" not in told and str(path) in told and len(told) < 700
    return told


def damages(content, full, rng):
    """The content with each byte flipped, and cut short at each length; a sample of them where not all are wanted."""
    places = range(len(content)) if full else sorted(rng.sample(range(len(content)), 40))
    for at in places:
        yield content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
        yield content[:at]


def test_every_flipped_byte_and_every_length(small, full):
    original = checkpoint.load(small)
    for file in sorted(small.iterdir()):
        content = file.read_bytes()
        for damaged in damages(content, full, random.Random(file.name)):
            file.write_bytes(damaged)
            if file.name == checkpoint.MANIFEST and same(damaged, content):  # a blank that became another blank
                assert checkpoint.load(small).values == original.values
                continue
            refused(small)
        file.write_bytes(content)
    assert checkpoint.load(small).values == original.values


def same(left, right):
    try:
        return json.loads(left) == json.loads(right)
    except ValueError:
        return False


def test_a_damaged_one_says_what_to_do_and_nothing_falls_back_silently(small):
    (small / "training.safetensors").write_bytes(b"")
    told = refused(small, "training.safetensors has 0 bytes of")
    assert told.endswith("remove that folder to resume from the one before it")
    shutil.rmtree(small.with_name("step-00000001"))
    assert refused(small).endswith("remove that folder to start again")
    (small.parent / "best").mkdir()
    best = small.rename(small.parent / "best" / small.name)
    assert refused(best).endswith("remove that folder to have the best one chosen anew")


def test_files_that_are_missing_are_too_many_or_are_none(small):
    (small / "notes.txt").write_text("mine")
    (small / ".DS_Store").write_bytes(b"\0")
    checkpoint.load(small)
    for name in ("generator.safetensors", "generator_ema.safetensors", "manifest.json"):
        kept = (small / name).read_bytes()
        (small / name).unlink()
        refused(small, f"{name} cannot be read")
        (small / name).mkdir()
        refused(small, f"{name} is no file")
        (small / name).rmdir()
        if os.name == "posix":
            os.mkfifo(small / name)
            refused(small, f"{name} is no file")
            (small / name).unlink()
        (small / name).write_bytes(kept)
    renamed = small.rename(small.with_name("step-00000009"))
    refused(renamed, "that of step 2")
    assert checkpoint.load(renamed.rename(small.with_name("mine"))).step == 2


def sealed(path, **changes):
    """Change values of a manifest and its checksum with them."""
    told = json.loads((path / "manifest.json").read_bytes())
    told = {key: value for key, value in {**told, **changes}.items() if value is not ... and key != "digest"}
    (path / "manifest.json").write_text(json.dumps({**told, "digest": manifest.digest(told)}))


@pytest.mark.parametrize(
    "changes",
    [
        *({"step": value} for value in ("2", 2.0, True, None, -1, 2**60, 10**30, [2], ...)),
        *({"images": value} for value in ("7", -1, float("nan"))),
        *({"seconds": value} for value in ("1", -1.0, float("nan"), float("inf"), 10**400)),
        *({"skipped": value} for value in (3, [1], [1, -1], [0.5, 0], ["0", "0"], None)),
        *({"lr_factor": value} for value in (0, -0.5, 2, "1", float("nan"))),
        *({"sample_shape": value} for value in ("2", [0], [-1], [2**40], [1.5], {})),
        *({"best": value} for value in (1, {}, {"metric": 1, "value": 1}, {"metric": "x", "value": "1"})),
        *({"optimizer_scalars": value} for value in ([], None, "x")),
        *({"sha256": value} for value in (..., None, [], {}, {"generator.safetensors": "0" * 64})),
        *({"bytes": value} for value in (..., None, [], {}, {"generator.safetensors": 9})),
        {"last_row": 3},
        {"rollbacks": -1},
        {"latent_device": 1},
    ],
    ids=str,
)
def test_values_of_wrong_kinds(small, changes):
    sealed(small, **changes)
    refused(small, "is damaged")


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a\0b", "", "generator.pt"])
@pytest.mark.parametrize("table, value", [("sha256", "0" * 64), ("bytes", 3), ("sha256", None), ("sha256", 7)])
def test_names_of_other_files(small, name, table, value):
    told = json.loads((small / "manifest.json").read_bytes())
    sealed(small, **{table: {**told[table], name: value}})
    refused(small, "than a checkpoint has")


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"format": "fastgan-checkpoint", "version": 2, "a": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"format": "fastgan-checkpoint", "format": "fastgan-checkpoint", "version": 2}',
        b'{"step": 1' + b"0" * 5_000 + b"}",
        b"\xff\xfe",
        b"",
    ],
    ids=lambda content: str(content[:12]),
)
def test_what_is_no_json(small, content):
    (small / "manifest.json").write_bytes(content)
    refused(small, "is damaged: manifest.json")


@pytest.mark.parametrize("version", [0, 3, 99, -1, True, 2.0, "2", None, [2], {}])
def test_other_versions(small, version):
    sealed(small, version=version)
    assert "reads versions 1 to 2: install the fastgan that wrote it" in refused(small)


def test_foreign_ones(small):
    for content in ("{}", "[]", "3", "null", '{"format": "other", "version": 2}', '{"weights": 1}'):
        (small / "manifest.json").write_text(content)
        refused(small, "not a checkpoint of fastgan")


def test_one_of_another_network_or_optimiser_changes_nothing(tmp_path):
    keys = {"z_dim": 2, "generator.hidden": [4], "discriminator.hidden": [4], "batch_size": 6, "device": "cpu"}
    wide, narrow = fastgan.Trainer("ring8", out=tmp_path, **{**keys, "generator.hidden": [5]}), Trainer("ring8", **keys)
    wide.save()
    narrow.fit(1, progress=False)
    before = [parameter.clone() for parameter in narrow.discriminator.parameters()]
    with pytest.raises(UserError, match=r"another generator: layers.* is .*5.* there and .*4.* here"):
        narrow.resume(run.latest_checkpoint(tmp_path))
    assert narrow.step == 1
    assert all(torch.equal(*pair) for pair in zip(before, narrow.discriminator.parameters(), strict=True))


@pytest.fixture(scope="module")
def put_back():
    """A training to put checkpoints back into, and one of its own."""
    keys = {"z_dim": 2, "generator.hidden": [4], "discriminator.hidden": [4], "batch_size": 6, "device": "cpu"}
    trainer = fastgan.Trainer("ring8", **keys, ema={"decay": 0.9}).fit(3, progress=False)
    return trainer, copied_state(trainer._content())


@pytest.mark.parametrize(
    "file, name, change",
    [
        ("generator", "layers.0.weight", lambda tensor: tensor.double()),
        ("generator", "layers.0.weight", lambda tensor: tensor[:1]),
        ("discriminator", "layers.9.weight", lambda _: torch.ones(1)),
        ("training", "meter", None),
        ("training", "meter", lambda tensor: tensor.view(torch.int32)),
        ("training", "meter_counts", lambda tensor: tensor[:1]),
        ("training", "rng.cpu", lambda tensor: tensor[:-1]),
        ("training", "rng.latents", lambda tensor: torch.zeros_like(tensor)),
        ("training", "rng.others", lambda _: torch.ones(1)),
        ("training", "generator_optimizer.0.exp_avg", None),
        ("training", "generator_optimizer.0.ema", None),
        ("training", "generator_optimizer.0.exp_avg", lambda tensor: tensor.view(torch.int32)),
        ("training", "generator_optimizer.0.exp_avg", lambda tensor: tensor[:1]),
        ("training", "generator_optimizer.0.step", lambda tensor: tensor.view(torch.int32)),
        ("training", "generator_optimizer.99.exp_avg", lambda _: torch.ones(1)),
        ("training", "generator_optimizer.x.exp_avg", lambda _: torch.ones(1)),
        ("training", "generator_optimizer.fastgan.skipped", None),
        ("training", "discriminator_optimizer.fastgan.averaged", lambda tensor: tensor - 9),
        *(("values", name, None) for name in ("images", "seconds", "drawn", "optimizer_scalars")),
        ("values", "optimizer_scalars", lambda _: {"generator_optimizer.99.step": 1}),
        ("values", "latent_device", lambda _: "abacus"),
    ],
)
def test_what_belongs_to_no_such_training_changes_nothing(put_back, file, name, change):
    trainer, stored = put_back
    tensors, values = {key: dict(named) for key, named in stored.tensors.items()}, dict(stored.values)
    holder = values if file == "values" else tensors[file]
    former = holder.pop(name, None)
    if change:
        holder[name] = change(former)
    trainer.fit(trainer.step + 1, progress=False)
    before = copied_state(trainer._content())
    with pytest.raises(UserError, match="the checkpoint belongs to another") as caught:
        trainer.resume(Checkpoint(tensors, values))
    assert "\n" not in str(caught.value)
    after = trainer._content()
    assert all(torch.equal(t, after.tensors[key][k]) for key, named in before.tensors.items() for k, t in named.items())
    assert before.values == after.values


def copied(tmp_path):
    return Path(shutil.copytree(FIRST, tmp_path / "run"))


def resumed(folder):
    trainer = Trainer(run.stored(folder), out=folder)
    trainer.resume(run.latest_checkpoint(folder))
    return trainer


def test_a_checkpoint_of_version_1_is_read_whole(tmp_path):
    """What the file says is what the training then has, to the last bit."""
    folder = copied(tmp_path)
    assert json.loads((folder / STEP / "manifest.json").read_bytes())["version"] == 1
    stored = run.latest_checkpoint(folder)
    trainer = resumed(folder)
    again = state.gather(trainer._parts, {})
    assert again.tensors.keys() == stored.tensors.keys()
    for file, tensors in stored.tensors.items():
        assert again.tensors[file].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(again.tensors[file][name], tensor), (file, name)
    assert (trainer.step, trainer.images, [row["step"] for row in trainer.history]) == (6, 120, [4, 6])


def test_a_run_of_version_1_goes_on(tmp_path):
    """As one of this version would: to rounding, for it was begun by another machine."""
    rest = resumed(copied(tmp_path)).fit(12, progress=False)
    whole = Trainer(run.stored(FIRST)).fit(12, progress=False)
    assert [row["step"] for row in rest.history] == [4, 8, 12]
    for side in state.SIDES:
        theirs = getattr(rest, side).state_dict()
        for name, ours in getattr(whole, side).state_dict().items():
            if name not in ("layers.1.bias", "layers.2.running_mean"):  # the norm takes it out: its slope is rounding
                torch.testing.assert_close(ours, theirs[name], rtol=1e-4, atol=1e-6)
    newest = checkpoint.whole(tmp_path / "run/checkpoints")
    assert [path.name for path in newest] == ["step-00000012"]
    assert json.loads((newest[0] / "manifest.json").read_bytes())["version"] == manifest.VERSION


def test_the_oldest_of_version_1_knew_less(tmp_path):
    folder = copied(tmp_path)
    sealed(folder / STEP, **dict.fromkeys(("lr_factor", "rollbacks", "skipped", "last_row"), ...))
    trainer = resumed(folder)
    assert (trainer.slowed, trainer._guard.state()["stuck"]) == (1, [0, 0])
