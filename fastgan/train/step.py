"""One training iteration: ``n_critic`` discriminator updates and one generator update."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastgan.objectives import Objective
from fastgan.train.metrics import Meter
from fastgan.train.penalties import Weighted


@dataclass
class Players:
    """The two networks and their optimisers."""

    generator: nn.Module
    discriminator: nn.Module
    generator_optimizer: Optimizer
    discriminator_optimizer: Optimizer


class Step:
    """Callable that performs one iteration. ``draw_real()`` and ``draw_z()`` deliver the batches; sums go to ``meter``.

    Nothing is read back to the host: losses and scores stay on the device until somebody reads the meter.
    """

    def __init__(
        self,
        players: Players,
        objective: Objective,
        *,
        draw_real: Callable[[], Tensor],
        draw_z: Callable[[], Tensor],
        meter: Meter,
        updates: str = "fresh",
        n_critic: int = 1,
        bf16: bool = False,
        penalty: Weighted | None = None,
    ) -> None:
        self.players, self.objective, self.meter = players, objective, meter
        self.draw_real, self.draw_z = draw_real, draw_z
        self.n_critic, self.bf16, self.penalty = n_critic, bf16, penalty
        self._update = 0  # of the discriminator, counted over the whole run: lazy penalties go by it
        self._iterate = {"fresh": self._fresh, "shared": self._shared, "generator_first": self._generator_first}[
            updates
        ]
        self._critic = [parameter for parameter in players.discriminator.parameters() if parameter.requires_grad]

    def __call__(self, done: int = 0) -> None:
        """Perform one iteration, after so many that are ``done``."""
        self._update = done * self.n_critic
        self._iterate()

    def _fresh(self) -> None:
        for _ in range(self.n_critic):
            with torch.no_grad():
                fake = self.generate(self.draw_z())
            real = self.draw_real()
            self._update_discriminator(real, fake)
        self._update_generator(real, self.generate(self.draw_z()))

    def _shared(self) -> None:
        for _ in range(self.n_critic):
            fake = self.generate(self.draw_z())
            real = self.draw_real()
            self._update_discriminator(real, fake.detach())
        self._update_generator(real, fake)

    def _generator_first(self) -> None:
        fake = self.generate(self.draw_z())
        real = self.draw_real()
        self._update_generator(real, fake)
        self._update_discriminator(real, fake.detach())

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

    def _update_discriminator(self, real: Tensor, fake: Tensor) -> None:
        optimizer = self.players.discriminator_optimizer
        optimizer.zero_grad(set_to_none=True)
        real_logits, fake_logits = self.judge(real), self.judge(fake)
        loss = self.objective.discriminator(real_logits, fake_logits)
        added = self.penalty(self._update, self.judge, real, fake) if self.penalty else None
        total = loss if added is None else loss + added[0]
        total.backward()
        optimizer.step()
        self._update += 1
        self.meter.add(loss_d=loss, **self._scores(real_logits.detach(), fake_logits.detach()))
        if added is not None:
            self.meter.add(penalty=added[1])

    def _scores(self, real_logits: Tensor, fake_logits: Tensor) -> dict[str, Tensor]:
        """How both batches are judged; a critic's logits are no log odds: their distance is what counts."""
        if self.objective.name == "wasserstein":
            return {"wasserstein": real_logits.mean() - fake_logits.mean()}
        return {"d_real": real_logits.sigmoid().mean(), "d_fake": fake_logits.sigmoid().mean()}

    def _update_generator(self, real: Tensor, fake: Tensor) -> None:
        optimizer = self.players.generator_optimizer
        optimizer.zero_grad(set_to_none=True)
        with self._frozen_discriminator():  # no gradient is formed for weights that this update does not move
            if self.objective.needs_real:
                loss = self.objective.generator(self.judge(fake), self.judge(real))
            else:
                loss = self.objective.generator(self.judge(fake))
            loss.backward()
        optimizer.step()
        self.meter.add(loss_g=loss)

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
