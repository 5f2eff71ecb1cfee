"""The engine from Python: build a training from a preset, a configuration or your own parts, and run it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastgan.data import Dataset
from fastgan.errors import NonFiniteError, UserError, require, unknown
from fastgan.objectives import Objective
from fastgan.objectives import objective as objective_by_name
from fastgan.ops import backend
from fastgan.presets import Config, from_dict, nested, preset
from fastgan.train import build, checkpoint, pictures, state
from fastgan.train.dials import Dials
from fastgan.train.draws import draws
from fastgan.train.generate import samples
from fastgan.train.journal import Journal
from fastgan.train.metrics import Meter, Row
from fastgan.train.penalties import weighted
from fastgan.train.probe import fit_together
from fastgan.train.sampler import Latents
from fastgan.train.signals import Interrupts
from fastgan.train.step import Players, Step
from fastgan.train.stream import Stream

if TYPE_CHECKING:
    from tqdm import tqdm


class Trainer:
    """Trains a generator against a discriminator.

    ``Trainer("gan-digits", steps=2000)`` takes a preset and changes keys of it. ``Trainer(generator=G, discriminator=D,
    data=tensor, z_dim=100)`` takes parts of your own: modules ``z (n, z_dim) -> samples`` and ``samples -> logits``,
    data as a tensor, a Dataset or a name, an objective by name or as an Objective, optimisers as
    ``{"generator": ..., "discriminator": ...}``.

    ``out``, a folder, receives metrics, pictures and checkpoints; without it the run stays in memory. ``history`` holds
    one row per ``log_every`` steps: means over those steps. ``step`` counts the steps, ``images`` the real samples that
    the discriminator has been shown. Raises UserError for parts that do not fit together.

    Random streams, all fixed by ``seed``: the networks are initialised under ``torch.manual_seed(seed)`` on the CPU,
    generator first; the order of epoch e is the permutation of ``numpy.random.default_rng((seed, e))``; latents come
    from a generator seeded ``seed + 1``, the fixed latents of the pictures from one seeded ``seed + 2``; dropout and
    the like draw from the global stream, which ``fit`` keeps apart from the caller's.
    """

    def __init__(
        self,
        config: Config | str | None = None,
        *,
        generator: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        data: Tensor | Dataset | str | None = None,
        objective: str | Objective | None = None,
        optimizers: Mapping[str, Optimizer] | None = None,
        out: str | Path | None = None,
        **keys: Any,
    ) -> None:
        base = preset(config) if isinstance(config, str) else config or Config()
        if isinstance(data, str):
            keys["data"] = data
        if isinstance(objective, str):
            keys["objective"] = objective
        self.config = config = from_dict(nested(keys), base)
        self.device = build.device(config.device)
        self.data = self._own_data(data) if isinstance(data, Tensor | Dataset) else build.dataset(config, self.device)
        if config.flip and len(self.data.sample_shape) != 3:
            raise UserError(f"flip mirrors images, and {self.data.name} holds points: set flip=false")
        if generator is None or discriminator is None:
            built = build.networks(config, self.data.sample_shape)
            if self.device.type == "cuda":  # where weights of convolutions are read by whole vectors that way
                for network in built:
                    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            generator = built[0] if generator is None else generator
            discriminator = built[1] if discriminator is None else discriminator
        generator.to(self.device).train()
        discriminator.to(self.device).train()
        optimizers = optimizers or {}
        for side in optimizers:
            if side not in state.SIDES:
                raise unknown("side of optimizers", side, state.SIDES)
        self.dials = dials = Dials(config, self.device)
        self.players = Players(
            generator,
            discriminator,
            optimizers.get("generator") or build.adam(generator, "generator", config, dials),
            optimizers.get("discriminator") or build.adam(discriminator, "discriminator", config, dials),
        )
        self.step, self.images, self.seconds, self.exit_code = 0, 0, 0.0, 0
        objective = objective if isinstance(objective, Objective) else objective_by_name(config.objective)
        bf16 = build.bf16(config, self.device)
        self._draws = draws(self.data, config, dials, self.device, bf16)
        self._meter = Meter(dials, critic=objective.name == "wasserstein")
        self._journal = Journal(self._meter)
        self.out = Path(out) if out is not None else None
        self._parts = state.Parts(self.players, self._draws, dials, self._meter, Stream(config.seed, self.device))
        self._saved_at = -1
        self._iterate = Step(
            self.players,
            objective,
            self._draws,
            self._meter,
            updates=config.updates,
            n_critic=config.n_critic,
            bf16=bf16,
            penalty=weighted(config.penalty, dials["penalty_weight"]),
        )
        fit_together(
            self._iterate, torch.zeros(config.batch_size, config.z_dim, device=self.device), self.data.sample_shape
        )

    @property
    def history(self) -> list[Row]:
        """One row per ``log_every`` steps: means over those steps."""
        return self._journal.history

    @property
    def out(self) -> Path | None:
        """The run's folder; None keeps the run in memory."""
        return self._journal.out

    @out.setter
    def out(self, path: Path | None) -> None:
        self._journal.out = path

    @property
    def generator(self) -> nn.Module:
        """The generator, in training mode."""
        return self.players.generator

    @property
    def discriminator(self) -> nn.Module:
        """The discriminator, in training mode."""
        return self.players.discriminator

    def describe_device(self) -> str:
        """The device, its precision, and the backend that the fused ops take there and why."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        number = "bf16" if build.bf16(self.config, self.device) else "fp32"
        ways: dict[str, list[str]] = {}
        for choice in backend.explain(self.device):
            ways.setdefault(f"{choice.backend} ({choice.why})", []).append(choice.op)
        ops = "; ".join(f"{', '.join(ops) if len(ways) > 1 else 'fused ops'}: {way}" for way, ops in ways.items())
        return f"{name} in {number}; {ops}"

    def fit(self, steps: int | None = None, *, progress: bool = True) -> Trainer:
        """Train until ``steps`` (default: the configuration's) steps are done in total, then write the final pictures.

        Ctrl-C or SIGTERM saves and returns with ``exit_code`` 130 or 143 (main thread only). Raises NonFiniteError
        where a loss is no finite number, after writing the metrics and before any further checkpoint, and UserError
        where ``out`` holds the checkpoints of another run.
        """
        total = self.config.steps if steps is None else steps
        if self.out:
            self.out.mkdir(parents=True, exist_ok=True)
            if self.step == 0:
                self._begin(self.out)
        with Interrupts() as interrupts, self._parts.stream.running(), build.threads(self.config.threads):
            with self._progress_bar(total, progress) as bar:
                self._loop(total, bar, interrupts)
            if self.out:
                self.save()
                self._draw(self.out / "final.png")
        self.exit_code = interrupts.exit_code
        return self

    def sample(self, n: int, *, seed: int | None = None) -> Tensor:
        """Draw ``n`` samples ``(n, *sample_shape)`` from the generator in evaluation mode, without gradients.

        With averaged weights, where the configuration keeps an average.
        """
        latents = Latents(self.config.latent, self.config.z_dim, self.device, _fresh_seed() if seed is None else seed)
        with self._averaged():
            return samples(self.generator, latents.draw(n))

    def save(self) -> None:
        """Write a checkpoint of this step into the run's folder. Raises UserError where the Trainer has no ``out``."""
        if self.out is None:
            raise UserError("this Trainer keeps its run in memory: give it out='runs/NAME' to save checkpoints")
        if self._saved_at != self.step:
            self._refuse_non_finite()
            counters = {
                "step": self.step,
                "images": self.images,
                "seconds": self.seconds,
                "sample_shape": list(self.data.sample_shape),
            }
            content = state.gather(self._parts, counters)
            checkpoint.save(self.out / "checkpoints", content, self.config.keep_checkpoints)
            self._saved_at = self.step

    def resume(self, stored: checkpoint.Checkpoint) -> None:
        """Continue from a checkpoint: state, counters, metrics are those of its step. Raises UserError if foreign."""
        state.restore(stored, self._parts)
        self.step, self.images = stored.step, int(stored.values["images"])
        self.seconds = float(stored.values["seconds"])
        self._saved_at = self.step
        self._journal.rewind(self.step)

    def _begin(self, out: Path) -> None:
        """Refuse a folder that holds another run; metrics of one that never reached a checkpoint are dropped."""
        if self._saved_at < 0 and checkpoint.whole(out / "checkpoints"):
            raise UserError(f"{out} holds the checkpoints of a run already: resume from one, or give another out")
        self._journal.rewind(0)

    def _loop(self, total: int, bar: tqdm[Any], interrupts: Interrupts) -> None:
        config, journal = self.config, self._journal
        started, seconds, images = time.perf_counter(), self.seconds, self.images
        while self.step < total and not interrupts.exit_code:
            self._iterate(self._iterate.pattern(self.step))
            self.step += 1
            self.images += config.n_critic * config.batch_size
            elapsed = time.perf_counter() - started
            self.seconds = seconds + elapsed
            bar.update()
            if self.step % config.log_every == 0 or self.step == total:
                rate = (self.images - images) / max(elapsed, 1e-9)
                journal.begin(bar, step=self.step, images=self.images, seconds=self.seconds, rate=rate)
            draws = self.out is not None and self.step % config.sample_every == 0
            saves = self.out is not None and self.step % config.checkpoint_every == 0
            journal.finish(bar, waits=draws or saves)
            if draws and self.out:
                self._draw(self.out / f"samples/step-{self.step:08d}.png")
            if saves:
                self.save()
        journal.finish(bar)

    def _progress_bar(self, total: int, shown: bool) -> tqdm[Any]:
        seen = sys.stderr is not None  # it is None where the process was started with stderr closed
        pause = 0.2 if seen and sys.stderr.isatty() else 10.0  # a log file wants few lines
        module = require("tqdm.auto", why="the progress bar")
        bar: tqdm[Any] = module.tqdm(
            total=total,
            initial=min(self.step, total),
            disable=not (shown and seen),
            dynamic_ncols=True,
            mininterval=pause,
            unit="it",
        )
        return bar

    def _refuse_non_finite(self) -> None:
        """A good checkpoint is never replaced by one that holds NaN."""
        tensors = [self._meter.sums, *self.generator.parameters(), *self.discriminator.parameters()]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
            raise NonFiniteError(
                f"a loss or weight is not finite at step {self.step}: training stopped without saving it;"
                " lower the learning rate, or resume from the last checkpoint"
            )

    def _draw(self, path: Path) -> None:
        """Draw samples of the fixed latents, where they can be shown, into ``path``; and the curves so far."""
        config = self.config
        if pictures.drawable(self.data.sample_shape):
            fixed = Latents(config.latent, config.z_dim, torch.device("cpu"), config.seed + 2).draw(config.samples)
            with self._parts.stream.aside(), self._averaged():
                made = samples(self.generator, fixed.to(self.device))
            pictures.save_samples(made, path, real=self.data.images[:1000], title=f"step {self.step}")
        if self.history and self.out:
            pictures.save_curves(self.history, self.out / "curves.png")

    def _averaged(self) -> AbstractContextManager[None]:
        """Context in which the generator has its averaged weights, where it has any."""
        averages = state.averages_of(self.players.generator_optimizer)
        return averages.swap() if averages is not None else nullcontext()

    def _own_data(self, data: Tensor | Dataset) -> Dataset:
        return (data if isinstance(data, Dataset) else Dataset.from_tensor(data)).to(self.device)


def _fresh_seed() -> int:
    return int(torch.randint(2**31, ()))  # from the caller's stream: torch.manual_seed makes it repeatable
