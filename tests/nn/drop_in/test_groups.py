"""What goes together: functional products, layers used twice, blocks one after another."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgan
from fastgan.nn.drop_in import converted

Twins = Callable[[nn.Module], tuple[nn.Module, nn.Module]]
Alike = Callable[..., None]
pytestmark = pytest.mark.usefixtures("programs")


def test_functional_products_of_scaled_weights(twins: Twins, alike: Alike, signal: Tensor) -> None:
    class Equal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias, self.scale = nn.Parameter(torch.randn(4, 3, 3)), nn.Parameter(torch.randn(4)), 0.2

        def forward(self, x: Tensor) -> Tensor:
            return F.leaky_relu(F.conv1d(x, self.weight * self.scale, bias=self.bias, padding=1), 0.2) * 2**0.5

    ours, theirs = twins(Equal())
    report = fastgan.convert(ours)
    assert [entry.what for entry in report.replaced] == ["conv1d + leaky_relu"]
    assert report.covered(signal) == 1.0
    alike(ours, theirs, signal)


def test_shared_modules_and_layers_used_twice(twins: Twins, alike: Alike, signal: Tensor) -> None:
    norm = nn.BatchNorm1d(3, momentum=None)
    conv = nn.Conv1d(3, 3, 3, padding=1)
    ours, theirs = twins(nn.Sequential(conv, norm, nn.ReLU(), conv, norm, nn.Tanh()))
    fastgan.convert(ours)
    for _ in range(3):
        alike(ours, theirs, signal)


class ConvBlock(nn.Module):
    """The block of many code bases: a layer, its norm and an activation."""

    def __init__(self, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv1d(width, width, 3, padding=1), nn.BatchNorm1d(width), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


def test_blocks_one_after_another_go_together(twins: Twins, alike: Alike, signal: Tensor) -> None:
    ours, theirs = twins(
        nn.Sequential(ConvBlock(3, nn.ReLU()), ConvBlock(3, nn.LeakyReLU(0.1, True)), nn.Conv1d(3, 1, 1))
    )
    report = fastgan.convert(ours)
    whole = "Conv1d + BatchNorm1d + ReLU, Conv1d + BatchNorm1d + LeakyReLU(0.1), Conv1d"
    assert [(entry.path, entry.what) for entry in report.replaced] == [("0.conv", whole)]
    alike(ours, theirs, signal)
    alike(ours[0], theirs[0], signal)
    for net in (ours, theirs):
        net[1].register_forward_hook(lambda module, inputs, output: output * 2)
        net[0].act = nn.Softplus()
    alike(ours, theirs, signal)


class Conditioned(nn.Module):
    """A norm whose scale and shift a class chooses, as people write it."""

    def __init__(self, norm: nn.Module, classes: int) -> None:
        super().__init__()
        self.bn, self.embed = norm, nn.Embedding(classes, 6)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        out = self.bn(x)
        gamma, beta = self.embed(y).chunk(2, 1)
        return gamma.view(-1, 3, 1) * out + beta.view(-1, 3, 1)


class Adaptive(nn.Module):
    """Scale and shift by two linear layers; the scale counts from 1, the activation is in the same forward."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.scale, self.shift, self.conv = norm, nn.Linear(2, 3), nn.Linear(2, 3), nn.Conv1d(3, 4, 3)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        h = self.norm(x) * (1 + self.scale(w)[:, :, None]) + self.shift(w)[:, :, None]
        return self.conv(F.leaky_relu(h, 0.2))


NORMS = {
    "batch": lambda: nn.BatchNorm1d(3, affine=False),
    "odd": lambda: nn.BatchNorm1d(3, 0.5, None, affine=False),
    "none": lambda: nn.BatchNorm1d(3, affine=False, track_running_stats=False),
    "instance": lambda: nn.InstanceNorm1d(3),
}


@pytest.mark.parametrize("norm", NORMS)
def test_norms_with_a_scale_and_shift_of_each_sample(norm: str, twins: Twins, alike: Alike, signal: Tensor) -> None:
    labels = torch.tensor([0, 2, 1, 2, 0])
    ours, theirs = twins(Conditioned(NORMS[norm](), 3))
    (entry,) = fastgan.convert(ours).replaced
    assert entry.path == "bn" and entry.what.endswith("Norm1d + scale + shift")
    for mode in (True, True, False):
        alike(ours.train(mode), theirs.train(mode), signal, labels)
    ours, theirs = twins(Adaptive(NORMS[norm]()))
    told = [entry.what for entry in fastgan.convert(ours).replaced]
    assert sorted(told) == sorted(["Linear", "Linear", "LeakyReLU(0.2) + Conv1d", entry.what])
    alike(ours, theirs, signal, torch.randn(5, 2, dtype=torch.float64))
    for net in (ours, theirs):
        net.norm = nn.BatchNorm1d(3).double()  # with vectors of its own: it runs as it is
    alike(ours, theirs, signal, torch.randn(5, 2, dtype=torch.float64))


def test_maps_in_place_of_vectors_are_multiplied_as_they_are(twins: Twins, alike: Alike, signal: Tensor) -> None:
    class Spatial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.maps = nn.BatchNorm1d(3, affine=False), nn.Conv1d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x) * self.maps(x) + self.maps(x)

    ours, theirs = twins(Spatial())
    fastgan.convert(ours)
    alike(ours, theirs, signal)


def test_a_norm_is_not_moved_behind_what_changes_its_input(twins: Twins, signal: Tensor) -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv = nn.InstanceNorm1d(3), nn.Conv1d(3, 3, 1)

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            x = x * 1
            h = self.norm(x)
            x *= scale
            return h * scale + self.conv(x)

    ours, theirs = twins(Late())
    fastgan.convert(ours)
    with torch.no_grad():
        torch.testing.assert_close(*(net(signal, -torch.ones_like(signal[:, :, :1])) for net in (ours, theirs)))


@pytest.mark.interpret
def test_conditional_norms_on_the_kernels(signal: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converted, "always", False)
    ours = Adaptive(nn.BatchNorm1d(3, affine=False))
    theirs, style = copy.deepcopy(ours), torch.randn(5, 2)
    fastgan.convert(ours)
    with fastgan.backend("triton"):
        found = ours(signal.float(), style)
        found.square().mean().backward()
    wanted = theirs(signal.float(), style)
    wanted.square().mean().backward()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5)


class Between(nn.Module):
    """A functional product and an activation in front of a layer, which could take it, too."""

    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        self.weight, self.conv, self.act = nn.Parameter(torch.randn(3, 3, 1)), nn.Conv1d(3, 2, 3), act

    def forward(self, x: Tensor) -> Tensor:
        h = F.conv1d(x, self.weight * 0.5)
        return self.conv(F.leaky_relu(h, 0.2) if self.act is None else self.act(h))


def test_an_activation_goes_with_one_of_its_neighbours(twins: Twins, alike: Alike, signal: Tensor) -> None:
    ours, theirs = twins(Between())
    told = [entry.what for entry in fastgan.convert(ours).replaced]
    assert told == ["conv1d + leaky_relu", "Conv1d"]
    alike(ours, theirs, signal)


def test_a_module_behind_a_functional_product_may_be_listened_to(twins: Twins, alike: Alike, signal: Tensor) -> None:
    ours, theirs = twins(Between(nn.ReLU()))
    fastgan.convert(ours)
    alike(ours, theirs, signal)
    for net in (ours, theirs):
        net.act.register_forward_hook(lambda module, inputs, output: output * 2)
    alike(ours, theirs, signal)
    for net in (ours, theirs):
        net.act = nn.Tanh()
    alike(ours, theirs, signal)
