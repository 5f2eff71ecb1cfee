"""What the networks that people train launch is what is audited."""

from __future__ import annotations

import itertools

import pytest
import torch

from fastgan.kernels.variant import Variant

pytest.importorskip("triton")
from fastgan.kernels import conv_forms
from fastgan.kernels.conv_forms import _Case as Layer
from fastgan.kernels.tile import Target

CARDS = (80, 86, 90, 120)


def generator(*channels: int, kernel: int) -> list[Layer]:
    """Transposed convolutions that double an image, normalised, down to 3 channels."""
    image, layers = 4, []
    for grid, of in itertools.pairwise(channels):
        image *= 2
        layers.append(Layer("none", of, grid, True, kernel, image=image, below="relu", norm="both", bias=False))
    head = Layer("tanh", 3, channels[-1], True, kernel, image=2 * image, below="relu", norm="in", bias=kernel == 5)
    return [*layers, head]


DCGAN = [
    *(Layer("none", C, 100, True, 4, 1, 4, norm="out", bias=False) for C in (512, 1024)),
    *generator(512, 256, 128, 64, kernel=4),
    *generator(1024, 512, 256, 128, 64, kernel=4),
    Layer(C=3, K=64, image=64, bias=False),
    Layer("none", 64, 128, below="leaky_relu", norm="out", bias=False),
    *(Layer("none", C, 2 * C, image=16, below="leaky_relu", norm="both", bias=False) for C in (128, 256, 512)),
    *(Layer("sigmoid", C, 1, False, 4, 1, 4, below="leaky_relu", norm="in", bias=False) for C in (512, 1024)),
]
WGAN_GP = [
    *generator(512, 256, 128, kernel=5),
    Layer(C=3, K=128, kernel=5),
    *(Layer(C=C, K=2 * C, kernel=5, image=16, below="leaky_relu") for C in (128, 256)),
]
SNGAN = [
    *(Layer("none", 256, 256, kernel=3, stride=1, up=up, below="relu", norm="both") for up in (1, 2)),
    Layer("none", 256, 256, kernel=1, stride=1, up=2),
    Layer("tanh", 256, 3, kernel=3, stride=1, below="relu", norm="in"),
    *(Layer("none", 3, 128, kernel=kernel, stride=1) for kernel in (1, 3)),
    *(Layer("none", 128, 128, kernel=3, stride=1, image=image, before="relu") for image in (8, 16, 32)),
    Layer("none", 128, 128, kernel=1, stride=1),
]
HIFI_GAN = [
    Layer("none", 80, 512, kernel=7, stride=1, signal=True),
    *(
        Layer("none", K // 2, K, True, kernel, kernel // 2, 256, signal=True, before="leaky_relu")
        for K, kernel in ((512, 16), (256, 16), (128, 4), (64, 4))
    ),
    *(
        Layer("none", C, C, kernel=kernel, stride=1, image=2048, signal=True, before="leaky_relu")
        for C in (256, 128, 64, 32)
        for kernel in (3, 7, 11)
    ),
    Layer("tanh", 32, 1, kernel=7, stride=1, image=8192, signal=True, before="leaky_relu"),
]
NETWORKS = {"dcgan": DCGAN, "wgan-gp": WGAN_GP, "sngan": SNGAN, "hifi-gan": HIFI_GAN}


def form(variant: Variant) -> str:
    facts = sorted(variant.signature.items()), sorted(variant.constexprs.items(), key=str), sorted(variant.divisible)
    return repr((variant.kernel, facts, variant.num_warps, variant.num_stages, variant.register_cap))


@pytest.fixture(scope="module", params=CARDS)
def card(request: pytest.FixtureRequest) -> tuple[int, set[str]]:
    """An architecture, and the forms that are listed for it."""
    variants = list(conv_forms.variants(request.param))
    known = {form(variant) for variant in variants}
    assert len(known) == len(variants)
    return request.param, known


@pytest.mark.parametrize("network", NETWORKS)
def test_what_a_network_launches_is_among_the_variants(card: tuple[int, set[str]], network: str) -> None:
    """Every layer forward and backward in bf16, at small and large batches, each in the tile that is chosen for it."""
    arch, known = card
    missing = [
        f"{batch} {launch.kernel.__name__} {layer} {launch.config}"
        for layer, batch in itertools.product(NETWORKS[network], (16, 64, 128, 512, 1024))
        for launch in conv_forms._launches(layer, torch.bfloat16, Target(arch, "tf32"), batch, swept=False)
        if form(launch.variant("conv", "", 0)) not in known
    ]
    assert not missing, "\n".join(missing)
