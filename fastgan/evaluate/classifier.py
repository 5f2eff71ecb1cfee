"""A small classifier of digits, trained once on this machine and kept in the cache: the judge of other measures.

CACHE/classifiers/DATA-<digest of data and recipe>/   appears whole or not at all
    weights.safetensors   classifier.json
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan import data
from fastgan.data.dataset import Dataset, normalise
from fastgan.data.places import cache_folder
from fastgan.disk import sync_folder, write
from fastgan.errors import UserError, require, unknown
from fastgan.locks import locked

FORMAT = 1  # of the cache: classifiers of another one are trained anew
CHUNK = 1000  # images that are judged at a time
EVERY = 5  # of a data set without a test split each EVERYth image is held out


@dataclass(frozen=True)
class Recipe:
    """How a classifier is built and trained: Adam on the cross-entropy, the rate falling linearly to 0."""

    widths: tuple[int, int]
    pools: tuple[bool, bool]  # whether a 2x2 max-pooling follows each convolution
    features: int
    epochs: int
    batch_size: int
    rate: float
    seed: int = 0


RECIPES = {
    "mnist": Recipe(widths=(16, 32), pools=(True, True), features=128, epochs=2, batch_size=128, rate=3e-3),
    "fashion-mnist": Recipe(widths=(16, 32), pools=(True, True), features=128, epochs=2, batch_size=128, rate=3e-3),
    "digits": Recipe(widths=(32, 64), pools=(False, True), features=128, epochs=15, batch_size=64, rate=3e-3),
}


class Network(nn.Module):
    """Two 3x3 convolutions, a hidden layer of `features` numbers, and a logit for each class; ReLU between."""

    def __init__(self, recipe: Recipe, side: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for width, pool in zip(recipe.widths, recipe.pools, strict=True):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            if pool:
                layers.append(nn.MaxPool2d(2))
                side //= 2
            channels = width
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side * side, recipe.features), nn.ReLU())
        self.head = nn.Linear(recipe.features, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(n, 1, side, side)`` in [-1, 1] -> logits ``(n, classes)``."""
        logits: Tensor = self.head(self.body(images))
        return logits


@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained classifier and how well it does.

    Attributes:
        name: The data set that it was trained on.
        network: Its network, on the CPU, in eval mode, its weights frozen.
        side: Of the images that it takes.
        classes: Names of what it tells apart.
        accuracy: Share of test images that it names right: a judge errs, and all that it says errs with it.
        tested: Which images those were, in words.
    """

    name: str
    network: Network
    side: int
    classes: tuple[str, ...]
    accuracy: float
    tested: str

    def logits(self, images: Tensor) -> Tensor:
        """Logits ``(n, classes)`` of images ``(n, 1, H, W)`` in [-1, 1], with gradients towards the images.

        Images of side + 4, which is how 28x28 are padded to 32x32, are judged by their middle.

        Raises:
            UserError: Images of another size, or not grey.
        """
        logits: Tensor = self.network(self._fitted(images))
        return logits

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Most likely class of each image: ``(n,)`` int64."""
        return torch.cat([self.logits(part).argmax(1) for part in images.split(CHUNK)])

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Softmax of the logits: ``(n, classes)``."""
        return torch.cat([self.logits(part).softmax(1) for part in images.split(CHUNK)])

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Activations of the last hidden layer: ``(n, k)`` float32."""
        return torch.cat([self.network.body(self._fitted(part)) for part in images.split(CHUNK)])

    def __str__(self) -> str:
        return f"a classifier of {self.name} that is right on {self.accuracy:.2%} of {self.tested}"

    def _fitted(self, images: Tensor) -> Tensor:
        shape = tuple(images.shape[1:])
        if shape == (1, self.side + 4, self.side + 4):
            return images[:, :, 2:-2, 2:-2]
        if shape != (1, self.side, self.side):
            raise UserError(
                f"the classifier of {self.name} takes grey images of {self.side}x{self.side}, not of shape {shape}: "
                "evaluate a generator of such images"
            )
        return images


def load_classifier(name: str, path: str | None = None) -> Classifier:
    """The classifier of a data set, ``mnist``, ``fashion-mnist`` or ``digits``: from the cache, else trained into it.

    ``path``: the folder in which the data set lies, where it is not the usual one.

    Training takes about a minute of one core on ``mnist``, seconds on ``digits``, and gives the same weights each time
    on the same machine.

    Raises:
        UserError: Another data set, data that cannot be had, a cache that cannot be written.
    """
    if name not in RECIPES:
        raise unknown("classifier", name, RECIPES)
    recipe = RECIPES[name]
    train, test, tested = parts(name, path)
    folder = cache_folder() / "classifiers" / f"{name}-{_digest(train, recipe)}"
    found = _opened(folder, name, recipe)
    if found is None:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with locked(folder.with_name(f"{folder.name}.lock"), _say_waiting):
                found = _opened(folder, name, recipe)
                if found is None:
                    _keep(folder, trained(name, recipe, train, test, tested), recipe)
        except OSError as error:
            raise UserError(
                f"the cache {folder.parent} cannot be written ({error.strerror or error}): set FASTGAN_CACHE"
            ) from error
        found = found or _opened(folder, name, recipe)
    if found is None:
        raise UserError(f"the classifier {folder} cannot be read though it has just been written: set FASTGAN_CACHE")
    return found


def parts(name: str, path: str | None = None) -> tuple[Dataset, Dataset, str]:
    """What a classifier learns from, what it is tested on, and the latter in words.

    ``digits`` has no test split: images 0, 5, 10, ... are held out.
    """
    spec = name if path is None else f"{name}:{path}"
    train = data.load(spec)
    if name != "digits":
        test = data.load(spec, split="test")
        return train, test, f"its {len(test):,} test images"
    assert train.labels is not None
    held_out = torch.arange(len(train)) % EVERY == 0
    split = [
        Dataset(name=name, images=train.images[which], labels=train.labels[which], classes=train.classes)
        for which in (~held_out, held_out)
    ]
    return split[0], split[1], f"its {len(split[1]):,} images 0, {EVERY}, {2 * EVERY}, ..., held out"


def trained(name: str, recipe: Recipe, train: Dataset, test: Dataset, tested: str) -> Classifier:
    """Train a classifier on one data set and test it on another; a bar shows the progress."""
    assert train.labels is not None and test.labels is not None
    with _quietly(recipe.seed):
        network = Network(recipe, train.sample_shape[-1], len(train.classes))
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.rate)
    steps = recipe.epochs * -(-len(train) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    tqdm = require("tqdm", why="the progress bar").tqdm
    bar = tqdm(total=steps, desc=f"classifier of {name}", file=sys.stderr, disable=None, leave=False)
    with bar, torch.enable_grad():
        for index in _batches(len(train), recipe):
            loss = F.cross_entropy(network(normalise(train.images[index])), train.labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
    network.eval().requires_grad_(False)
    made = Classifier(name, network, train.sample_shape[-1], train.classes, 0.0, tested)
    right = float((made.predict(normalise(test.images)) == test.labels).double().mean())
    return Classifier(name, network, made.side, train.classes, right, tested)


def _batches(n: int, recipe: Recipe) -> Iterator[Tensor]:
    random = torch.Generator().manual_seed(recipe.seed)
    for _ in range(recipe.epochs):
        yield from torch.randperm(n, generator=random).split(recipe.batch_size)


def _digest(train: Dataset, recipe: Recipe) -> str:
    """A short name for the data and the recipe."""
    assert train.labels is not None
    state = hashlib.sha256(repr((FORMAT, recipe, train.sample_shape)).encode())
    state.update(train.images.contiguous().numpy().data)
    state.update(train.labels.contiguous().numpy().data)
    return state.hexdigest()[:24]


def _keep(folder: Path, classifier: Classifier, recipe: Recipe) -> None:
    """Write a classifier into the cache, whole or not at all."""
    safetensors = require("safetensors.torch", why="keeping a classifier")
    weights: bytes = safetensors.save(classifier.network.state_dict())
    content = {
        "data": classifier.name,
        "recipe": asdict(recipe),
        "side": classifier.side,
        "classes": classifier.classes,
        "accuracy": classifier.accuracy,
        "tested": classifier.tested,
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    writing = folder.with_name(f".writing-{uuid.uuid4().hex}")
    writing.mkdir()
    try:
        write(writing / "weights.safetensors", weights)
        write(writing / "classifier.json", json.dumps(content, indent=1).encode("ascii"))
        sync_folder(writing)
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        os.replace(writing, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(writing, ignore_errors=True)


def _opened(folder: Path, name: str, recipe: Recipe) -> Classifier | None:
    """The classifier that the cache holds; None where it holds none, or a damaged one."""
    safetensors = require("safetensors.torch", why="reading a classifier")
    try:
        content = json.loads((folder / "classifier.json").read_text(encoding="ascii"))
        weights = (folder / "weights.safetensors").read_bytes()
        if hashlib.sha256(weights).hexdigest() != content["sha256"]:
            return None
        side, classes = int(content["side"]), tuple(map(str, content["classes"]))
        with _quietly(recipe.seed):
            network = Network(recipe, side, len(classes))
        network.load_state_dict(safetensors.load(weights))
        network.eval().requires_grad_(False)
        return Classifier(name, network, side, classes, float(content["accuracy"]), str(content["tested"]))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None


@contextmanager
def _quietly(seed: int) -> Iterator[None]:
    """Context in which weights begin from ``seed``, and the caller's random numbers go on as if nothing were."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _say_waiting(who: str) -> None:
    warnings.warn(f"the classifier is being trained by {who}: waiting", stacklevel=2)
