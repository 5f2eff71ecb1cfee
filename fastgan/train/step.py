"""One training iteration: ``n_critic`` discriminator updates and one generator update, as a function of the device.

Nothing here asks the device for a value, and nothing on the host changes from one iteration to the next but the
``pattern``, which says for each of the discriminator's updates whether its penalty is due, thereby how many there are,
and whether the iteration is watched more closely. So a GPU may capture the whole iteration once for each pattern and
replay it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastgan.nn import sample_by_sample
from fastgan.objectives import OBJECTIVES, Objective, gradient_norm
from fastgan.ops import halves, unit_gradient
from fastgan.ops.diff_augment import diff_augment
from fastgan.ops.peers import Peers, together
from fastgan.presets import CriticWarmup
from fastgan.train.classes import Classes, Verdict
from fastgan.train.draws import Draws
from fastgan.train.gradients import Gradients
from fastgan.train.losses import Losses
from fastgan.train.metrics import Meter
from fastgan.train.packs import packed
from fastgan.train.penalties import Weighted

SMALLEST_SEED = 1e-20  # of a backward pass that serves both players: far below what counts, far above underflow


class Pattern(NamedTuple):
    """What the host decides about an iteration."""

    penalties: tuple[bool, ...]  # for each update of the discriminator: is the penalty due?
    watched: bool = False  # are diversity and gradient observed?

    @property
    def updates(self) -> int:
        """How many updates of the discriminator it has."""
        return len(self.penalties)


@dataclass
class Watch:
    """What a step looks at besides its losses.

    ``every``: so many iterations the last one is watched. ``diversity`` compares real and fake samples; ``balance``
    takes the shares of real and fake that D tells rightly, says on the device whether D's update is to be skipped, and
    has told its optimiser so; ``mend`` is called at the end of each iteration.
    """

    every: int = 0
    diversity: Callable[[Tensor, Tensor], Tensor] | None = None
    balance: Callable[[Tensor], Tensor] | None = None
    mend: Callable[[], None] | None = None


@dataclass
class Players:
    """The two networks and their optimisers."""

    generator: nn.Module
    discriminator: nn.Module
    generator_optimizer: Optimizer
    discriminator_optimizer: Optimizer


class Step:
    """One iteration; losses and scores go to ``meter``, which ends it.

    ``updates``, ``label_smoothing`` and ``augment`` are the configuration's. Real and fake go through the discriminator
    in one pass where its ``forward`` takes ``groups``, which keeps the statistics of each apart. Where the generator
    moves first and nothing in the discriminator mixes samples, one pass forward and one backward serve both updates.
    The discriminator, and the penalty with it, judges ``pac`` samples at a time. A generator that returns, beside its
    samples, how far they miss what it was told minimises that too.
    """

    def __init__(
        self,
        players: Players,
        objective: Objective,
        draws: Draws,
        meter: Meter,
        *,
        updates: str = "fresh",
        n_critic: int = 1,
        critic_warmup: CriticWarmup | None = None,
        label_smoothing: float = 0.0,
        augment: str = "",
        pac: int = 1,
        bf16: bool = False,
        penalty: Weighted | None = None,
        watch: Watch | None = None,
        fixed_gradients: bool = False,
        peers: Peers | None = None,
        class_weight: float = 1.0,
    ) -> None:
        self.players, self.draws, self.meter = players, draws, meter
        self.pac, self.n_critic, self.bf16, self.penalty, self.watch = pac, n_critic, bf16, penalty, watch or Watch()
        self.classes = Classes(players.generator, players.discriminator, class_weight)
        self._warmup, self._augment = critic_warmup or CriticWarmup(), augment
        self.losses = Losses(
            objective, critic=meter.critic, balance=self.watch.balance, label_smoothing=label_smoothing
        )
        self._iterate = {"fresh": self._fresh, "shared": self._shared, "generator_first": self._generator_first}[
            updates
        ]
        self._missed: list[Tensor] = []  # by the last samples
        self.peers, fixed = peers, fixed_gradients or peers is not None
        self._to_generator = Gradients(players.generator_optimizer, fixed=fixed)
        self._to_discriminator = Gradients(players.discriminator_optimizer, fixed=fixed)
        self._critic = [parameter for parameter in players.discriminator.parameters() if parameter.requires_grad]
        self._folds = "groups" in inspect.signature(players.discriminator.forward).parameters
        # if, besides, it has one logit a sample
        self.serves_both = sample_by_sample(players.discriminator) and not self.classes.classifies

    @property
    def objective(self) -> Objective:
        """What the players minimise."""
        return self.losses.objective

    @property
    def buffers(self) -> list[Tensor | torch.Generator]:
        """Memory of gradients that stays where it is, and the generator that is common to all processes."""
        common = [] if self.peers is None or self.peers.generator is None else [self.peers.generator]
        return [*self._to_generator.buffers, *self._to_discriminator.buffers, *common]

    def pattern(self, done: int) -> Pattern:
        """What the host decides about the iteration that follows so many."""
        first, updates = self._warmup.before(done, self.n_critic), self._warmup.at(done, self.n_critic)
        penalty, every = self.penalty, self.watch.every
        due = tuple([penalty is not None and penalty.lazy.due(first + at) for at in range(updates)])
        return Pattern(due, every > 0 and (done + 1) % every == 0)

    def __call__(self, pattern: Pattern) -> None:
        """Perform one iteration, together with the ``peers``, where there are any."""
        with together(self.peers):
            self._iterate(pattern)

    def _fresh(self, pattern: Pattern) -> None:
        for at in range(pattern.updates):
            with torch.no_grad():
                real, fake = self._draw(at)
            seen = self._update_discriminator(real, fake, at, pattern)
            self._next_update(at, seen, pattern)
        self._end(seen, self._update_generator(real, self.generate(self.draws.z(pattern.updates)), pattern))

    def _shared(self, pattern: Pattern) -> None:
        for at in range(pattern.updates):
            real, fake = self._draw(at)
            seen = self._update_discriminator(real, fake.detach(), at, pattern)
            self._next_update(at, seen, pattern)
        self._end(seen, self._update_generator(real, fake, pattern))

    def _generator_first(self, pattern: Pattern) -> None:
        real, fake = self._draw(0)
        if self.serves_both:
            self._end(self._update_both(real, fake, pattern), {})
        else:
            moved = self._update_generator(real, fake, pattern)
            self._end(self._update_discriminator(real, fake.detach(), 0, pattern), moved)

    def _draw(self, at: int) -> tuple[Tensor, Tensor]:
        """A batch of real samples and one of fake ones, of the same labels where they have any."""
        if self.classes.told:
            real, self.classes.labels = self.draws.labelled(at)
            return real, self.generate(self.draws.z(at))
        fake = self.generate(self.draws.z(at))
        return self.draws.real(at), fake

    def generate(self, z: Tensor) -> Tensor:
        """Samples of the latents ``z`` (and of the labels of the last real batch), in the run's precision."""
        with self._autocast(z):
            made: Tensor | tuple[Tensor, Tensor] = self.players.generator(z, *self.classes.to_generator())
        fake, *self._missed = made if isinstance(made, tuple) else (made,)
        return fake

    def judge(self, samples: Tensor) -> Tensor:
        """Logits of ``samples``, or of packs of them, in float32."""
        return self._logits(packed(samples, self.pac)).float()

    def _logits(self, samples: Tensor) -> Tensor:
        """Logits of samples, packed already, as losses take them."""
        return self._verdict(samples)[0]

    def _verdict(self, samples: Tensor, **how: int) -> Verdict:
        """Logits of samples, augmented where they are to be, and class logits of a discriminator that classifies."""
        samples = diff_augment(samples, self._augment) if self._augment else samples
        with self._autocast(samples):
            output = self.players.discriminator(samples, *self.classes.to_discriminator(len(samples)), **how)
        logits, kinds = self.classes.verdict(output)
        takes_any = OBJECTIVES.get(self.objective.name) is self.objective  # ours compute in float32 whatever comes
        return logits if takes_any else logits.float(), kinds

    def judge_both(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits of both, packed already, by one pass where that is exact; and class logits, real ones first."""
        if not self._folds or real.shape != fake.shape:
            (of_real, first), (of_fake, second) = self._verdict(real), self._verdict(fake)
            return of_real, of_fake, None if first is None or second is None else torch.cat((first, second))
        logits, kinds = self._verdict(torch.cat((real, fake)), groups=2)
        return *halves(logits), kinds

    def _update_discriminator(self, real: Tensor, fake: Tensor, at: int, pattern: Pattern) -> dict[str, Tensor]:
        fake = self.draws.noisy(fake, at)
        packs = packed(real, self.pac), packed(fake, self.pac)
        real_logits, fake_logits, kinds = self.judge_both(*packs)
        loss, seen = self.losses.discriminator(real_logits, fake_logits)
        outputs, seeds = [loss], [unit_gradient(loss)]
        self._classify(kinds, outputs, seeds)
        self._penalise(pattern.penalties[at], packs, outputs, seeds, seen)
        self._to_discriminator.form(outputs, seeds)
        self.players.discriminator_optimizer.step()
        self._to_discriminator.clear()
        if pattern.watched and at == pattern.updates - 1:
            self._compare(real, fake, seen)
        return seen

    def _penalise(
        self,
        due: bool,
        samples: tuple[Tensor, Tensor],
        outputs: list[Tensor],
        seeds: list[Tensor],
        seen: dict[str, Tensor],
    ) -> None:
        """Put the penalty at real and fake samples, where it is due, beside what backward begins from, and show it."""
        if due and self.penalty is not None:
            value, weight = self.penalty(self._logits, *samples)
            seen["penalty"] = value.detach()
            outputs.append(value)
            seeds.append(weight)

    def _classify(self, kinds: Tensor | None, outputs: list[Tensor], seeds: list[Tensor]) -> None:
        """Put the cross-entropy of the classes, where there are any, beside what backward begins from."""
        if (value := self.classes.cross_entropy(kinds)) is not None:
            outputs.append(value)
            seeds.append(unit_gradient(value))

    def _compare(self, real: Tensor, fake: Tensor, seen: dict[str, Tensor]) -> None:
        if self.watch.diversity is not None:
            seen["diversity"] = self.watch.diversity(real, fake)

    def _update_generator(self, real: Tensor, fake: Tensor, pattern: Pattern) -> dict[str, Tensor]:
        with self._frozen_discriminator():  # no gradient is formed for weights that this update does not move
            fake = packed(self.draws.noisy(fake, pattern.updates), self.pac)
            if self.objective.needs_real:
                real_logits, fake_logits, kinds = self.judge_both(packed(real, self.pac), fake)
                kinds = None if kinds is None else kinds[len(real) :]
                loss = self.objective.generator(fake_logits, real_logits)
            else:
                fake_logits, kinds = self._verdict(fake)
                loss = self.objective.generator(fake_logits)
            outputs = [loss, *self._missed]
            seeds = [unit_gradient(own) for own in outputs]
            self._classify(kinds, outputs, seeds)
            self._to_generator.form(outputs, seeds)
        return {"loss_g": self._whole(loss), **self._move_generator(pattern.watched)}

    def _whole(self, loss: Tensor) -> Tensor:
        """What the generator minimises, of which ``loss`` is what the discriminator's logits say."""
        return sum((own.detach() for own in self._missed), loss.detach())

    def _move_generator(self, watched: bool) -> dict[str, Tensor]:
        """Step the generator by the gradients that are there; their norm, where the iteration is watched."""
        norm = gradient_norm(self.players.generator.parameters()) if watched else None
        self.players.generator_optimizer.step()
        self._to_generator.clear()
        return {} if norm is None else {"gradient_g": norm}

    def _update_both(self, real: Tensor, fake: Tensor, pattern: Pattern) -> dict[str, Tensor]:
        """Update both by one pass through the discriminator, whose weights the generator's update does not move.

        With one logit a pack and nothing that mixes packs, a pack's gradient is its logit's slope times the same
        vector for either loss: backward goes with the discriminator's slopes, and what arrives at the fake packs is
        scaled, pack by pack, to the generator's.
        """
        noisy = self.draws.noisy(fake, 0)
        seen_by_d, packs = packed(noisy, self.pac), packed(real, self.pac)
        leaf = seen_by_d.detach().requires_grad_()
        real_logits, fake_logits, _ = self.judge_both(packs, leaf)
        seen, to_real, to_fake = self.losses.slopes(real_logits, fake_logits)
        seen["loss_g"], to_generator = self.losses.generator_slopes(real_logits, fake_logits)
        seeds = torch.where(to_fake.abs() < SMALLEST_SEED, SMALLEST_SEED, to_fake)
        outputs, slopes = [real_logits, fake_logits], [to_real, seeds]
        self._penalise(pattern.penalties[0], (packs, leaf.detach()), outputs, slopes, seen)
        at_fake = self._to_discriminator.form(outputs, slopes, leaf)
        assert at_fake is not None
        scale = (to_generator / seeds).to(at_fake.dtype).view(-1, *[1] * (leaf.dim() - 1))
        missed = [unit_gradient(own) for own in self._missed]
        self._to_generator.form([seen_by_d, *self._missed], [at_fake * scale, *missed])
        seen["loss_g"] = self._whole(seen["loss_g"])
        seen |= self._move_generator(pattern.watched)
        self.players.discriminator_optimizer.step()
        self._to_discriminator.clear()
        if pattern.watched:
            self._compare(real, noisy.detach(), seen)
        return seen

    def _next_update(self, at: int, seen: dict[str, Tensor], pattern: Pattern) -> None:
        """Note what the discriminator's updates before the last one have seen."""
        if at < pattern.updates - 1:
            self.meter.observe(ends=False, **seen)

    def _end(self, seen: dict[str, Tensor], moved: dict[str, Tensor]) -> None:
        if self.watch.mend is not None:
            self.watch.mend()
        self._missed = []
        self.meter.observe(ends=True, **seen, **moved)

    @contextmanager
    def _frozen_discriminator(self) -> Iterator[None]:
        for parameter in self._critic:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in self._critic:
                parameter.requires_grad_(True)

    def _autocast(self, tensor: Tensor) -> AbstractContextManager[object]:
        return torch.autocast(tensor.device.type, dtype=torch.bfloat16) if self.bf16 else nullcontext()
