"""One training iteration: ``n_critic`` discriminator updates and one generator update, as a function of the device.

Nothing here asks the device for a value, and nothing on the host changes from one iteration to the next but the
``pattern``, which says for each of the discriminator's updates whether its penalty is due, and whether the iteration is
watched more closely. So a GPU may capture the whole iteration once for each pattern and replay it.
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
from fastgan.ops.peers import Peers, together
from fastgan.train.draws import Draws
from fastgan.train.gradients import Gradients
from fastgan.train.metrics import Meter
from fastgan.train.penalties import Weighted

SMALLEST_SEED = 1e-20  # of a backward pass that serves both players: far below what counts, far above underflow


SCORED = ("minimax", "non_saturating", "wasserstein")  # whose monitors are D(x) and D(G(z)) as metrics show them


class Pattern(NamedTuple):
    """What the host decides about an iteration."""

    penalties: tuple[bool, ...]  # for each update of the discriminator: is the penalty due?
    watched: bool = False  # are diversity and gradient observed?


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

    ``updates`` is the configuration's. Real and fake go through the discriminator in one pass where its ``forward``
    takes ``groups``, which keeps the statistics of each apart. Where the generator moves first and nothing in the
    discriminator mixes samples, one pass forward and one backward serve both updates.
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
        bf16: bool = False,
        penalty: Weighted | None = None,
        watch: Watch | None = None,
        fixed_gradients: bool = False,
        peers: Peers | None = None,
    ) -> None:
        self.players, self.objective, self.draws, self.meter = players, objective, draws, meter
        self.n_critic, self.bf16, self.penalty, self.watch = n_critic, bf16, penalty, watch or Watch()
        self._iterate = {"fresh": self._fresh, "shared": self._shared, "generator_first": self._generator_first}[
            updates
        ]
        self.peers, fixed = peers, fixed_gradients or peers is not None
        self._to_generator = Gradients(players.generator_optimizer, fixed=fixed)
        self._to_discriminator = Gradients(players.discriminator_optimizer, fixed=fixed)
        self._critic = [parameter for parameter in players.discriminator.parameters() if parameter.requires_grad]
        self._folds = "groups" in inspect.signature(players.discriminator.forward).parameters
        self.serves_both = sample_by_sample(players.discriminator)  # if, besides, it has one logit a sample

    @property
    def buffers(self) -> list[Tensor | torch.Generator]:
        """Memory of gradients that stays where it is, and the generator that is common to all processes."""
        common = [] if self.peers is None or self.peers.generator is None else [self.peers.generator]
        return [*self._to_generator.buffers, *self._to_discriminator.buffers, *common]

    def pattern(self, done: int) -> Pattern:
        """What the host decides about the iteration that follows so many."""
        first, penalty, every = done * self.n_critic, self.penalty, self.watch.every
        due = tuple([penalty is not None and penalty.lazy.due(first + at) for at in range(self.n_critic)])
        return Pattern(due, every > 0 and (done + 1) % every == 0)

    def __call__(self, pattern: Pattern) -> None:
        """Perform one iteration, together with the ``peers``, where there are any."""
        with together(self.peers):
            self._iterate(pattern)

    def _fresh(self, pattern: Pattern) -> None:
        for at in range(self.n_critic):
            with torch.no_grad():
                fake = self.generate(self.draws.z(at))
            real = self.draws.real(at)
            seen = self._update_discriminator(real, fake, at, pattern)
            self._next_update(at, seen)
        self._end(seen, self._update_generator(real, self.generate(self.draws.z(self.n_critic)), pattern.watched))

    def _shared(self, pattern: Pattern) -> None:
        for at in range(self.n_critic):
            fake = self.generate(self.draws.z(at))
            real = self.draws.real(at)
            seen = self._update_discriminator(real, fake.detach(), at, pattern)
            self._next_update(at, seen)
        self._end(seen, self._update_generator(real, fake, pattern.watched))

    def _generator_first(self, pattern: Pattern) -> None:
        fake, real = self.generate(self.draws.z(0)), self.draws.real(0)
        if self.serves_both:
            self._end(self._update_both(real, fake, pattern), {})
        else:
            moved = self._update_generator(real, fake, pattern.watched)
            self._end(self._update_discriminator(real, fake.detach(), 0, pattern), moved)

    def generate(self, z: Tensor) -> Tensor:
        """Samples of the latents ``z``, in the run's precision."""
        with self._autocast(z):
            fake: Tensor = self.players.generator(z)
        return fake

    def judge(self, samples: Tensor) -> Tensor:
        """Logits of ``samples``, in float32."""
        return self._logits(samples).float()

    def _logits(self, samples: Tensor, **how: int) -> Tensor:
        """Logits as losses take them."""
        with self._autocast(samples):
            logits: Tensor = self.players.discriminator(samples, **how)
        takes_any = OBJECTIVES.get(self.objective.name) is self.objective  # ours compute in float32 whatever comes
        return logits if takes_any else logits.float()

    def judge_both(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of both, by one pass where that is exact."""
        if not self._folds or real.shape != fake.shape:
            return self._logits(real), self._logits(fake)
        return halves(self._logits(torch.cat((real, fake)), groups=2))

    def _update_discriminator(self, real: Tensor, fake: Tensor, at: int, pattern: Pattern) -> dict[str, Tensor]:
        fake = self.draws.noisy(fake, at)
        real_logits, fake_logits = self.judge_both(real, fake)
        loss, seen = self._discriminator_loss(real_logits, fake_logits)
        outputs, seeds = [loss], [unit_gradient(loss)]
        self._penalise(pattern.penalties[at], (real, fake), outputs, seeds, seen)
        self._to_discriminator.form(outputs, seeds)
        self.players.discriminator_optimizer.step()
        self._to_discriminator.clear()
        if pattern.watched and at == self.n_critic - 1:
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

    def _discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss, and what is seen at it: the loss, mean scores, whether its update is skipped.

        Where the loss is one launch, it brings the rest; on a CPU plain means cost less.
        """
        objective, balance = self.objective, self.watch.balance
        scores = rightly = None
        if OBJECTIVES.get(objective.name) is objective and (real_logits.is_cuda or balance is not None):
            monitors = torch.empty(4, device=real_logits.device)
            loss = objective.discriminator(real_logits, fake_logits, monitors=monitors)
            scores, rightly = monitors.split(2)
        else:
            loss = objective.discriminator(real_logits, fake_logits)
        seen = {"loss_d": loss.detach()}
        if scores is not None and objective.name in SCORED:
            seen["d_real"], seen["d_fake"] = scores.unbind()
        else:
            seen |= self._scores(real_logits.detach(), fake_logits.detach())
        if balance is not None:
            seen["balanced"] = balance(_rightly(real_logits, fake_logits) if rightly is None else rightly)
        return loss, seen

    def _scores(self, real_logits: Tensor, fake_logits: Tensor) -> dict[str, Tensor]:
        """How both batches are judged; a critic's logits are no log odds."""
        if self.meter.critic:
            return {"d_real": real_logits.float().mean(), "d_fake": fake_logits.float().mean()}
        return {"d_real": real_logits.float().sigmoid().mean(), "d_fake": fake_logits.float().sigmoid().mean()}

    def _compare(self, real: Tensor, fake: Tensor, seen: dict[str, Tensor]) -> None:
        if self.watch.diversity is not None:
            seen["diversity"] = self.watch.diversity(real, fake)

    def _update_generator(self, real: Tensor, fake: Tensor, watched: bool = False) -> dict[str, Tensor]:
        with self._frozen_discriminator():  # no gradient is formed for weights that this update does not move
            fake = self.draws.noisy(fake, self.n_critic)
            if self.objective.needs_real:
                real_logits, fake_logits = self.judge_both(real, fake)
                loss = self.objective.generator(fake_logits, real_logits)
            else:
                loss = self.objective.generator(self._logits(fake))
            self._to_generator.form([loss], [unit_gradient(loss)])
        return {"loss_g": loss.detach(), **self._move_generator(watched)}

    def _move_generator(self, watched: bool) -> dict[str, Tensor]:
        """Step the generator by the gradients that are there; their norm, where the iteration is watched."""
        norm = gradient_norm(self.players.generator.parameters()) if watched else None
        self.players.generator_optimizer.step()
        self._to_generator.clear()
        return {} if norm is None else {"gradient_g": norm}

    def _update_both(self, real: Tensor, fake: Tensor, pattern: Pattern) -> dict[str, Tensor]:
        """Update both by one pass through the discriminator, whose weights the generator's update does not move.

        With one logit a sample and nothing that mixes samples, a sample's gradient is its logit's slope times the same
        vector for either loss: backward goes with the discriminator's slopes, and what arrives at the fake samples is
        scaled, sample by sample, to the generator's.
        """
        seen_by_d = self.draws.noisy(fake, 0)
        leaf = seen_by_d.detach().requires_grad_()
        real_logits, fake_logits = self.judge_both(real, leaf)
        seen, to_real, to_fake = self._slopes(real_logits, fake_logits)
        seen["loss_g"], to_generator = self._generator_slopes(real_logits, fake_logits)
        seeds = torch.where(to_fake.abs() < SMALLEST_SEED, SMALLEST_SEED, to_fake)
        outputs, slopes = [real_logits, fake_logits], [to_real, seeds]
        self._penalise(pattern.penalties[0], (real, leaf.detach()), outputs, slopes, seen)
        at_fake = self._to_discriminator.form(outputs, slopes, leaf)
        assert at_fake is not None
        scale = (to_generator / seeds).to(at_fake.dtype).view(-1, *[1] * (leaf.dim() - 1))
        self._to_generator.form([seen_by_d], [at_fake * scale])
        seen |= self._move_generator(pattern.watched)
        self.players.discriminator_optimizer.step()
        self._to_discriminator.clear()
        if pattern.watched:
            self._compare(real, leaf.detach(), seen)
        return seen

    def _slopes(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """What is seen at the discriminator's loss, and its slope by each logit."""
        leaves = [logits.detach().requires_grad_() for logits in (real_logits, fake_logits)]
        loss, seen = self._discriminator_loss(*leaves)
        to_real, to_fake = torch.autograd.grad(loss, leaves, unit_gradient(loss))
        return seen, to_real, to_fake

    def _generator_slopes(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
        """The generator's loss, and its slope by each logit of a fake sample."""
        leaf = fake_logits.detach().requires_grad_()
        given = (leaf, real_logits.detach()) if self.objective.needs_real else (leaf,)
        loss = self.objective.generator(*given)
        (slopes,) = torch.autograd.grad(loss, (leaf,), unit_gradient(loss))
        return loss.detach(), slopes

    def _next_update(self, at: int, seen: dict[str, Tensor]) -> None:
        """Note what the discriminator's updates before the last one have seen."""
        if at < self.n_critic - 1:
            self.meter.observe(ends=False, **seen)

    def _end(self, seen: dict[str, Tensor], moved: dict[str, Tensor]) -> None:
        if self.watch.mend is not None:
            self.watch.mend()
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


@torch.no_grad()
def _rightly(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """The shares of real and of fake samples that the sign of their logit tells rightly."""
    return torch.stack([(real_logits > 0).float().mean(), (fake_logits <= 0).float().mean()])
