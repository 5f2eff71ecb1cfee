"""Modulated convolutions, which are each sample's own weight and do not overflow in fp16; a batch's deviation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastgan
from fastgan.errors import UserError
from fastgan.ops.conv2d_resample import conv2d_resample
from fastgan.ops.minibatch_std import minibatch_std
from fastgan.ops.modulated_conv2d import modulated_conv2d, normalized_modulated_conv2d
from fastgan.ops.upfirdn2d import setup_filter

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy interprets what wraps


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device on which the kernels run, whatever ``auto`` would take there."""
    with fastgan.backend("triton"):
        yield request.param


def numbers(*size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(size))
    return torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()


def by_samples(
    x: Tensor, weight: Tensor, styles: Tensor, noise: Tensor | None, up: int, f: Tensor | None, demodulate: bool
) -> Tensor:
    """Each sample by its own weight, in a loop."""
    results = []
    for image, style in zip(x, styles, strict=True):
        w = weight * style[None, :, None, None]
        if demodulate:
            w = w / (w.square().sum([1, 2, 3], keepdim=True) + 1e-8).sqrt()
        results.append(conv2d_resample(image[None], w, f, up, 1, weight.shape[2] // 2))
    y = torch.cat(results)
    return y if noise is None else y + noise


@pytest.mark.parametrize(("up", "demodulate", "noisy"), list(itertools.product((1, 2), (False, True), (False, True))))
def test_it_is_each_samples_own_weight(up: int, demodulate: bool, noisy: bool) -> None:
    f = setup_filter([1, 3, 3, 1]) if up > 1 else None
    x, weight, styles = numbers(2, 3, 4, 4), numbers(5, 3, 3, 3), numbers(2, 3)
    noise = numbers(2, 1, 4 * up, 4 * up) if noisy else None

    def op(x: Tensor, weight: Tensor, styles: Tensor, noise: Tensor | None) -> Tensor:
        return modulated_conv2d(x, weight, styles, noise, up, 1, 1, f, demodulate)

    operands = (x, weight, styles, noise)
    torch.testing.assert_close(op(*operands), by_samples(*operands, up, f, demodulate))
    assert torch.autograd.gradcheck(op, operands, fast_mode=True)
    assert torch.autograd.gradgradcheck(op, operands, fast_mode=True)


def test_the_normalised_form_is_each_samples_own_weight_too() -> None:
    x, weight, styles, gain = numbers(2, 3, 4, 4), numbers(5, 3, 3, 3), numbers(2, 3), numbers(3).abs()
    w = weight / weight.square().mean([1, 2, 3], keepdim=True).sqrt()
    s = styles / styles.square().mean().sqrt()
    wanted = by_samples(x * gain[:, None, None], w, s, None, 1, None, True)
    got = normalized_modulated_conv2d(x, weight, styles, True, 1, gain)
    torch.testing.assert_close(got, wanted)
    slopes = [torch.autograd.grad(y.pow(2).sum(), (x, weight, styles), retain_graph=True) for y in (got, wanted)]
    torch.testing.assert_close(*slopes)
    plain = normalized_modulated_conv2d(x, weight, styles, demodulate=False, padding=[0, 1, 2, 0])
    w = weight * styles[0][None, :, None, None]
    torch.testing.assert_close(plain[:1], F.conv2d(F.pad(x[:1], (0, 1, 2, 0)), w))


def test_fp16_does_not_overflow() -> None:
    """Weights and styles whose product would be infinite in fp16; the result and gradients are those of fp32."""
    x, weight, styles = torch.randn(2, 64, 4, 4), torch.randn(8, 64, 3, 3) * 300, torch.randn(2, 64) * 3000
    results = []
    for dtype in (torch.float16, torch.float32):
        leaves = [operand.clone().requires_grad_() for operand in (weight, styles)]
        image = x.to(dtype).requires_grad_()
        y = modulated_conv2d(image, *leaves, padding=1)
        results.append([y.float(), *torch.autograd.grad(y.float().square().mean(), [image, *leaves])])
        assert y.dtype == dtype
    for got, wanted in zip(*results, strict=True):
        assert torch.isfinite(got).all()
        torch.testing.assert_close(got.float(), wanted, rtol=0.02, atol=0.02 * float(wanted.detach().abs().max()))


def test_autocast_leaves_the_demodulation_in_fp32() -> None:
    x, weight, styles = torch.randn(2, 16, 4, 4), torch.randn(8, 16, 3, 3), torch.randn(2, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = modulated_conv2d(x, weight, styles, padding=1)
    torch.testing.assert_close(y.float(), modulated_conv2d(x, weight, styles, padding=1), rtol=0.03, atol=0.03)


def test_on_the_kernels_it_is_the_reference(device: str) -> None:
    x, weight, styles = (numbers(*size).detach().to(device) for size in ((2, 3, 4, 4), (4, 3, 3, 3), (2, 3)))
    f = setup_filter([1, 3, 3, 1], device)

    def results(dtype: torch.dtype) -> list[Tensor]:
        leaves = [operand.to(dtype).requires_grad_() for operand in (x, weight, styles)]
        y = modulated_conv2d(*leaves, up=2, padding=1, resample_filter=f, flip_weight=False)
        first = torch.autograd.grad(y.square().sum(), leaves[2], create_graph=True)[0]
        return [y, *torch.autograd.grad(first.square().sum(), leaves)]

    got = results(torch.float32)
    with fastgan.backend("reference"):
        wanted = results(torch.float64)
    for part, right in zip(got, wanted, strict=True):
        torch.testing.assert_close(part.double(), right, rtol=1e-3, atol=2e-4 * float(right.detach().abs().max()))


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="modulated convolution needs"):
        modulated_conv2d(torch.randn(2, 3, 4, 4), torch.randn(5, 3, 3, 3), torch.randn(2, 4))


@pytest.mark.parametrize(("n", "group", "count"), [(6, 3, 1), (4, None, 2), (2, 4, 3), (1, 4, 1)])
def test_the_deviation_of_groups(n: int, group: int | None, count: int) -> None:
    x = numbers(n, 6, 3, 2)
    y, size = minibatch_std(x, group, count), min(group or n, n)
    assert y.shape == (n, 6 + count, 3, 2) and torch.equal(y[:, :6], x)
    groups, share = n // size, 6 // count
    for sample, channel in itertools.product(range(n), range(count)):
        members = x[sample % groups :: groups, channel * share : (channel + 1) * share]
        wanted = (members.var(0, correction=0) + 1e-8).sqrt().mean()
        torch.testing.assert_close(y[sample, 6 + channel], wanted.expand(3, 2))
    if n > 1:
        assert torch.autograd.gradcheck(lambda x: minibatch_std(x, group, count), x, fast_mode=True)
        assert torch.autograd.gradgradcheck(lambda x: minibatch_std(x, group, count), x, fast_mode=True)


def test_deviations_in_16_bits_and_of_nothing() -> None:
    x = torch.randn(4, 8, 3, 3, dtype=torch.float16) * 2000  # whose squares fp16 does not hold
    y = minibatch_std(x.contiguous(memory_format=torch.channels_last), 4)
    assert y.dtype == torch.float16 and torch.isfinite(y).all()
    torch.testing.assert_close(y.float(), minibatch_std(x.float(), 4), rtol=1e-3, atol=1.0)
    assert minibatch_std(torch.randn(0, 4, 2, 2), 4).shape == (0, 5, 2, 2)
    for n, channels, group, count in ((6, 4, 4, 1), (4, 5, 4, 2), (4, 4, 0, 1), (4, 4, 4, 0)):
        with pytest.raises(UserError, match="mend"):
            minibatch_std(torch.randn(n, channels, 2, 2), group, count)
