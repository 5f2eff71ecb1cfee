"""The trained generator of a run, read back from its newest checkpoint or from a file that was exported from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgan.data.table import Table
from fastgan.errors import UserError, require, unknown
from fastgan.presets import Config, Network, from_dict, to_dict
from fastgan.presets.own import is_marked
from fastgan.train import build, run, state
from fastgan.train.classes import number_of
from fastgan.train.latents import Layout
from fastgan.train.networks import rebuilt

WEIGHTS = {"ema": "averaged weights", "raw": "raw weights"}
EXPORTED = ".safetensors"
HEADER = "fastgan-generator"  # the key of the file's metadata that holds ours
VERSION = 1
WITHOUT_SAMPLES = {"nce": "a log density of points", "predictability": "an encoder of samples into codes"}
SIDE_OF = {"nce": "discriminator", "predictability": "generator"}  # that it has trained for its own sake
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
    table: Table | None = None  # whose rows the samples are

    @property
    def classes(self) -> int:
        """How many classes its second argument, labels, tells apart; 0: it takes latents only."""
        return number_of(self.module)

    def sample(self, n: int, seed: int, batch: int = 256) -> Tensor:
        """Draw ``n`` samples from latents, and labels where it takes them, that ``seed`` fixes; ``batch`` at a time."""
        random = torch.Generator().manual_seed(seed)
        layout = Layout(n)
        z = layout.latents(self.config.latent, self.config.z_dim, random)
        return self.make(z, layout.labels(self.classes, random), batch=batch, seed=seed)

    def make(self, z: Tensor, labels: Tensor | None = None, *, batch: int = 256, seed: int = 0) -> Tensor:
        """What it makes of latents ``(n, z_dim)`` (and labels ``(n,)``), ``batch`` at a time, on the CPU.

        ``seed`` fixes what the network draws by itself, if it does.
        """
        parts = z.split(batch)
        told = [None] * len(parts) if labels is None else labels.split(batch)
        with drawing(seed, self.device):
            made = [
                samples(self.module, part.to(self.device), None if kinds is None else kinds.to(self.device)).cpu()
                for part, kinds in zip(parts, told, strict=True)
            ]
        return torch.cat(made)

    def header(self) -> dict[str, Any]:
        """What an exported file says of itself, as plain data: enough to build the module anew and to feed it."""
        plain = to_dict(self.config)
        origin = {"step": self.step, "which": self.which, "sample_shape": list(self.sample_shape)}
        if self.table:
            origin["table"] = self.table.to_json()
        origin |= {"classes": self.classes} if self.classes else {}
        return {"version": VERSION, **origin, **{key: plain[key] for key in BUILDS}}


@contextmanager
def drawing(seed: int, device: torch.device) -> Iterator[None]:
    """Context in which torch's global generators of the CPU and of ``device`` begin with a seed."""
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU of the caller
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield


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


def refuse_without_samples(config: Config) -> None:
    """Raise UserError where the configuration's method trains nothing that makes samples of latents."""
    if config.method in WITHOUT_SAMPLES:
        raise UserError(
            f"method={config.method} trains {WITHOUT_SAMPLES[config.method]}, which makes no samples of latents:"
            f" fastgan.train.networks.load_network(run, {SIDE_OF[config.method]!r}) has it"
        )


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
    refuse_without_samples(config)
    if stored is None:
        raise UserError(f"{path} has no checkpoint yet: train further (fastgan train --resume --out {path})")
    shape = stored.values.get("sample_shape")
    if not isinstance(shape, list):
        raise UserError(f"the checkpoint of {path} does not say what its samples look like: it is no run of a preset")
    text = stored.values.get("table")
    table = None if text is None else Table.from_json(text)
    averaged = stored.tensors.get("generator_ema")
    if which == "ema" and averaged is None and config.ema.decay > 0:
        raise UserError(
            f"the newest checkpoint of {path} holds no average, though ema.decay is {config.ema.decay:g}: train"
            " further (fastgan train --resume), or take the weights as they are, which='raw' (--which raw)"
        )
    classes = int(stored.values.get("classes", 0))
    if which == "raw" or averaged is None:
        return _built(config, shape, classes, stored.tensors["generator"], stored.step, "raw", where, table)
    return _built(config, shape, classes, averaged, stored.step, "ema", where, table)


def load_discriminator(path: Path, device: str = "auto") -> nn.Module | None:
    """The discriminator of a run's newest checkpoint, in evaluation mode: samples -> logits.

    None where none can be built: an exported file holds the generator alone, and a network that was given as an object
    is built by no configuration. Nor is there one where what was trained judges no samples alone: packs of them, or
    samples with a class or a condition, or one that returns classes too, or another method's. Raises UserError as
    ``load`` does.
    """
    if path.suffix.lower() == EXPORTED and not path.is_dir():
        return None
    config, stored = run.opened(path)
    if stored is None or is_marked(config.discriminator.name):
        return None
    conditional = "shares" in stored.tensors["generator"]  # of ctgan, by which conditions are drawn
    if config.method != "adversarial" or config.pac > 1 or conditional:
        return None
    built = replace(config, generator=Network()) if is_marked(config.generator.name) else config
    module = rebuilt(built, stored, "discriminator")
    if number_of(module) or getattr(module, "classifies", False):
        return None
    return module.to(build.device(device)).eval()


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
    table = Table.from_json(header["table"]) if "table" in header else None
    classes = header.get("classes", 0)
    return _built(config, header["sample_shape"], classes, tensors, header["step"], header["which"], where, table)


def _built(
    config: Config,
    shape: list[int],
    classes: int,
    tensors: Mapping[str, Tensor],
    step: int,
    which: str,
    where: torch.device,
    table: Table | None,
) -> Generator:
    module = build.generator(config, tuple(shape), classes, table)
    state.check_network("generator", module, tensors)
    module.load_state_dict(tensors)
    return Generator(module.to(where).eval(), config, step, where, tuple(shape), which, table)


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
        or not isinstance(header.get("table", ""), str)
        or not (type(header.get("classes", 0)) is int and 0 <= header.get("classes", 0) < 2**20)
    ):
        raise UserError(f"the header of {path} is not whole: export the run again")
    return dict(header)
