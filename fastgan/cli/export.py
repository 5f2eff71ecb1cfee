"""``fastgan export RUN``: the trained generator as a file for elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastgan.cli.arguments import Text, Whole, folder, home, parse, shown
from fastgan.cli.output import say
from fastgan.errors import UserError, unknown
from fastgan.presets.values import coerce
from fastgan.train.export import SUFFIXES, Exported, write
from fastgan.train.generate import WEIGHTS, Generator, load_generator


@dataclass(frozen=True)
class Arguments:
    """Write the trained generator of a run into a file that other programs read."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder, such as runs/gan-digits, or a .safetensors that this command wrote."""
    out: Text = None
    """A file, or a folder for generator.SUFFIX. Default: RUN/generator.SUFFIX; an existing file is replaced."""
    format: Annotated[str | None, shown("safetensors|torch|onnx")] = None
    """safetensors: weights and how to build the network; torch: a torch.export program (.pt2); onnx: an ONNX model.
    Default: what the suffix of --out says, else safetensors."""
    which: Annotated[str, tyro.conf.arg(metavar="ema|raw")] = "ema"
    """ema: the averaged weights, where the run keeps an average; raw: those of the last update."""
    opset: Whole = None
    """Version of ONNX's operators. Default: PyTorch's choice."""


def main(arguments: Sequence[str]) -> int:
    """Run the verb and return its exit code."""
    wishes = parse(Arguments, "export", arguments)
    run, out = folder("RUN", wishes.run) or Path(), folder("--out", wishes.out)
    of_folder = out is None or out.is_dir() or (wishes.out or "").endswith(("/", "\\"))
    format = _format(wishes.format, None if of_folder else out)
    place = out or home(run)
    path = place / f"generator{SUFFIXES[format]}" if of_folder else place
    opset: int | None = None if wishes.opset is None else coerce("--opset", wishes.opset, int)
    if opset is not None and not 1 <= opset <= 99:
        raise UserError(f"--opset must be between 1 and 99, not {opset}")
    generator = load_generator(run, "cpu", wishes.which)
    say(_told(path, generator, write(generator, path, format, opset)))
    return 0


def _format(asked: str | None, file: Path | None) -> str:
    """The format that was asked for, else that of the file's suffix. Raises UserError where the two disagree."""
    suffix = file.suffix.lower() if file else ""
    told = {suffix: name for name, suffix in SUFFIXES.items()}.get(suffix)
    if asked is not None and asked not in SUFFIXES:
        raise unknown("format", asked, SUFFIXES)
    if file and told is None:
        known = ", ".join(SUFFIXES.values())
        raise UserError(f"--out {file}: a generator is exported as {known}, or into a folder (FOLDER/)")
    if asked and told and asked != told:
        raise UserError(f"--out {file} is the name of another format than {asked}: end it in {SUFFIXES[asked]}")
    return asked or told or "safetensors"


def _told(path: Path, generator: Generator, exported: Exported) -> str:
    labels = f" and labels (batch,) below {generator.classes}" if generator.classes else ""
    shape = ", ".join(map(str, ("batch", *generator.sample_shape)))
    if exported.difference is None:
        check = "not checked, for onnxruntime is not installed here (pip install 'fastgan[export]')"
    else:
        check = f"checked: largest difference to the generator {exported.difference:.1e}"
    return (
        f"{path}: {exported.what} of step {generator.step}, {WEIGHTS[generator.which]}\n"
        f"takes {generator.config.latent} z (batch, {generator.config.z_dim}){labels}, makes samples ({shape})\n"
        f"{check}"
    )
