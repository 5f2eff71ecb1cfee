"""`stacked-mnist` and `stacked-digits`: three random digits as red, green and blue of one image, 1,000 modes.

Metz et al., 2017, Unrolled GANs, and Lin et al., 2018, PacGAN, section 4.2: 128,000 images of MNIST's digits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.data import digits, mnist
from fastgan.data.dataset import Dataset
from fastgan.errors import UserError

DIGITS = 3
_COUNTS = {"stacked-mnist": {"train": 128_000, "test": 26_000}, "stacked-digits": {"train": 32_000}}
_SEEDS = {"train": 1000, "test": 1001}


def load(name: str, path: str | None, *, split: str, allow_download: bool, image_size: int | None = None) -> Dataset:
    """Draw the images, (n, 3, S, S) uint8, the same at every call; the label is the number that the digits read.

    They lie whole in memory, as steps gather them: ``stacked-mnist`` takes 301 MB, padded to 32x32 393 MB;
    ``stacked-digits``, of 8x8, 6 MB.
    """
    source = digits if name == "stacked-digits" else mnist
    kind = name.removeprefix("stacked-")
    single = source.load(kind, path, split=split, allow_download=allow_download).fit(image_size=image_size)
    if single.labels is None or single.sample_shape[0] != 1:
        raise UserError(f"{name} stacks grey digits with labels, and {single.name} has none")
    count = _COUNTS[name][split]
    index = torch.randint(len(single), (count, DIGITS), generator=torch.Generator().manual_seed(_SEEDS[split]))
    images = torch.empty(count, DIGITS, *single.sample_shape[1:], dtype=torch.uint8)
    for channel, chosen in enumerate(index.unbind(1)):
        images[:, channel] = single.images[chosen, 0]
    return Dataset(
        name=name,
        images=images,
        labels=_read(single.labels[index]),
        classes=tuple(f"{number:0{DIGITS}}" for number in range(10**DIGITS)),
        license=single.license,
        source=f"three random images each of: {single.source}",
    )


def _read(labels: Tensor) -> Tensor:
    """The number whose digits these are, (n, DIGITS) to (n,)."""
    places = 10 ** torch.arange(DIGITS - 1, -1, -1)
    return (labels * places).sum(1)
