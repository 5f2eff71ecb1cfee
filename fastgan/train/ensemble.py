"""Many small GANs at once: members of one form, each the run that it would be alone, their weights in stacks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from fastgan.errors import NonFiniteError, UserError, require
from fastgan.presets import Config, from_dict, nested, preset
from fastgan.train import build, checkpoint, ensemble_folder, ensemble_pictures, one_launch
from fastgan.train.capture import runner_for
from fastgan.train.draws import ClockDraws
from fastgan.train.ensemble_plan import Plan
from fastgan.train.ensemble_step import StackStep
from fastgan.train.ensemble_summary import Summary, shown, summarise
from fastgan.train.lock import held
from fastgan.train.metrics import Row
from fastgan.train.one_launch import Way
from fastgan.train.replays import runs_all
from fastgan.train.show import describe, progress_bar
from fastgan.train.signals import Interrupts
from fastgan.train.trainer import Trainer

if TYPE_CHECKING:
    from tqdm import tqdm


class _Quiet:
    """A progress bar for members, which have none of their own."""

    def set_postfix(self, *given: object, **keys: object) -> None:
        """Show nothing."""


class Ensemble:
    """Trains several GANs of one small preset at once, to what each of them would become alone.

    ``Ensemble("ring8", members=10)`` takes ten seeds: the configuration's, the next, and so on; ``seeds=[3, 5, 8]``
    just those; ``vary={"generator_optimizer.lr": [1e-4, 2e-4]}`` gives each member its own value of a key, under one
    seed where neither ``members`` nor ``seeds`` is given. More ``keys`` change the configuration of all. The networks
    are of the family ``mlp``; weights of a layer lie in one stack, the members first.

    ``out``, a folder, receives ``ensemble.json``, a run's folder for each member (``member-00``, ...), ``summary.csv``
    and ``summary.png``; without it everything stays in memory.

    ``members`` are Trainers: each has its part of the state as if it had trained alone, and may be looked at, sampled
    and saved. ``history`` holds each one's rows. ``step`` counts the steps of each. ``gone`` names the members whose
    numbers are not finite, by the step where that was found: the others go on, and it has no more rows and checkpoints.

    Each member draws what a run of its seed draws, so that its weights and metrics are that run's up to rounding.
    """

    def __init__(
        self,
        config: Config | str | None = None,
        *,
        members: int | None = None,
        seeds: Sequence[int] | None = None,
        vary: Mapping[str, Sequence[Any]] | None = None,
        out: str | Path | None = None,
        **keys: Any,
    ) -> None:
        base = preset(config) if isinstance(config, str) else config or Config()
        self.plan = Plan.of(from_dict(nested(keys), base), members, seeds, vary)
        with build.data_read_once():
            self.members = [Trainer(own) for own in self.plan.configs()]
        first = self.members[0]
        if first.team.many:
            raise UserError("an ensemble trains in one process: start it without torchrun")
        self.config, self.device, self.data = self.plan.config, first.device, first.data
        self.gone: dict[int, int] = {}
        self.exit_code, self._saved = 0, 0
        self._captured = runner_for(self.device) is not None
        configs = [trainer.config for trainer in self.members]
        self._iterate = StackStep(
            [trainer._iterate for trainer in self.members],
            [] if self._captured else [trainer._parts.stream for trainer in self.members],
            updates=self.config.updates,
            noisy=any(config.noise or "noise" in config.schedules for config in configs),
            fixed=self._captured,
        )
        self._run = self._runner()
        self.out = Path(out) if out is not None else None

    def __len__(self) -> int:
        return len(self.members)

    @property
    def step(self) -> int:
        """How many steps each member has made. Raises UserError where one was trained on alone."""
        steps = {trainer.step for trainer in self.members}
        if len(steps) > 1:
            raise UserError(f"a member was trained on alone: they are at steps {', '.join(map(str, sorted(steps)))}")
        return steps.pop()

    @property
    def history(self) -> list[list[Row]]:
        """Of each member, one row per ``log_every`` steps: means over those steps."""
        return [trainer.history for trainer in self.members]

    @property
    def out(self) -> Path | None:
        """The ensemble's folder; None keeps everything in memory."""
        return self._out

    @out.setter
    def out(self, path: Path | None) -> None:
        self._out = path
        for at, trainer in enumerate(self.members):
            trainer.out = None if path is None else ensemble_folder.member(path, at)

    def describe_device(self) -> str:
        """The device, its precision, the backend that the fused ops take there and why, and how steps run."""
        return describe(self.device, self.config, self._run)

    def fit(self, steps: int | None = None, *, progress: bool = True) -> Ensemble:
        """Train until ``steps`` (default: the configuration's) steps are done in total, then write the final pictures.

        ``progress`` shows a bar, and who is gone. Ctrl-C or SIGTERM saves and returns with ``exit_code`` 130 or 143
        (main thread only). Raises NonFiniteError where no member is left, and UserError where ``out`` holds the
        checkpoints of another ensemble or another process trains in it.
        """
        total = self.config.steps if steps is None else steps
        with ExitStack() as locks:
            self._hold(locks)
            self._begin()
            try:
                with Interrupts() as interrupts, build.threads(self.config.threads), self._stream():
                    with progress_bar(total, self.step, progress) as bar:
                        self._loop(total, bar, interrupts, progress)
                    if self.out:
                        self._save(progress)
                        self._draw("final.png")
            finally:
                for trainer in self.members:
                    if trainer._board:
                        trainer._board.end()
        if self.out:
            self._write_summary(self.out)
        self.exit_code = interrupts.exit_code
        return self

    def sample(self, n: int, *, seed: int | None = None) -> Tensor:
        """Draw ``n`` samples of each member in evaluation mode, (members, n, *sample_shape), from the same latents.

        With averaged weights, where the configuration keeps an average.
        """
        seed = int(torch.randint(2**31, ())) if seed is None else seed
        return torch.stack([trainer.sample(n, seed=seed) for trainer in self.members])

    def member(self, at: int) -> nn.Module:
        """Return a copy of a member's generator in evaluation mode, as ``fastgan.load`` would from its folder.

        With averaged weights, where the configuration keeps an average. Raises UserError for a number that none has.
        """
        if not -len(self) <= at < len(self):
            raise UserError(f"the members are numbered from 0 to {len(self) - 1}, and there is no {at}")
        with self.members[at]._album.averaged():
            return deepcopy(self.members[at].generator).requires_grad_(True).eval()

    def summary(self) -> Summary:
        """Mean and spread of each metric of the last row, over the members that are not gone; ``print`` shows it."""
        points = None
        if self.data.modes is not None:
            points = self.sample(ensemble_pictures.POINTS, seed=self.config.seed + 2).cpu()
        return summarise(self.plan, self.history, self.gone, points, self.data.modes)

    def save(self) -> None:
        """Write a checkpoint of this step for each member. Raises UserError where the Ensemble has no ``out``."""
        if self.out is None:
            raise UserError("this Ensemble stays in memory: give it out='runs/NAME' to save checkpoints")
        self._save()

    def resume(self, *, force: bool = False) -> int:
        """Continue from the newest step of which all members have a checkpoint in ``out``; return it, 0 for none.

        Later checkpoints, which a process that was ended has left of some members, are dropped and written again.
        Raises UserError where the members have no step in common, where ``out`` holds another ensemble, and, without
        ``force``, where a member was trained on alone.
        """
        if self.out is None:
            raise UserError("this Ensemble stays in memory: give it the out of the one to resume")
        stored = ensemble_folder.read(self.out)
        if len(stored.plan.seeds) != len(self):
            raise UserError(f"{self.out} is an ensemble of {len(stored.plan.seeds)}, not of {len(self)}")
        if (stored.plan.seeds, dict(stored.plan.vary)) != (self.plan.seeds, dict(self.plan.vary)):
            raise UserError(f"{self.out} is an ensemble of other seeds or values: resume it with its own")
        ensemble_folder.check_members(self.out, len(self))
        with ExitStack() as locks:
            self._hold(locks)
            common = ensemble_folder.common_step(self.out, len(self), stored.gone)
            step = -1 if common is None else common
            gone = {at: when for at, when in stored.gone.items() if when <= step}
            left = [at for at in range(len(self)) if at not in gone and common is not None]
            found = {at: checkpoint.load(ensemble_folder.at_step(self.out, at, step)) for at in left}
            ensemble_folder.drop_beyond(self.out, len(self), step, stored.saved, force)
            self._saved, self.gone = max(step, 0), gone
            for at, trainer in enumerate(self.members):
                if at in gone:
                    _end(trainer, step, gone[at])
                elif at in found:
                    trainer.resume(found[at])
        self._note()
        self._run = self._runner()  # graphs would go on with the memory of a state that is gone
        return self._saved

    def _hold(self, locks: ExitStack) -> None:
        """Be the only process that trains here, and in each member's folder."""
        for path in (self.out, *(trainer.out for trainer in self.members)):
            if path is not None:
                path.mkdir(parents=True, exist_ok=True)
                locks.enter_context(held(path))

    def _begin(self) -> None:
        if self.out and self.step == 0:
            if (self.out / "config.yaml").exists():
                raise UserError(f"{self.out} holds a run: give another out")
            self._note()
        for at, trainer in enumerate(self.members):
            if at not in self.gone:
                trainer._begin()

    def _note(self) -> None:
        """Write down what the ensemble is, who is gone, and how far it has come."""
        if self.out:
            ensemble_folder.write(self.out, ensemble_folder.Stored(self.plan, self.gone, self._saved))

    @contextmanager
    def _stream(self) -> Iterator[None]:
        """Context of steps: data are read ahead, a captured one's random numbers are the first member's."""
        with ExitStack() as kept:
            for trainer in self.members:
                kept.enter_context(trainer._draws.running())
            if self._captured:  # else each member takes its own
                kept.enter_context(self.members[0]._parts.stream.running())
            yield

    def _loop(self, total: int, bar: tqdm[Any], interrupts: Interrupts, progress: bool) -> None:
        config, quiet = self.config, cast("tqdm[Any]", _Quiet())
        started, first = time.perf_counter(), self.step
        seconds, images = [t.seconds for t in self.members], [t.images for t in self.members]
        updates = partial(config.critic_warmup.before, n_critic=config.n_critic)
        if first < total:
            self._each(lambda trainer: trainer._journal.proceed(), progress)
        step = first
        while step < total and not interrupts.exit_code:
            stretch = self.members[0]._stretch(total)
            with ExitStack() as lent:
                for trainer in self.members:
                    lent.enter_context(trainer._draws.ready(stretch))
                self._run(tuple([self._iterate.pattern(step + later) for later in range(stretch)]))
            step += stretch
            elapsed = time.perf_counter() - started
            for trainer, before, were in zip(self.members, seconds, images, strict=True):
                trainer.step, trainer.seconds = step, before + elapsed
                trainer.images = were + (updates(step) - updates(first)) * config.batch_size
            bar.update(stretch)
            whole = step % config.log_every == 0
            saves = self.out is not None and step % config.checkpoint_every == 0
            draws = self.out is not None and step % config.sample_every == 0
            if whole or step == total:
                self._each(lambda t, how=whole: t._journal.begin(quiet, t._row(how), rate=0.0, whole=how), progress)  # type: ignore[misc]
                rows = [t.history[-1] for at, t in enumerate(self.members) if at not in self.gone and t.history]
                bar.set_postfix(shown(rows, len(self), (step - first) / max(elapsed, 1e-9)), refresh=False)
            self._each(lambda trainer, wait=draws or saves: trainer._journal.finish(quiet, waits=wait), progress)  # type: ignore[misc]
            if draws:
                self._draw(f"samples/step-{step:08d}.png")
            if saves:
                self._save(progress)
        self._each(lambda trainer: trainer._journal.finish(quiet), progress)

    def _each(self, action: Callable[[Trainer], object], progress: bool = False) -> None:
        """Do something with each member that is left; one whose numbers are not finite is left no more.

        Raises NonFiniteError where nobody is.
        """
        for at, trainer in enumerate(self.members):
            if at in self.gone:
                continue
            try:
                action(trainer)
            except NonFiniteError as error:
                self.gone[at] = trainer.step
                self._note()
                what = str(error).partition(":")[0]
                if progress and sys.stderr is not None:
                    left = len(self) - len(self.gone)
                    line = f"fastgan: {_name(at)} is gone: {what}; {left} of {len(self)} go on"
                    require("tqdm.auto", why="the progress bar").tqdm.write(line, file=sys.stderr)
                if len(self.gone) == len(self):
                    raise NonFiniteError(
                        f"no member of the ensemble is left, the last one, {_name(at)}: {what}: training stopped; lower"
                        " the learning rates"
                    ) from error

    def _save(self, progress: bool = False) -> None:
        self._saved = self.step
        self._note()
        self._each(lambda trainer: trainer.save(), progress)

    def _draw(self, name: str) -> None:
        for at, trainer in enumerate(self.members):
            if at not in self.gone and trainer.out:
                trainer._draw(trainer.out / name)

    def _write_summary(self, out: Path) -> None:
        self.summary().write(out / "summary.csv")
        titles = [_name(at) + (f" (gone at {self.gone[at]})" if at in self.gone else "") for at in range(len(self))]
        samples = self.sample(ensemble_pictures.shown(self.data.sample_shape), seed=self.config.seed + 2)
        real = self.data.images[:1000]
        ensemble_pictures.save_summary(out / "summary.png", samples, self.history, titles=titles, real=real)

    def _runner(self) -> Way:
        """What runs iterations: launches, a block to a member; graphs on a GPU; the step itself on a CPU."""
        by_clock = self.config.graph and isinstance(self.members[0]._draws, ClockDraws)
        parts = [(own._iterate, own.dials, own._guard.kept) for own in self.members]
        otherwise = runs_all(cast(Any, self._iterate), parts, runner_for(self.device) if by_clock else None)
        members = [(own._iterate, own.config, own.data) for own in self.members]
        self.one_launch = one_launch.choose(members, self.device, apart=True)
        return one_launch.one_to_a_block(members, otherwise) if self.one_launch.taken else otherwise


def _name(at: int) -> str:
    return ensemble_folder.member(Path(), at).name


@torch.no_grad()
def _end(trainer: Trainer, step: int, when: int) -> None:
    """Put a member that is gone where the others are: it has no good state, and its rows end where it went."""
    for network in (trainer.generator, trainer.discriminator):
        for parameter in network.parameters():
            parameter.fill_(float("nan"))
    trainer.step = step
    trainer.dials.set(step)
    trainer._journal.rewind(when, when)
