"""``fastgan train PRESET --ensemble N``: many small GANs at once, in one folder, with one summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastgan.cli.arguments import folder
from fastgan.cli.output import say
from fastgan.errors import NonFiniteError, UserError
from fastgan.presets import Config, from_dict, nested
from fastgan.presets.values import coerce, parse
from fastgan.train import ensemble_folder, run
from fastgan.train.ensemble import Ensemble
from fastgan.train.ensemble_plan import Plan
from fastgan.train.lock import held

if TYPE_CHECKING:
    from fastgan.cli.train import Arguments


def meant(wishes: Arguments) -> bool:
    """Whether the command is about an ensemble: it says so, or resumes a folder that holds one."""
    out = folder("--out", wishes.out)
    resumes = wishes.resume and out is not None and ensemble_folder.is_ensemble(out)
    return wishes.ensemble is not None or bool(wishes.vary) or resumes


def train(wishes: Arguments, keys: Mapping[str, Any], fresh: Config | None) -> int:
    """Run the verb and return its exit code. ``keys`` are those named explicitly; ``fresh`` is what a new run has."""
    vary = _varied(wishes.vary)
    count = None if wishes.ensemble is None else coerce("--ensemble", wishes.ensemble, int)
    path = _to_resume(wishes, fresh) if wishes.resume else None
    with held(path) if path else nullcontext():
        if path is None:
            if fresh is None:
                raise UserError(f"there is no ensemble at {wishes.out} to resume: name the preset to start one")
            ensemble = _started(Plan.of(fresh, count, None, vary), wishes)
            if wishes.resume:
                say("nothing to resume: starting at step 0")
        else:
            ensemble = _resumed(path, keys, fresh, count, vary, wishes.force)
        say(_headline(ensemble))
        try:
            ensemble.fit()
        except NonFiniteError:
            say(f"run: {ensemble.out}")
            raise
    say(_ending(ensemble))
    return ensemble.exit_code


def _started(plan: Plan, wishes: Arguments) -> Ensemble:
    ensemble = _of(plan)  # everything that can be wrong is found before a folder is made
    ensemble.out = ensemble_folder.create(plan, folder("--out", wishes.out))
    return ensemble


def _resumed(
    path: Path,
    keys: Mapping[str, Any],
    fresh: Config | None,
    count: int | None,
    vary: Mapping[str, Sequence[Any]],
    force: bool,
) -> Ensemble:
    stored = ensemble_folder.read(path).plan
    old = stored.config
    if fresh and fresh.preset != old.preset:
        raise UserError(f"{path} is an ensemble of {old.preset}, not of {fresh.preset}: give another --out")
    if count not in (None, len(stored.seeds)):
        raise UserError(f"{path} is an ensemble of {len(stored.seeds)}: resume it with as many, or give another --out")
    if vary and dict(Plan.of(old, None, stored.seeds, vary).vary) != dict(stored.vary):
        raise UserError(f"what varies in {path} cannot be changed: resume it without --vary, or give another --out")
    if "seed" in keys and keys["seed"] != old.seed and coerce("seed", keys["seed"], int) != old.seed:
        raise UserError(f"the seeds in {path} cannot be changed: resume it without --seed, or give another --out")
    new = from_dict(nested({**keys, "seed": old.seed}), old)
    changes = run.agree(old, new, force)
    plan = replace(stored, config=new)
    plan.configs()
    ensemble = _of(plan)
    ensemble.out = path
    step = ensemble.resume(force=force)
    for change in changes:
        say(f"changed: {change}")
    say(f"resuming {path} at step {step}" if step else f"{path} has no checkpoint of all yet: starting at step 0")
    for at, trainer in enumerate(ensemble.members):
        own = ensemble_folder.member(path, at)
        own.mkdir(exist_ok=True)
        run.write_config(own, trainer.config)
    return ensemble


def _of(plan: Plan) -> Ensemble:
    return Ensemble(plan.config, seeds=plan.seeds, vary=plan.vary)


def _to_resume(wishes: Arguments, fresh: Config | None) -> Path | None:
    """The folder to resume in; None where no ensemble stands there."""
    path = folder("--out", wishes.out) or (ensemble_folder.newest(fresh.preset) if fresh else None)
    if path and (path / run.CONFIG).is_file():
        raise UserError(f"{path} is a single run: resume it without --ensemble, or give another --out")
    return path if path and ensemble_folder.is_ensemble(path) else None


def _varied(assignments: Sequence[str]) -> dict[str, list[Any]]:
    """``KEY=V1,V2,...`` as a list of values for each key."""
    vary: dict[str, list[Any]] = {}
    for assignment in assignments:
        key, sign, values = assignment.partition("=")
        if not sign or not key.strip() or not values.strip():
            raise UserError(
                f"--vary {assignment}: write it as key=value,value,... such as --vary generator_optimizer.lr=1e-4,2e-4"
            )
        if key.strip() in vary:
            raise UserError(f"--vary {key.strip()} is given twice: give all its values at once, as key=value,value,...")
        vary[key.strip()] = parse(f"[{values}]")
    return vary


def _headline(ensemble: Ensemble) -> str:
    config, plan, first = ensemble.config, ensemble.plan, ensemble.members[0]
    count = sum(p.numel() for side in (first.generator, first.discriminator) for p in side.parameters())
    seeds = f"seed {plan.seeds[0]}" if len(set(plan.seeds)) == 1 else f"seeds {', '.join(map(str, plan.seeds))}"
    varied = "".join(f"\n{key}: {', '.join(map(str, values))}" for key, values in plan.vary.items())
    return (
        f"{config.preset}: {len(ensemble)} at once, {seeds}; {len(ensemble.data):,} samples of {ensemble.data.name},"
        f" {count:,} parameters each, batch {config.batch_size}, {config.objective}{varied}\n"
        f"device: {ensemble.describe_device()}\n"
        f"run: {ensemble.out}"
    )


def _ending(ensemble: Ensemble) -> str:
    path = ensemble.out
    table = f"{ensemble.summary()}\n"
    if ensemble.exit_code:
        going_on = f"go on with: fastgan train --resume --out {path}"
        return f"{table}stopped and saved at step {ensemble.step}; {going_on}"
    left = [f"{path}/{name}" for name in ("summary.png", "summary.csv") if path and (path / name).exists()]
    return f"{table}done at step {ensemble.step}: {', '.join(left)}, {path}/member-*"
