"""linear_act as people call it: values, first and second gradients, laziness, precision, odd operands."""

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
from fastgan.ops import linear_act
from fastgan.ops.activation import ACTIVATIONS, activate

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
EVERY_FORM = [*((name, 0.2) for name in ACTIVATIONS), ("leaky_relu", 0.0), ("leaky_relu", -0.3)]
every_form = pytest.mark.parametrize("activation, slope", EVERY_FORM)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device on which the kernels run, whatever ``auto`` would take there."""
    with fastgan.backend("triton"):
        yield request.param


def plain(input: Tensor, weight: Tensor, bias: Tensor | None, activation: str, slope: float) -> Tensor:
    return activate(F.linear(input, weight, bias), activation, slope)


def numbers(*size: int, device: str = "cpu", dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(size))
    return torch.randn(size, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()


def gradients(function: Callable[..., Tensor], operands: list[Tensor], *how: object) -> list[Tensor]:
    """The output, its gradients, and the gradients of a mix of those gradients, for random cotangents."""
    y = function(*operands, *how)
    asked = [t for t in operands if t.requires_grad]
    first = torch.autograd.grad(y, asked, numbers(*y.shape).detach().to(y), create_graph=True)
    mix = sum((part * numbers(*part.shape, seed=1).detach().to(part)).sum() for part in first)
    mix = mix + sum(0 * t.sum() for t in asked)  # a function of all of them, if only by name
    return [y, *first, *torch.autograd.grad(mix, asked)]


def fused(input: Tensor, weight: Tensor, bias: Tensor | None, activation: str, slope: float) -> Tensor:
    return linear_act(input, weight, bias, activation=activation, negative_slope=slope)


@every_form
def test_formulas_are_derivatives_of_each_other(activation: str, slope: float) -> None:
    """First and second order in fp64, on the op that the kernels stand behind, here with its reference formulas."""
    operands = numbers(5, 4), numbers(3, 4), numbers(3)

    def op(*tensors: Tensor) -> Tensor:
        return torch.ops.fastgan.linear_act(*tensors, activation, slope)

    torch.testing.assert_close(op(*operands), plain(*operands, activation, slope))
    assert torch.autograd.gradcheck(op, operands)
    assert torch.autograd.gradgradcheck(op, operands)


@pytest.mark.parametrize("activation", ["tanh", "leaky_relu"])
def test_third_order(activation: str) -> None:
    operands = numbers(3, 2), numbers(2, 2), numbers(2)

    def gradient(*tensors: Tensor) -> tuple[Tensor, ...]:
        y = torch.ops.fastgan.linear_act(*tensors, activation, 0.2)
        return torch.autograd.grad(y.pow(2).sum(), tensors, create_graph=True)

    assert torch.autograd.gradgradcheck(gradient, operands)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(
    form=st.sampled_from(EVERY_FORM),
    leading=st.lists(st.integers(1, 6), max_size=2),
    N=st.integers(1, 40),
    K=st.integers(1, 40),
    with_bias=st.booleans(),
    frozen=st.sampled_from([None, 0, 1]),
)
def test_first_and_second_gradients_are_the_references(
    device: str, form: tuple[str, float], leading: list[int], N: int, K: int, with_bias: bool, frozen: int | None
) -> None:
    sizes = [(*leading, K), (N, K), (N,)][: 3 if with_bias else 2]
    double = [numbers(*size, device=device).requires_grad_(at != frozen) for at, size in enumerate(sizes)]
    single = [t.detach().float().requires_grad_(t.requires_grad) for t in double]
    pad = () if with_bias else (None,)
    results = gradients(lambda *t: fused(*t[: len(sizes)], *pad, *form), single)
    expected = gradients(lambda *t: plain(*t[: len(sizes)], *pad, *form), double)
    for result, wanted in zip(results, expected, strict=True):
        assert result.dtype == torch.float32
        scale = float(wanted.detach().abs().max())
        torch.testing.assert_close(result.double(), wanted, rtol=0, atol=2e-5 * scale + 1e-12)


def test_gradient_penalty_through_a_critic(device: str) -> None:
    """WGAN-GP's penalty and its gradient with respect to every weight of a two-layer critic."""
    weights = [numbers(9, 6, device=device), numbers(9, device=device), numbers(1, 9, device=device)]

    def penalty(layer: Callable[..., Tensor], x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor) -> Tensor:
        score = layer(layer(x, w1, b1, "leaky_relu", 0.2), w2, None, "none", 0.0)
        (gradient,) = torch.autograd.grad(score.sum(), x, create_graph=True)
        return (gradient.norm(dim=1) - 1).square().mean()

    single = [w.detach().float().requires_grad_() for w in weights]
    x = numbers(7, 6, device=device)
    expected, result = penalty(plain, x, *weights), penalty(fused, x.detach().float().requires_grad_(), *single)
    expected.backward()
    result.backward()
    torch.testing.assert_close(result, expected.float())
    for mine, theirs in zip((single[0], single[2]), (weights[0], weights[2]), strict=True):
        assert mine.grad is not None and theirs.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad.float(), rtol=1e-4, atol=1e-6)


def test_no_gradient_is_formed_that_nobody_asked_for(device: str, products: Counter[str]) -> None:
    make = lambda *size: numbers(*size, device=device, dtype=torch.float32)  # noqa: E731
    z, g, d, head = make(5, 4), make(6, 4), make(7, 6), make(1, 7)
    score = linear_act(linear_act(linear_act(z.detach(), g), d), head, activation="none").sum()
    torch.autograd.grad(score, [g], retain_graph=True)  # the generator's step: no gradient of d, head or z
    assert products == {"linear_fwd": 3, "linear_bwd_input": 2, "linear_bwd_weight": 1}
    products.clear()
    torch.autograd.grad(score, [head])
    assert products == {"linear_bwd_weight": 1}
    products.clear()

    x = make(5, 6)
    (slope,) = torch.autograd.grad(linear_act(linear_act(x, d), head, activation="none").sum(), x, create_graph=True)
    slope.square().sum().backward()  # L layers take 4 L products less one: the head's incoming gradient is constant
    assert products == {"linear_fwd": 3, "linear_bwd_input": 2, "linear_bwd_weight": 2}
    assert x.grad is None


@pytest.mark.parametrize("activation, hangs", [("leaky_relu", False), ("tanh", True)])
def test_a_penalty_hangs_on_the_forward_graph_only_where_it_bends(device: str, activation: str, hangs: bool) -> None:
    """The gradient through a piecewise linear layer depends on its weights alone: no zeros flow into y's graph."""
    x, w = (numbers(*size, device=device, dtype=torch.float32) for size in ((5, 6), (7, 6)))
    (slope,) = torch.autograd.grad(linear_act(x, w, activation=activation).sum(), x, create_graph=True)
    names, nodes = set(), [slope.grad_fn]
    while nodes:
        node = nodes.pop()
        names.add(node.name())
        nodes += [following for following, _ in node.next_functions if following is not None]
    assert ("_LinearActBackward" in names) == hangs  # autograd's name for the node of _LinearAct


def test_what_is_saved(device: str) -> None:
    """The output serves as the mask; a negative slope keeps its pre-activation; a frozen operand needs nothing kept."""
    x, w = (numbers(*size, device=device, dtype=torch.float32) for size in ((4, 3), (5, 3)))

    def saved(*operands: Tensor, slope: float) -> tuple[Tensor, list[Tensor]]:
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            return linear_act(*operands, negative_slope=slope), kept

    y, kept = saved(x, w, slope=0.2)
    assert {t.data_ptr() for t in kept} == {x.data_ptr(), w.data_ptr(), y.data_ptr()}
    y, kept = saved(x, w.detach(), slope=0.2)
    assert {t.data_ptr() for t in kept} == {w.data_ptr(), y.data_ptr()}
    y, kept = saved(x, w, slope=-0.2)
    assert len(kept) == 3 and y.data_ptr() not in {t.data_ptr() for t in kept}


def test_odd_operands(device: str) -> None:
    """Transposed, strided and expanded ones, a scalar's expanded gradient, one tensor twice, an expanded bias."""
    square = numbers(6, 6, device=device, dtype=torch.float32)
    bias = numbers(1, device=device, dtype=torch.float32).expand(6)
    for x, w in ((square, square), (square.t(), square), (square[::2], square.t()), (square[:1].expand(4, 6), square)):
        results = [torch.autograd.grad(f(x, w, bias, "leaky_relu", 0.2).sum(), square)[0] for f in (fused, plain)]
        torch.testing.assert_close(*results)
    folded = numbers(2, 6, 3, device=device, dtype=torch.float32).transpose(1, 2)
    torch.testing.assert_close(fused(folded, square, None, "tanh", 0.0), plain(folded, square, None, "tanh", 0.0))


def test_what_torch_refuses_is_refused_in_its_words(device: str) -> None:
    x, w = (numbers(*size, device=device, dtype=torch.float32).detach() for size in ((4, 3), (5, 3)))
    wrong = [(x, w.double(), None), (x, w[:, :2], None), (x[0, 0], w, None), (x, w, x[0].double()), (x, w, x[0])]
    for operands in wrong:
        with pytest.raises(RuntimeError) as theirs:
            F.linear(*operands)
        with pytest.raises(RuntimeError) as ours:
            linear_act(*operands)
        assert str(ours.value) == str(theirs.value)
    with pytest.raises(fastgan.errors.UserError, match="did you mean 'leaky_relu'"):
        linear_act(x, w, activation="leakyrelu")


def test_autocast_as_torch(device: str) -> None:
    """fp32 operands become the autocast dtype, fp64 ones stay, and gradients come back in fp32."""
    x, w, b = (numbers(*size, device=device, dtype=torch.float32) for size in ((4, 3), (5, 3), (5,)))
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast(device, dtype=dtype):
            mine, theirs = fused(x, w, b, "leaky_relu", 0.2), plain(x, w, b, "leaky_relu", 0.2)
            assert linear_act(x.double(), w.double()).dtype == torch.float64
            with pytest.raises(RuntimeError, match="dtype"):
                linear_act(x, w.double())
        assert mine.dtype == theirs.dtype == dtype
        torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-3)
        results = [torch.autograd.grad(y.float().sum(), (x, w, b)) for y in (mine, theirs)]
        torch.testing.assert_close(*results, rtol=1e-2, atol=1e-2)
        assert results[0][1].dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.parametrize("precision, ulp", [("ieee", 2**-23), ("tf32", 2**-10)])
def test_tf32_setting_is_pytorchs_own(precision: str, ulp: float) -> None:
    x, w = (numbers(*size, device="cuda") for size in ((256, 512), (384, 512)))
    matmul = torch.backends.cuda.matmul
    former, matmul.fp32_precision = matmul.fp32_precision, precision
    try:
        with fastgan.backend("triton"):
            results = gradients(
                fused, [x.detach().float().requires_grad_(), w.detach().float().requires_grad_()], None, "tanh", 0.0
            )
    finally:
        matmul.fp32_precision = former
    errors = []
    for result, wanted in zip(results, gradients(plain, [x, w], None, "tanh", 0.0), strict=True):
        errors.append(float((result.double() - wanted).abs().max() / wanted.abs().max()))
    assert max(errors) < 64 * ulp
    assert precision == "ieee" or max(errors) > 2**-16  # it was TF32 indeed


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_graph_replays_forward_and_backward(dtype: torch.dtype) -> None:
    x, w, b = (numbers(*size, device="cuda", dtype=dtype) for size in ((64, 96), (32, 96), (32,)))

    def run() -> tuple[Tensor, ...]:
        y = linear_act(x, w, b)
        return (y, *torch.autograd.grad(y.square().sum(), (x, w, b)))

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    for result, wanted in zip(results, run(), strict=True):
        assert torch.equal(result, wanted)
