"""Checkpoints: a folder of safetensors and one JSON manifest, written whole or not at all, checked before it is read.

Layout of ``checkpoints/step-00001000/``: ``generator.safetensors``, ``discriminator.safetensors``,
``training.safetensors`` (optimiser moments, random states), ``generator_ema.safetensors`` (the generator with averaged
weights, where they are kept) and ``manifest.json`` with the counters and the SHA-256 of
each file. The folder appears by one rename after everything in it reached the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fastgan.errors import UserError, require

FORMAT, VERSION = "fastgan-checkpoint", 1
FILES = ("generator", "discriminator", "training")
OPTIONAL = ("generator_ema",)
MANIFEST = "manifest.json"


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
    """Write ``checkpoint`` under ``folder`` and remove all but the ``keep`` newest. Returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)  # what a killed process left
    final = folder / f"step-{checkpoint.step:08d}"
    temporary = folder / f".writing-{final.name}"
    temporary.mkdir()
    try:
        _write_files(temporary, checkpoint)
        if final.exists():  # the same step again: the former stays whole until the new one is
            os.replace(final, folder / f".writing-former-{final.name}")
        os.replace(temporary, final)
    finally:
        _sweep(folder)
    _sync_folder(folder)
    for old in whole(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _write_files(folder: Path, checkpoint: Checkpoint) -> None:
    safetensors = require("safetensors.torch", why="writing a checkpoint")
    sums = {}
    for name in names(checkpoint.tensors):
        # clones: tied weights share storage, which the format refuses
        plain = {key: value.detach().cpu().contiguous().clone() for key, value in checkpoint.tensors[name].items()}
        content = safetensors.save(plain)
        sums[f"{name}.safetensors"] = hashlib.sha256(content).hexdigest()
        _write(folder / f"{name}.safetensors", content)
    manifest = {"format": FORMAT, "version": VERSION, **checkpoint.values, "sha256": sums}
    manifest["digest"] = _digest(manifest)
    _write(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    _sync_folder(folder)


def names(held: Container[str], suffix: str = "") -> Iterator[str]:
    """The files of a checkpoint: those of every one, and of the others those that are ``held``, with that suffix."""
    yield from FILES
    yield from (name for name in OPTIONAL if f"{name}{suffix}" in held)


def _sweep(folder: Path) -> None:
    for unfinished in folder.glob(".writing-*"):
        shutil.rmtree(unfinished, ignore_errors=True)


def whole(folder: Path) -> list[Path]:
    """The checkpoints under ``folder``, oldest first. Half-written ones carry another name and never appear."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if re.fullmatch(r"step-\d{8,}", path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def load(path: Path) -> Checkpoint:
    """Read and verify one checkpoint. Raises UserError on anything but a whole checkpoint of a known version."""
    safetensors = require("safetensors.torch", why="reading a checkpoint")
    manifest = _manifest(path)
    tensors = {}
    for name in names(manifest["sha256"], ".safetensors"):
        file = f"{name}.safetensors"
        try:
            content = (path / file).read_bytes()
        except OSError as error:
            raise _corrupt(path, f"{file} cannot be read ({error.strerror or error})") from error
        if hashlib.sha256(content).hexdigest() != manifest["sha256"].get(file):
            raise _corrupt(path, f"{file} does not match its checksum")
        try:
            tensors[name] = safetensors.load(content)
        except Exception as error:
            raise _corrupt(path, f"{file} is no safetensors file ({error})") from error
    return Checkpoint(tensors, manifest)


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
    except OSError as error:
        raise _corrupt(path, f"{MANIFEST} cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"{MANIFEST} is not JSON") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of fastgan: give the folder of a run that fastgan wrote")
    if manifest.get("version") != VERSION:
        raise UserError(
            f"{path} has checkpoint version {manifest.get('version')!r}, this fastgan reads version {VERSION}:"
            " install the fastgan that wrote it"
        )
    if manifest.pop("digest", None) != _digest(manifest) or not isinstance(manifest.get("sha256"), dict):
        raise _corrupt(path, f"{MANIFEST} does not match its checksum")
    return manifest


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _corrupt(path: Path, what: str) -> UserError:
    return UserError(f"checkpoint {path} is damaged: {what}; remove that folder to resume from the one before it")


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
