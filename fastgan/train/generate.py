"""The trained generator of a run, read back from its newest checkpoint or from a file that was exported from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgan.errors import UserError, require, unknown
from fastgan.presets import Config, from_dict, to_dict
from fastgan.train import build, run, state
from fastgan.train.latents import Layout

WEIGHTS = {"ema": "averaged weights", "raw": "raw weights"}
EXPORTED = ".safetensors"
HEADER = "fastgan-generator"  # the key of the file's metadata that holds ours
VERSION = 1
BUILDS = ("z_dim", "latent", "generator")  # what of a configuration a generator is built and fed by


@dataclass(frozen=True)
class Generator:
    """A generator in evaluation mode, with what it is fed, and the step and the weights that it comes from."""

    module: nn.Module
    config: Config
    step: int
    device: torch.device
    sample_shape: tuple[int, ...]
    which: str  # a key of WEIGHTS

    @property
    def classes(self) -> int:
        """How many classes its second argument, labels, tells apart; 0: it takes latents only."""
        return int(getattr(self.module, "num_classes", None) or 0)

    def sample(self, n: int, seed: int, batch: int = 256) -> Tensor:
        """Draw ``n`` samples from latents, and labels where it takes them, that ``seed`` fixes; ``batch`` at a time."""
        random = torch.Generator().manual_seed(seed)
        layout = Layout(n)
        z = layout.latents(self.config.latent, self.config.z_dim, random)
        return self.make(z, layout.labels(self.classes, random), batch=batch)

    def make(self, z: Tensor, labels: Tensor | None = None, *, batch: int = 256) -> Tensor:
        """What it makes of latents ``(n, z_dim)`` (and labels ``(n,)``), ``batch`` at a time, on the CPU."""
        parts = z.split(batch)
        told = [None] * len(parts) if labels is None else labels.split(batch)
        made = [
            samples(self.module, part.to(self.device), None if kinds is None else kinds.to(self.device)).cpu()
            for part, kinds in zip(parts, told, strict=True)
        ]
        return torch.cat(made)

    def header(self) -> dict[str, Any]:
        """What an exported file says of itself, as plain data: enough to build the module anew and to feed it."""
        plain = to_dict(self.config)
        origin = {"step": self.step, "which": self.which, "sample_shape": list(self.sample_shape)}
        return {"version": VERSION, **origin, **{key: plain[key] for key in BUILDS}}


def samples(module: nn.Module, z: Tensor, labels: Tensor | None = None) -> Tensor:
    """What ``module`` makes of ``z`` (and labels) in evaluation mode, without gradients; its mode is put back."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            made: Tensor = module(z) if labels is None else module(z, labels)
        return made
    finally:
        module.train(training)


def load(run: str | Path, which: str = "ema", *, device: str = "cpu") -> nn.Module:
    """Return the trained generator of a run, in evaluation mode: z ``(n, z_dim)`` -> samples in [-1, 1].

    Args:
        run: the folder of a run, whose newest checkpoint is read; within it ``checkpoints/best`` or that of a step;
            or a ``.safetensors`` that ``fastgan export`` wrote.
        which: ``ema``: its weights averaged over the updates (batch norm's statistics are the last ones). Where the
            run keeps no average (``ema.decay`` 0) these are by definition the weights of the last update. ``raw``:
            the weights of the last update in any case.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``: a GPU where there is one.

    Raises:
        UserError: where there is no run, no whole checkpoint, or no average though the configuration asks for one.
    """
    return load_generator(Path(run).expanduser(), device, which).module


def load_generator(path: Path, device: str = "auto", which: str = "ema") -> Generator:
    """Load the generator at ``path`` with what belongs to it; arguments and errors are those of ``load``."""
    if which not in WEIGHTS:
        raise unknown("choice of weights", which, WEIGHTS)
    where = build.device(device)
    if path.suffix.lower() == EXPORTED and not path.is_dir():
        return read_exported(path, where, which)
    config, stored = run.opened(path)
    if stored is None:
        raise UserError(f"{path} has no checkpoint yet: train further (fastgan train --resume --out {path})")
    shape = stored.values.get("sample_shape")
    if not isinstance(shape, list):
        raise UserError(f"the checkpoint of {path} does not say what its samples look like: it is no run of a preset")
    averaged = stored.tensors.get("generator_ema")
    if which == "ema" and averaged is None and config.ema.decay > 0:
        raise UserError(
            f"the newest checkpoint of {path} holds no average, though ema.decay is {config.ema.decay:g}: train"
            " further (fastgan train --resume), or take the weights as they are, which='raw' (--which raw)"
        )
    if which == "raw" or averaged is None:
        return _built(config, shape, stored.tensors["generator"], stored.step, "raw", where)
    return _built(config, shape, averaged, stored.step, "ema", where)


def read_exported(path: Path, where: torch.device, which: str = "ema") -> Generator:
    """Read the generator that ``fastgan export --format safetensors`` wrote. Nothing in the file is ever unpickled."""
    safetensors = require("safetensors", why="reading an exported generator")
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 -- it is no mapping
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror or error
        raise UserError(f"{path} cannot be read: {reason}") from error
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is no safetensors file ({error}): export the run again") from error
    header = _header_of(path, metadata)
    if which == "raw" and header["which"] != "raw":
        raise UserError(f"{path} holds the averaged weights only: export the run with --which raw")
    config = from_dict({key: header[key] for key in BUILDS})
    return _built(config, header["sample_shape"], tensors, header["step"], header["which"], where)


def _built(
    config: Config, shape: list[int], tensors: Mapping[str, Tensor], step: int, which: str, where: torch.device
) -> Generator:
    module = build.generator(config, tuple(shape))
    state.check_network("generator", module, tensors)
    module.load_state_dict(tensors)
    return Generator(module.to(where).eval(), config, step, where, tuple(shape), which)


def _header_of(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The header of an exported file, its keys and their kinds checked; the networks check the rest."""
    if HEADER not in metadata:
        raise UserError(f"{path} was not written by 'fastgan export': it does not say how its network is built")
    try:
        header = json.loads(metadata[HEADER])
    except (ValueError, RecursionError) as error:
        raise UserError(f"the header of {path} is not JSON: export the run again") from error
    version = header.get("version") if isinstance(header, dict) else None
    if version != VERSION:
        raise UserError(f"{path} has version {version!r}, this fastgan reads {VERSION}: export the run again")
    kinds: dict[str, type] = {"step": int, "which": str, "sample_shape": list, "generator": dict}
    shape = header.get("sample_shape")
    if (
        any(not isinstance(header.get(key), kind) for key, kind in kinds.items())
        or any(key not in header for key in BUILDS)
        or not all(type(side) is int and 0 < side < 2**20 for side in shape)
        or header["which"] not in WEIGHTS
    ):
        raise UserError(f"the header of {path} is not whole: export the run again")
    return dict(header)
