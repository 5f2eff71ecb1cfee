"""The engine from Python: build a training from a preset, a configuration or your own parts, and run it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastgan.data import Dataset
from fastgan.errors import NonFiniteError, UserError
from fastgan.presets import Config
from fastgan.train import belongs, build, checkpoint, one_launch, run, state
from fastgan.train.alarms import ROLLBACK, Alarm, Alarms
from fastgan.train.album import Album
from fastgan.train.balance import Balance
from fastgan.train.best import Best
from fastgan.train.capture import runner_for
from fastgan.train.classes import chosen_labels, number_of
from fastgan.train.conditions import conditioned, told
from fastgan.train.contrast_album import ALBUMS
from fastgan.train.dials import Dials
from fastgan.train.draws import ClockDraws
from fastgan.train.generate import drawing, refuse_without_samples, samples
from fastgan.train.guard import ROLLBACKS, Guard, copied, refuse_non_finite
from fastgan.train.joining import join, same_start
from fastgan.train.journal import Journal
from fastgan.train.methods import method_of
from fastgan.train.metrics import Meter, Row
from fastgan.train.one_launch import Way
from fastgan.train.own import Objectives, as_objective, build_players, configured, named, own_data
from fastgan.train.probe import fit_together
from fastgan.train.replays import runs
from fastgan.train.sampler import Latents
from fastgan.train.show import Advice, describe, progress_bar
from fastgan.train.signals import ECHO, Interrupts
from fastgan.train.stream import Stream
from fastgan.train.tensorboard import Board

if TYPE_CHECKING:
    from tqdm import tqdm


class Trainer:
    """Trains a generator against a discriminator.

    ``Trainer("gan-digits", steps=2000)`` takes a preset and changes keys of it. ``Trainer(generator=G, discriminator=D,
    data=tensor, z_dim=100)`` takes parts of your own: modules ``z (n, z_dim) -> samples`` and ``samples -> logits``,
    data as a tensor, a Dataset or a name, an objective by name, as an Objective or a fastgan.nn.GANLoss, as a function
    ``(real_logits, fake_logits) -> (loss of D, loss of G)`` or as a pair of functions ``(real_logits, fake_logits)``
    and ``(fake_logits)``, optimisers as ``{"generator": ..., "discriminator": ...}``. ``keep_best`` may be a function
    of the Trainer, which returns a score, the higher, the better.

    ``out``, a folder, receives configuration, metrics, pictures and checkpoints; without it the run stays in memory.
    Where torchrun's environment or an initialised torch.distributed describes several processes, all make the Trainer
    alike and train one run together: docs/scaling.md.
    ``history`` holds one row per ``log_every`` steps: means over those steps; ``alarms`` what was wrong, and when.
    ``step`` counts the steps, ``images`` the real samples that the discriminator has been shown. ``generator`` and
    ``discriminator`` are in training mode. Raises UserError for parts that do not fit together.

    Random streams, all fixed by ``seed``: the networks are initialised under ``torch.manual_seed(seed)`` on the CPU,
    generator first; the order of epoch e is the permutation of ``numpy.random.default_rng((seed, e))``; latents come
    from a generator seeded ``seed + 1`` (on a GPU orders and latents follow from seed and step),
    the pictures' from one seeded ``seed + 2``; dropout draws from the global stream, which ``fit`` keeps apart.
    """

    def __init__(
        self,
        config: Config | str | None = None,
        *,
        generator: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        data: Tensor | Dataset | str | None = None,
        objective: Objectives | None = None,
        optimizers: Mapping[str, Optimizer] | None = None,
        keep_best: str | Callable[[Trainer], float] | None = None,
        out: str | Path | None = None,
        **keys: Any,
    ) -> None:
        objective, networks = named(objective), {"generator": generator, "discriminator": discriminator}
        keys |= {"keep_best": keep_best} if isinstance(keep_best, str) else {}
        plain, config = configured(config, {**networks, "data": data, "objective": objective}, keys)
        self.team = team = join(config.device)
        self.config, self.device = config, (where := team.device)
        part, together = team.part(config.batch_size, config.pac), team.peers(config.seed)
        with team.in_turn():
            self.data = own_data(data, config, where)
        build.check(config, self.data)
        self.dials = dials = Dials(config, self.device)
        self.players = players = build_players(plain, self.data, dials, networks, optimizers or {})
        self.generator, self.discriminator = players.generator, players.discriminator
        same_start(team, (self.generator, self.discriminator), config, self.data)
        self.step, self.images, self.seconds, self.exit_code, self._saved_at = 0, 0, 0.0, 0, -1
        value = as_objective(config.objective if objective is None else objective)
        bf16 = build.bf16(config, self.device)
        critic_updates = partial(config.critic_warmup.before, n_critic=config.n_critic)
        self._guard = Guard(config.on_nan, players, dials, critic_updates)
        self._balance = Balance(value, players, self.device) if config.balance == "auto" else None
        self._draws = conditioned(self.generator, self.data, config, dials, self.device, bf16, part)
        self._meter = Meter(dials, value.name == "wasserstein", config.on_nan == "skip", together)
        self._alarms = Alarms(value if config.method == "adversarial" else None)
        self._board = team.lead(Board) if config.tensorboard else None
        advice = Advice(self._draws.feeder, lambda: self._alarms.aloud)
        readers = [self._alarms.see, advice.see, *([self._board.row] if self._board else [])]
        self._journal = Journal(self._meter, self._guard, readers)
        self._best = Best(kept, self._meter.critic) if (kept := keep_best or config.keep_best) is not None else None
        self.out = Path(out) if out is not None else None
        stream = Stream(team.own_seed(config.seed), self.device)
        self._parts = state.Parts(players, self._draws, dials, self._meter, stream, team, together)
        self._album = ALBUMS.get(config.method, Album)(self._parts, self.data, config, self.device)
        self._good: checkpoint.Checkpoint | None = None
        self._iterate = method_of(
            config, players, value, self._draws, self._meter, dials, self._balance, self._guard, together, self.data
        )
        self._run = self._runner()
        first, *rest = self.data.sample_shape
        z = torch.zeros(part[1], config.z_dim + (kinds := told(self.generator)), device=self.device)
        fit_together(self._iterate, z, (first + kinds, *rest))

    @property
    def history(self) -> list[Row]:
        """One row per ``log_every`` steps: means over those steps."""
        return self._journal.history

    @property
    def out(self) -> Path | None:
        """The run's folder; None keeps the run in memory."""
        return self._out

    @out.setter
    def out(self, path: Path | None) -> None:
        self._out, self._journal.out = path, path if self.team.first else None
        self._alarms.out = self._journal.out

    @property
    def alarms(self) -> list[Alarm]:
        """Each beginning and end of an alarm, and each rollback: see fastgan.train.alarms."""
        return self._alarms.raised

    @property
    def slowed(self) -> float:
        """What rollbacks have multiplied the configuration's learning rates by: 1 without any."""
        return self._guard.factor

    def describe_device(self) -> str:
        """The device, its precision, the backend that the fused ops take there and why, and how steps run."""
        return describe(self.device, self.config, self._run, self._draws.feeder)

    def describe_one_launch(self) -> str:
        """Whether iterations go in one launch, and why or why not."""
        return f"{'taken' if self.one_launch.taken else 'not taken'}: {self.one_launch.why}"

    def fit(self, steps: int | None = None, *, progress: bool = True) -> Trainer:
        """Train until ``steps`` (default: the configuration's) steps are done in total, then write the final pictures.

        ``progress`` shows a bar, and alarms as they begin and end. Ctrl-C, SIGTERM or SIGUSR1 saves and returns with
        ``exit_code`` 130, 143 or 138 (main thread only). Raises NonFiniteError where a loss is no finite number and the
        configuration's ``on_nan`` does not help, after writing the metrics and before any further checkpoint, and
        UserError where ``out`` holds the checkpoints of another run or another process trains in it.
        """
        progress = progress and self.team.first
        total, self._alarms.aloud = self.config.steps if steps is None else steps, progress
        with self.team.holding(self.out):
            self._begin()
            try:
                with Interrupts(ECHO if self.team.many else 0.0) as interrupts, build.threads(self.config.threads):
                    while not self._trained(total, progress, interrupts):
                        pass
            finally:
                if self._board:
                    self._board.end()
        self.exit_code = interrupts.exit_code
        return self

    def sample(self, n: int, *, seed: int | None = None, labels: int | Sequence[int] | Tensor | None = None) -> Tensor:
        """Draw ``n`` samples ``(n, *sample_shape)`` from the generator in evaluation mode, without gradients.

        With averaged weights, where the configuration keeps an average. ``labels``, of a generator that takes them:
        the class of all, or of each; None: classes at random. Raises UserError for labels that it does not know.
        """
        refuse_without_samples(self.config)
        seed = _fresh_seed() if seed is None else seed
        latents = Latents(self.config.latent, self.config.z_dim, self.device, seed)
        z = latents.draw(n)
        kinds = chosen_labels(labels, n, number_of(self.generator), latents.generator)
        with self._album.averaged(), drawing(seed, self.device):
            return samples(self.generator, z, kinds)

    def save(self) -> None:
        """Write a checkpoint of this step into the run's folder. Raises UserError where the Trainer has no ``out``."""
        if self.out is None:
            raise UserError("this Trainer keeps its run in memory: give it out='runs/NAME' to save checkpoints")
        if self._saved_at != self.step:
            content = self._content()
            self.team.lead(partial(self._write, self.out / "checkpoints", content))
            self._saved_at = self.step

    def _write(self, folder: Path, content: checkpoint.Checkpoint) -> None:
        self._journal.sync()
        if self._best:  # first: once the other one is there, nothing comes back to this step
            with self._parts.stream.aside():
                value = self._best.value(self)
            self._best.keep(folder, content, value)
        checkpoint.save(folder, content, self.config.keep_checkpoints)

    def resume(self, stored: checkpoint.Checkpoint) -> None:
        """Continue from a checkpoint: state, counters, metrics are those of its step. Raises UserError if foreign."""
        belongs.check_table(stored, self.data)
        state.restore(stored, self._parts)
        self.step, self.images = stored.step, int(stored.values["images"])
        self.seconds = float(stored.values["seconds"])
        self._saved_at = self.step
        self._guard.load(stored.values)
        self._journal.rewind(self.step, int(stored.values.get("last_row", self.step)))
        self._alarms.rewind(self._journal.whole_rows(), self.step, self._guard.rollbacks)
        self._run = self._runner()  # graphs would go on with the memory of a state that is gone

    def _content(self) -> checkpoint.Checkpoint:
        """What a checkpoint holds now. Raises NonFiniteError where that is no good state."""
        networks = (self.generator, self.discriminator)
        refuse_non_finite(
            [self._meter.whole(), *(t for network in networks for t in network.state_dict().values())], self.step
        )
        counters = {name: getattr(self, name) for name in ("step", "images", "seconds")}
        shape = belongs.described(self.data, any(map(number_of, networks)))
        rows = {"last_row": self._journal.told, **self._guard.state()}
        return state.gather(self._parts, {**counters, **shape, **rows})

    def _begin(self) -> None:
        """Make ready to train on.

        A new run's folder gets its configuration; one with the checkpoints of another run is refused, metrics of one
        that never reached a checkpoint are dropped.
        """
        out, folder = self.out, self.out / "checkpoints" if self.out else None
        state.refresh_shadows(self.players)
        if out and folder and self.step == 0:
            self.team.lead(partial(run.begin, out, self.config, self._saved_at < 0))
            self._journal.rewind(0, 0)
            self._alarms.rewind([], -1)
        if out:
            self.team.lead(partial(run.tidy, out, self.config.keep_checkpoints))
        if folder and self._best:
            self.team.lead(partial(self._best.begin, folder, self.step))
        if out and self._board:
            self._board.begin(out, self.step)
        if self.config.on_nan == "rollback" and not (folder and checkpoint.whole(folder)):
            self._good = copied(self._content())

    def _trained(self, total: int, progress: bool, interrupts: Interrupts) -> bool:
        """Train to the end and write what is left; False where the run was rolled back and has to go on."""
        try:
            with self._parts.stream.running(), self._draws.running():
                with progress_bar(total, self.step, progress) as bar:
                    self._loop(total, bar, interrupts)
                if self.out:
                    self.save()
                    self._draw(self.out / "final.png")
        except NonFiniteError as error:
            if self.config.on_nan != "rollback":
                raise
            self._roll_back(error)
            return False
        return True

    def _roll_back(self, error: NonFiniteError) -> None:
        """Go back to the last good state with lower learning rates. Raises the error again where that was in vain."""
        guard, lost = self._guard, self.step
        rollbacks, factor = guard.next_rollback(error)
        stored = (run.latest_checkpoint(self.out) if self.out else None) or self._good
        assert stored is not None
        self.resume(replace(stored, values={**stored.values, "rollbacks": rollbacks, "lr_factor": factor}))
        where = f"back at step {self.step}, learning rates at {factor:g} of the configuration's"
        text = f"not finite by step {lost}: {where}"
        self._alarms.note(Alarm(self.step, ROLLBACK, f"{rollbacks} of {ROLLBACKS}", text))
        if self.out and self._board:
            self._board.begin(self.out, self.step)

    def _loop(self, total: int, bar: tqdm[Any], interrupts: Interrupts) -> None:
        config, journal = self.config, self._journal
        started, seconds, images = time.perf_counter(), self.seconds, self.images
        if self.step < total:
            journal.proceed()
        while self.step < total and not interrupts.stops(self.team, self.step % config.log_every == 0):
            stretch = self._stretch(total)
            with self._draws.ready(stretch):
                patterns = tuple([self._iterate.pattern(self.step + later) for later in range(stretch)])
                self._run(patterns)
            self.step += stretch
            self.images += sum(pattern.updates for pattern in patterns) * config.batch_size
            elapsed = time.perf_counter() - started
            self.seconds = seconds + elapsed
            bar.update(stretch)
            whole = self.step % config.log_every == 0
            if whole or self.step == total:
                journal.begin(bar, self._row(whole), rate=(self.images - images) / max(elapsed, 1e-9), whole=whole)
            saves = self.step % config.checkpoint_every == 0
            draws = self.out is not None and self.step % config.sample_every == 0
            journal.finish(bar, waits=draws or saves or self.team.many)
            if draws and self.out:
                self._draw(self.out / f"samples/step-{self.step:08d}.png")
            if saves and self.out:
                self.save()
            elif saves and config.on_nan == "rollback":
                self._good = copied(self._content())
        journal.finish(bar)

    def _row(self, whole: bool) -> Row:
        """What the host knows of this step."""
        peak = torch.cuda.max_memory_allocated(self.device) // 2**20 if self.device.type == "cuda" else None
        stalled = round(feeder.stalled(keeps=not whole), 3) if (feeder := self._draws.feeder) else None
        row: Row = {"step": self.step, "images": self.images, "seconds": round(self.seconds, 3), "memory": peak}
        return row | {"stalled": stalled}

    def _stretch(self, total: int) -> int:
        """How many iterations to run before the host has anything to do: as many as a graph holds, else one."""
        config = self.config
        kept = (config.sample_every, config.checkpoint_every) if self.out or config.on_nan == "rollback" else ()
        left = min(total - self.step, *(every - self.step % every for every in (config.log_every, *kept)))
        return config.unroll if config.unroll <= left else 1

    def _runner(self) -> Way:
        """What runs iterations: launches or graphs on a GPU; the step itself on a CPU."""
        training = self._iterate, self.config, self.data
        self.one_launch = one_launch.choose([training], self.device)
        runner = runner_for(self.device) if self.config.graph and isinstance(self._draws, ClockDraws) else None
        otherwise = runs(self._iterate, self.dials, self._guard.kept, runner)
        return one_launch.single(*training, otherwise) if self.one_launch.taken else otherwise

    def _draw(self, path: Path) -> None:
        """Draw samples into ``path``, where they can be shown, and the curves so far."""
        self.team.lead(partial(self._drawn, path))

    def _drawn(self, path: Path) -> None:
        assert self.out is not None
        if self._album.draw(path, self.step) and self._board:
            self._board.picture(path, self.step)
        self._album.curves(self.out / "curves.png", self.history)


def _fresh_seed() -> int:
    return int(torch.randint(2**31, ()))  # from the caller's stream: torch.manual_seed makes it repeatable
