"""The folder of an ensemble: what it consists of, a run's folder for each member, and where all of them can go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastgan.errors import UserError
from fastgan.presets import from_dict, to_dict
from fastgan.presets.config import Config
from fastgan.train import checkpoint, run
from fastgan.train.ensemble_plan import Plan
from fastgan.train.files import replacing

MANIFEST = "ensemble.json"
FORMAT, VERSION = "fastgan-ensemble", 1


@dataclass
class Stored:
    """What ``ensemble.json`` says: the plan, and by member the step at which its numbers were found not finite.

    ``saved`` is the last step of which the members' checkpoints were begun: one of a later step was made by a member
    that was trained on alone.
    """

    plan: Plan
    gone: dict[int, int] = field(default_factory=dict)
    saved: int = 0


def member(path: Path, at: int) -> Path:
    """The folder of a member."""
    return path / f"member-{at:02d}"


def at_step(path: Path, at: int, step: int) -> Path:
    """The folder of a member's checkpoint of a step."""
    return member(path, at) / "checkpoints" / f"step-{step:08d}"


def is_ensemble(path: Path) -> bool:
    """Whether an ensemble stands there."""
    return (path / MANIFEST).is_file()


def create(plan: Plan, out: Path | None) -> Path:
    """Make the folder of a new ensemble. Without ``out``: ``runs/PRESET-ensemble``, ``runs/PRESET-ensemble-2``, ...

    Raises UserError where something stands there already.
    """
    try:
        if out is None:
            path = run._claim(_name(plan.config.preset))
        else:
            path = out
            if is_ensemble(path):
                raise UserError(f"{path} holds an ensemble already: add --resume to continue it, or give another --out")
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise UserError(f"{path} exists and is not empty: give another --out")
            path.mkdir(parents=True, exist_ok=True)
        write(path, Stored(plan))
    except OSError as error:
        raise UserError(f"cannot write to {out or run.ROOT}: {error.strerror or error}; give another --out") from error
    return path


def newest(name: str) -> Path | None:
    """The ensemble of a preset under ``runs/`` with the highest number; None where there is none."""
    numbered = [(number, path) for number, path in run._existing(_name(name)) if is_ensemble(path)]
    return max(numbered)[1] if numbered else None


def _name(preset: str) -> str:
    return f"{preset}-ensemble"


def write(path: Path, stored: Stored) -> None:
    """Write ``ensemble.json``, whole or not at all."""
    plan = stored.plan
    content = {
        "format": FORMAT,
        "version": VERSION,
        "preset": plan.config.preset,
        "seeds": list(plan.seeds),
        "vary": {key: list(values) for key, values in plan.vary.items()},
        "saved": stored.saved,
        "gone": {str(at): step for at, step in sorted(stored.gone.items())},
        "config": to_dict(plan.config),
    }
    with replacing(path / MANIFEST) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> Stored:
    """What stands in ``path``. Raises UserError where that is no ensemble that this fastgan reads."""
    file = path / MANIFEST
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"there is no ensemble at {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON: restore it, or resume its members one by one") from error
    if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        raise UserError(f"{file} was not written by this version of fastgan, which reads version {VERSION}")
    try:
        plan = Plan.of(_config(content), None, [_whole(seed) for seed in content["seeds"]], content["vary"])
        gone = {int(at): _whole(step) for at, step in content["gone"].items()}
        saved = _whole(content["saved"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file} is not whole: restore it, or resume its members one by one") from error
    return Stored(plan, gone, saved)


def _config(content: Mapping[str, Any]) -> Config:
    values = dict(content["config"])
    return from_dict(values, Config(preset=str(values.pop("preset"))))  # whatever the preset has become


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(value)
    return value


def check_members(path: Path, members: int) -> None:
    """Raise UserError where a member's folder has gone; it is not made anew: who puts it back finds its place free."""
    if not any(steps(path, at) for at in range(members)):
        return  # the process may have ended before it was made
    for at in range(members):
        if not (member(path, at) / run.CONFIG).is_file():
            raise UserError(f"{member(path, at)} is not there any more: put it back, or resume the others one by one")


def common_step(path: Path, members: int, gone: Mapping[int, int]) -> int | None:
    """The newest step of which every member has a checkpoint that was not gone by then; None where there are none.

    Raises UserError where there are checkpoints, but no such step.
    """
    written = [steps(path, at) for at in range(members)]
    every = sorted({step for own in written for step in own}, reverse=True)
    for step in every:
        left = [own for at, own in enumerate(written) if gone.get(at, step + 1) > step]
        if left and all(step in own for own in left):
            return step
    if any(written) and not _first_was_being_written(written):
        raise UserError(
            f"the members of {path} have no checkpoint of one and the same step: resume them one by one, with"
            " fastgan train --resume --out"
            f" {member(path, 0)}"
        )
    return None


def _first_was_being_written(written: Sequence[Sequence[int]]) -> bool:
    """Whether the process ended while it wrote the very first checkpoints."""
    return any(not own for own in written) and all(len(own) <= 1 for own in written)


def steps(path: Path, at: int) -> list[int]:
    """The steps of which a member has a checkpoint, oldest first."""
    return [_step(folder) for folder in checkpoint.whole(member(path, at) / "checkpoints")]


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def drop_beyond(path: Path, members: int, step: int, saved: int, force: bool) -> None:
    """Remove checkpoints of later steps, which will be written again: without ``force`` none beyond ``saved``.

    The best one beyond ``saved`` goes too: it is of a course that is left.

    Raises UserError for a member that has such, and has been trained on alone.
    """
    beyond = {at: [later for later in steps(path, at) if later > step] for at in range(members)}
    for at, own in beyond.items():
        if own and own[-1] > saved and not force:
            raise UserError(
                f"{member(path, at)} has been trained on alone to step {own[-1]}, and all members are at {step}:"
                " resume it alone, or add --force to drop what it has beyond"
            )
    for at, own in beyond.items():
        for later in own:
            shutil.rmtree(at_step(path, at, later))
        best = checkpoint.whole(member(path, at) / "checkpoints" / checkpoint.BEST) if own and own[-1] > saved else []
        for folder in best:
            if _step(folder) > saved:
                shutil.rmtree(folder)
