"""What a step draws: real batches, latents, noise. On the CPU from generators of the host, elsewhere by the clock.

``HostDraws`` keeps orders and generators on the host: cheap where the step is eager. ``ClockDraws`` computes each draw
on the device from the seed and the clock alone, so that a captured graph draws anew at each replay, and a checkpoint
keeps one number of it. Where the data do not lie on the device, a ``feeder`` has the batches of that very order there.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from fastgan import ops
from fastgan.data import Dataset, normalise
from fastgan.errors import UserError
from fastgan.presets import Config
from fastgan.train.capture import runner_for
from fastgan.train.dials import Dials
from fastgan.train.feed import Feeder, Rows
from fastgan.train.sampler import Latents, RealBatches

Part = tuple[int, int]
LATENTS, NOISE = 1, 3  # added to the run's seed; 2 is for the pictures' fixed latents


class Draws(Protocol):
    """What the step asks for. ``at`` numbers the draws of one kind within an iteration, from 0."""

    def real(self, at: int) -> Tensor:
        """A batch of real samples, flipped and with noise where the configuration says so."""

    def labelled(self, at: int) -> tuple[Tensor, Tensor]:
        """The same batch with its labels (n,), int64."""

    def z(self, at: int) -> Tensor:
        """A batch of latents."""

    def noisy(self, samples: Tensor, at: int) -> Tensor:
        """Generated samples with the noise that real ones have."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a checkpoint keeps: tensors and plain values."""

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go on from there."""


class HostDraws:
    """Draws in the order in which they are asked for, whatever ``at`` says."""

    def __init__(
        self, data: Dataset, config: Config, dials: Dials, device: torch.device, part: Part | None = None
    ) -> None:
        self._first, self._rows = part or (0, config.batch_size)
        self.batches = RealBatches(data, config.batch_size, config.seed, part)
        self._n_critic = config.n_critic  # of a feeder's steps
        self.feeder = feeder_of(data, config, self.batches.rows, self._rows, device)
        self._named = RealBatches(data, config.batch_size, config.seed, part)  # the feeder's threads ask the other
        self.latents = Latents(config.latent, config.z_dim, device, config.seed + LATENTS)
        self._size, self._flip = config.batch_size, config.flip
        self._sigma = dials["noise"] if config.noise or "noise" in dials.names else None
        self._noise = torch.Generator(device).manual_seed(config.seed + NOISE)

    def real(self, at: int) -> Tensor:
        """The next batch."""
        samples = self.batches.draw() if self.feeder is None else self._fed(self.feeder)
        if self._flip:
            coins = torch.rand(self._size, 1, 1, 1, device=samples.device, generator=self._noise)
            samples = torch.where(self._own(coins) < 0.5, samples.flip(-1), samples)
        return self.noisy(samples, at)

    def labelled(self, at: int) -> tuple[Tensor, Tensor]:
        """The next batch with its labels."""
        labels, rows = self._named.data.labels, self._named.rows(self.batches.drawn)
        assert labels is not None
        return self.real(at), labels[rows.to(labels.device)]

    def _fed(self, feeder: Feeder) -> Tensor:
        """The next batch, of those that were read ahead."""
        samples = feeder.batch(self.batches.drawn)
        self.batches.drawn += 1
        return normalise(samples) if samples.dtype == torch.uint8 else samples

    def running(self) -> AbstractContextManager[None]:
        """Context of all iterations: readers begin where the batches have come to."""
        return nullcontext() if self.feeder is None else self.feeder.running(self.batches.drawn)

    def ready(self, iterations: int) -> AbstractContextManager[object]:
        """Context of the next iterations, whose batches are waited for before they begin."""
        return nullcontext() if self.feeder is None else self.feeder.lent(iterations * self._n_critic)

    def z(self, at: int) -> Tensor:
        """The next latents."""
        return self._own(self.latents.draw(self._size))

    def noisy(self, samples: Tensor, at: int) -> Tensor:
        """Samples with the next noise."""
        if self._sigma is None:
            return samples
        if self._rows == self._size:
            noise = torch.empty_like(samples, requires_grad=False).normal_(generator=self._noise)
        else:
            whole = samples.new_empty((self._size, *samples.shape[1:]), requires_grad=False)
            noise = self._own(whole.normal_(generator=self._noise))
        return samples + self._sigma * noise

    def _own(self, drawn: Tensor) -> Tensor:
        """This process's rows of what was drawn for the whole batch."""
        return drawn[self._first :][: self._rows]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """States of the generators; how many batches were drawn."""
        generators = {"rng.latents": self.latents.generator.get_state(), "rng.noise": self._noise.get_state()}
        return generators, {"drawn": self.batches.drawn, "latent_device": self.latents.device.type}

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go on from there; another kind of device has other generators, whose own streams go on."""
        self.batches.drawn = int(values["drawn"])
        if values.get("latent_device") == self.latents.device.type and "rng.latents" in tensors:
            self.latents.generator.set_state(tensors["rng.latents"])
            if "rng.noise" in tensors:
                self._noise.set_state(tensors["rng.noise"])


class ClockDraws:
    """Draws that follow from the seed, the clock and ``at``. ``dtype`` is that of real samples and latents."""

    def __init__(
        self,
        data: Dataset,
        config: Config,
        dials: Dials,
        dtype: torch.dtype = torch.float32,
        part: Part | None = None,
    ) -> None:
        self._first, self._rows = self._part = part or (0, config.batch_size)
        self.data, self._config, self._dtype, self._clock = data, config, dtype, dials.clock
        noise = dials["noise"]
        self._sigma = None
        if isinstance(noise, Tensor) or noise:
            self._sigma = torch.as_tensor(noise, dtype=torch.float32, device=data.device)
        self._updates = config.critic_warmup.most(config.n_critic)  # places for batches in a step: some may stay empty
        self._per_step = self._updates + 1  # of latents and of noise: G's own may be one more
        self.feeder = feeder_of(data, config, self.rows, self._rows, data.device)

    def rows(self, number: int) -> Tensor:
        """Which samples batch ``number`` of the run has, or its part: those that the device would choose."""
        config, count = self._config, torch.tensor(number)
        index = ops.chosen(count, n=len(self.data), batch_size=config.batch_size, seed=config.seed, site=(1, 0))
        return index[self._first :][: self._rows]

    def running(self) -> AbstractContextManager[None]:
        """Context of all iterations: readers begin where the clock has come to."""
        return nullcontext() if self.feeder is None else self.feeder.running(int(self._clock) * self._updates)

    def ready(self, iterations: int) -> AbstractContextManager[object]:
        """Context of the next iterations, whose batches then lie in the ring."""
        return nullcontext() if self.feeder is None else self.feeder.lent(iterations * self._updates)

    def real(self, at: int) -> Tensor:
        """Batch ``at`` of this iteration: one launch."""
        samples = self._batch(at)
        assert isinstance(samples, Tensor)
        return samples

    def labelled(self, at: int) -> tuple[Tensor, Tensor]:
        """Batch ``at`` of this iteration with its labels: one launch where the data lie on the device."""
        labels = self.data.labels
        assert labels is not None
        if self.feeder is None:
            samples, labels = self._batch(at, labels)
            return samples, labels
        config, site = self._config, (self._updates, at)
        index = ops.chosen(self._clock, n=len(self.data), batch_size=config.batch_size, seed=config.seed, site=site)
        return self.real(at), labels[index[self._first :][: self._rows]]

    def _batch(self, at: int, labels: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        config = self._config
        return ops.real_batch(
            self.data.images if self.feeder is None else self.feeder.lying(),
            self._clock,
            batch_size=config.batch_size,
            seed=config.seed,
            site=(self._updates, at),
            flip=config.flip,
            noise=self._sigma,
            dtype=self._dtype,
            part=self._part,
            in_order=self.feeder is not None,
            labels=labels,
        )

    def z(self, at: int) -> Tensor:
        """Latents ``at`` of this iteration: one launch."""
        config = self._config
        return ops.latent(
            self._clock,
            shape=(self._rows, config.z_dim),
            seed=config.seed + LATENTS,
            site=(self._per_step, at),
            kind=config.latent,
            dtype=self._dtype,
            first=self._first,
        )

    def noisy(self, samples: Tensor, at: int) -> Tensor:
        """Samples with noise ``at`` of this iteration."""
        if self._sigma is None:
            return samples
        noise = ops.latent(
            self._clock,
            shape=tuple(samples.shape),
            seed=self._config.seed + NOISE,
            site=(self._per_step, at),
            dtype=samples.dtype,
            first=self._first,
        )
        return torch.addcmul(samples, noise, self._sigma.to(samples.dtype))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Nothing but the step, which is kept anyway."""
        return {}, {"drawn": int(self._clock) * self._updates}

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """The clock says it all."""


def feeder_of(data: Dataset, config: Config, rows: Rows, size: int, device: torch.device) -> Feeder | None:
    """What reads batches ahead, from a disk or because the data do not lie on the device; None where they do."""
    there = not data.resident or data.file is not None or config.resident == "never"
    if not there or data.images.device.type != "cpu":
        return None
    if config.critic_warmup.updates:
        raise UserError(
            "critic_warmup takes batches in no fixed number, and data that are read ahead come so: set"
            " critic_warmup.updates=0, or have the data on the device"
        )
    at_once = config.unroll * config.n_critic
    return Feeder(data, device, rows, size, at_once=at_once, readers=config.readers)


def draws(
    data: Dataset, config: Config, dials: Dials, device: torch.device, bf16: bool, part: Part | None = None
) -> HostDraws | ClockDraws:
    """By the clock where steps can be captured, else by the host.

    ``part``: the first row and the number of rows of each batch that are drawn; None for all.
    """
    if runner_for(device) is not None:
        return ClockDraws(data, config, dials, torch.bfloat16 if bf16 else torch.float32, part)
    return HostDraws(data, config, dials, device, part)
