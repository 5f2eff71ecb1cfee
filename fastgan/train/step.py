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
    ) -> None:
        self.players, self.objective, self.meter = players, objective, meter
        self.draw_real, self.draw_z = draw_real, draw_z
        self.n_critic, self.bf16 = n_critic, bf16
        self._iterate = {"fresh": self._fresh, "shared": self._shared, "generator_first": self._generator_first}[
            updates
        ]
        self._critic = [parameter for parameter in players.discriminator.parameters() if parameter.requires_grad]

    def __call__(self) -> None:
        """Perform one iteration."""
        self._iterate()

    def _fresh(self) -> None:
        for _ in range(self.n_critic):
            with torch.no_grad():
                fake = self.generate(self.draw_z())
            self._update_discriminator(fake)
        self._update_generator(self.generate(self.draw_z()))

    def _shared(self) -> None:
        for _ in range(self.n_critic):
            fake = self.generate(self.draw_z())
            self._update_discriminator(fake.detach())
        self._update_generator(fake)

    def _generator_first(self) -> None:
        fake = self.generate(self.draw_z())
        self._update_generator(fake)
        self._update_discriminator(fake.detach())

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

    def _update_discriminator(self, fake: Tensor) -> None:
        optimizer = self.players.discriminator_optimizer
        optimizer.zero_grad(set_to_none=True)
        real_logits, fake_logits = self.judge(self.draw_real()), self.judge(fake)
        loss = self.objective.discriminator(real_logits, fake_logits)
        loss.backward()
        optimizer.step()
        self.meter.add(
            loss_d=loss, d_real=real_logits.detach().sigmoid().mean(), d_fake=fake_logits.detach().sigmoid().mean()
        )

    def _update_generator(self, fake: Tensor) -> None:
        optimizer = self.players.generator_optimizer
        optimizer.zero_grad(set_to_none=True)
        with self._frozen_discriminator():  # no gradient is formed for weights that this update does not move
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
