"""Sliced Wasserstein distance between patches of a Laplacian pyramid: how like samples are to data, scale by scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan.data import Dataset
from fastgan.errors import UserError
from fastgan.evaluate.metric import Result, Subject, chosen, needs_images

CHEAP = True
PATCH, PATCHES = 7, 128  # side of a patch, and how many of each image and level
SMALLEST = 16  # side of the coarsest level
PROJECTIONS, REPEATS = 128, 4  # 512 directions in all
SAMPLES = 1024  # 16,384 in the paper
SCALE = 1e3  # the unit of the paper's tables
CHUNK = 256  # images at a time
REFERENCE = "Karras et al., 2018 (Progressive GAN), section 5"


def smaller(images: Tensor) -> Tensor:
    """Images (n, C, H, W) smoothed by the binomial kernel of 5 x 5, every second row and column of it."""
    return _smooth(images, _kernel(images))[:, :, ::2, ::2]


def pyramid(images: Tensor, levels: int) -> list[Tensor]:
    """The Laplacian pyramid of images (n, C, H, W), finest first: differences to what is coarser, then the rest."""
    found = []
    for _ in range(levels - 1):
        coarse = smaller(images)
        spread = torch.zeros_like(images)
        spread[:, :, ::2, ::2] = coarse
        found.append(images - _smooth(spread, 4 * _kernel(images)))
        images = coarse
    return [*found, images]


def levels_of(side: int) -> int:
    """How many levels images of a side have: halved as long as 16 pixels are left; 1 below 32."""
    return max(1, (max(side, SMALLEST) // SMALLEST).bit_length())


def patches(images: Tensor, random: torch.Generator, count: int = PATCHES) -> Tensor:
    """``count`` patches of each image (n, C, H, W) at random places: (n * count, C * 7 * 7); smaller in small ones."""
    n, channels, height, width = images.shape
    rows, columns = min(PATCH, height), min(PATCH, width)
    top = torch.randint(height - rows + 1, (n, count, 1, 1), generator=random) + torch.arange(rows)[:, None]
    left = torch.randint(width - columns + 1, (n, count, 1, 1), generator=random) + torch.arange(columns)
    flat = (top * width + left).flatten(1)[:, None].expand(-1, channels, -1)
    found = images.flatten(2).gather(2, flat).unflatten(2, (count, rows * columns))
    return found.transpose(1, 2).reshape(n * count, -1)


def standardised(found: Tensor, channels: int) -> Tensor:
    """Patches (m, C * p) with mean 0 and deviation 1 in each channel, taken over all of them."""
    shaped = found.unflatten(1, (channels, -1))
    deviation, mean = torch.std_mean(shaped, (0, 2), keepdim=True, correction=0)
    return ((shaped - mean) / deviation.clamp_min(1e-8)).flatten(1)


def sliced(first: Tensor, second: Tensor, random: torch.Generator) -> float:
    """Mean over 512 random directions of the Wasserstein-1 distance between projections of two sets (m, d)."""
    if first.shape != second.shape:
        raise UserError(f"sliced distances take sets of one shape, not {tuple(first.shape)} and {tuple(second.shape)}")
    total = 0.0
    for _ in range(REPEATS):
        directions = F.normalize(torch.randn(PROJECTIONS, first.shape[1], generator=random)).to(first.dtype)
        a, b = (np.sort((directions @ points.T).numpy(), axis=1) for points in (first, second))  # torch's takes 5x
        total += float(np.abs(a - b).mean(dtype=np.float64))
    return total / REPEATS


def distances(real: Tensor, fake: Tensor, random: torch.Generator) -> list[float]:
    """The distance of each level, finest first, between images (n, C, H, W) of one shape, in the data's own unit.

    Patches of both sets lie at the same places, image by image, so that a set has distance 0 to itself.
    """
    if real.shape != fake.shape:
        raise UserError(f"swd compares as many images of one shape, not {tuple(real.shape)} and {tuple(fake.shape)}")
    levels = levels_of(min(real.shape[2:]))
    places = int(torch.randint(2**31, (), generator=random))
    sets = [_descriptors(images, levels, torch.Generator().manual_seed(places)) for images in (real, fake)]
    return [sliced(a, b, random) for a, b in zip(*sets, strict=True)]


def suits(dataset: Dataset) -> str | None:
    """Why it cannot be measured against ``dataset``; None where it can."""
    return needs_images(dataset)


def measure(subject: Subject, n: int | None = None) -> Result:
    """Measure it between ``n`` samples, 1,024 by default, and as many training images."""
    n = n or min(SAMPLES, len(subject.data))
    random = subject.random()
    real, fake = chosen(subject.data, n, random), subject.sample(n).float()
    found = distances(real, fake, random)
    side = min(real.shape[2:])
    values = {f"swd x1000, side {-(-side // 2**level)}": SCALE * value for level, value in enumerate(found)}
    values["swd x1000, mean"] = SCALE * sum(found) / len(found)
    said = f"{n} samples ({subject.origin}) against {n} training images of {subject.data.name}; {PATCHES} patches of"
    said += f" {min(PATCH, side)}x{min(PATCH, side)} an image and level, {PROJECTIONS * REPEATS} directions"
    return Result("swd", values, f"{said} (the paper: 16384 images)", reference=REFERENCE)


def _descriptors(images: Tensor, levels: int, random: torch.Generator) -> Sequence[Tensor]:
    """Standardised patches of each level, finest first."""
    found: list[list[Tensor]] = [[] for _ in range(levels)]
    for part in images.split(CHUNK):
        for level, band in enumerate(pyramid(part, levels)):
            found[level].append(patches(band, random))
    return [standardised(torch.cat(parts), images.shape[1]) for parts in found]


def _kernel(images: Tensor) -> Tensor:
    """The binomial kernel, once for each channel: (C, 1, 5, 5)."""
    line = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=images.dtype) / 16
    return torch.outer(line, line).expand(images.shape[1], 1, 5, 5)


def _smooth(images: Tensor, kernel: Tensor) -> Tensor:
    return F.conv2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), kernel, groups=images.shape[1])
