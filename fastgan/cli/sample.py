"""``fastgan sample RUN``: new samples from a run's newest checkpoint, as a picture, a folder or an array."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from torch import Tensor

from fastgan.cli.arguments import Text, Whole, parse
from fastgan.errors import UserError
from fastgan.train import pictures
from fastgan.train.generate import load_generator


@dataclass(frozen=True)
class Arguments:
    """Draw new samples from a run."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder, such as runs/gan-digits."""
    n: int = 64
    """How many samples."""
    seed: Whole = None
    """Seed of the latents; without one a fresh seed is drawn and printed."""
    out: Text = None
    """A .png (one grid), a .npz (key images, or points), or a folder (a PNG each). Default: RUN/sample-SEED.png."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def main(arguments: Sequence[str]) -> int:
    """Run the verb and return its exit code."""
    wishes = parse(Arguments, "sample", arguments)
    if wishes.n < 1:
        raise UserError(f"--n must be at least 1, not {wishes.n}")
    seed = secrets.randbelow(2**31) if wishes.seed is None else wishes.seed
    generator = load_generator(Path(wishes.run), wishes.device)
    out = Path(wishes.out) if wishes.out else Path(wishes.run) / f"sample-{seed}.png"
    samples = generator.sample(wishes.n, seed)
    try:
        _write(samples, out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}; give another --out") from error
    print(f"{out}: {wishes.n} samples of step {generator.step}, seed {seed}")
    return 0


def _write(samples: Tensor, out: Path) -> None:
    if out.suffix == ".png":
        pictures.save_samples(samples, out)
    elif out.suffix == ".npz":
        _write_array(samples, out)
    elif out.suffix:
        raise UserError(f"--out {out}: samples are written as .png, .npz or into a folder")
    elif samples.ndim != 4:
        raise UserError(f"--out {out}: points are no pictures to fill a folder with; give a .png or a .npz")
    else:
        out.mkdir(parents=True, exist_ok=True)
        width = len(str(len(samples) - 1))
        for index, sample in enumerate(samples):
            pictures.image(sample).save(out / f"{index:0{width}}.png")


def _write_array(samples: Tensor, out: Path) -> None:
    """Images as uint8 NHWC under the key ``images``, which ``--data npz:PATH`` reads again; points as float32."""
    images = samples.ndim == 4
    array = pictures.pixels(samples).permute(0, 2, 3, 1).numpy() if images else samples.cpu().numpy()
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.writing")
    with temporary.open("wb") as file:
        np.savez_compressed(file, **{"images" if images else "points": array})
    os.replace(temporary, out)
