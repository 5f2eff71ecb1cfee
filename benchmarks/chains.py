"""What a training step runs: chains of convolutions, how often, and in which directions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from fastgan.benchmarks.workloads import CONVOLUTIONS, Convolution

DTYPE = torch.bfloat16
WORKLOADS = ("dcgan-64", "dcgan-128")  # each layer's input is another's output, and nothing else
FORWARD, AROUND, INPUT, WEIGHT = "forward", "around", "input", "weight"  # around: back through activation and norm
EVERYTHING = (FORWARD, AROUND, INPUT, WEIGHT)


@dataclass(frozen=True)
class Place:
    """A layer in its chain."""

    layer: Convolution
    below: Convolution | None  # whose output it takes
    last: bool

    @property
    def raw(self) -> bool:
        """Whether its input comes with a norm to go through."""
        return self.below is not None and self.below.norm is not None

    @property
    def activated(self) -> bool:
        """Whether its input's gradient goes on through an activation, a norm or not in front of it."""
        return self.below is not None and self.below.activation != "none"

    @property
    def normed(self) -> bool:
        """Whether a norm follows, whose statistics correct the gradient."""
        return self.layer.norm is not None

    @property
    def pending(self) -> bool:
        """Whether the gradient comes from outside, with an activation to go through first."""
        return self.last and not self.normed and self.layer.activation != "none"


@dataclass(frozen=True)
class Run:
    """One way through a network."""

    name: str
    places: tuple[Place, ...]
    batch: int  # of all calls together
    directions: tuple[str, ...] = EVERYTHING
    to_data: bool = False  # whether the gradient of the network's own input is wanted
    calls: int = 1  # of PyTorch; ours takes them in one, each by statistics of its own
    unused: tuple[str, ...] = ()  # what PyTorch forms beside, because nobody tells it not to

    def directions_of(self, place: Place) -> tuple[str, ...]:
        """Return the directions in which a layer is run."""
        inward = place.below is not None or self.to_data
        return tuple(direction for direction in self.directions if inward or direction != INPUT)


def places(layers: Sequence[Convolution]) -> tuple[Place, ...]:
    """Return layers as a chain."""
    pairs = zip(layers, (None, *layers), strict=False)
    return tuple(Place(layer, below, at == len(layers) - 1) for at, (layer, below) in enumerate(pairs))


def networks(workload: str) -> Iterator[tuple[Place, ...]]:
    """Yield G and D."""
    layers = [layer for layer in CONVOLUTIONS if layer.workload == workload]
    for name in "gd":
        yield places([layer for layer in layers if layer.name.startswith(name)])


def step(workload: str, batch: int) -> tuple[Run, ...]:
    """Return a training step: D on real and fake images, then G through D, one batch of fakes for both."""
    g, d = networks(workload)
    return (
        Run("G", g, batch),
        Run("D real + fake", d, 2 * batch, calls=2),
        Run("D for G", d, batch, (FORWARD, AROUND, INPUT), to_data=True, unused=(WEIGHT,)),
    )
