"""Checkpoints: exact, atomic, pruned; any damage is found before anything is read from it."""

import os

import pytest
import torch

from fastgan.errors import UserError
from fastgan.train import checkpoint
from fastgan.train.checkpoint import Checkpoint


def content(step, seed=0):
    torch.manual_seed(seed)
    shared = torch.randn(3, 4)
    tensors = {
        "generator": {"a": shared, "b": shared, "t": shared.t(), "empty": torch.empty(0, 3), "h": shared.bfloat16()},
        "discriminator": {"w": torch.randn(2, 2), "count": torch.tensor(7)},
        "training": {"rng.cpu": torch.get_rng_state()},
    }
    return Checkpoint(tensors, {"step": step, "images": step * 2, "seconds": 1.25, "drawn": 3})


def test_round_trip_is_exact(tmp_path):
    written = content(5)
    path = checkpoint.save(tmp_path, written, keep=3)
    read = checkpoint.load(path)
    assert read.step == 5
    assert {key: read.values[key] for key in written.values} == dict(written.values)
    for file, tensors in written.tensors.items():
        assert read.tensors[file].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert read.tensors[file][name].dtype == tensor.dtype
            assert torch.equal(read.tensors[file][name], tensor)


def test_keeps_the_newest(tmp_path):
    for step in (1, 2, 10, 9_999_999_999):
        checkpoint.save(tmp_path, content(step), keep=2)
    assert [path.name for path in checkpoint.whole(tmp_path)] == ["step-00000010", "step-9999999999"]


def test_half_written_folders_do_not_count(tmp_path):
    checkpoint.save(tmp_path, content(1), keep=3)
    (tmp_path / ".writing-step-00000002").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert [path.name for path in checkpoint.whole(tmp_path)] == ["step-00000001"]
    checkpoint.save(tmp_path, content(2), keep=3)
    assert checkpoint.load(checkpoint.whole(tmp_path)[-1]).step == 2


@pytest.mark.parametrize("last", range(4))
def test_a_full_disk_leaves_the_former_checkpoints_and_nothing_else(tmp_path, monkeypatch, last):
    checkpoint.save(tmp_path, content(1), keep=1)
    (tmp_path / ".writing-step-00000009").mkdir()  # of a process that was killed at another step
    write, calls = checkpoint.write, iter(range(4))

    def full(path, raw):
        write(path, raw[: len(raw) // 2])
        if next(calls) == last:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write", full)
    with pytest.raises(UserError, match=r"No space left on device.*make room"):
        checkpoint.save(tmp_path, content(2), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoint.load(tmp_path / "step-00000001").step == 1


def test_same_step_twice_keeps_the_later(tmp_path):
    checkpoint.save(tmp_path, content(1, seed=1), keep=3)
    path = checkpoint.save(tmp_path, content(1, seed=2), keep=3)
    assert torch.equal(checkpoint.load(path).tensors["generator"]["a"], content(1, seed=2).tensors["generator"]["a"])


def damage_flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def damage_cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def damage_empty(path):
    path.write_bytes(b"")


def damage_remove(path):
    path.unlink()


@pytest.mark.parametrize("file", [*(f"{name}.safetensors" for name in checkpoint.FILES), "manifest.json"])
@pytest.mark.parametrize("damage", [damage_flip, damage_cut, damage_empty, damage_remove])
def test_damage_is_found(tmp_path, file, damage):
    path = checkpoint.save(tmp_path, content(4), keep=3)
    damage(path / file)
    with pytest.raises(UserError) as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    said, sync, rename = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (said.append(os.fstat(descriptor).st_ino), sync(descriptor))[1])
    monkeypatch.setattr(os, "replace", lambda old, new: (said.append(str(new)), rename(old, new))[1])
    path = checkpoint.save(tmp_path / "checkpoints", content(4), keep=3)
    written = said[: said.index(str(path))]
    assert {path.stat().st_ino, *(file.stat().st_ino for file in path.iterdir())} <= set(written)
    assert said[-1] == path.parent.stat().st_ino


def test_one_that_was_being_replaced_is_put_back(tmp_path):
    path = checkpoint.save(tmp_path, content(4), keep=3)
    path.rename(tmp_path / f"{checkpoint.FORMER}{path.name}")
    (tmp_path / f"{checkpoint.UNFINISHED}{path.name}").mkdir()
    assert checkpoint.whole(tmp_path) == []
    checkpoint.tidy(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert checkpoint.load(path).step == 4
