"""The folder of a run: its name, its configuration, and how a run that exists is found and continued."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fastgan.errors import UserError
from fastgan.presets import MAY_CHANGE_ON_RESUME, Config, difference, dump, from_file
from fastgan.train import checkpoint
from fastgan.train.files import plainly, replacing, sync

CONFIG = "config.yaml"
DRAFT = f".{CONFIG}."
ROOT = Path("runs")


def create(config: Config, out: Path | None) -> Path:
    """Make the folder of a new run and write its configuration. Raises UserError where a run stands there already.

    Without ``out`` it is ``runs/PRESET``, then ``runs/PRESET-2``, ...: never an existing one.
    """
    path = out or ROOT / config.preset
    try:
        if out and (out / CONFIG).exists():
            raise _taken(out)
        if out and out.exists() and not _vacant(out):
            raise UserError(f"{out} exists and is not empty: give another --out")
        path = path if out else _claim(config.preset)
        path.mkdir(parents=True, exist_ok=True)
        _publish(path, config)
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror or error}; give another --out") from error
    return path


def begin(path: Path, config: Config, fresh: bool) -> None:
    """Write the configuration of a run that starts at step 0. Raises UserError where a ``fresh`` one would meet others'
    checkpoints."""
    if fresh and checkpoint.whole(path / "checkpoints"):
        raise UserError(f"{path} holds the checkpoints of a run already: resume from one, or give another out")
    write_config(path, config)


def tidy(path: Path, keep: int | None = None) -> None:
    """Clear away what a process left in a run's folder that was killed. Only for who holds it (train.lock).

    So are all checkpoints but the ``keep`` newest.
    """
    with plainly(path):
        for folder, most in ((path / "checkpoints", keep), (path / "checkpoints" / checkpoint.BEST, keep and 1)):
            checkpoint.tidy(folder, most)
        for folder, pattern in ((path, f"{DRAFT}*"), (path, ".*.writing"), (path / "samples", ".*.writing")):
            for left in folder.glob(pattern):
                left.unlink(missing_ok=True)


def write_config(path: Path, config: Config) -> None:
    """Write ``config.yaml``, whole or not at all."""
    with replacing(path / CONFIG) as temporary:
        temporary.write_text(dump(config), encoding="utf-8")


def _publish(path: Path, config: Config) -> None:
    """Write the first ``config.yaml``: of processes that start at the same instant, one gets the folder."""
    temporary = path / f"{DRAFT}{os.getpid()}"
    try:
        temporary.write_text(dump(config), encoding="utf-8")
        sync(temporary)
        _name(temporary, path / CONFIG)
    except FileExistsError as error:
        raise _taken(path) from error
    finally:
        temporary.unlink(missing_ok=True)


def _name(temporary: Path, final: Path) -> None:
    """Give a file its name. Raises FileExistsError where another process has just written one of that name."""
    try:
        os.link(temporary, final)  # a rename would replace the other
    except FileExistsError:
        raise
    except OSError as error:  # a file system without hard links
        if final.exists():
            raise FileExistsError(final) from error
        os.replace(temporary, final)


def _taken(path: Path) -> UserError:
    return UserError(f"{path} holds a run already: add --resume to continue it, or give another --out")


def _vacant(path: Path) -> bool:
    """Whether a folder holds nothing but what a process that was killed at its very start has left."""
    return path.is_dir() and all(entry.name.startswith(DRAFT) for entry in path.iterdir())


def newest(preset: str) -> Path | None:
    """The run of ``preset`` under ``runs/`` with the highest number; None where none has a configuration."""
    numbered = [(number, path) for number, path in _existing(preset) if (path / CONFIG).is_file()]
    return max(numbered)[1] if numbered else None


def stored(path: Path) -> Config:
    """The configuration of the run in ``path``. Raises UserError where there is no run."""
    if not path.exists():
        raise UserError(
            f"there is no run at {path}: give the folder that 'fastgan train' printed, such as runs/gan-digits"
        )
    if not (path / CONFIG).is_file():
        if (path / "ensemble.json").is_file():
            raise UserError(f"{path} is an ensemble: give the run of one of its members, such as {path}/member-00")
        raise UserError(f"{path} is not a run of fastgan: it has no {CONFIG}")
    return from_file(path / CONFIG, whole=True)


def latest_checkpoint(path: Path) -> checkpoint.Checkpoint | None:
    """The newest whole checkpoint of the run in ``path``, verified; None where none was written yet."""
    while found := checkpoint.whole(path / "checkpoints"):
        try:
            return checkpoint.load(found[-1])
        except UserError:
            if found[-1].exists():
                raise  # else: the run has gone on meanwhile, and removed it for a newer one
    return None


def opened(path: Path) -> tuple[Config, checkpoint.Checkpoint | None]:
    """The configuration of a run and its newest checkpoint, or the one that ``path`` names within the run's folder.

    ``RUN/checkpoints/best`` is the best one that ``keep_best`` keeps, ``RUN/checkpoints/step-00001000`` that of a step.
    """
    here = path.absolute()
    runs = [folder.parent for folder in (here, *here.parents) if folder.name == "checkpoints"]
    if (path / CONFIG).is_file() or not path.is_dir() or not runs or not (runs[0] / CONFIG).is_file():
        return stored(path), latest_checkpoint(path)
    inside = [path] if (path / checkpoint.MANIFEST).is_file() else checkpoint.whole(path)
    return stored(runs[0]), checkpoint.load(inside[-1]) if inside else None


def agree(old: Config, new: Config, force: bool) -> list[str]:
    """What differs from the stored configuration, a line each. Raises UserError where that needs ``--force``."""
    changed = {key: values for key, values in difference(old, new).items() if key != "preset"}
    lines = [f"{key}: {before} -> {after}" for key, (before, after) in changed.items()]
    refused = [key for key in changed if key not in MAY_CHANGE_ON_RESUME]
    if refused and not force:
        shown = "; ".join(f"{key} {changed[key][0]} -> {changed[key][1]}" for key in refused)
        raise UserError(f"the run was made with another configuration ({shown}): add --force to continue it changed")
    return lines


def _existing(preset: str) -> list[tuple[int, Path]]:
    if not ROOT.is_dir():
        return []
    pattern = re.compile(rf"{re.escape(preset)}(?:-(\d+))?")
    matches = [(pattern.fullmatch(path.name), path) for path in ROOT.iterdir()]
    return [(int(match[1] or 1), path) for match, path in matches if match]


def _claim(preset: str) -> Path:
    ROOT.mkdir(exist_ok=True)
    number = max((number for number, _ in _existing(preset)), default=0)
    while True:
        number += 1
        path = ROOT / (preset if number == 1 else f"{preset}-{number}")
        try:
            path.mkdir()  # fails where another process has just taken the name
        except FileExistsError:
            continue
        return path
