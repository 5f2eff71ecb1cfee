"""``fastgan sample RUN``: new samples from a run's newest checkpoint, as a picture, a folder or an array."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from torch import Tensor

from fastgan.cli.arguments import Text, Whole, folder, parse
from fastgan.cli.output import say
from fastgan.errors import UserError
from fastgan.presets.values import coerce
from fastgan.train import pictures
from fastgan.train.files import replacing
from fastgan.train.generate import load_generator


@dataclass(frozen=True)
class Arguments:
    """Draw new samples from a run."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder, such as runs/gan-digits."""
    n: Whole = "64"
    """How many samples."""
    seed: Whole = None
    """Seed of the latents; without one a fresh seed is drawn and printed."""
    out: Text = None
    """A .png (one grid), a .npz (key images, or points), or a new folder (a PNG each). Default: RUN/sample-SEED.png."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def main(arguments: Sequence[str]) -> int:
    """Run the verb and return its exit code."""
    wishes = parse(Arguments, "sample", arguments)
    n = _between("--n", wishes.n, 1, 2**31)
    seed = secrets.randbelow(2**31) if wishes.seed is None else _between("--seed", wishes.seed, 0, 2**32 - 1)
    run = folder("RUN", wishes.run) or Path()
    generator = load_generator(run, wishes.device)
    out = folder("--out", wishes.out) or run / f"sample-{seed}.png"
    write = _writer(out, of_folder=(wishes.out or "").endswith(("/", "\\")))
    samples = generator.sample(n, seed)
    try:
        write(samples, out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}; give another --out") from error
    say(f"{out}: {n} samples of step {generator.step}, seed {seed}")
    return 0


def _between(option: str, value: object, least: int, most: int) -> int:
    number: int = coerce(option, value, int)
    if not least <= number <= most:
        raise UserError(f"{option} must be between {least} and {most}, not {number}")
    return number


def _writer(out: Path, of_folder: bool) -> Callable[[Tensor, Path], None]:
    """What writes samples in the form that the name of ``out`` asks for."""
    if of_folder or out.is_dir() or not out.suffix:
        return _write_folder
    if out.suffix.lower() == ".png":
        return pictures.save_samples
    if out.suffix.lower() == ".npz":
        return _write_array
    raise UserError(f"--out {out}: samples are written as .png, .npz or into a folder (FOLDER/)")


def _write_folder(samples: Tensor, out: Path) -> None:
    if samples.ndim != 4:
        raise UserError(f"--out {out}: points are no pictures to fill a folder with; give a .png or a .npz")
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise UserError(f"--out {out}: that folder is not empty; give a new one")
    width = len(str(len(samples) - 1))
    for index, sample in enumerate(samples):
        pictures.image(sample).save(out / f"{index:0{width}}.png")


def _write_array(samples: Tensor, out: Path) -> None:
    """Images as uint8 NHWC under the key ``images``, which ``--data npz:PATH`` reads again; points as float32."""
    with replacing(out) as temporary, temporary.open("wb") as file:
        if samples.ndim == 4:
            np.savez_compressed(file, images=pictures.pixels(samples).permute(0, 2, 3, 1).numpy())
        else:
            np.savez_compressed(file, points=samples.numpy())
