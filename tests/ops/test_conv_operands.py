"""The convolution ops and what they are given: layouts, odd operands, refusals, autocast, nothing at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastgan
from fastgan.ops import conv1d_act, conv2d_act, conv_transpose1d_act, conv_transpose2d_act
from fastgan.ops.activation import activate

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device on which the kernels run, whatever ``auto`` would take there, with all bits of fp32."""
    former, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    with fastgan.backend("triton"):
        yield request.param
    torch.backends.cudnn.allow_tf32 = former


def single(*size: int, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randn(size, generator=generator).to(device).requires_grad_()


def plain(*operands: Any, activation: str = "leaky_relu", pre_activation: str = "none", **more: Any) -> Tensor:
    x, *rest = operands
    return activate(F.conv2d(activate(x, pre_activation, 0.2), *rest, **more), activation, 0.2)


def test_the_layout_is_the_one_that_torch_returns(device: str) -> None:
    last = torch.channels_last
    for channels in (3, 18):
        x, w = single(2, 4, 5, 3, device=device).detach(), single(channels, 4, 2, 2, device=device).detach()
        turned = x.transpose(2, 3).contiguous().transpose(2, 3)
        for operands in ((x, w), (x.to(memory_format=last), w), (x, w.to(memory_format=last)), (turned, w)):
            y, theirs = conv2d_act(*operands), F.conv2d(*operands)
            assert y.stride() == theirs.stride()
    signal = single(2, 5, 4, device=device).detach().transpose(1, 2)
    filters = single(3, 4, 2, device=device).detach()
    assert conv1d_act(signal, filters).stride() == (12, 1, 3)
    assert conv1d_act(signal.contiguous(), filters).stride() == (12, 4, 1)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name(device: str, padding: str, products: Counter[str]) -> None:
    """An even kernel is padded more behind than before, after the activation of the input and its enlargement."""
    x, w, filters = (single(*size, device=device) for size in ((2, 3, 4, 5), (2, 3, 4, 3), (2, 3, 2)))
    how: dict[str, Any] = {"padding": padding, "dilation": (1, 2)}
    for pre, upsample in (("none", 1), ("sigmoid", 1), ("tanh", 2)):
        large = activate(x, pre, 0.2).repeat_interleave(upsample, 2).repeat_interleave(upsample, 3)
        y = conv2d_act(x, w, **how, pre_activation=pre, upsample=upsample)
        torch.testing.assert_close(y, plain(large, w, **how), rtol=1e-4, atol=1e-4)
    y = conv1d_act(x[0, :, 0], filters, padding=padding, dilation=3)
    wanted = activate(F.conv1d(x[0, :, 0], filters, padding=padding, dilation=3), "leaky_relu", 0.2)
    torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-4)
    assert products["conv_fwd"] == 4


def test_odd_operands(device: str) -> None:
    """Transposed, strided and expanded ones; a bias that is expanded; a gradient that is."""
    square, wide = single(3, 3, 3, 3, device=device), single(4, 40, 3, 3, device=device)
    last = wide.to(memory_format=torch.channels_last)
    bias = single(1, device=device).expand(3)
    for x, w, leaf in (
        (square.transpose(0, 1), square, square),
        (square[::2], square.permute(1, 0, 3, 2), square),
        (square[:1, :, :1, :1].expand(2, 3, 5, 4), square, square),
        (last[:, 7:24], last[:3, 20:37].transpose(2, 3), wide),
    ):
        for pre in ("none", "tanh"):
            results = []
            for layer in (conv2d_act, plain):
                y = layer(x, w, bias, padding=1, pre_activation=pre)
                results.append([y, *torch.autograd.grad(y.sum(), [leaf, bias], retain_graph=True)])
            torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_one_tensor_in_every_place(device: str) -> None:
    """Its gradient is the sum over its places, also where it comes out of another operand."""
    x = single(2, 2, 2, 2, device=device)
    results = []
    for layer in (conv2d_act, plain):
        y = layer(x, x.transpose(0, 1), x[0, 0, 0], padding=1, activation="tanh", pre_activation="leaky_relu")
        (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        results.append((y, first, *torch.autograd.grad(first.square().sum(), x)))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_nothing_to_do(device: str) -> None:
    """A batch of 0: an empty output, weight gradients of 0."""
    images, filters, bias = (single(*size, device=device) for size in ((0, 3, 4, 4), (2, 3, 2, 2), (2,)))
    signals, transposed = single(0, 3, 4, device=device), single(3, 2, 2, device=device)
    for x, w, y in (
        (images, filters, conv2d_act(images, filters, bias, pre_activation="relu")),
        (signals, transposed, conv_transpose1d_act(signals, transposed, bias, 2)),
    ):
        assert y.shape in ((0, 2, 3, 3), (0, 2, 8))
        gx, gw, gb = torch.autograd.grad(y.sum(), (x, w, bias))
        assert gx.shape == x.shape and not gw.any() and not gb.any()


def test_what_the_kernels_do_not_take_goes_to_torch(device: str, products: Counter[str]) -> None:
    x, w = single(2, 4, 5, 5, device=device), single(4, 2, 2, 2, device=device)
    torch.testing.assert_close(conv2d_act(x, w, groups=2), plain(x, w, groups=2))
    large = x[:, :2].repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(conv2d_act(x[:, :2], w, stride=2, upsample=2), plain(large, w, stride=2))
    assert conv2d_act(x.double(), w.double(), groups=2).dtype == torch.float64
    assert not products


def test_what_torch_refuses_is_refused_in_its_words(device: str) -> None:
    x, w = single(2, 3, 4, 4, device=device).detach(), single(5, 3, 2, 2, device=device).detach()
    wrong: list[tuple[Any, ...]] = [
        (x, w.double()),
        (x, w[:, :2]),
        (x[0, 0], w),
        (x, w, x[0]),
        (x, w, None, 0),
        (x, w, None, (1, 1, 1)),
        (x, w, None, 2, "same"),
        (x, w, None, 1, "some"),
        (x, w, None, 1, -1),
        (x, w, None, 1, 0, 5),
        (x, w, None, 1, 0, 1, 2),
    ]
    for operands in wrong:
        with pytest.raises((RuntimeError, TypeError)) as theirs:
            F.conv2d(*operands)
        with pytest.raises(theirs.type) as ours:
            conv2d_act(*operands)
        assert str(ours.value) == str(theirs.value)
    with pytest.raises(RuntimeError, match="output padding must be smaller"):
        conv_transpose2d_act(x, w[:3], None, 1, 0, 1)


def test_mistakes_of_our_own_words() -> None:
    x, w = torch.randn(1, 2, 3, 3), torch.randn(2, 2, 2, 2)
    with pytest.raises(fastgan.errors.UserError, match="did you mean 'leaky_relu'"):
        conv2d_act(x, w, activation="leakyrelu")
    with pytest.raises(fastgan.errors.UserError, match="did you mean 'tanh'"):
        conv_transpose2d_act(x, w, pre_activation="tanhh")
    with pytest.raises(fastgan.errors.UserError, match="upsample 0: give a whole number"):
        conv2d_act(x, w, upsample=0)


def test_autocast_as_torch(device: str) -> None:
    """fp32 operands become the autocast dtype, fp64 ones stay, and gradients come back in fp32."""
    x, w, b = single(2, 3, 4, 4, device=device), single(5, 3, 2, 2, device=device), single(5, device=device)
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast(device, dtype=dtype):
            mine, theirs = (layer(x, w, b, stride=2, pre_activation="relu") for layer in (conv2d_act, plain))
            assert conv2d_act(x.double(), w.double()).dtype == torch.float64
        assert mine.dtype == theirs.dtype == dtype
        torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-2)
        results = [torch.autograd.grad(y.float().sum(), (x, w, b)) for y in (mine, theirs)]
        torch.testing.assert_close(*results, rtol=1e-2, atol=2e-2)
        assert results[0][1].dtype == torch.float32


def test_the_same_operands_give_the_same_bits(device: str) -> None:
    x, w, b = (single(*size, device=device) for size in ((3, 5, 6, 6), (4, 5, 3, 3), (4,)))
    results = []
    for _ in range(2):
        y = conv2d_act(x, w, b, pre_activation="tanh")
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, w, b))))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)
