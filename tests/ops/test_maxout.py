"""maxout as people call it: values, first and second gradients, laziness, odd operands, tracing, mistakes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastgan
from fastgan.errors import UserError
from fastgan.ops import linear_act
from fastgan.ops.maxout import maxout

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device on which the kernels run, whatever ``auto`` would take there."""
    with fastgan.backend("triton"):
        yield request.param


def plain(input: Tensor, weight: Tensor, bias: Tensor | None, pieces: int) -> Tensor:
    return F.linear(input, weight, bias).unflatten(-1, (weight.shape[0] // pieces, pieces)).max(-1).values


def fused(input: Tensor, weight: Tensor, bias: Tensor | None, pieces: int) -> Tensor:
    return maxout(input, weight, bias, pieces=pieces)


def numbers(*size: int, device: str = "cpu", dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(size))
    return torch.randn(size, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()


def gradients(function: Callable[..., Tensor], operands: list[Tensor]) -> list[Tensor]:
    """The output, its gradients, and the gradients of a mix of those gradients, for random cotangents."""
    y = function(*operands)
    asked = [t for t in operands if t.requires_grad]
    cotangent = numbers(*y.shape).detach().to(y).requires_grad_()
    first = torch.autograd.grad(y, asked, cotangent, create_graph=True)
    mix = sum((part * numbers(*part.shape, seed=1).detach().to(part)).sum() for part in first)
    mix = mix + sum(0 * t.sum() for t in asked)  # a function of all of them, if only by name
    return [y, *first, *torch.autograd.grad(mix, [cotangent, *asked])]


def test_formulas_are_derivatives_of_each_other() -> None:
    """To third order in fp64, on the op that the kernels stand behind, here with its reference formulas."""
    operands = numbers(5, 4), numbers(6, 4), numbers(6)

    def op(*tensors: Tensor) -> Tensor:
        return torch.ops.fastgan.maxout(*tensors, None, 3)[0]

    def gradient(*tensors: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(op(*tensors).pow(2).sum(), tensors, create_graph=True)

    torch.testing.assert_close(op(*operands), plain(*operands, 3))
    assert torch.autograd.gradcheck(op, operands)
    assert torch.autograd.gradgradcheck(op, operands)
    assert torch.autograd.gradgradcheck(gradient, operands)


def test_named_pieces_and_their_gradients() -> None:
    """The op with an index given: whatever pieces it names, and no index back."""
    operands = numbers(5, 4), numbers(6, 4), numbers(6)
    index = torch.randint(3, (5, 2), generator=torch.Generator().manual_seed(0), dtype=torch.int8)

    def op(*tensors: Tensor) -> Tensor:
        (output,) = torch.ops.fastgan.maxout(*tensors, index, 3)
        return output

    every = F.linear(*operands).view(5, 2, 3)
    torch.testing.assert_close(op(*operands), every.gather(-1, index.long()[..., None])[..., 0])
    assert torch.autograd.gradcheck(op, operands)
    assert torch.autograd.gradgradcheck(op, operands)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(
    leading=st.lists(st.integers(1, 6), max_size=2),
    N=st.integers(1, 20),
    K=st.integers(1, 40),
    pieces=st.integers(1, 5),
    with_bias=st.booleans(),
    frozen=st.sampled_from([None, 0, 1]),
)
def test_first_and_second_gradients_are_the_references(
    device: str, leading: list[int], N: int, K: int, pieces: int, with_bias: bool, frozen: int | None
) -> None:
    sizes = [(*leading, K), (N * pieces, K), (N * pieces,)][: 3 if with_bias else 2]
    double = [numbers(*size, device=device).requires_grad_(at != frozen) for at, size in enumerate(sizes)]
    single = [t.detach().float().requires_grad_(t.requires_grad) for t in double]
    pad = () if with_bias else (None,)
    results = gradients(lambda *t: fused(*t, *pad, pieces), single)
    expected = gradients(lambda *t: plain(*t, *pad, pieces), double)
    for result, wanted in zip(results, expected, strict=True):
        assert result.dtype == torch.float32
        scale = float(wanted.detach().abs().max())
        torch.testing.assert_close(result.double(), wanted, rtol=0, atol=2e-5 * scale + 1e-12)


def critic(
    layer: Callable[..., Tensor], x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w3: Tensor
) -> Tensor:
    """The discriminator of Goodfellow et al. 2014 in small: two maxout layers and a linear head."""
    return F.linear(layer(layer(x, w1, b1, 5), w2, b2, 5), w3)


def test_gradient_penalty_through_a_maxout_critic(device: str) -> None:
    """WGAN-GP's penalty and its gradient with respect to every weight."""
    sizes = ((40, 6), (40,), (35, 8), (35,), (1, 7))
    weights = [numbers(*size, device=device) for size in sizes]
    single = [w.detach().float().requires_grad_() for w in weights]

    def penalty(layer: Callable[..., Tensor], x: Tensor, *weights: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(critic(layer, x, *weights).sum(), x, create_graph=True)
        return (gradient.norm(dim=1) - 1).square().mean()

    x = numbers(9, 6, device=device)
    expected, result = penalty(plain, x, *weights), penalty(fused, x.detach().float().requires_grad_(), *single)
    expected.backward()
    result.backward()
    torch.testing.assert_close(result, expected.float())
    for mine, theirs in zip(single[::2], weights[::2], strict=True):
        assert mine.grad is not None and theirs.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad.float(), rtol=1e-4, atol=1e-6)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the kernels' matrix products by name."""
    from fastgan.kernels import maxout as kernels

    counts: Counter[str] = Counter()

    def counting(name: str, run: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **more: object) -> object:
            counts[name] += 1
            return run(*arguments, **more)

        return counted

    for name in ("maxout_fwd", "maxout_select", "maxout_bwd_input", "maxout_bwd_weight"):
        monkeypatch.setattr(kernels, name, counting(name, getattr(kernels, name)))
    return counts


def test_no_gradient_is_formed_that_nobody_asked_for(device: str, products: Counter[str]) -> None:
    make = lambda *size: numbers(*size, device=device, dtype=torch.float32)  # noqa: E731
    x, first, second = make(5, 6), make(21, 6), make(9, 7)
    score = fused(fused(x, first, None, 3), second, None, 3).sum()
    torch.autograd.grad(score, [x], retain_graph=True)  # the generator's step: no gradient of the weights
    assert products == {"maxout_fwd": 2, "maxout_bwd_input": 2}
    products.clear()
    torch.autograd.grad(score, [second])
    assert products == {"maxout_bwd_weight": 1}
    products.clear()

    (slope,) = torch.autograd.grad(fused(fused(x, first, None, 3), second, None, 3).sum(), x, create_graph=True)
    slope.square().sum().backward()  # the last layer's incoming gradient is constant
    assert products == {"maxout_fwd": 2, "maxout_bwd_input": 2, "maxout_select": 1, "maxout_bwd_weight": 2}
    assert x.grad is None


def test_what_is_saved(device: str) -> None:
    """Input, weight and a byte for each output, each only where a gradient needs it; nothing without gradients."""
    x, w = (numbers(*size, device=device, dtype=torch.float32) for size in ((4, 3), (10, 3)))
    for operands, sizes in (((x, w), {(4, 3), (10, 3), (4, 2)}), ((x, w.detach()), {(10, 3), (4, 2)})):
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            fused(*operands, None, 5)
        assert {tuple(t.shape) for t in kept} == sizes
        assert [t.dtype for t in kept if t.shape == (4, 2)] == [torch.int8]
    with torch.no_grad():
        assert fused(x, w, None, 5).grad_fn is None


def test_odd_operands(device: str) -> None:
    """Transposed, strided and expanded ones, one tensor twice, an expanded bias, sizes of 0, a single vector."""
    square = numbers(6, 6, device=device, dtype=torch.float32)
    bias = numbers(1, device=device, dtype=torch.float32).expand(6)
    for x, w in ((square, square), (square.t(), square), (square[::2], square.t()), (square[:1].expand(4, 6), square)):
        results = [torch.autograd.grad(f(x, w, bias, 3).sum(), square)[0] for f in (fused, plain)]
        torch.testing.assert_close(*results)
    folded = numbers(2, 6, 3, device=device, dtype=torch.float32).transpose(1, 2)
    torch.testing.assert_close(fused(folded, square, None, 2), plain(folded, square, None, 2))
    for x, w in ((square[0], square), (square[:0], square), (square[:, :0], square[:, :0]), (square, square[:0])):
        results = [torch.autograd.grad(f(x, w, None, 2).sum(), square)[0] for f in (fused, plain)]
        torch.testing.assert_close(*results)


def test_more_pieces_than_a_byte_numbers(device: str) -> None:
    x, w = (numbers(*size, device=device, dtype=torch.float32) for size in ((4, 3), (256, 3)))
    torch.testing.assert_close(fused(x, w, None, 128), plain(x, w, None, 128))


@pytest.mark.parametrize("route", [pytest.param("reference"), pytest.param("triton", marks=pytest.mark.interpret)])
def test_ties_go_to_the_first_piece(route: str) -> None:
    x, w = numbers(2, 3, dtype=torch.float32), numbers(1, 3, dtype=torch.float32)
    weight = w.detach().expand(4, 3).clone().requires_grad_()
    with fastgan.backend(route):
        (gradient,) = torch.autograd.grad(maxout(x, weight, pieces=2).sum(), weight)
    total = x.detach().sum(0)
    torch.testing.assert_close(gradient, torch.stack([total, 0 * total, total, 0 * total]))


def test_mistakes_are_named_in_a_line() -> None:
    x, w = torch.randn(4, 3), torch.randn(10, 3)
    with pytest.raises(UserError, match=r"at least 1 piece for each unit, not 0"):
        maxout(x, w, pieces=0)
    with pytest.raises(UserError, match=r"\(out_features \* pieces, in_features\), not \(10, 3\)"):
        maxout(x, w, pieces=3)
    with pytest.raises(UserError, match=r"not \(3,\)"):
        maxout(x, w[0], pieces=3)


def test_what_torch_refuses_is_refused_in_its_words(device: str) -> None:
    x, w = (numbers(*size, device=device, dtype=torch.float32).detach() for size in ((4, 3), (6, 3)))
    for operands in ((x, w.double(), None), (x, w[:, :2], None), (x[0, 0], w, None), (x, w, x[0].double())):
        with pytest.raises(RuntimeError) as theirs:
            F.linear(*operands)
        with pytest.raises(RuntimeError) as ours:
            maxout(*operands, pieces=2)
        assert str(ours.value) == str(theirs.value)


def test_autocast_as_torch(device: str) -> None:
    """fp32 operands become the autocast dtype, and gradients come back in fp32."""
    x, w, b = (numbers(*size, device=device, dtype=torch.float32) for size in ((4, 3), (10, 3), (10,)))
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast(device, dtype=dtype):
            mine, theirs = fused(x, w, b, 5), plain(x, w, b, 5)
            assert maxout(x.double(), w.double(), pieces=5).dtype == torch.float64
        assert mine.dtype == theirs.dtype == dtype
        torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-3)
        results = [torch.autograd.grad(y.float().sum(), (x, w, b)) for y in (mine, theirs)]
        torch.testing.assert_close(*results, rtol=1e-2, atol=1e-2)
        assert results[0][1].dtype == torch.float32


def test_beside_the_other_layers(device: str) -> None:
    """A generator's layer below, a head above: the gradient passes through all of them."""
    z, g, d, head = (numbers(*size, device=device, dtype=torch.float32) for size in ((5, 4), (6, 4), (14, 6), (1, 7)))
    results = []
    for layer in (fused, plain):
        score = linear_act(layer(linear_act(z, g, activation="relu"), d, None, 2), head, activation="none")
        results.append(torch.autograd.grad(score.sum(), (z, g, d, head)))
    torch.testing.assert_close(*results)
