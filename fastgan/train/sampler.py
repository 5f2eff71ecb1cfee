"""What a step draws: real batches in an order fixed by the seed, and latents from a generator whose state is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgan.data import Dataset
from fastgan.errors import UserError


class RealBatches:
    """Batches of ``data``: each epoch is a permutation fixed by ``(seed, epoch)``; the ragged last batch is dropped.

    The order has no hidden state: ``drawn``, the number of batches taken so far, is all that a checkpoint keeps.
    ``part``: the first row and the number of rows of each batch that are read; None for all.
    """

    def __init__(self, data: Dataset, batch_size: int, seed: int, part: tuple[int, int] | None = None) -> None:
        if batch_size > len(data):
            raise UserError(
                f"batch_size {batch_size} is larger than the data set ({len(data)} samples): set a smaller one"
            )
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self._part = part or (0, batch_size)
        self.per_epoch = len(data) // batch_size
        self.drawn = 0
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def draw(self) -> Tensor:
        """The next batch of samples, on the data's device, in [-1, 1]."""
        index = self.rows(self.drawn)
        self.drawn += 1
        return self.data.batch(index)

    def rows(self, number: int) -> Tensor:
        """Which samples batch ``number`` has, on the data's device."""
        epoch, batch = divmod(number, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, permutation(len(self.data), self.seed, epoch).to(self.data.device)
        first, rows = self._part
        return self._order[batch * self.batch_size + first :][:rows]


def permutation(n: int, seed: int, epoch: int) -> Tensor:
    """The order of epoch ``epoch``, from the two numbers alone: ``numpy.random.default_rng((seed, epoch))``."""
    # not a torch.Generator: on the CPU it keeps only the low 32 bits of its seed, so two numbers do not fit
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(n))


class Latents:
    """Latent vectors ``(n, z_dim)`` from a generator of their own on ``device``.

    They are normal, uniform in [-1, 1], or discrete: each component is -1 or 1, as likely.
    """

    def __init__(self, kind: str, z_dim: int, device: torch.device, seed: int) -> None:
        self.kind, self.z_dim, self.device = kind, z_dim, device
        self.generator = torch.Generator(device).manual_seed(seed)

    def draw(self, n: int) -> Tensor:
        """Draw ``n`` latents."""
        size: Any = {"size": (n, self.z_dim), "device": self.device, "generator": self.generator}
        if self.kind == "discrete":
            return torch.randint(2, **size).float().mul_(2).sub_(1)
        return torch.rand(**size) * 2 - 1 if self.kind == "uniform" else torch.randn(**size)
