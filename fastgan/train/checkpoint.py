"""Checkpoints: a folder of safetensors and one JSON manifest, written whole or not at all, checked before it is read.

Layout of ``checkpoints/step-00001000/``: ``generator.safetensors``, ``discriminator.safetensors``,
``training.safetensors`` (optimiser moments, random states), ``generator_ema.safetensors`` (the generator with averaged
weights, where they are kept) and ``manifest.json`` with the counters and the SHA-256 of
each file. The folder appears by one rename after everything in it reached the disk, and goes by one, too: whatever
stops the writing, a folder of that name is whole. What is not has a name that begins with a dot.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Container, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fastgan.disk import sync_folder, write
from fastgan.errors import UserError, require
from fastgan.train import manifest, space
from fastgan.train.files import plainly

FILES = ("generator", "discriminator", "training")
OPTIONAL = ("generator_ema",)
MANIFEST = "manifest.json"
NAME = re.compile(r"step-[0-9]{8,16}")
UNFINISHED, FORMER = ".writing-", ".former-"  # what is being written or removed; what is being replaced
BEST = "best"  # the folder among checkpoints that holds the best one


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: named tensors of each file, and the manifest's plain values."""

    tensors: Mapping[str, Mapping[str, Tensor]]  # file -> name -> tensor
    values: Mapping[str, Any]

    @property
    def step(self) -> int:
        """The step after which it was written."""
        return int(self.values["step"])


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write ``checkpoint`` under ``folder`` and remove all but the ``keep`` newest. Returns its path.

    Those of later steps go too: they are of a course that the run has left. Raises UserError, with what was there
    as it was, where the disk refuses or has no room.
    """
    final = folder / f"step-{checkpoint.step:08d}"
    temporary = folder / f"{UNFINISHED}{final.name}"
    with plainly(folder):
        if not folder.exists():
            folder.mkdir(parents=True)
            sync_folder(folder.parent)
        tidy(folder)  # what a killed process left
        space.check(folder, space.size(checkpoint))
        try:
            temporary.mkdir()
            _write_files(temporary, checkpoint)
            if final.exists():  # the same step again
                os.replace(final, folder / f"{FORMER}{final.name}")
            os.replace(temporary, final)
        finally:
            tidy(folder)
        sync_folder(folder)
    others = [path for path in whole(folder) if path != final]
    earlier = [path for path in others if _step(path) < checkpoint.step]
    for path in others:
        if path not in earlier[max(0, len(earlier) + 1 - keep) :]:
            _remove(path)
    return final


def _write_files(folder: Path, checkpoint: Checkpoint) -> None:
    safetensors = require("safetensors.torch", why="writing a checkpoint")
    sums, sizes = {}, {}
    for name in names(checkpoint.tensors):
        # clones: tied weights share storage, which the format refuses
        plain = {key: value.detach().cpu().contiguous().clone() for key, value in checkpoint.tensors[name].items()}
        content, file = safetensors.save(plain), f"{name}.safetensors"
        sums[file], sizes[file] = hashlib.sha256(content).hexdigest(), len(content)
        write(folder / file, content)
    write(folder / MANIFEST, manifest.write(checkpoint.values, sums, sizes))
    sync_folder(folder)


def names(held: Container[str], suffix: str = "") -> Iterator[str]:
    """The files of a checkpoint: those of every one, and of the others those that are ``held``, with that suffix."""
    yield from FILES
    yield from (name for name in OPTIONAL if f"{name}{suffix}" in held)


def tidy(folder: Path, keep: int | None = None) -> None:
    """Clear away what a process left that was killed, and all but the ``keep`` newest checkpoints.

    Only for who holds the run: another may be at work there.
    """
    for former in folder.glob(f"{FORMER}*"):
        final = folder / former.name.removeprefix(FORMER)
        if final.exists():
            shutil.rmtree(former, ignore_errors=True)
        else:  # it was killed before the new one had the name
            os.replace(former, final)
    for unfinished in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    for old in whole(folder)[:-keep] if keep else ():
        _remove(old)


def _remove(path: Path) -> None:
    """Remove a checkpoint: its name goes first, so that what is left of it is never taken for a whole one."""
    gone = path.with_name(f"{UNFINISHED}{path.name}")
    with suppress(OSError):
        os.replace(path, gone)
        shutil.rmtree(gone, ignore_errors=True)


def whole(folder: Path) -> list[Path]:
    """The checkpoints under ``folder``, oldest first. Half-written ones carry another name and never appear."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def load(path: Path) -> Checkpoint:
    """Read and verify one checkpoint. Raises UserError on anything but a whole checkpoint of a known version."""
    values, sums, sizes = _manifest(path)
    tensors = {}
    for name in names(sums, ".safetensors"):
        file = f"{name}.safetensors"
        content = _read(path, file, sizes.get(file))
        if hashlib.sha256(content).hexdigest() != sums[file]:
            raise _corrupt(path, f"{file} does not match its checksum")
        tensors[name] = _tensors(path, file, content)
    return Checkpoint(tensors, values)


def _manifest(path: Path) -> tuple[manifest.Values, dict[str, str], dict[str, int]]:
    files, optional = ([f"{name}.safetensors" for name in group] for group in (FILES, OPTIONAL))
    try:
        values, sums, sizes = manifest.read(_read(path, MANIFEST), files, optional)
    except manifest.ForeignError as error:
        raise UserError(
            f"{path} is not a checkpoint of fastgan: give the folder of a run that fastgan wrote"
        ) from error
    except manifest.NewerError as error:
        raise UserError(
            f"{path} has checkpoint version {error}, this fastgan reads versions 1 to {manifest.VERSION}:"
            " install the fastgan that wrote it"
        ) from error
    except manifest.DamagedError as error:
        raise _corrupt(path, f"{MANIFEST} {error}") from error
    if NAME.fullmatch(path.name) and _step(path) != values["step"]:
        raise _corrupt(path, f"{MANIFEST} is that of step {values['step']}")
    return values, sums, sizes


def _read(path: Path, file: str, size: int | None = None) -> bytes:
    """The content of one of a checkpoint's files, which has that ``size``; of one that may have any, not too much."""
    try:
        if (path / file).exists() and not (path / file).is_file():  # a pipe would never end
            raise _corrupt(path, f"{file} is no file")
        held = (path / file).stat().st_size
        if size is not None and held != size:
            raise _corrupt(path, f"{file} has {held} bytes of {size}")
        if file == MANIFEST and held > manifest.MOST:
            raise _corrupt(path, f"{file} has {held} bytes")
        return (path / file).read_bytes()
    except OSError as error:
        raise _corrupt(path, f"{file} cannot be read ({error.strerror or error})") from error


def _tensors(path: Path, file: str, content: bytes) -> dict[str, Tensor]:
    safetensors = require("safetensors.torch", why="reading a checkpoint")
    try:
        tensors: dict[str, Tensor] = safetensors.load(content)
    except Exception as error:
        what = " ".join(str(error).split())[:200]
        raise _corrupt(path, f"{file} is no safetensors file ({what})") from error
    return tensors


def _corrupt(path: Path, what: str) -> UserError:
    others = [other for other in whole(path.parent) if other != path]
    then = "to resume from the one before it" if others else "to start again"
    if path.parent.name == BEST:
        then = "to have the best one chosen anew"
    return UserError(f"checkpoint {path} is damaged: {what}; remove that folder {then}")
