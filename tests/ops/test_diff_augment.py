"""diff_augment as people call it: the paper's definition, draws, first and second gradients, layouts, mistakes."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fastgan
from fastgan.benchmarks.baselines import diff_augment as published
from fastgan.errors import UserError
from fastgan.ops.diff_augment import POLICY, STEPS, diff_augment, drawn
from fastgan.ops.dropout import draw

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
ORDERS = [",".join(steps) for count in (1, 2, 3) for steps in itertools.permutations(STEPS, count)]
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy interprets what wraps


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device on which the kernels run, whatever ``auto`` would take there."""
    with fastgan.backend("triton"):
        yield request.param


def numbers(*size: int, device: str = "cpu", dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(size))
    return torch.randn(size, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()


def seeded(seed: int = 0, device: str = "cpu") -> Tensor:
    return torch.tensor([3 * 2**40 + seed, 5], device=device)


def by_hand(x: Tensor, rng: Tensor, order: str) -> Tensor:
    """The paper's definition, image by image and step by step, of the same draws."""
    images = []
    for image, b, s, k, down, right, top, left in zip(x, *drawn(rng, x.shape, x.dtype), strict=True):
        _, H, W = image.shape
        for step in order.split(","):
            if step == "color":
                image = image + b
                image = torch.lerp(image.mean(0, keepdim=True).expand_as(image), image, s)
                image = torch.lerp(image.mean().expand_as(image), image, k)
            elif step == "translation":
                far = max(H, W)
                wide = nn.functional.pad(image, (far,) * 4)
                image = wide[:, far + int(down) :, far + int(right) :][:, :H, :W]
            else:
                keep = torch.ones_like(image)
                below, beyond = int(top) + (H + 1) // 2, int(left) + (W + 1) // 2
                keep[:, max(0, int(top)) : below, max(0, int(left)) : beyond] = 0
                image = image * keep
        images.append(image)
    return torch.stack(images)


@settings(max_examples=60)
@given(
    size=st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 20), st.integers(1, 20)),
    seed=st.integers(-(2**62), 2**62),
    order=st.sampled_from(ORDERS),
)
def test_the_reference_is_the_papers_definition_and_the_published_code(
    size: tuple[int, int, int, int], seed: int, order: str
) -> None:
    x, rng = numbers(*size).detach(), seeded(seed)
    y = diff_augment(x, order, rng=rng)
    torch.testing.assert_close(y, by_hand(x, rng, order))
    torch.testing.assert_close(y, published.eager(order)(x, *drawn(rng, x.shape, x.dtype)))


@pytest.mark.parametrize("order", ORDERS)
def test_formulas_are_derivatives_of_each_other(order: str) -> None:
    """To second order in fp64, of the reference as people call it and of the op that the kernels stand behind."""
    x, rng = numbers(2, 2, 3, 4), seeded(1)
    how = (rng, order, False, True, False)
    torch.testing.assert_close(torch.ops.fastgan.diff_augment(x, *how), diff_augment(x, order, rng=rng))
    for function in (lambda x: diff_augment(x, order, rng=rng), lambda x: torch.ops.fastgan.diff_augment(x, *how)):
        assert torch.autograd.gradcheck(function, x)
        assert torch.autograd.gradgradcheck(function, x)
        assert torch.autograd.gradgradcheck(lambda x, f=function: f(x).pow(3).sum(), x)


def test_a_wrong_transpose_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """gradcheck of the op has teeth: gradients that are moved as the images were are refused."""
    op = importlib.import_module("fastgan.ops.diff_augment")  # the function has the module's name
    right = op._plainly
    monkeypatch.setattr(op, "_plainly", lambda x, rng, order, transposed, lifted: right(x, rng, order, False, lifted))
    how = (seeded(1), "translation", False, True, False)
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(lambda x: torch.ops.fastgan.diff_augment(x, *how), numbers(2, 2, 9, 9))


def gradients(x: Tensor, rng: Tensor, order: str) -> list[Tensor]:
    """Images, the gradient of a sum of their cubes, and the gradient of what a penalty makes of that."""
    y = diff_augment(x, order, rng=rng)
    (first,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad((first * y).sum(), x)
    return [y, first, second]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12)
@given(
    size=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 12), st.integers(1, 12)),
    order=st.sampled_from(ORDERS),
    seed=st.integers(0, 999),
    channels_last=st.booleans(),
)
def test_first_and_second_gradients_are_the_references(
    device: str, size: tuple[int, int, int, int], order: str, seed: int, channels_last: bool
) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    exact = numbers(*size, device=device).detach().contiguous(memory_format=layout).requires_grad_()
    x, rng = exact.detach().float().requires_grad_(), seeded(seed, device)
    for result, wanted in zip(gradients(x, rng, order), gradients(exact, rng, order), strict=True):
        assert result.dtype == torch.float32 and result.is_contiguous(memory_format=layout)
        wanted = wanted.detach()
        torch.testing.assert_close(result.double(), wanted, rtol=0, atol=1e-5 * float(1 + wanted.abs().max()))


def test_gradient_penalty_through_an_augmented_critic(device: str) -> None:
    """R1 on augmented images, and its gradient with respect to the critic."""
    exact = [numbers(*size, device=device) for size in ((3, 3, 8, 8), (5, 3, 3, 3), (1, 5, 6, 6))]
    rng, results = seeded(4, device), []
    for x, first, last in (exact, [t.detach().float().requires_grad_() for t in exact]):
        hidden = nn.functional.conv2d(diff_augment(x, rng=rng), first).tanh()
        (slope,) = torch.autograd.grad(nn.functional.conv2d(hidden, last).sum(), x, create_graph=True)
        results.append([t.float() for t in torch.autograd.grad(slope.square().sum(), (first, last, x))])
    for result, wanted in zip(*results, strict=True):
        torch.testing.assert_close(result, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_nothing_is_kept_but_the_seed(device: str) -> None:
    x, kept = numbers(2, 3, 4, 4, device=device, dtype=torch.float32), list[Tensor]()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = diff_augment(x)
    assert [(t.dtype, t.shape) for t in kept] == [(torch.int64, (2,))]
    torch.autograd.grad(y.sum(), x)
    with torch.no_grad():
        assert diff_augment(x).grad_fn is None
    assert diff_augment(x.detach()).grad_fn is None


def test_odd_operands(device: str) -> None:
    """Strided and expanded images, expanded gradients, more channels than the kernels take, sizes of 0."""
    x, rng = numbers(4, 6, 7, 9, device=device, dtype=torch.float32), seeded(2, device)
    wide = numbers(2, 65, 4, 4, device=device, dtype=torch.float32)
    empty = x[:0], x[:, :0], x[:, :, :0]
    for images in (x, x[::2, 1::2, :, ::3], x.transpose(2, 3), x[:1, :1].expand(3, 3, 7, 9), wide, *empty):
        for layout in (torch.contiguous_format, torch.channels_last):
            images = images.contiguous(memory_format=layout) if layout == torch.channels_last else images
            results = []
            for name in ("triton", "reference"):
                with fastgan.backend(name):
                    y = diff_augment(images, rng=rng)
                    results.append([y, *torch.autograd.grad(y.sum(), [wide if images.shape[1] == 65 else x])])
            torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
            assert results[0][0].stride() == results[1][0].stride()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_and_layout_are_kept(dtype: torch.dtype) -> None:
    x = numbers(2, 3, 5, 6, dtype=dtype).detach()
    for layout in (torch.contiguous_format, torch.channels_last):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = diff_augment(x.contiguous(memory_format=layout))
        assert y.dtype == dtype and y.is_contiguous(memory_format=layout)
        cropped = diff_augment(x.contiguous(memory_format=layout)[1:, :, 1:-1, 1:-1])
        assert cropped.is_contiguous(memory_format=layout)
    assert diff_augment(x[:, :1].contiguous(memory_format=torch.channels_last)).stride() == (30, 30, 6, 1)
    rng = seeded(3)
    narrow, exact = diff_augment(x, rng=rng), diff_augment(x.double(), rng=rng)
    torch.testing.assert_close(narrow.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_ranges_and_means_of_what_is_drawn() -> None:
    """Over many images: the ends of every range, its mean, all shifts and windows alike, no two things alike."""
    N, H, W = 40000, 20, 9  # an eighth of 20 is 2.5: 3; of 9, 1.125: 1
    draws = drawn(draw("cpu"), torch.Size((N, 3, H, W)))
    for factor, (low, high) in zip(draws, ((-0.5, 0.5), (0, 2), (0.5, 1.5)), strict=False):
        assert low <= float(factor.min()) < low + 1e-3 and high - 1e-3 < float(factor.max()) <= high
        assert abs(float(factor.mean()) - (low + high) / 2) < 6 * (high - low) / (12 * N) ** 0.5
        assert abs(float(factor.var()) / (high - low) ** 2 - 1 / 12) < 2e-3
    spans = ((-3, 3), (-1, 1), (-5, 15), (-2, 6))  # windows of 10 and 5: their centers are 0 ... 20 and 0 ... 8
    for whole, (low, high) in zip(draws[3:], spans, strict=True):
        counts = torch.bincount(whole - low, minlength=high - low + 1)
        assert counts.numel() == high - low + 1
        expected = N / counts.numel()
        assert float((counts - expected).abs().max()) < 6 * expected**0.5
    together = torch.stack([part.double() for part in draws])
    correlation = torch.corrcoef(together) - torch.eye(7)
    assert float(correlation.abs().max()) < 6 / N**0.5
    neighbours = torch.corrcoef(torch.cat((together[:, 1:], together[:, :-1])))[:7, 7:]
    assert float(neighbours.abs().max()) < 6 / N**0.5


def test_calls_draw_apart_unless_they_share_their_rng() -> None:
    real, fake = numbers(4, 3, 16, 16).detach(), numbers(4, 3, 16, 16, seed=1).detach()
    ones = torch.ones_like(real)
    torch.manual_seed(0)
    first, second = diff_augment(ones), diff_augment(ones)
    torch.manual_seed(0)
    assert not torch.equal(first, second) and torch.equal(diff_augment(ones), first)
    rng = draw("cpu")
    cut = [diff_augment(images, "cutout", rng=rng) == 0 for images in (real, fake)]
    assert cut[0].any() and torch.equal(*cut)
    assert len({tuple(mask.flatten().tolist()) for mask in cut[0]}) > 1  # each image has its own
    assert torch.equal(diff_augment(real, rng=rng)[:2], diff_augment(real[:2], rng=rng))  # whatever the batch


def test_no_policy_is_no_augmentation() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert diff_augment(x, "") is x
    assert torch.equal(diff_augment(x, " cutout , color ", rng=seeded()), diff_augment(x, "cutout,color", rng=seeded()))


def test_mistakes_are_named_in_a_line() -> None:
    x = torch.randn(2, 3, 4, 4)
    for policy, said in (("colour", "did you mean 'color'"), ("color,,cutout", "unknown step"), ("flip", "known:")):
        with pytest.raises(UserError, match=said):
            diff_augment(x, policy)
    with pytest.raises(UserError, match="'color' more than once"):
        diff_augment(x, "color,cutout,color")
    with pytest.raises(UserError, match=r"not float32 \(3, 4, 4\)"):
        diff_augment(x[0])
    with pytest.raises(UserError, match="not uint8"):
        diff_augment(x.to(torch.uint8))
    with pytest.raises(UserError, match=r"rng has to be int64 \(2\)"):
        diff_augment(x, rng=torch.zeros(3, dtype=torch.int64))
    assert diff_augment(x, POLICY).shape == x.shape
