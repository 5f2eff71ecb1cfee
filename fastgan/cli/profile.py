"""``fastgan profile RUN|PRESET``: where the time of a training step goes; ``--kernel NAME``: what a kernel became."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from fastgan.cli.arguments import Flag, Text, Whole, assigned, folder, parse, shown
from fastgan.cli.output import say
from fastgan.errors import UserError, require
from fastgan.presets import ALIASES, PRESETS, Config, from_dict, nested, preset, read, start
from fastgan.presets.values import coerce
from fastgan.train import Trainer, joining, run
from fastgan.train.checkpoint import Checkpoint

if TYPE_CHECKING:
    from fastgan.benchmarks.profile_rows import Report

MOST_STEPS = 1000
TRACE, PICTURE, NUMBERS = "trace.json", "timeline.png", "profile.json"
OF_A_STEP, OF_A_KERNEL = ("steps", "device", "set"), ("arch", "variant", "most", "ptx", "sass")


@dataclass(frozen=True)
class Arguments:
    """Say where the time of a training step goes, by layer and phase; with --kernel what a kernel was compiled to."""

    target: Annotated[str | None, tyro.conf.Positional, shown("RUN|PRESET|FILE.yaml")] = None
    """A run's folder, which is only read; or a preset's name, or a YAML file of keys."""
    steps: Whole = None
    """Steps under the profiler. Default: as many as take four seconds, 3 to 30."""
    out: Text = None
    """New folder for trace.json, timeline.png and profile.json. Default: profile-NAME, then profile-NAME-2, ...
    With --ptx or --sass: a file."""
    device: Text = None
    """auto, cpu, cuda or cuda:N."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Any key of the configuration, such as batch_size=256. Repeatable."""
    json: Flag = False
    """Print the numbers as JSON instead of tables."""
    kernel: Annotated[str | None, shown("NAME")] = None
    """A kernel, such as linear_fwd_kernel, or a file of kernels, such as conv or my_kernels.py. Needs no GPU."""
    arch: Annotated[str | None, shown("sm_90")] = None
    """What to compile for. Default: this machine's GPU, else sm_90."""
    variant: Text = None
    """Only forms whose names have these words, such as "bfloat16 128x128x64"."""
    most: Whole = None
    """So many forms at most. Default: 6."""
    ptx: Flag = False
    """Show the PTX of the first of them."""
    sass: Flag = False
    """Show the machine code of the first of them."""


def main(arguments: Sequence[str]) -> int:
    """Run the verb and return its exit code."""
    wishes = parse(Arguments, "profile", arguments)
    if (wishes.target is None) == (wishes.kernel is None):
        known = ", ".join(PRESETS)
        raise UserError(f"say what to profile: a run's folder or a preset ({known}), or a kernel by --kernel NAME")
    foreign = OF_A_STEP if wishes.kernel is not None else OF_A_KERNEL
    for option in foreign:
        if getattr(wishes, option) not in (None, False, ()):
            other = "a training step: leave out --kernel" if wishes.kernel else "a kernel: add --kernel NAME"
            raise UserError(f"--{option} is of {other}, or leave out --{option}")
    from fastgan.benchmarks.command import Terminated, termination_as_interruption

    try:
        with termination_as_interruption():
            return _kernel(wishes, wishes.kernel) if wishes.kernel is not None else _steps(wishes, str(wishes.target))
    except Terminated:
        return 143


def _steps(wishes: Arguments, target: str) -> int:
    from fastgan.benchmarks import profile_picture, profile_rows, profile_step, profile_table
    from fastgan.benchmarks.environment import environment
    from fastgan.benchmarks.setting import Setting

    if not joining.alone():
        raise UserError("steps are profiled in one process: start it without torchrun")
    require("matplotlib.figure", why="fastgan profile")
    steps = None if wishes.steps is None else _whole("--steps", wishes.steps, MOST_STEPS)
    name, config, stored = _opened(wishes, target)
    named = folder("--out", wishes.out)
    out = named or Path(f"profile-{name}")
    with _written(out, numbered=named is None) as (stage, place):
        trainer = Trainer(config)
        if stored is not None:
            trainer.resume(stored)
        begun = trainer.step
        report = profile_rows.report(profile_step.profile(trainer, stage / TRACE, steps))
        about = _about(target, trainer, begun, environment(Setting(trainer.device)))
        body = profile_rows.body(report, about)
        (stage / NUMBERS).write_text(json.dumps(body, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        profile_picture.draw(report, f"{name}: one step on {about['environment']['device']}", stage / PICTURE)
        path = place()
    if wishes.json:
        say(json.dumps(body, indent=1, allow_nan=False))
        return 0
    say(f"{_headline(target, trainer, begun, report)}\n\n" + "\n".join(profile_table.render(report)))
    say(f"{path}: {TRACE} (chrome://tracing, ui.perfetto.dev), {PICTURE}, {NUMBERS}")
    return 0


def _opened(wishes: Arguments, target: str) -> tuple[str, Config, Checkpoint | None]:
    """What to profile: its name, its configuration, and of a run its newest checkpoint. Nothing is written."""
    keys = assigned(wishes.set) | ({} if wishes.device is None else {"device": wishes.device})
    name, stored = target, None
    if target.lower().endswith((".yaml", ".yml")):
        base, own = start(read(target))
        name, keys = Path(target).stem, own | keys
    elif target in (*PRESETS, *ALIASES):
        base = preset(target)
    else:
        path = folder("RUN", target)
        assert path is not None
        if not path.exists() and path.name == target:
            preset(target)  # which says what presets there are
        base, stored = run.opened(path)
        name = path.resolve().name
    config = from_dict(nested(keys), base)
    return name, replace(config, tensorboard=False, keep_best=None), stored


@contextmanager
def _written(out: Path, numbered: bool) -> Iterator[tuple[Path, Any]]:
    """Context of a folder to write into, beside ``out``, and what gives it its name; without that, nothing is left.

    ``numbered``: where there is something of that name, ``out-2``, ``out-3``, ... are taken.
    """
    if not numbered and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists and is not empty: give a new folder")
    near = next(parent for parent in out.absolute().parents if parent.exists())
    if not near.is_dir():
        raise UserError(f"cannot write to {out}: {near} is no folder; give another --out")
    stage = near / f".{out.name}.{os.getpid()}.writing"

    def place() -> Path:
        number, path = 1, out
        while numbered and path.exists():
            number += 1
            path = out.with_name(f"{out.name}-{number}")
        path.parent.mkdir(parents=True, exist_ok=True)
        stage.rename(path)
        return path

    try:
        stage.mkdir()
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}; give another --out") from error
    try:
        yield stage, place
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _about(target: str, trainer: Trainer, begun: int, environment: dict[str, Any]) -> dict[str, Any]:
    config = trainer.config
    keys = ("preset", "batch_size", "objective", "updates", "n_critic", "precision")
    return {
        "target": target,
        **{key: getattr(config, key) for key in keys},
        "first_step": begun,
        "how": trainer.describe_device(),
        "one_launch": trainer.describe_one_launch(),
        "environment": environment,
    }


def _headline(target: str, trainer: Trainer, begun: int, report: Report) -> str:
    config, profile = trainer.config, report.profile
    where = f" from step {begun}" if begun else ""
    clock = "of kernels, on average" if profile.on_gpu else "the host's, each range's lower quartile"
    return (
        f"{target}{where}: {config.preset}, batch {config.batch_size}, {profile.steps} steps; times are {clock}"
        f"\ndevice: {trainer.describe_device()}\none launch: {trainer.describe_one_launch()}"
    )


def _kernel(wishes: Arguments, name: str) -> int:
    require("triton", why="compiling the kernels")
    from fastgan.benchmarks import profile_kernel

    if wishes.ptx and wishes.sass:
        raise UserError("--ptx and --sass are two things: ask for one at a time")
    out = folder("--out", wishes.out)
    if out is not None and not (wishes.ptx or wishes.sass):
        raise UserError("--out with --kernel is for code: add --ptx or --sass, or take --json and redirect it")
    most = 6 if wishes.most is None else _whole("--most", wishes.most, 10_000)
    arch = profile_kernel.architecture(wishes.arch)
    found = profile_kernel.variants(name, arch, wishes.variant)
    if wishes.ptx or wishes.sass:
        text = profile_kernel.code(found[0], arch, "ptx" if wishes.ptx else "sass")
        if out is None:
            say(text.rstrip())
        else:
            if out.exists():
                raise UserError(f"--out {out} exists: give a new file")
            try:
                out.write_text(text, encoding="utf-8")
            except OSError as error:
                raise UserError(f"cannot write {out}: {error.strerror or error}; give another --out") from error
            say(f"{out}: {text.partition(chr(10))[0].removeprefix('// ')}")
        return 0
    forms = [profile_kernel.examine(variant, arch)[0] for variant in found[:most]]
    left = len(found) - len(forms)
    if wishes.json:
        say(json.dumps(profile_kernel.body(forms, name, arch, left), indent=1))
    else:
        say("\n".join([f"{name} for sm_{arch}", "", *profile_kernel.render(forms, left)]))
    return 0


def _whole(option: str, text: str, most: int) -> int:
    number: int = coerce(option, text, int)
    if not 1 <= number <= most:
        raise UserError(f"{option} must be between 1 and {most}, not {number}")
    return number
