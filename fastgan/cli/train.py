"""``fastgan train [PRESET or config.yaml]``: train, continue, or list the presets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from fastgan.cli import train_ensemble
from fastgan.cli.arguments import Flag, Text, Whole, assigned, folder, parse, shown
from fastgan.cli.output import say as say_alone
from fastgan.errors import UserError
from fastgan.presets import ABOUT, ALIASES, PRESETS, Config, from_dict, nested, preset, read, start
from fastgan.train import Trainer, joining, run, state
from fastgan.train.distributed import Team


@dataclass(frozen=True)
class Arguments:
    """Train a GAN. Without a preset or file: list the presets."""

    target: Annotated[str | None, tyro.conf.Positional, shown("PRESET|FILE.yaml")] = None
    """A preset's name, or a YAML file of keys (its key 'preset' names the preset it starts from)."""
    data: Text = None
    """Data set: digits, mnist, fashion-mnist, ring8, grid25, patterns8, folder:PATH, wds:SHARDS, csv:PATH, npz:PATH,
    npy:PATH, mnist:PATH."""
    out: Text = None
    """Folder of the run. Default: runs/PRESET, then runs/PRESET-2, ...; an existing run is never overwritten."""
    steps: Whole = None
    """Steps in total, those of a resumed run included."""
    batch_size: Whole = None
    """Real samples of one discriminator update."""
    seed: Whole = None
    """Seed of everything random."""
    device: Text = None
    """auto, cpu, cuda or cuda:N."""
    on_nan: Text = None
    """What NaN or infinity does: stop the run (the default), skip the updates that it would spoil, or rollback to the
    last checkpoint with half the learning rates."""
    resume: Flag = False
    """Continue a run: the one at --out, else the newest of the preset."""
    force: Flag = False
    """With --resume: allow keys to differ from the stored configuration."""
    ensemble: Whole = None
    """Train so many at once, of seeds SEED, SEED + 1, ...: small networks (mlp) only, in runs/PRESET-ensemble."""
    vary: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KEY=V1,V2,...")] = ()
    """A value for each member of an ensemble, such as generator_optimizer.lr=1e-4,2e-4. Repeatable."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KEY=VALUE")] = ()
    """Any key of the configuration, such as log_every=10 or generator_optimizer.lr=1e-4. Repeatable."""


def main(arguments: Sequence[str]) -> int:
    """Run the verb and return its exit code."""
    wishes = parse(Arguments, "train", arguments)
    if wishes.target is None and not (wishes.resume and wishes.out is not None):
        if wishes.resume:
            raise UserError("say which run to resume: --out RUN, or a preset, whose newest run is continued")
        if wishes != Arguments():
            raise UserError(f"say which preset to train: {', '.join(PRESETS)} (or a YAML file)")
        say_alone(_listing())
        return 0
    keys = _keys(wishes)
    if train_ensemble.meant(wishes):
        if not joining.alone():
            raise UserError("an ensemble trains in one process: start it without torchrun")
        return train_ensemble.train(wishes, keys, _config(wishes, keys) if wishes.target else None)
    team = joining.join(_device(wishes, keys))
    path = team.path(partial(_to_resume, wishes, keys)) if wishes.resume else None
    with team.holding(path):  # nobody else trains on while we read its checkpoint
        trainer = _resumed(wishes, keys, path, team) if wishes.resume else _started(wishes, keys)
        say(trainer, _headline(trainer))
        trainer.fit()
    say(trainer, _ending(trainer))
    joining.leave()
    return trainer.exit_code


def say(trainer: Trainer, text: str) -> None:
    """Say it once, whoever trains along."""
    if trainer.team.first:
        say_alone(text)


def _started(wishes: Arguments, keys: dict[str, Any]) -> Trainer:
    config = _config(wishes, keys)
    trainer = Trainer(config)  # everything that can be wrong is found before a folder is made
    trainer.out = trainer.team.path(partial(run.create, config, folder("--out", wishes.out)))
    return trainer


def _device(wishes: Arguments, keys: dict[str, Any]) -> str:
    """The device that is asked for, before there is a Trainer: a run that is resumed has a stored one."""
    if "device" in keys:
        return str(keys["device"])
    if wishes.resume and (path := _to_resume(wishes, keys)):
        return run.stored(path).device
    return _config(wishes, keys).device if wishes.target else "auto"


def _to_resume(wishes: Arguments, keys: dict[str, Any]) -> Path | None:
    """The folder to resume in; None where no run stands there."""
    path = folder("--out", wishes.out) or (run.newest(_config(wishes, keys).preset) if wishes.target else None)
    return path if path and (path / run.CONFIG).is_file() else None


def _resumed(wishes: Arguments, keys: dict[str, Any], path: Path | None, team: Team) -> Trainer:
    fresh = _config(wishes, keys) if wishes.target else None
    if path is None:
        named = folder("--out", wishes.out)
        if fresh is None:
            raise UserError(f"there is no run at {named} to resume: name the preset to start one")
        trainer = _started(wishes, keys)
        say(trainer, f"nothing to resume{f' at {named}' if named else ''}: starting at step 0")
        return trainer
    team.lead(partial(run.tidy, path))
    old = run.stored(path)
    if fresh and fresh.preset != old.preset:
        raise UserError(f"{path} is a run of {old.preset}, not of {fresh.preset}: give its own preset or another --out")
    new = from_dict(nested(keys), old)
    changes = run.agree(old, new, wishes.force)
    stored = run.latest_checkpoint(path)
    team.agree("newest checkpoint", json.dumps(stored.values, sort_keys=True) if stored else "none")
    trainer = Trainer(new)
    trainer.out = path
    if stored:
        trainer.resume(stored)
    for change in changes:
        say(trainer, f"changed: {change}")
    if trainer.slowed != 1:
        say(trainer, f"learning rates are at {trainer.slowed:g} of the configuration's, after rollbacks")
    if stored and state.world(stored) != team.size:
        say(trainer, f"number of processes: {state.world(stored)} -> {team.size}: dropout draws other numbers")
    at = f"resuming {path} at step {trainer.step}" if stored else f"{path} has no checkpoint yet: starting at step 0"
    say(trainer, at)
    team.lead(partial(run.write_config, path, new))
    return trainer


def _config(wishes: Arguments, keys: dict[str, Any]) -> Config:
    assert wishes.target is not None
    base = start(read(wishes.target))[0] if _is_file(wishes.target) else preset(wishes.target)
    return from_dict(nested(keys), base)


def _keys(wishes: Arguments) -> dict[str, Any]:
    """The keys that were named explicitly: those of the file, then --set, then the options."""
    keys = start(read(wishes.target))[1] if wishes.target and _is_file(wishes.target) else {}
    keys |= assigned(wishes.set)
    for option in ("data", "steps", "batch_size", "seed", "device", "on_nan"):
        if getattr(wishes, option) is not None:
            keys[option] = getattr(wishes, option)
    if isinstance(keys.get("data"), str):
        keys["data"] = _anchored(keys["data"])
    return keys


def _anchored(data: str) -> str:
    """``npz:PATH`` with an absolute path, so that the run can be resumed from another folder."""
    name, sign, path = data.partition(":")
    return f"{name}:{Path(path).expanduser().resolve()}" if sign and path else data


def _is_file(target: str) -> bool:
    return target.lower().endswith((".yaml", ".yml"))


def _headline(trainer: Trainer) -> str:
    config = trainer.config
    count = sum(
        parameter.numel() for side in (trainer.generator, trainer.discriminator) for parameter in side.parameters()
    )
    return (
        f"{config.preset}: {len(trainer.data):,} samples of {trainer.data.name}, {count:,} parameters,"
        f" batch {config.batch_size}{_shared_out(trainer)}, {_trained_by(config)}\n"
        f"device: {trainer.describe_device()}\n"
        f"run: {trainer.out}"
    )


def _trained_by(config: Config) -> str:
    return config.objective if config.method == "adversarial" else config.method


def _shared_out(trainer: Trainer) -> str:
    team = trainer.team
    return f" ({trainer.config.batch_size // team.size} on each of {team.size} processes)" if team.many else ""


def _ending(trainer: Trainer) -> str:
    path = trainer.out
    if trainer.exit_code:
        return f"stopped and saved at step {trainer.step}; go on with: fastgan train --resume --out {path}"
    left = [f"{path}/{name}" for name in ("final.png", "curves.png", "metrics.csv") if path and (path / name).exists()]
    return f"done at step {trainer.step}: {', '.join(left) or path}"


def _listing() -> str:
    lines = ["presets (fastgan train PRESET):", ""]
    for name, config in PRESETS.items():
        aliases = [alias for alias, target in ALIASES.items() if target == name]
        also = f" (alias {', '.join(aliases)})" if aliases else ""
        lines.append(f"  {name + also:28} {ABOUT[name]}; {config.steps:,} steps")
    return "\n".join(lines)
