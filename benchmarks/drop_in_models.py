"""Models as other people write them, from ``tests/models`` of a checkout: how each is built, fed and trained."""

from __future__ import annotations

import functools
import importlib.util
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fastgan.benchmarks.drop_in_objectives import (
    Batch,
    ConditionalHinge,
    CrossEntropy,
    Hinge,
    LeastSquares,
    LogisticR1,
    Objective,
    Patches,
    WassersteinPenalty,
)
from fastgan.errors import UserError

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "models"
Sizes = dict[str, tuple[int, ...]]
LABELS = "y"  # the only integers in a batch; its size is how many classes there are


class Networks(NamedTuple):
    """A pair to train; of some styles only the discriminator is here."""

    generator: nn.Module | None
    discriminator: nn.Module

    def named(self) -> dict[str, nn.Module]:
        """Return those that are here by the letters that papers give them."""
        return {"G": self.generator, "D": self.discriminator} if self.generator else {"D": self.discriminator}


@dataclass(frozen=True)
class Style:
    """One manner of writing GANs."""

    name: str
    file: str
    title: str
    build: Callable[[Any, bool], Networks]  # of the file's module; at the published size, or a small one for tests
    sizes: Callable[[bool], Sizes]  # what is drawn for each sample
    objective: Objective
    batch: int  # as published
    rate: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)
    pack: int = 1  # samples that only go together

    def networks(self, full: bool = False) -> Networks:
        """Build the pair."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the hooks of old are what such code uses
            return self.build(load(FOLDER / self.file), full)

    def draw(self, n: int, generator: torch.Generator, full: bool = False) -> Batch:
        """Draw n samples of everything that a step reads, in fp32 on the generator's device."""
        batch, device = {}, generator.device
        for name, size in self.sizes(full).items():
            if name == LABELS:
                batch[name] = torch.randint(size[0], (n,), generator=generator, device=device)
            else:
                batch[name] = torch.randn(n, *size, generator=generator, device=device)
        return batch

    def nothing(self, n: int) -> Batch:
        """Return n samples at the published size without values, on the device that ``torch.device`` has set."""
        sizes = self.sizes(True).items()
        return {k: torch.zeros(n, dtype=torch.int64) if k == LABELS else torch.empty(n, *size) for k, size in sizes}

    def inputs(self, letter: str, batch: Batch) -> tuple[Tensor, ...]:
        """Return what a forward pass of one of the networks takes."""
        parts = [[batch[part] for part in name.split("+")] for name in self.objective.takes[letter]]
        return tuple(tensors[0] if len(tensors) == 1 else torch.cat(tensors, 1) for tensors in parts)


@functools.cache
def load(path: Path) -> Any:
    """Return the module in a file, under a name by which its classes can be pickled."""
    if not path.exists():
        raise UserError(f"no {path.name} in {path.parent}: these models come with a checkout, not with the package")
    name = f"drop_in_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _mlp(code: Any, full: bool) -> Networks:
    if full:
        return Networks(code.Generator(), code.Discriminator())
    return Networks(code.Generator(7, (1, 4, 5), (8, 12, 9, 10)), code.Discriminator((1, 4, 5), (12, 6)))


def _dcgan(code: Any, full: bool) -> Networks:
    pair = (
        Networks(code.Generator(), code.Discriminator())
        if full
        else Networks(code.Generator(5, 2), code.Discriminator(3, 3))
    )
    for network in pair.named().values():
        network.apply(code.weights_init)
    return pair


def _hifigan(norm: Callable[..., nn.Module], code: Any, full: bool) -> Networks:
    if full:
        return Networks(code.Generator(norm=norm), code.MultiPeriodDiscriminator(norm=norm))
    generator = code.Generator(5, (4, 2), (8, 4), 8, (3, 5), ((1, 3), (1, 2)), norm=norm)
    return Networks(generator, code.MultiPeriodDiscriminator((2, 3), (3, 4), norm=norm))


def _sngan(norm: Callable[..., nn.Module], classes: int, interpolate: bool, code: Any, full: bool) -> Networks:
    if full:
        generator = code.Generator(num_classes=classes, interpolate=interpolate)
        return Networks(generator, code.Discriminator(num_classes=classes, norm=norm))
    generator = code.Generator(6, 4, 1, num_classes=classes, interpolate=interpolate)
    return Networks(generator, code.Discriminator(4, num_classes=classes, norm=norm))


def _pix2pix(code: Any, full: bool) -> Networks:
    if full:
        return Networks(code.UnetGenerator(), code.NLayerDiscriminator())
    return Networks(code.UnetGenerator(3, 3, 5, 2, use_dropout=False), code.NLayerDiscriminator(6, 2, 2))


def _ctgan(code: Any, full: bool) -> Networks:
    if full:
        return Networks(code.Generator(), code.Discriminator())
    return Networks(code.Generator(6, (8, 10), 7), code.Discriminator(7, (12, 8), 2, dropout=0.0))


def _stylegan2(code: Any, full: bool) -> Networks:
    return Networks(None, code.Discriminator() if full else code.Discriminator(8, 5, 64))


def _sized(
    full: dict[str, tuple[int, ...]], small: dict[str, tuple[int, ...]]
) -> Callable[[bool], dict[str, tuple[int, ...]]]:
    return lambda wanted: full if wanted else small


AUDIO = _sized({"mel": (80, 32), "wave": (1, 8192)}, {"mel": (5, 4), "wave": (1, 32)})
PICTURES = _sized({"z": (128,), "real": (3, 32, 32)}, {"z": (6,), "real": (3, 8, 8)})
LABELLED = _sized({"z": (128,), "real": (3, 32, 32), LABELS: (10,)}, {"z": (6,), "real": (3, 8, 8), LABELS: (3,)})
STYLES = (
    Style(
        "mlp", "pytorch_gan_mlp.py", "PyTorch-GAN's MLPs", _mlp,
        _sized({"z": (100,), "real": (1, 28, 28)}, {"z": (7,), "real": (1, 4, 5)}), CrossEntropy(), 64,
    ),
    Style(
        "dcgan", "dcgan_example.py", "the PyTorch DCGAN example", _dcgan,
        _sized({"z": (100, 1, 1), "real": (3, 64, 64)}, {"z": (5, 1, 1), "real": (3, 64, 64)}), CrossEntropy(), 128,
    ),
    Style(
        "hifigan", "hifigan.py", "HiFi-GAN, weight norm by hooks", functools.partial(_hifigan, nn.utils.weight_norm),
        AUDIO, LeastSquares(), 16, betas=(0.8, 0.99),
    ),
    Style(
        "hifigan-parametrized", "hifigan.py", "HiFi-GAN, weight norm by parametrization",
        functools.partial(_hifigan, parametrizations.weight_norm), AUDIO, LeastSquares(), 16, betas=(0.8, 0.99),
    ),
    Style(
        "sngan", "sngan_resnet.py", "a SNGAN ResNet, spectral norm by hooks, F.interpolate",
        functools.partial(_sngan, nn.utils.spectral_norm, 0, True),
        PICTURES, Hinge(), 64, betas=(0.0, 0.9),
    ),
    Style(
        "sngan-conditional", "sngan_resnet.py", "the same with classes, spectral norm by parametrization, nn.Upsample",
        functools.partial(_sngan, parametrizations.spectral_norm, 10, False),
        LABELLED, ConditionalHinge(), 64, betas=(0.0, 0.9),
    ),
    Style(
        "pix2pix", "pix2pix.py", "pix2pix: a U-Net and patches", _pix2pix,
        _sized({"a": (3, 256, 256), "b": (3, 256, 256)}, {"a": (3, 32, 32), "b": (3, 32, 32)}), Patches(), 1,
    ),
    Style(
        "ctgan", "ctgan.py", "CTGAN's residual MLP", _ctgan,
        _sized({"z": (128,), "real": (156,), "alpha": (1, 1)}, {"z": (6,), "real": (7,), "alpha": (1, 1)}),
        WassersteinPenalty(), 500, betas=(0.5, 0.9), pack=10,
    ),
    Style(
        "stylegan2", "stylegan2_discriminator.py", "StyleGAN2's discriminator", _stylegan2,
        _sized({"fake": (3, 128, 128), "real": (3, 128, 128)}, {"fake": (3, 8, 8), "real": (3, 8, 8)}),
        LogisticR1(), 32, rate=2e-3, betas=(0.0, 0.99),
    ),
)  # fmt: skip
