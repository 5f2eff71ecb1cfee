"""Conditional and residual networks: the papers' formulas, and the values of public code with the same weights."""

import re
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from fastgan import models
from fastgan.errors import UserError

PUBLIC = runpy.run_path(str(Path(__file__).with_name("sngan_resnet.py")))
LABELS = torch.tensor([0, 1, 2, 1, 0, 2])


def told(network):
    """What a network takes behind its samples or latents."""
    return (LABELS,) if hasattr(network, "num_classes") and not getattr(network, "classifies", False) else ()


@pytest.mark.parametrize("name, sizes", [("resnet", (8, 16, 28, 32, 48)), ("cresnet", (8, 28)), ("acgan", (8, 16))])
def test_shapes(name, sizes):
    for size in sizes:
        generator = models.generator(name, 5, (3, size, size), {"width": 4}, 3)
        discriminator = models.discriminator(name, (3, size, size), {"width": 4}, 3)
        images = generator(torch.randn(6, 5), *told(generator))
        assert images.shape == (6, 3, size, size) and images.abs().max() <= 1
        judged = discriminator(images, *told(discriminator))
        shapes = [tuple(part.shape) for part in judged] if isinstance(judged, tuple) else [tuple(judged.shape)]
        assert shapes == ([(6,), (6, 3)] if name == "acgan" else [(6,)])


@pytest.mark.parametrize("classes", [0, 3])
def test_resnets_are_the_public_ones(classes):
    """Values, slopes and running statistics of sngan_resnet.py, with the same weights."""
    torch.manual_seed(0)
    name, labels = ("cresnet", (LABELS,)) if classes else ("resnet", ())
    theirs = [PUBLIC["Generator"](12, 6, num_classes=classes), PUBLIC["Discriminator"](8, num_classes=classes)]
    ours = [
        models.generator(name, 12, (3, 32, 32), {"width": 6}, classes),
        models.discriminator(name, (3, 32, 32), {"width": 8}, classes),
    ]
    for side, (public, own) in enumerate(zip(theirs, ours, strict=True)):
        own.load_state_dict({renamed(key, side): value for key, value in public.state_dict().items()})
        given = torch.randn((6, 3, 32, 32) if side else (6, 12))
        wanted, made = (network(given, *labels).flatten() for network in (public, own))
        torch.testing.assert_close(made, wanted.view_as(made), rtol=1e-4, atol=1e-5)
        slopes = [
            dict(zip(names(network), torch.autograd.grad(out.square().sum(), [*network.parameters()]), strict=True))
            for network, out in ((public, wanted), (own, made))
        ]
        slopes[0] = {renamed(key, side): value for key, value in slopes[0].items()}
        torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-3, atol=1e-3)
        after = {renamed(key, side): value for key, value in public.state_dict().items()}
        torch.testing.assert_close(dict(own.state_dict()), after, rtol=1e-4, atol=1e-5)


def names(network):
    return [name for name, _ in network.named_parameters()]


def renamed(key, side):
    """The name in our networks of a weight of the public ones. ``side``: 0 of G, whose blocks begin with block2."""
    key = re.sub(r"^block(\d)", lambda found: f"blocks.{int(found[1]) - 2 + side}", key)
    for public, own in (("c_sc", "shortcut"), ("l_y", "embed"), ("b5", "norm"), ("c5", "image")):
        key = key.replace(public, own)
    key = re.sub(r"(^|\.)c([12])\.", r"\1conv\2.", re.sub(r"(^|\.)b([12])\.", r"\1norm\2.", key))
    return re.sub(r"^l[15]\.", "linear.", key)


@pytest.mark.parametrize("name", ["cdcgan", "cresnet"])
def test_projection(name):
    """psi(phi(x)) + <embed(y), phi(x)>: Miyato and Koyama, eq. 3."""
    torch.manual_seed(0)
    network = models.discriminator(name, (1, 8, 8), {"width": 4}, 3).eval()
    images, features = torch.randn(6, 1, 8, 8), []
    network.linear.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    logits = network(images, LABELS)
    (phi,) = features
    psi = phi @ network.linear.weight.T + network.linear.bias
    rows = torch.stack([network.embed.weight[label] for label in LABELS.tolist()])
    torch.testing.assert_close(logits, psi.squeeze(1) + torch.einsum("nc,nc->n", rows, phi))
    body = network.layers if name == "cdcgan" else network.blocks
    maps = body(images) if name == "cdcgan" else body(images).clamp(min=0)
    torch.testing.assert_close(phi, maps.sum((2, 3)))


def test_cgan_is_the_public_one():
    """PyTorch-GAN's cgan.py: an embedding of as many numbers as classes, concatenated; its layers in their order."""
    torch.manual_seed(0)
    network = models.discriminator("cgan", (1, 32, 32), {}, 10).eval()
    linears = [(m.in_features, m.out_features) for m in network.modules() if isinstance(m, nn.Linear)]
    assert linears == [(1034, 512), (512, 512), (512, 512), (512, 1)]
    assert [layer.dropout for layer in network.layers] == [0.4, 0.4, 0.0]
    images, labels = torch.randn(6, 1, 32, 32), LABELS
    hidden = torch.cat((images.flatten(1), network.embed(labels)), 1)
    layers = [network.first, *network.layers]
    for layer in layers[:-1]:
        hidden = nn.functional.leaky_relu(nn.functional.linear(hidden, layer.weight, layer.bias), 0.2)
    torch.testing.assert_close(network(images, labels), layers[-1](hidden).squeeze(1))
    generator = models.generator("cgan", 100, (1, 32, 32), {}, 10)
    linears = [(m.in_features, m.out_features) for m in generator.modules() if isinstance(m, nn.Linear)]
    assert linears == [(110, 128), (128, 256), (256, 512), (512, 1024), (1024, 1024)]


@pytest.mark.parametrize("name", ["cgan", "cdcgan", "acgan", "cresnet"])
def test_the_number_of_classes_is_given_by_the_data(name):
    for side in ("generator", "discriminator"):
        assert "num_classes" not in models.options_of(name, side=side)
    with pytest.raises(UserError, match=r"have no labels: take data that have some .digits, mnist"):
        models.generator(name, 5, (1, 8, 8), {})
    with pytest.raises(UserError, match="num_classes"):
        models.discriminator(name, (1, 8, 8), {"num_classes": 3}, 3)


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 9, 9), (1, 8, 16), (1, 22, 22), (2,)])
def test_resnet_refuses_other_sizes(shape):
    with pytest.raises(UserError, match="resnet"):
        models.generator("resnet", 5, shape, {"width": 4})
