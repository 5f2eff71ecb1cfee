"""What turns images into features, which FID, KID, precision and recall are measured on: named beside every number."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastgan.data import Dataset
from fastgan.errors import UserError, unknown
from fastgan.evaluate.classifier import RECIPES, load_classifier
from fastgan.evaluate.metric import Subject, chosen

BUILT_IN = ("digits-classifier", "random-projection")
SIZE = 64  # numbers that the random projection makes of an image
CHUNK = 256  # images at a time
MOST = 10_000  # samples of a side where nobody says how many


@dataclass(frozen=True, eq=False)
class Extractor:
    """A function of images, and the name that stands beside its numbers.

    Attributes:
        name: what it is, for a protocol.
        function: images (n, C, H, W) float32 in [-1, 1] -> features (n, k), or more axes, which are flattened.
    """

    name: str
    function: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features (n, k) of images, float64 on the CPU. Raises UserError where the function does not return such."""
        parts = []
        for part in images.split(CHUNK):
            made = self._of(part.clone())  # a function may work in place, and the samples are others' too
            if not isinstance(made, Tensor) or made.ndim < 2 or len(made) != len(part):
                got = f"shape {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
                raise UserError(f"{self.name} must return a tensor (n, k) of {len(part)} images, not {got}")
            parts.append(made.detach().flatten(1).double().cpu())
        features = torch.cat(parts)
        if not features.isfinite().all():
            raise UserError(f"{self.name} returned features that are not finite: the images, or its weights, are not")
        return features

    def _of(self, images: Tensor) -> object:
        """What the function makes. Raises UserError for whatever it raises."""
        try:
            return self.function(images)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"{self.name} failed on images {tuple(images.shape)} with {type(error).__name__}:"
                f" {_first_line(error)}; it takes images (n, C, H, W) in [-1, 1] and returns (n, k)"
            ) from error


def extractor(name: str | None, data: Dataset) -> Extractor:
    """The extractor called ``name`` for images like ``data``.

    Args:
        name: ``digits-classifier``: the last hidden layer of a classifier of those digits; ``random-projection``: 64
            fixed random directions of pixel space; ``MODULE:FUNCTION``: a function that Python can import, from the
            working folder too. None: the classifier where there is one for the data, else the projection.
        data: The data set that its images are compared with.

    Raises:
        UserError: An unknown name, a function that cannot be imported, no classifier for these data.
    """
    if name is None:
        name = "digits-classifier" if data.name in RECIPES else "random-projection"
    if ":" in name:
        return Extractor(name, _imported(name))
    if name == "random-projection":
        size = data.images[0].numel()
        k = min(SIZE, size)
        directions = torch.randn(size, k, generator=torch.Generator().manual_seed(0)) / size**0.5
        return Extractor(f"random-projection ({k} directions)", lambda images: images.flatten(1) @ directions)
    check(name)
    if data.name not in RECIPES:
        known = ", ".join(RECIPES)
        raise UserError(f"digits-classifier knows {known}, not {data.name}: say --features random-projection")
    judge = load_classifier(data.name, data.path)
    return Extractor(f"digits-classifier ({judge})", judge.features)


def check(name: str) -> None:
    """Raise UserError where ``name`` is no built-in extractor and names no function."""
    if name not in BUILT_IN and ":" not in name:
        raise unknown("extractor", name, (*BUILT_IN, "MODULE:FUNCTION"))


def pair(subject: Subject, n: int | None, features: str | None) -> tuple[Tensor, Tensor, str]:
    """Features of the data and of as many samples, and one line that says of what.

    ``n`` samples are compared with ``n`` of the training data; without it as many as there are, 10,000 at most.
    """
    chosen_extractor = extractor(features, subject.data)
    n = n or min(MOST, len(subject.data))
    real = chosen_extractor(chosen(subject.data, n, subject.random()))
    fake = chosen_extractor(subject.sample(n).float())
    said = f"{n} samples ({subject.origin}) against {n} training images of {subject.data.name}"
    return real, fake, f"{said}, {real.shape[1]} features of {chosen_extractor.name}"


def _imported(name: str) -> Callable[[Tensor], Tensor]:
    """The function that ``MODULE:FUNCTION`` names. Raises UserError where there is none."""
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    try:
        with _importing_from(here):
            found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the module does when it is imported
        said = f"{type(error).__name__}: {_first_line(error)}"
        raise UserError(f"--features {name} ended with {said}; give an importable MODULE:FUNCTION") from error
    if not callable(found):
        raise UserError(f"--features {name} is no function: give one of images (n, C, H, W) that returns (n, k)")

    def function(images: Tensor) -> Tensor:
        with _importing_from(here):  # what it imports when it is called
            features: Tensor = found(images)
        return features

    return function


@contextmanager
def _importing_from(folder: str) -> Iterator[None]:
    """Context in which modules of ``folder`` can be imported, behind all others."""
    added = folder not in sys.path
    if added:
        sys.path.append(folder)
    try:
        yield
    finally:
        if added and folder in sys.path:
            sys.path.remove(folder)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]
