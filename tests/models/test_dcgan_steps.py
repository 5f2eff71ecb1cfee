"""DCGAN, made of Chains, beside the same layers in an nn.Sequential: the same losses and statistics at each step."""

from __future__ import annotations

import importlib
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


@pytest.fixture
def exact_products() -> Iterator[None]:
    """No TF32."""
    former, torch.backends.cudnn.conv.fp32_precision = torch.backends.cudnn.conv.fp32_precision, "ieee"
    yield
    torch.backends.cudnn.conv.fp32_precision = former


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
def test_five_steps_on_the_kernels(device: str, exact_products: None, full: bool) -> None:
    """Within what Adam makes of rounding: its first steps are the gradients' signs."""
    size, batch, width, steps = 16, 4, 8, 5 if full or device == "cuda" else 2
    ours = [net.to(device) for net in networks(size, width)]
    theirs = [Plain(net).to(device).double() for net in networks(size, width)]
    with fastgan.backend("triton"):
        mine = list(train(*ours, size, batch, steps))
    exact = list(train(*theirs, size, batch, steps))
    torch.testing.assert_close(torch.tensor(mine), torch.tensor(exact), rtol=2e-3, atol=2e-3)
    for net, plain in zip(ours, theirs, strict=True):
        for (name, got), wanted in zip(net.named_buffers(), plain.buffers(), strict=True):
            torch.testing.assert_close(got.double(), wanted.double(), rtol=5e-3, atol=2e-3, msg=name)


@pytest.mark.interpret
def test_bytes_saved_for_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a whole step, at most 55% of what eager PyTorch keeps. Nothing is computed: who keeps what is looked at."""
    accounting = pytest.importorskip("fastgan.benchmarks.accounting")
    for name in ("conv", "conv_bwd_input", "conv_bwd_weight", "batch_norm_act", "bias_act"):
        module = importlib.import_module(f"fastgan.kernels.{name}")
        monkeypatch.setattr(module, "submit", lambda *arguments, **more: None)
    batch, ours = 4, networks(64, 64)
    plain = [Plain(net) for net in ours]
    images, z = torch.empty(batch, 3, 64, 64), torch.empty(batch, Z)
    with fastgan.backend("triton"):
        mine = accounting.saved_bytes(ours[0], z) + 2 * accounting.saved_bytes(ours[1], images)
    theirs = accounting.saved_bytes(plain[0], z) + 2 * accounting.saved_bytes(plain[1], images)
    assert 0.3 < mine / theirs <= 0.55
