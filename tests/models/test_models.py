"""Networks: shapes, published layouts and initialisations, and errors that say how to mend a configuration."""

import pytest
import torch
from torch import nn

from fastgan import models
from fastgan.errors import UserError


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (2,)])
def test_mlp_shapes(shape):
    generator = models.generator("mlp", 6, shape, {"hidden": (16, 24)})
    discriminator = models.discriminator("mlp", shape, {"hidden": (16,)})
    samples = generator(torch.randn(5, 6))
    assert samples.shape == (5, *shape)
    assert samples.abs().max() <= 1
    assert discriminator(samples).shape == (5,)


def test_mlp_has_the_layers_of_the_public_code():
    generator = models.generator("mlp", 100, (1, 28, 28), {})
    linears = [(m.in_features, m.out_features) for m in generator.modules() if isinstance(m, nn.Linear)]
    assert linears == [(100, 128), (128, 256), (256, 512), (512, 1024), (1024, 784)]
    norms = [(m.num_features, m.eps) for m in generator.modules() if isinstance(m, nn.BatchNorm1d)]
    assert norms == [(256, 0.8), (512, 0.8), (1024, 0.8)]
    discriminator = models.discriminator("mlp", (1, 28, 28), {})
    linears = [(m.in_features, m.out_features) for m in discriminator.modules() if isinstance(m, nn.Linear)]
    assert linears == [(784, 512), (512, 256), (256, 1)]


@pytest.mark.parametrize("size", [4, 8, 16, 32, 64, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_dcgan_shapes(size, channels):
    generator = models.generator("dcgan", 10, (channels, size, size), {"width": 2})
    discriminator = models.discriminator("dcgan", (channels, size, size), {"width": 2})
    images = generator(torch.randn(2, 10))
    assert images.shape == (2, channels, size, size)
    assert discriminator(images).shape == (2,)


def test_dcgan_64_is_the_published_network():
    generator = models.generator("dcgan", 100, (3, 64, 64), {})
    convolutions = [m for m in generator.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [(m.in_channels, m.out_channels, m.stride[0]) for m in convolutions] == [
        (100, 512, 1),
        (512, 256, 2),
        (256, 128, 2),
        (128, 64, 2),
        (64, 3, 2),
    ]
    assert all(m.bias is None and m.kernel_size == (4, 4) for m in convolutions)
    weights = torch.cat([m.weight.detach().flatten() for m in convolutions])
    assert weights.std().item() == pytest.approx(0.02, rel=0.01)
    scales = torch.cat([m.weight.detach() for m in generator.modules() if isinstance(m, nn.BatchNorm2d)])
    assert scales.mean().item() == pytest.approx(1.0, abs=0.005)
    assert scales.std().item() == pytest.approx(0.02, rel=0.1)
    discriminator = models.discriminator("dcgan", (3, 64, 64), {})
    widths = [m.out_channels for m in discriminator.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [64, 128, 256, 512, 1]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in discriminator.modules()) == 3


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 32), (1, 2, 2), (1, 0, 0), (2,)])
def test_dcgan_refuses_other_sizes(shape):
    with pytest.raises(UserError, match="dcgan"):
        models.generator("dcgan", 10, shape, {})


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(UserError, match="did you mean 'dcgan'"):
        models.generator("dcgna", 10, (1, 8, 8), {})
    with pytest.raises(UserError, match="did you mean 'hidden'"):
        models.discriminator("mlp", (2,), {"hiden": (3,)})


def test_options_reach_their_layers():
    options = {"hidden": (3, 4), "activation": "relu", "output": "none", "norm_eps": 0.5}
    layers = models.generator("mlp", 2, (5,), options).layers
    assert [layer.activation for layer in layers if hasattr(layer, "activation")] == ["relu", "none", "none"]
    assert isinstance(layers[3], nn.ReLU)
    assert layers[2].eps == 0.5
    plain = models.generator("mlp", 2, (5,), {"hidden": (3, 4), "norm": False, "negative_slope": 0.3}).layers
    assert [(layer.activation, layer.negative_slope) for layer in plain[:2]] == [("leaky_relu", 0.3)] * 2
    discriminator = models.discriminator("mlp", (5,), {"hidden": (3,), "negative_slope": 0.4}).layers
    assert [(layer.activation, layer.negative_slope) for layer in discriminator] == [("leaky_relu", 0.4), ("none", 0.2)]
    discriminator = models.discriminator("dcgan", (1, 8, 8), {"width": 2, "max_width": 3, "negative_slope": 0.5})
    assert [layer.negative_slope for layer in discriminator.modules() if isinstance(layer, nn.LeakyReLU)] == [0.5]
    generator = models.generator("dcgan", 2, (1, 32, 32), {"width": 2, "max_width": 3})
    assert [layer.out_channels for layer in generator.layers if isinstance(layer, nn.ConvTranspose2d)] == [3, 3, 2, 1]


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("mlp", {"hidden": (0,)}, "at least 1"),
        ("dcgan", {"width": 0}, "at least 1"),
        ("dcgan", {"max_width": -1}, "at least 1"),
        ("mlp", {"hidden": (10**12,)}, "cannot be built"),
        ("mlp", {"hidden": (4,), "activation": "foo"}, "activation 'foo': "),
        ("dcgan", {"hidden": -1}, "cannot be built: .*mend its numbers"),
    ],
)
def test_impossible_widths_are_refused(name, options, words):
    with pytest.raises(UserError, match=words):
        models.generator(name, 5, (1, 8, 8), options)
    with pytest.raises(UserError, match=words):
        models.discriminator(name, (1, 8, 8), options)


def test_what_one_network_alone_takes_is_refused_too():
    with pytest.raises(UserError, match="unknown activation 'foo'"):
        models.generator("mlp", 5, (2,), {"activation": "foo", "norm_first": True})
    with pytest.raises(UserError, match=r"cannot be built: dropout .*mend its numbers"):
        models.discriminator("acgan", (1, 8, 8), {"dropout": -1.0}, 3)
