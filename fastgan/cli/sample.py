"""``fastgan sample RUN``: new samples from a run's newest checkpoint, as a picture, a folder or an array."""

from __future__ import annotations

import csv
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor

from fastgan.cli.arguments import Flag, Text, Whole, folder, home, parse, shown
from fastgan.cli.output import say
from fastgan.data.table import Table
from fastgan.errors import UserError
from fastgan.presets.values import coerce
from fastgan.train import pictures
from fastgan.train.files import replacing
from fastgan.train.generate import WEIGHTS, Generator, load_generator
from fastgan.train.latents import Layout
from fastgan.train.wanted import conditions, rows

MANY = 2**31 - 1


@dataclass(frozen=True)
class Arguments:
    """Draw new samples from a run."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder, such as runs/gan-digits, or a .safetensors that 'fastgan export' wrote."""
    n: Whole = None
    """How many samples. Default: 64, or 8 rows, or a row of each class."""
    seed: Whole = None
    """Seed of the latents; without one a fresh seed is drawn and printed."""
    label: Annotated[str | None, shown("C|rows", name="class")] = None
    """Of a generator that knows classes: samples of class C only, or a row of each class, the same latents in each.
    Default: classes at random."""
    where: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="COLUMN=CATEGORY")] = ()
    """Of a table: rows with that category only. Repeatable."""
    out: Text = None
    """A .png (one grid), a .npz (key images, or points), a .csv (rows of a table), or a new folder (a PNG each).
    Default: RUN/sample-SEED.png, or interpolation-SEED.png; .csv for a run on a table."""
    which: Annotated[str, tyro.conf.arg(metavar="ema|raw")] = "ema"
    """ema: the averaged weights, where the run keeps an average; raw: those of the last update."""
    interpolate: Flag = False
    """Rows from one latent to another: on the sphere for normal latents, straight for uniform ones."""
    row: Whole = None
    """Samples in a row. Default: 8 with --interpolate or --class rows, else so many that the grid is square."""
    truncation: Annotated[str | None, shown("T")] = None
    """Draw components of the latents that lie outside [-T, T] again, inside: less variety, fewer odd samples."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def main(arguments: Sequence[str]) -> int:
    """Run the verb and return its exit code."""
    wishes = parse(Arguments, "sample", arguments)
    seed = secrets.randbelow(2**31) if wishes.seed is None else _between("--seed", wishes.seed, 0, 2**32 - 1)
    run = folder("RUN", wishes.run) or Path()
    named = folder("--out", wishes.out)
    of_folder = (wishes.out or "").endswith(("/", "\\"))
    write = _writer(named, of_folder) if named else None  # before anything is read
    generator = load_generator(run, wishes.device, wishes.which)
    stem, suffix = "interpolation" if wishes.interpolate else "sample", ".csv" if generator.table else ".png"
    out = named or home(run) / f"{stem}-{seed}{suffix}"
    write = write or _writer(out, of_folder)
    layout, cut = _layout(wishes, generator), _truncation(wishes.truncation)
    made, remark = _made(wishes, generator, layout, cut, seed)
    try:
        write(made, out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}; give another --out") from error
    origin = f"step {generator.step}, {WEIGHTS[generator.which]}, seed {seed}"
    say(f"{out}: {len(made.samples)} samples of {origin}{remark}")
    return 0


def _made(wishes: Arguments, generator: Generator, layout: Layout, cut: float | None, seed: int) -> tuple[Made, str]:
    """The samples, and what is to be said of how they came about."""
    if wishes.where:
        if generator.table is None:
            raise UserError("--where: the run's data are no table (--data csv:FILE): leave --where out")
        wanted = conditions(generator.table, wishes.where)
        samples, tried = rows(generator, layout.n, wanted, seed, cut)
        return Made(samples, None, None, generator.table), f"; {tried} were drawn for them"
    random = torch.Generator().manual_seed(seed)
    z = layout.latents(generator.config.latent, generator.config.z_dim, random, cut)
    labels = layout.labels(generator.classes, random)
    samples = generator.make(z, labels, seed=seed)
    return Made(samples, labels, layout.columns, generator.table), ""


def _layout(wishes: Arguments, generator: Generator) -> Layout:
    """Which samples to draw, as far as the generator can."""
    label = wishes.label
    if label is not None and not generator.classes:
        raise UserError(f"--class {label}: the generator of {wishes.run} knows no classes; leave --class out")
    class_rows = label == "rows"
    of_class = None if label is None or class_rows else _between("--class", label, 0, generator.classes - 1)
    if wishes.interpolate and getattr(generator.module, "random", False):
        raise UserError("--interpolate: this generator draws more than its latents, and would show no path between two")
    if wishes.where and wishes.interpolate:
        raise UserError(
            "--where draws rows until they fit, and --interpolate goes from one to another: take one of them"
        )
    row = None if wishes.row is None else _between("--row", wishes.row, 2 if wishes.interpolate else 1, MANY)
    n = None if wishes.n is None else _between("--n", wishes.n, 1, MANY)
    if not wishes.interpolate and not class_rows:
        n = n or 64
        return Layout(n, None if row is None else min(row, n), label=of_class)
    row = row or 8
    n = n or row * (generator.classes if class_rows else 8)
    if n % row:
        raise UserError(f"--n {n} does not fill rows of {row}: give a multiple of {row}, or another --row")
    return Layout(n, row, wishes.interpolate, of_class, class_rows)


def _truncation(text: str | None) -> float | None:
    if text is None:
        return None
    bound: float = coerce("--truncation", text, float)
    if bound <= 0:
        raise UserError(f"--truncation must be above 0, such as 0.7, not {bound:g}")
    return bound


def _between(option: str, value: object, least: int, most: int) -> int:
    number: int = coerce(option, value, int)
    if not least <= number <= most:
        raise UserError(f"{option} must be between {least} and {most}, not {number}")
    return number


@dataclass(frozen=True)
class Made:
    """Samples, with their labels, how many stand in a row, and the table whose rows they are."""

    samples: Tensor
    labels: Tensor | None
    columns: int | None
    table: Table | None


Writer = Callable[[Made, Path], None]


def _writer(out: Path, of_folder: bool) -> Writer:
    """What writes samples in the form that the name of ``out`` asks for."""
    if of_folder or out.is_dir() or not out.suffix:
        return _write_folder
    if out.suffix.lower() == ".png":
        return _write_picture
    if out.suffix.lower() == ".npz":
        return _write_array
    if out.suffix.lower() == ".csv":
        return _write_rows
    raise UserError(f"--out {out}: samples are written as .png, .npz, .csv or into a folder (FOLDER/)")


def _write_rows(made: Made, out: Path) -> None:
    """The table's header, and a row of cells for each sample; empty where a value is missing."""
    if made.table is None:
        raise UserError(f"--out {out}: the run's data are no table (--data csv:FILE): give a .png or a .npz")
    with replacing(out, again="sample again") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([column.name for column in made.table.columns])
        writer.writerows(made.table.decode(made.samples))


def _write_picture(made: Made, out: Path) -> None:
    samples = made.samples
    if not pictures.drawable(samples.shape[1:]):
        shape = tuple(samples.shape[1:])
        raise UserError(f"samples of shape {shape} are no pictures: give a {_forms(made)}, such as --out samples.npz")
    pictures.save_samples(samples, out, columns=made.columns)


def _write_folder(made: Made, out: Path) -> None:
    samples = made.samples
    if samples.ndim != 4:
        raise UserError(f"--out {out}: {_kind(made)} are no pictures to fill a folder with; give a {_forms(made)}")
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise UserError(f"--out {out}: that folder is not empty; give a new one")
    width = len(str(len(samples) - 1))
    for index, sample in enumerate(samples):
        with replacing(out / f"{index:0{width}}.png", again="sample again") as temporary:
            pictures.image(sample).save(temporary, format="PNG")


def _kind(made: Made) -> str:
    return "rows of a table" if made.table else "points"


def _forms(made: Made) -> str:
    """Which files hold samples that are no images."""
    if made.table:
        return ".csv or a .npz"
    return ".png or a .npz" if pictures.drawable(made.samples.shape[1:]) else ".npz"


def _write_array(made: Made, out: Path) -> None:
    """Images as uint8 NHWC under ``images``, which ``--data npz:PATH`` reads again; points as float32; labels."""
    samples, labels = made.samples, made.labels
    arrays: dict[str, Any] = {} if labels is None else {"labels": labels.numpy()}
    if samples.ndim == 4:
        arrays["images"] = pictures.pixels(samples).permute(0, 2, 3, 1).numpy()
    else:
        arrays["points"] = samples.numpy()
    with replacing(out, again="sample again") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
