"""A disk that is full, fills up or may not be written to: one line, nothing half-written, and the run goes on later."""

import contextlib
import errno
import io
import json
import os
import random
import shutil
import sys
from collections import namedtuple

import pytest
import torch

import fastgan
from fastgan.errors import UserError
from fastgan.train import checkpoint, pictures, run, space
from fastgan.train.files import append, replacing

KEYS = {
    "z_dim": 2,
    "generator.hidden": [4],
    "discriminator.hidden": [4],
    "batch_size": 6,
    "noise": 0.1,
    "samples": 2,
    "keep_best": "loss_g",
    "log_every": 2,
    "checkpoint_every": 4,
    "keep_checkpoints": 2,
    "sample_every": 4,
    "device": "cpu",
}


def drawn(_made, path, **_):
    with replacing(path) as temporary:
        pictures.image(torch.zeros(3, 4, 4)).save(temporary, format="PNG")


@pytest.fixture(autouse=True, scope="module")
def _quick_pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "save_curves", lambda *_: None)
        patch.setattr(pictures, "save_samples", drawn)
        yield


def trained(folder):
    """Train to the end, from the newest checkpoint where there is one; the Trainer."""
    trainer = fastgan.Trainer("ring8", out=folder, **KEYS)
    run.tidy(folder)
    stored = run.latest_checkpoint(folder)
    if stored:
        trainer.resume(stored)
    return trainer.fit(12, progress=False)


def tree(folder):
    """What the files of a run hold, times left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".csv":
            found[path.name] = [line.split(",")[:9] for line in path.read_text().splitlines()]
        elif path.suffix != ".json":
            found[str(path.relative_to(folder))] = path.read_bytes() if path.is_file() else None
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, _quick_pictures):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    trained(folder)
    return tree(folder)


def left_whole(folder):
    """Nothing that a run has left is half-written."""
    assert not list(folder.rglob(".*"))
    for place in (folder / "checkpoints", folder / "checkpoints/best"):
        for path in checkpoint.whole(place):
            checkpoint.load(path)
    for name in ("metrics.csv", "config.yaml"):
        text = (folder / name).read_text() if (folder / name).exists() else "\n"
        assert text.endswith("\n") or not text


def refusing(patch, folder, number, after):
    """Let the file system refuse everything under ``folder``, but to remove, from one of the requests on."""
    left = after

    def asked(*about):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(number, os.strerror(number), *about)

    def opened(file, mode="r", *given, _open=io.open, **named):
        if str(folder) in str(file) and set(mode) & set("wax+"):
            asked(str(file))
        return _open(file, mode, *given, **named)

    patch.setattr(io, "open", opened)
    patch.setattr(os, "fsync", lambda descriptor, _sync=os.fsync: (asked(), _sync(descriptor))[1])
    for function in (os.replace, os.mkdir, os.link):

        def called(path, *given, _function=function, **named):
            if str(folder) in str(path):
                asked(str(path))
            return _function(path, *given, **named)

        patch.setattr(os, function.__name__, called)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO], ids=errno.errorcode.get)
def test_refused_at_any_request(tmp_path, monkeypatch, undisturbed, full, number):
    chosen = range(140) if full else sorted(random.Random(number).sample(range(100), 2))
    for after in chosen:
        folder = tmp_path / str(after)
        complaint = ""
        with monkeypatch.context() as patch:
            refusing(patch, folder, number, after)
            try:
                trained(folder)
            except UserError as error:
                complaint = str(error)
        assert complaint or after > 100
        assert "\n" not in complaint and (os.strerror(number) in complaint or not complaint)
        left_whole(folder)
        trained(folder)
        assert tree(folder) == undisturbed, after


@pytest.mark.skipif(os.name != "posix", reason="a limit of the size of files is POSIX's")
def test_a_file_that_may_grow_no_further(tmp_path, undisturbed, full):
    """The system itself cuts a write short, in the middle of what is to be written."""
    import resource

    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    complaints = []
    for most in (0, *range(1, 20_600, 97 if full else 5_001), 20_600):
        folder, complaint = tmp_path / str(most), ""
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, former[1]))
        try:
            trained(folder)
        except UserError as error:
            complaint = str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, former)
        complaints.append(complaint)
        left_whole(folder)
        trained(folder)
        assert tree(folder) == undisturbed, most
    assert all("(File too large): make room on that disk" in complaint for complaint in complaints[:3])


@pytest.mark.skipif(os.name != "posix", reason="a limit of the size of files is POSIX's")
def test_a_line_is_added_whole_or_not_at_all(tmp_path):
    import resource

    former, told = resource.getrlimit(resource.RLIMIT_FSIZE), []
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, former[1]))
    try:
        for _ in range(9):
            append(tmp_path / "lines.csv", "0123456789,abcd\n", head="number,text\n")
    except UserError as error:
        told.append(str(error))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert "File too large" in told[0]
    assert (tmp_path / "lines.csv").read_text() == "number,text\n" + "0123456789,abcd\n" * 5


def test_room_is_asked_for_before_a_checkpoint_is_written(tmp_path, monkeypatch, undisturbed):
    asked = []

    def usage(folder):
        asked.append(folder)
        return namedtuple("usage", "free")(10**9 if len(asked) < 4 else 5_000)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", usage)
        with pytest.raises(
            UserError, match=r"a checkpoint in .*run/checkpoints takes 0\.1 MB, and 0\.0 MB of"
        ) as caught:
            trained(tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert {path.name for path in asked} == {"checkpoints", "best"}
    left_whole(tmp_path / "run")
    assert [path.name for path in checkpoint.whole(tmp_path / "run/checkpoints")] == ["step-00000004"]
    trained(tmp_path / "run")
    assert tree(tmp_path / "run") == undisturbed


def test_a_checkpoint_takes_no_more_than_was_asked_for(tmp_path):
    trainer = trained(tmp_path)
    for path in checkpoint.whole(tmp_path / "checkpoints"):
        held = sum(file.stat().st_size for file in path.iterdir())
        assert held < space.size(checkpoint.load(path)) < held + 80_000
    many = {str(number): torch.zeros(()) for number in range(5_000)}
    content = checkpoint.Checkpoint(dict.fromkeys(checkpoint.FILES, many), {"step": 1})
    path = checkpoint.save(tmp_path / "more", content, 1)
    assert sum(file.stat().st_size for file in path.iterdir()) < space.size(content)
    assert trainer.step == 12


DISK = """
import contextlib, ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
NEWNS, PRIVATE, REMOUNT, RDONLY = 0x20000, 0x44000, 0x20, 1

def mount(source, target, kind, flags, options=None):
    encoded = [text and text.encode() for text in (source, target, kind)]
    if libc.mount(*encoded, flags, options and options.encode()):
        sys.exit(77)

if libc.unshare(NEWNS):  # what is mounted here is seen by this process alone, and goes with it
    sys.exit(77)
mount(None, "/", None, PRIVATE)

from fastgan.cli import main
from fastgan.train import files, pictures, space

def fastgan(*arguments):
    with open(folder + "/said", "w") as said, contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = main(arguments)
    said = open(folder + "/said").read().replace("\\r", "\\n").splitlines()
    return code, [line for line in said if line.startswith("fastgan:")]

def drawn(_made, path, **_):
    with files.replacing(path) as temporary:
        temporary.write_bytes(bytes(9_000))

pictures.save_curves, pictures.save_samples = lambda *_: None, drawn
if not asks:
    space.check = lambda *_: None
disk, told = folder + "/disk", []
for size in sizes:
    os.makedirs(disk, exist_ok=True)
    mount("tmpfs", disk, "tmpfs", 0, f"size={size}k")
    train = ["train", "ring8", "--out", disk + "/run", *settings]
    first = fastgan(*train)
    mount("tmpfs", disk, "tmpfs", REMOUNT | RDONLY, f"size={size}k")
    before = sorted(os.listdir(disk + "/run")) if os.path.isdir(disk + "/run") else []
    shut = fastgan(*train, "--resume")
    mount("tmpfs", disk, "tmpfs", REMOUNT, "size=64m")
    left = [name for _, folders, files in os.walk(disk) for name in folders + files if name.startswith(".")]
    last = fastgan(*train, "--resume")
    rows = [line.split(",")[:9] for line in open(disk + "/run/metrics.csv")] if last[0] == 0 else []
    content = open(disk + "/run/checkpoints/step-00000012/training.safetensors", "rb") if last[0] == 0 else None
    told.append([size, before, first, shut, left, last, rows, content and content.read().hex()])
    libc.umount(disk.encode())
with open(folder + "/told.json", "w") as file:
    json.dump(told, file)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a file system in memory as Linux does")
@pytest.mark.parametrize("asks", [True, False])
def test_a_real_disk_that_fills_up(tmp_path, spawn, full, asks):
    """The command line on disks of many sizes, which are read-only then, then have room: a line each, then the end."""
    pytest.importorskip("tyro")
    sizes = [4096, *(range(4, 400, 4) if full else (60,) if asks else (8, 80))]
    settings = [f"--set={key}={value}".replace(" ", "") for key, value in KEYS.items()] + ["--steps", "12"]
    child = spawn(DISK, folder=str(tmp_path), sizes=sizes, settings=settings, asks=asks)
    child.join(1000)
    if child.exitcode == 77:
        pytest.skip("this process may mount nothing")
    assert child.exitcode == 0
    told = json.loads((tmp_path / "told.json").read_text())
    assert len(told) == len(sizes)
    rows, weights = told[0][6:]
    assert len(rows) == 7
    reasons = set()
    for size, before, (code, lines), (shut, complaint), left, last, *results in told:
        assert (code, len(lines)) in ((0, 0), (2, 1)), (size, lines)
        assert left == [], size
        if before:
            assert shut == 2 and len(complaint) == 1 and "Read-only file system" in complaint[0], complaint
        assert last[0] == 0 and results == [rows, weights], (size, last)
        reasons |= {reason for reason in ("No space left on device", "of that disk are free") if reason in str(lines)}
    assert ("of that disk are free" in reasons) == asks and (asks or "No space left on device" in reasons)


def test_a_folder_that_may_not_be_written_to(tmp_path, monkeypatch):
    trained(tmp_path)
    before = tree(tmp_path)
    with monkeypatch.context() as patch:
        refusing(patch, tmp_path, errno.EROFS, 0)
        with pytest.raises(UserError, match=r"cannot be written \(Read-only file system\): allow it, or give another"):
            trained(tmp_path)
        fastgan.load(tmp_path)  # to read is allowed
    with contextlib.suppress(UserError):
        trained(tmp_path)
    assert tree(tmp_path) == before
