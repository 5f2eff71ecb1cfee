"""The layers of the networks that people train, as data: what suites race and what tables are tuned for.

Sources: ``mlp``, ``wgan`` and ``cgan`` are PyTorch-GAN's gan.py, wgan.py and cgan.py, whose ``BatchNorm1d(n, 0.8)``
sets eps; ``ctgan`` is sdv-dev's CTGAN with pac 10; ``goodfellow-mnist`` is goodfeli/adversarial's mnist.yaml.
``dcgan-64`` is pytorch/examples' dcgan, ``dcgan-128`` the same a level deeper; ``wgan-gp`` is improved_wgan_training's
gan_cifar.py; ``sngan-32`` is the ResNet of Miyato et al., 2018, for CIFAR's size, as torch-mimicry has it;
``hifigan-v1`` is the generator of jik876/hifi-gan, on segments of 8192 samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from itertools import pairwise
from typing import Any

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


@dataclass(frozen=True)
class Convolution:
    """A convolution or a transposed one, of an image or a signal, and what stands around it in its network."""

    workload: str
    name: str
    in_channels: int
    out_channels: int
    size: int  # of the input: the side of an image, the length of a signal
    kernel: int
    stride: int = 1
    padding: int = 0
    output_padding: int = 0
    dilation: int = 1
    transposed: bool = False
    dims: int = 2
    upsample: int = 1  # how many times the input is scaled up before it, to the nearest
    bias: bool = False
    activation: str = "none"
    slope: float = 0.2  # of the leaky ReLU
    before: str = "none"  # an activation of the input, no norm in front of it
    before_slope: float = 0.2
    norm: float | None = None  # eps of the batch norm in front of the activation; None: there is none
    batches: tuple[int, ...] = (64, 128)
    times: int = 1  # how many such layers the network has

    @property
    def out_size(self) -> int:
        """The side of the output."""
        reach = self.dilation * (self.kernel - 1) + 1
        if self.transposed:
            return (self.size - 1) * self.stride - 2 * self.padding + reach + self.output_padding
        return (self.size * self.upsample + 2 * self.padding - reach) // self.stride + 1

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """As torch.nn has it."""
        channels = (self.in_channels, self.out_channels) if self.transposed else (self.out_channels, self.in_channels)
        return (*channels, *(self.kernel,) * self.dims)

    @property
    def inputs(self) -> int:
        """Elements of a sample's input."""
        return self.in_channels * self.size**self.dims

    @property
    def outputs(self) -> int:
        """Elements of a sample's output."""
        return self.out_channels * self.out_size**self.dims

    @property
    def weights(self) -> int:
        """Elements of the weight."""
        return self.in_channels * self.out_channels * self.kernel**self.dims

    @property
    def flops(self) -> int:
        """Multiply-adds of a sample twice, those with the padding included: the same in each direction."""
        grid = self.size if self.transposed else self.out_size  # where the kernel stands
        return 2 * self.weights * grid**self.dims

    @property
    def shape(self) -> tuple[object, ...]:
        """What makes two layers the same work, whatever network they stand in."""
        return astuple(replace(self, workload="", name="", batches=(), times=1))

    @property
    def likeness(self) -> tuple[object, ...]:
        """What layers share that are of one kind, whatever their sizes."""
        kind = self.dims, self.transposed, self.stride > 1, self.dilation > 1, self.kernel > 1, self.upsample > 1
        return (*kind, self.bias, self.before, self.norm is not None, self.activation)


def dcgan(side: int) -> Iterator[Convolution]:
    """G and D of images of that side, four times a power of two."""
    name = f"dcgan-{side}"
    widths = [64 * 2**level for level in range((side // 4).bit_length() - 1)]
    ends = (100, *reversed(widths), 3)
    for at, (before, after) in enumerate(pairwise(ends)):
        size, stride, padding = (2 * 2**at, 2, 1) if at else (1, 1, 0)
        hidden = Convolution(name, f"g{at + 1}", before, after, size, 4, stride, padding, transposed=True)
        last = after == 3
        yield replace(hidden, activation="tanh" if last else "relu", norm=None if last else 1e-5)
    ends = (3, *widths, 1)
    for at, (before, after) in enumerate(pairwise(ends)):
        layer = Convolution(name, f"d{at + 1}", before, after, side // 2**at, 4)
        if after == 1:
            yield layer
        else:
            norm = 1e-5 if at else None
            yield replace(layer, stride=2, padding=1, activation="leaky_relu", norm=norm)


def wgan_gp(width: int = 128) -> Iterator[Convolution]:
    """Kernels of 5 at stride 2; G's first and D's last layer, which are linear, are left out."""
    for at, (before, after) in enumerate(((4 * width, 2 * width), (2 * width, width), (width, 3))):
        layer = Convolution("wgan-gp", f"g{at + 2}", before, after, 4 * 2**at, 5, 2, 2, 1, transposed=True, bias=True)
        last = after == 3
        yield replace(layer, activation="tanh" if last else "relu", norm=None if last else 1e-5, batches=(64,))
    for at, (before, after) in enumerate(((3, width), (width, 2 * width), (2 * width, 4 * width))):
        layer = Convolution("wgan-gp", f"d{at + 1}", before, after, 32 // 2**at, 5, 2, 2, bias=True)
        yield replace(layer, activation="leaky_relu", batches=(64,))


def sngan(ngf: int = 256, ndf: int = 128) -> Iterator[Convolution]:
    """Residual blocks: what is added to their way past, and the ways past that have a kernel of 1."""

    def layer(name: str, before: int, after: int, size: int, kernel: int = 3) -> Convolution:
        padding = kernel // 2
        return Convolution("sngan-32", name, before, after, size, kernel, 1, padding, bias=True, batches=(64,))

    for at, size in enumerate((4, 8, 16), 1):
        yield replace(layer(f"g{at}-up", ngf, ngf, size), upsample=2, activation="relu", norm=1e-5)
        yield layer(f"g{at}", ngf, ngf, 2 * size)
        yield replace(layer(f"g{at}-past", ngf, ngf, size, 1), upsample=2)
    yield replace(layer("g-image", ngf, 3, 32), activation="tanh")
    yield replace(layer("d1", 3, ndf, 32), activation="relu")
    yield layer("d1-down", ndf, ndf, 32)
    yield layer("d1-past", 3, ndf, 16, 1)
    yield replace(layer("d2", ndf, ndf, 16), before="relu", activation="relu")
    yield layer("d2-down", ndf, ndf, 16)
    yield layer("d2-past", ndf, ndf, 16, 1)
    yield replace(layer("d3", ndf, ndf, 8), before="relu", activation="relu", times=2)
    yield replace(layer("d3-down", ndf, ndf, 8), times=2)


def hifigan() -> Iterator[Convolution]:
    """Signals: four transposed convolutions, each with three residual blocks behind it that hold most of the work."""

    def layer(name: str, ins: int, outs: int, size: int, kernel: int, **more: Any) -> Convolution:
        fixed: dict[str, Any] = {"dims": 1, "bias": True, "batches": (16,)}
        return Convolution("hifigan-v1", name, ins, outs, size, kernel, **fixed, **more)

    leaky: dict[str, Any] = {"before": "leaky_relu", "before_slope": 0.1}
    yield layer("pre", 80, 512, 32, 7, padding=3)
    width, size = 512, 32
    for at, (kernel, stride) in enumerate(((16, 8), (16, 8), (4, 2), (4, 2)), 1):
        steps: dict[str, Any] = {"stride": stride, "padding": (kernel - stride) // 2, "transposed": True}
        yield layer(f"up{at}", width, width // 2, size, kernel, **steps, **leaky)
        width, size = width // 2, size * stride
        for taps in (3, 7, 11):
            for dilation, times in ((1, 4), (3, 1), (5, 1)):
                spread: dict[str, Any] = {"padding": dilation * (taps - 1) // 2, "dilation": dilation, "times": times}
                yield layer(f"res{at}-k{taps}-d{dilation}", width, width, size, taps, **spread, **leaky)
    yield layer("post", width, 1, size, 7, padding=3, activation="tanh", before="leaky_relu", before_slope=0.01)


CONVOLUTIONS: tuple[Convolution, ...] = (*dcgan(64), *dcgan(128), *wgan_gp(), *sngan(), *hifigan())
