"""The pictures of runs of other methods than the adversarial one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgan.train import codes, pictures
from fastgan.train.album import Album
from fastgan.train.generate import samples
from fastgan.train.metrics import Row

ROWS = 10  # of inputs and of reconstructions in a picture
POINTS = 4096  # of the data that a picture of points or codes is drawn of
CELLS = 200  # a side of the density's picture
DEPTH = 12.0  # nats below the highest density that colours tell apart
MOST_CODES = 16


class VAEAlbum(Album):
    """Samples from the prior, and reconstructions beside them: ``reconstruction-STEP.png``, inputs above outputs."""

    def draw(self, path: Path, step: int) -> bool:
        """Draw both pictures; False where samples of their shape cannot be shown."""
        if not super().draw(path, step):
            return False
        real, beside = self._data.batch(torch.arange(min(len(self._data), POINTS))), f"reconstruction-{path.name}"
        if real.ndim > 2:
            real = real[: 2 * ROWS]
        with self._parts.stream.aside(), self.averaged():
            law = samples(self._parts.players.discriminator, real.to(self._device)).float()
            made = samples(self._parts.players.generator, law.chunk(2, dim=1)[0])
        if real.ndim == 2:
            pictures.save_samples(made, path.with_name(beside), real=real, title=f"step {step}: reconstructed")
        else:
            above, below = (part.split(ROWS) for part in (real.cpu(), made.float().cpu()))
            rows = torch.cat([row for pair in zip(above, below, strict=True) for row in pair])
            pictures.save_samples(rows, path.with_name(beside), columns=ROWS)
        return True

    def curves(self, path: Path, history: Sequence[Row]) -> None:
        """Draw the negative ELBO and its two terms so far into ``path``, where there are any rows."""
        _curves(
            history,
            path,
            ("nats a sample", {"loss_g": "-ELBO", "loss_d": "-E log p(x|z)"}),
            ("what z costs, nats a sample", {"penalty": "KL(q(z|x) || p(z))"}),
        )


class NCEAlbum(Album):
    """The estimated log density beside the data."""

    def draw(self, path: Path, step: int) -> bool:
        """Draw the picture; False where the data are no points in the plane."""
        if tuple(self._data.sample_shape) != (2,):
            return False
        real = self._data.images[:POINTS].float().cpu()
        if sigma := self._config.noise:  # as the density is that of
            real = real + sigma * torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
        low, high = real.amin(0), real.amax(0)
        reach = (high - low).max() * 0.65
        x, y = (torch.linspace(float(m - reach), float(m + reach), CELLS) for m in (low + high) / 2)
        places = torch.cartesian_prod(y, x).flip(1)
        with self._parts.stream.aside():
            found = samples(self._parts.players.discriminator, places.to(self._device)).float().cpu()
        total = torch.logsumexp(found, 0) + ((x[1] - x[0]) * (y[1] - y[0])).log()
        figure, (left, right) = pictures._figure(1, 2, (11, 5))
        corners = (float(x[0]), float(x[-1]), float(y[0]), float(y[-1]))
        top = float(found.max())
        image = left.imshow(
            found.view(CELLS, CELLS).numpy(), origin="lower", extent=corners, cmap="magma", vmin=top - DEPTH, vmax=top
        )
        figure.colorbar(image, ax=left, label="log p(x), nats", shrink=0.8)
        left.set_title(f"step {step}: estimated log density (sums to {math.exp(float(total)):.3f} here)", fontsize=10)
        right.scatter(*real.T.numpy(), s=4, color="0.4", linewidths=0)
        right.set_xlim(*corners[:2])
        right.set_ylim(*corners[2:])
        right.set_aspect("equal")
        right.set_title("data" + f", with noise of {sigma:g} on them" * bool(sigma), fontsize=10)
        pictures._save_figure(figure, path)
        return True

    def curves(self, path: Path, history: Sequence[Row]) -> None:
        """Draw the loss and the mean posteriors so far into ``path``, where there are any rows."""
        _curves(
            history,
            path,
            ("loss", {"loss_d": "-E log h(data) - ratio E log(1 - h(noise))"}),
            ("how likely a sample is taken for data", {"d_real": "h, data", "d_fake": "h, noise"}),
        )


class PredictabilityAlbum(Album):
    """What codes the encoder makes of the data: their values, how often each occurs, what units tell of each other."""

    def draw(self, path: Path, step: int) -> bool:
        """Draw the picture."""
        real = self._data.batch(torch.arange(min(len(self._data), POINTS)))
        with self._parts.stream.aside(), self.averaged():
            made = samples(self._parts.players.generator, real.to(self._device)).float().cpu()
        figure, axes = pictures._figure(1, 3, (14, 4.2))
        figure.suptitle(f"step {step}: the codes of {len(made)} samples", fontsize=10)
        _values(axes[0], made)
        _frequencies(axes[1], made)
        _information(figure, axes[2], made)
        pictures._save_figure(figure, path)
        return True

    def curves(self, path: Path, history: Sequence[Row]) -> None:
        """Draw the predictors' error so far into ``path``, where there are any rows."""
        units = self._config.z_dim
        _curves(
            history,
            path,
            (f"V, the predictors' squared error (dashed: its most, {units}/4)", {"loss_d": "at the predictors' step"}),
            level=units / 4,
        )


ALBUMS: dict[str, type[Album]] = {"vae": VAEAlbum, "nce": NCEAlbum, "predictability": PredictabilityAlbum}


def _values(axis: Any, made: Tensor) -> None:
    axis.hist(made.numpy(), bins=20, range=(0, 1), label=[f"unit {unit}" for unit in range(made.shape[1])])
    axis.set(title="values of the code units", xlabel="value", ylabel="samples")
    if made.shape[1] <= 8:
        axis.legend(frameon=False, fontsize=8)


def _frequencies(axis: Any, made: Tensor) -> None:
    names, seen, factors = codes.shares(made)
    names, seen, factors = names[:MOST_CODES], seen[:MOST_CODES], factors[:MOST_CODES]
    places = np.arange(len(names))
    axis.bar(places - 0.2, seen.numpy(), 0.4, label="share of the code", color="tab:blue")
    axis.bar(places + 0.2, factors.numpy(), 0.4, label="product of its symbols' shares", color="tab:orange")
    axis.set_xticks(places, names, rotation=60, fontsize=8)
    axis.set_title("binary codes: factorial where both bars agree", fontsize=10)
    axis.set_ylim(0, 1.3 * float(torch.cat((seen, factors)).max()))
    axis.legend(frameon=False, fontsize=8)


def _information(figure: Any, axis: Any, made: Tensor) -> None:
    image = axis.imshow(codes.information(made).numpy(), vmin=0, vmax=1, cmap="viridis")
    figure.colorbar(image, ax=axis, shrink=0.8)
    for set_ticks in (axis.set_xticks, axis.set_yticks):
        set_ticks(range(made.shape[1]))
    axis.set_title(f"information, bits: at most {codes.largest_information(made):.2g} between units", fontsize=10)


def _curves(
    history: Sequence[Row],
    path: Path,
    *panels: tuple[str, Mapping[str, str]],
    level: float | None = None,
) -> None:
    """Draw columns of the metrics, a panel of them beside the other; a ``level`` is dashed."""
    if not history:
        return
    figure, axes = pictures._figure(1, len(panels), (5.5 * len(panels), 4))
    for axis, (title, lines) in zip([axes] if len(panels) == 1 else axes, panels, strict=True):
        pictures._curves(axis, history, lines, () if level is None else (level,))
        axis.set_title(title, fontsize=10)
    pictures._save_figure(figure, path)
