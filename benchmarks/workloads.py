"""The linear layers of the networks that people train, as data: what suites race and what tables are tuned for.

Sources: ``mlp``, ``wgan`` and ``cgan`` are PyTorch-GAN's gan.py, wgan.py and cgan.py, whose ``BatchNorm1d(n, 0.8)``
sets eps; ``ctgan`` is sdv-dev's CTGAN with pac 10; ``goodfellow-mnist`` is goodfeli/adversarial's mnist.yaml.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

SWEEP = (1024, 16384)  # beside the batch that the published code takes


@dataclass(frozen=True)
class Layer:
    """A linear layer and what follows it in its network."""

    workload: str
    name: str
    in_features: int  # those of a concatenated second operand included
    out_features: int
    activation: str = "leaky_relu"
    slope: float = 0.2  # of the leaky ReLU
    norm: float | None = None  # eps of the batch norm in front of the activation; None: there is none
    batches: tuple[int, ...] = (64, *SWEEP)  # the first is the workload's own
    joined: int = 0  # features of the second operand that is concatenated to the first: a condition, a label
    classes: int = 0  # of that label, whose embedding is what is joined; 0: values as they are
    pieces: int = 1  # of a maxout, which keeps the largest of so many linear pieces for each output; its own activation
    dropout: float = 0.0  # what follows in training: the share of outputs that is dropped

    @property
    def rows(self) -> int:
        """Rows of the weight."""
        return self.out_features * self.pieces

    @property
    def shape(self) -> tuple[object, ...]:
        """What makes two layers the same work, whatever network they stand in."""
        beside = (self.joined, self.classes, self.pieces)
        return (self.in_features, self.rows, self.activation, self.slope, self.norm, *beside)


def generator_and_critic(workload: str) -> Iterator[Layer]:
    """The fully connected pair on 28x28 images, the sigmoid left to the loss."""
    yield Layer(workload, "g1", 100, 128)
    for at, width in enumerate((128, 256, 512), 2):
        yield Layer(workload, f"g{at}", width, 2 * width, norm=0.8)
    yield Layer(workload, "g5", 1024, 784, "tanh")
    yield Layer(workload, "d1", 784, 512)
    yield Layer(workload, "d2", 512, 256)
    yield Layer(workload, "d3", 256, 1, "none")


def conditional() -> Iterator[Layer]:
    """On 32x32 images, a label of 10 features beside the latent and beside the image."""
    yield Layer("cgan", "g1", 110, 128, joined=10, classes=10)
    for at, width in enumerate((128, 256, 512), 2):
        yield Layer("cgan", f"g{at}", width, 2 * width, norm=0.8)
    yield Layer("cgan", "g5", 1024, 1024, "tanh")
    yield Layer("cgan", "d1", 1034, 512, joined=10, classes=10)
    yield Layer("cgan", "d2", 512, 512, dropout=0.4)
    yield Layer("cgan", "d3", 512, 512, dropout=0.4)
    yield Layer("cgan", "d4", 512, 1, "none")


def tabular(columns: int = 120, condition: int = 60) -> Iterator[Layer]:
    """A table's width is its own: this one has 120 encoded columns and a condition of 60; D sees ten rows at once."""
    width, latent, pac = 256, 128, 10
    g_batches, d_batches = (500, *SWEEP), (50, *SWEEP)
    first = latent + condition
    yield Layer("ctgan", "g1", first, width, "relu", norm=1e-5, batches=g_batches)
    yield Layer("ctgan", "g1-joined", first, width, "none", batches=g_batches, joined=condition)  # before its norm
    yield Layer("ctgan", "g2", first + width, width, "relu", norm=1e-5, batches=g_batches)
    yield Layer("ctgan", "g3", first + 2 * width, columns, "none", batches=g_batches)
    together = pac * (columns + condition)
    yield Layer("ctgan", "d1", together, width, batches=d_batches, dropout=0.5)
    yield Layer("ctgan", "d2", width, width, batches=d_batches, dropout=0.5)
    yield Layer("ctgan", "d3", width, 1, "none", batches=d_batches)


def maxout() -> Iterator[Layer]:
    """The first published GAN: D of two maxout layers, 240 units of 5 pieces."""
    batches = (100, *SWEEP)
    yield Layer("goodfellow-mnist", "g1", 100, 1200, "relu", batches=batches)
    yield Layer("goodfellow-mnist", "g2", 1200, 1200, "relu", batches=batches)
    yield Layer("goodfellow-mnist", "g3", 1200, 784, "sigmoid", batches=batches)
    yield Layer("goodfellow-mnist", "d1", 784, 240, "none", batches=batches, pieces=5, dropout=0.5)
    yield Layer("goodfellow-mnist", "d2", 240, 240, "none", batches=batches, pieces=5, dropout=0.5)
    yield Layer("goodfellow-mnist", "d3", 240, 1, "none", batches=batches)


def squares() -> Iterator[Layer]:
    """Square products, as many rows as features: what a share of the matrix rate is counted from."""
    for size in (1024, 2048, 4096, 8192):
        yield Layer("square", f"{size}", size, size, batches=(size,))


LAYERS: tuple[Layer, ...] = (
    *generator_and_critic("mlp"),
    *(replace(layer, batches=(64,)) for layer in generator_and_critic("wgan")),
    *conditional(),
    *tabular(),
    *maxout(),
    *squares(),
)
