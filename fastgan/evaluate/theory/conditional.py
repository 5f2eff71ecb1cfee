"""A class and no latent: a generator that is told only what to draw has one way to draw it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastgan import data
from fastgan.evaluate.theory.claim import Check, Claim, Measured
from fastgan.nn import Chain, LinearAct

CLASSES, SIDE = 10, 8
LATENT = 16
SHOWN = 6  # draws of a class in the picture

Loss = Callable[[Tensor, Tensor], Tensor]  # real, fake (classes, n, pixels) -> a scalar


@cache
def digits() -> tuple[Tensor, ...]:
    """Handwritten digits by class, each ``(n, 64)`` in [-1, 1]."""
    dataset = data.load("digits")
    assert dataset.labels is not None
    images = data.normalise(dataset.images).double().flatten(1)
    return tuple(images[dataset.labels == label] for label in range(CLASSES))


def least_squares(real: Tensor, fake: Tensor) -> Tensor:
    """Mean squared difference: each generated image is paired with a real one of its class."""
    return (fake - real).square().mean()


def energy_distance(real: Tensor, fake: Tensor) -> Tensor:
    """2 E|x - y| - E|y - y'|, of which E|x - x'| is missing: 0 only for equal laws, and its best critic is known.

    Source: Szekely and Rizzo, 2013; as a GAN's objective Bellemare et al., 2017 (Cramer GAN).
    """
    n = fake.shape[1]
    return 2 * torch.cdist(real, fake).mean() - torch.cdist(fake, fake).mean() * n / (n - 1)


def train(loss: Loss, latent: int, seed: int, *, steps: int = 200, batch: int = 32) -> Tensor:
    """Train G(class, z) with a z of ``latent`` numbers, and draw 200 images of each class: ``(10, 200, 64)``."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [LinearAct(CLASSES + latent, 128), LinearAct(128, 128)]
        network = Chain(*layers, LinearAct(128, SIDE * SIDE, activation="none")).double()

    def draw(n: int) -> Tensor:
        told = torch.eye(CLASSES, dtype=torch.float64)[:, None].expand(-1, n, -1)
        z = torch.randn(CLASSES, n, latent, generator=generator, dtype=torch.float64)
        images: Tensor = network(torch.cat([told, z], dim=2).flatten(0, 1))
        return images.unflatten(0, (CLASSES, n))

    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3, betas=(0.5, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        real = torch.stack([own[torch.randint(len(own), (batch,), generator=generator)] for own in digits()])
        optimizer.zero_grad()
        loss(real, draw(batch)).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return draw(200)


def variance(images: Iterable[Tensor]) -> float:
    """Variance of the images within their class, summed over pixels, mean over classes."""
    return sum(float(own.var(0, correction=0).sum()) for own in images) / CLASSES


def without_noise_a_class_is_one_image(seed: int = 0) -> Claim:
    """Digits of a class from G(class) and from G(class, z), by least squares and by a distance between laws."""
    means = torch.stack([own.mean(0) for own in digits()])
    plain = train(least_squares, 0, seed)
    ignored = train(least_squares, LATENT, seed)
    single = train(energy_distance, 0, seed)
    varied = train(energy_distance, LATENT, seed)
    spread = variance(digits())
    off = float((plain[:, 0] - means).square().mean().sqrt())

    def draw(axes: Sequence[Any]) -> None:
        for axis, images, title in (
            (axes[0], torch.stack([own[:SHOWN] for own in digits()]), "handwritten"),
            (axes[1], single, "G(class)"),
            (axes[2], varied, "G(class, z)"),
        ):
            axis.imshow(sheet(images[:, :SHOWN]).numpy(), cmap="gray_r", vmin=-1, vmax=1)
            axis.set_title(title)
            axis.set_axis_off()

    return Claim(
        name="without-noise-a-class-is-one-image",
        statement="A generator that takes a class and no z gives one image a class; by least squares it is the class's "
        "mean, and a z is then ignored. With z and a distance between laws the classes' variety comes back.",
        source="Mirza and Osindero, 2014, section 3.2; Mathieu et al., 2016, on least squares and means",
        measured=(
            Measured("variance within a class, handwritten digits", spread, 1.0, None, "at_least"),
            Measured("of it G(class) has, least squares", variance(plain) / spread, 0.0, 1e-20),
            Measured("of it G(class) has, distance between laws", variance(single) / spread, 0.0, 1e-20),
            Measured("RMS distance of G(class) from the class's mean, least squares", off, 0.0, 0.02),
            Measured("share of the variance with z, least squares", variance(ignored) / spread, 0.1, None, "at_most"),
            Measured("share of the variance with z, distance between laws", variance(varied) / spread, 1.0, 0.2),
        ),
        draw=draw,
        panels=3,
    )


def sheet(images: Tensor) -> Tensor:
    """Images ``(classes, n, 64)`` as one picture, a column for each class, a pixel of background between them."""
    framed = torch.nn.functional.pad(images.unflatten(2, (SIDE, SIDE)), (0, 1, 0, 1), value=-1.0)
    return framed.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)


CLAIMS: tuple[Check, ...] = (without_noise_a_class_is_one_image,)
