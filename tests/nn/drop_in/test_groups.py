"""What goes together: functional products, layers used twice, blocks one after another."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgan

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
