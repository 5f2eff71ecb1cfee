"""One training iteration: ``n_critic`` discriminator updates and one generator update, as a function of the device.

Nothing here asks the device for a value, and nothing on the host changes from one iteration to the next but the
``pattern``, which says for each of the discriminator's updates whether its penalty is due. So a GPU may capture the
whole iteration once for each pattern and replay it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastgan.nn import sample_by_sample
from fastgan.objectives import Objective
from fastgan.ops import unit_gradient
from fastgan.train.draws import Draws
from fastgan.train.metrics import Meter
from fastgan.train.penalties import Weighted

Pattern = tuple[bool, ...]  # for each update of the discriminator: is the penalty due?
SMALLEST_SEED = 1e-20  # of a backward pass that serves both players: far below what counts, far above underflow


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
    ) -> None:
        self.players, self.objective, self.draws, self.meter = players, objective, draws, meter
        self.n_critic, self.bf16, self.penalty = n_critic, bf16, penalty
        self._iterate = {"fresh": self._fresh, "shared": self._shared, "generator_first": self._generator_first}[
            updates
        ]
        self._critic = [parameter for parameter in players.discriminator.parameters() if parameter.requires_grad]
        self._folds = "groups" in inspect.signature(players.discriminator.forward).parameters
        self.serves_both = sample_by_sample(players.discriminator)  # if, besides, it has one logit a sample

    def pattern(self, done: int) -> Pattern:
        """What the host decides about the iteration that follows so many."""
        first, penalty = done * self.n_critic, self.penalty
        return tuple(penalty is not None and penalty.lazy.due(first + at) for at in range(self.n_critic))

    def __call__(self, pattern: Pattern) -> None:
        """Perform one iteration."""
        self._iterate(pattern)

    def _fresh(self, pattern: Pattern) -> None:
        for at, due in enumerate(pattern):
            with torch.no_grad():
                fake = self.generate(self.draws.z(at))
            real = self.draws.real(at)
            seen = self._update_discriminator(real, fake, at, due)
            self._next_update(at, seen)
        self._end(seen, self._update_generator(real, self.generate(self.draws.z(self.n_critic))))

    def _shared(self, pattern: Pattern) -> None:
        for at, due in enumerate(pattern):
            fake = self.generate(self.draws.z(at))
            real = self.draws.real(at)
            seen = self._update_discriminator(real, fake.detach(), at, due)
            self._next_update(at, seen)
        self._end(seen, self._update_generator(real, fake))

    def _generator_first(self, pattern: Pattern) -> None:
        fake, real = self.generate(self.draws.z(0)), self.draws.real(0)
        if self.serves_both:
            self._end(*self._update_both(real, fake, pattern[0]))
        else:
            loss = self._update_generator(real, fake)
            self._end(self._update_discriminator(real, fake.detach(), 0, pattern[0]), loss)

    def generate(self, z: Tensor) -> Tensor:
        """Samples of the latents ``z``, in the run's precision."""
        with self._autocast(z):
            fake: Tensor = self.players.generator(z)
        return fake

    def judge(self, samples: Tensor) -> Tensor:
        """Logits of ``samples``, in float32."""
        with self._autocast(samples):
            logits: Tensor = self.players.discriminator(samples)
        return logits.float()

    def judge_both(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of both, by one pass where that is exact."""
        if not self._folds or real.shape != fake.shape:
            return self.judge(real), self.judge(fake)
        with self._autocast(real):
            logits: Tensor = self.players.discriminator(torch.cat((real, fake)), groups=2)
        of_real, of_fake = logits.float().chunk(2)
        return of_real, of_fake

    def _update_discriminator(self, real: Tensor, fake: Tensor, at: int, due: bool) -> dict[str, Tensor]:
        optimizer = self.players.discriminator_optimizer
        optimizer.zero_grad(set_to_none=True)  # what backward forms is kept as it is: nothing is zeroed or added
        fake = self.draws.noisy(fake, at)
        real_logits, fake_logits = self.judge_both(real, fake)
        loss = self.objective.discriminator(real_logits, fake_logits)
        seen = {"loss_d": loss.detach(), **self._scores(real_logits.detach(), fake_logits.detach())}
        if due and self.penalty is not None:
            added, seen["penalty"] = self.penalty(self.judge, real, fake)
            loss = loss + added
        loss.backward(unit_gradient(loss))
        optimizer.step()
        return seen

    def _scores(self, real_logits: Tensor, fake_logits: Tensor) -> dict[str, Tensor]:
        """How both batches are judged; a critic's logits are no log odds."""
        if self.meter.critic:
            return {"d_real": real_logits.mean(), "d_fake": fake_logits.mean()}
        return {"d_real": real_logits.sigmoid().mean(), "d_fake": fake_logits.sigmoid().mean()}

    def _update_generator(self, real: Tensor, fake: Tensor) -> Tensor:
        optimizer = self.players.generator_optimizer
        optimizer.zero_grad(set_to_none=True)
        with self._frozen_discriminator():  # no gradient is formed for weights that this update does not move
            fake = self.draws.noisy(fake, self.n_critic)
            if self.objective.needs_real:
                real_logits, fake_logits = self.judge_both(real, fake)
                loss = self.objective.generator(fake_logits, real_logits)
            else:
                loss = self.objective.generator(self.judge(fake))
            loss.backward(unit_gradient(loss))
        optimizer.step()
        return loss.detach()

    def _update_both(self, real: Tensor, fake: Tensor, due: bool) -> tuple[dict[str, Tensor], Tensor]:
        """Update both by one pass through the discriminator, whose weights the generator's update does not move.

        With one logit a sample and nothing that mixes samples, a sample's gradient is its logit's slope times the same
        vector for either loss: backward goes with the discriminator's slopes, and what arrives at the fake samples is
        scaled, sample by sample, to the generator's.
        """
        players, seen_by_d = self.players, self.draws.noisy(fake, 0)
        players.discriminator_optimizer.zero_grad(set_to_none=True)
        players.generator_optimizer.zero_grad(set_to_none=True)
        leaf = seen_by_d.detach().requires_grad_()
        real_logits, fake_logits = self.judge_both(real, leaf)
        loss_d, to_real, to_fake = self._slopes(real_logits, fake_logits)
        loss_g, to_generator = self._generator_slopes(real_logits, fake_logits)
        seeds = torch.where(to_fake.abs() < SMALLEST_SEED, SMALLEST_SEED, to_fake)
        seen = {"loss_d": loss_d, **self._scores(real_logits.detach(), fake_logits.detach())}
        torch.autograd.backward((real_logits, fake_logits), (to_real, seeds))
        if due and self.penalty is not None:
            added, seen["penalty"] = self.penalty(self.judge, real, leaf.detach())
            added.backward(unit_gradient(added))
        assert leaf.grad is not None
        scale = (to_generator / seeds).to(leaf.grad.dtype).view(-1, *[1] * (leaf.dim() - 1))
        seen_by_d.backward(leaf.grad * scale)
        players.generator_optimizer.step()
        players.discriminator_optimizer.step()
        return seen, loss_g

    def _slopes(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The discriminator's loss, and its slope by each logit."""
        leaves = [logits.detach().requires_grad_() for logits in (real_logits, fake_logits)]
        loss = self.objective.discriminator(*leaves)
        to_real, to_fake = torch.autograd.grad(loss, leaves, unit_gradient(loss))
        return loss.detach(), to_real, to_fake

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

    def _end(self, seen: dict[str, Tensor], loss_g: Tensor) -> None:
        self.meter.observe(ends=True, loss_g=loss_g, **seen)

    @contextmanager
    def _frozen_discriminator(self) -> Iterator[None]:
        for parameter in self._critic:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in self._critic:
                parameter.requires_grad_(True)

    def _autocast(self, tensor: Tensor) -> torch.autocast:
        return torch.autocast(tensor.device.type, dtype=torch.bfloat16, enabled=self.bf16)
