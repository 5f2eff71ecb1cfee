"""DCGAN, made of Chains, beside the same layers in an nn.Sequential: the same losses and statistics, step after step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgan
from fastgan.models.dcgan import DCGANDiscriminator, DCGANGenerator
from fastgan.nn import Chain

Z = 100


class Plain(nn.Module):
    """A network's layers as torch.nn runs them."""

    def __init__(self, network: DCGANGenerator | DCGANDiscriminator) -> None:
        super().__init__()
        self.layers = nn.Sequential(*network.layers)
        self.flat = isinstance(network, DCGANDiscriminator)

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.layers(input if self.flat else input[:, :, None, None])
        return output.flatten() if self.flat else output


def networks(size: int, width: int) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    shape = (3, size, size)
    return DCGANGenerator(Z, shape, width=width), DCGANDiscriminator(shape, width=width)


def train(g: nn.Module, d: nn.Module, size: int, batch: int, steps: int) -> Iterator[tuple[float, float]]:
    """Take steps as the PyTorch example does: one fake batch serves both updates."""
    optimisers = [torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999)) for net in (g, d)]
    random = torch.Generator().manual_seed(1)
    like = next(g.parameters())
    for _ in range(steps):
        real = torch.rand((batch, 3, size, size), generator=random).mul(2).sub(1).to(like)
        fake = g(torch.randn((batch, Z), generator=random).to(like))
        optimisers[1].zero_grad()
        loss_d = F.softplus(-d(real)).mean() + F.softplus(d(fake.detach())).mean()
        loss_d.backward()
        optimisers[1].step()
        optimisers[0].zero_grad()
        loss_g = F.softplus(-d(fake)).mean()
        loss_g.backward()
        optimisers[0].step()
        yield float(loss_d.detach()), float(loss_g.detach())


def test_a_dcgan_64_by_the_reference(full: bool) -> None:
    """Bit for bit: there a Chain is the nn.Sequential."""
    size, batch, (width, steps) = 64, 4, (64, 100) if full else (8, 10)
    ours, theirs = networks(size, width), [Plain(net) for net in networks(size, width)]
    assert all(isinstance(net.layers, Chain) for net in ours)
    assert list(train(*ours, size, batch, steps)) == list(train(*theirs, size, batch, steps))
    for mine, plain in zip(ours, theirs, strict=True):
        assert list(mine.state_dict()) == list(plain.state_dict())
        for got, wanted in zip(mine.state_dict().values(), plain.state_dict().values(), strict=True):
            assert torch.equal(got, wanted)


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_five_steps_on_the_kernels(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within what Adam makes of rounding: its first steps are the gradients' signs."""
    monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee")
    size, batch, width = 16, 4, 8
    ours = [net.to(device) for net in networks(size, width)]
    theirs = [Plain(net).to(device).double() for net in networks(size, width)]
    with fastgan.backend("triton"):
        mine = list(train(*ours, size, batch, 5))
    exact = list(train(*theirs, size, batch, 5))
    torch.testing.assert_close(torch.tensor(mine), torch.tensor(exact), rtol=2e-3, atol=2e-3)
    for net, plain in zip(ours, theirs, strict=True):
        for (name, got), wanted in zip(net.named_buffers(), plain.buffers(), strict=True):
            torch.testing.assert_close(got.double(), wanted.double(), rtol=5e-3, atol=2e-3, msg=name)
