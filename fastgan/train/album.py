"""The pictures of a run, drawn from its parts at a step: samples of fixed latents, and the curves so far."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from fastgan.data import Dataset
from fastgan.presets import Config
from fastgan.train import pictures
from fastgan.train.classes import number_of
from fastgan.train.generate import samples
from fastgan.train.latents import Layout
from fastgan.train.metrics import Row
from fastgan.train.sampler import Latents
from fastgan.train.state import Parts, averages_of

PICTURES = 2  # added to the run's seed: the fixed latents'


class Album:
    """Draws what a person looks at; the run's random streams stay where they are."""

    def __init__(self, parts: Parts, data: Dataset, config: Config, device: torch.device) -> None:
        self._parts, self._data, self._config, self._device = parts, data, config, device

    def draw(self, path: Path, step: int) -> bool:
        """Draw samples of the fixed latents into ``path``; False where samples of their shape cannot be shown."""
        config = self._config
        if not pictures.drawable(self._data.sample_shape):
            return False
        generator = self._parts.players.generator
        layout = _layout(config.samples, classes := number_of(generator))
        random = Latents(config.latent, config.z_dim, torch.device("cpu"), config.seed + PICTURES)
        fixed = random.draw(layout.own).repeat(layout.n // layout.own, 1).to(self._device)
        labels = layout.labels(classes, random.generator)
        with self._parts.stream.aside(), self.averaged():
            made = samples(generator, fixed, None if labels is None else labels.to(self._device))
        title, columns = f"step {step}", layout.columns
        pictures.save_samples(made, path, real=self._data.images[:1000], title=title, columns=columns)
        return True

    def curves(self, path: Path, history: Sequence[Row]) -> None:
        """Draw the curves of losses and scores so far into ``path``, where there are any rows."""
        if history:
            pictures.save_curves(history, path, self._config.objective)

    def averaged(self) -> AbstractContextManager[None]:
        """Context in which the generator has its averaged weights, where it has any."""
        averages = averages_of(self._parts.players.generator_optimizer)
        return averages.swap() if averages is not None else nullcontext()


def _layout(n: int, classes: int) -> Layout:
    """About ``n`` samples: a row of each class, all from the same latents, where the generator knows classes."""
    if not classes:
        return Layout(n)
    columns = max(1, n // classes)
    return Layout(columns * min(n, classes), columns, class_rows=True)
