"""concat_linear_act as people call it: values, first and second gradients, laziness, precision, odd operands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastgan
from fastgan.errors import UserError
from fastgan.ops.activation import ACTIVATIONS, activate
from fastgan.ops.concat_linear import Embedded, concat_linear_act

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
EVERY_FORM = [*((name, 0.2) for name in ACTIVATIONS), ("leaky_relu", 0.0), ("leaky_relu", -0.3)]
LABELS = torch.tensor([2, 0, 2, 1, 2])


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device on which the kernels run, whatever ``auto`` would take there."""
    with fastgan.backend("triton"):
        yield request.param


def plain(inputs: Sequence[Tensor | Embedded], weight: Tensor, bias: Tensor | None, form: tuple[str, float]) -> Tensor:
    parts = [F.embedding(part.index, part.table) if isinstance(part, Embedded) else part for part in inputs]
    return activate(F.linear(torch.cat(parts, -1), weight, bias), *form)


def fused(inputs: Sequence[Tensor | Embedded], weight: Tensor, bias: Tensor | None, form: tuple[str, float]) -> Tensor:
    return concat_linear_act(inputs, weight, bias, activation=form[0], negative_slope=form[1])


def numbers(*size: int, device: str = "cpu", dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(size))
    return torch.randn(size, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()


def gradients(function: Callable[..., Tensor], operands: list[Tensor]) -> list[Tensor]:
    """The output, its gradients, and the gradients of a mix of those gradients, for random cotangents."""
    y = function(*operands)
    asked = [t for t in operands if t.requires_grad]
    first = torch.autograd.grad(y, asked, numbers(*y.shape).detach().to(y), create_graph=True)
    mix = sum((part * numbers(*part.shape, seed=1).detach().to(part)).sum() for part in first)
    mix = mix + sum(0 * t.sum() for t in asked)  # a function of all of them, if only by name
    return [y, *first, *torch.autograd.grad(mix, asked)]


def assert_same(results: list[Tensor], expected: list[Tensor]) -> None:
    for result, wanted in zip(results, expected, strict=True):
        scale = float(wanted.detach().abs().max()) if wanted.numel() else 0.0
        torch.testing.assert_close(result.double(), wanted.double(), rtol=0, atol=2e-5 * scale + 1e-12)


@pytest.mark.parametrize("form", EVERY_FORM)
def test_formulas_are_derivatives_of_each_other(form: tuple[str, float]) -> None:
    """First and second order in fp64, on the op that the kernels stand behind, here with its reference formulas."""
    operands = numbers(5, 2), numbers(3, 2, seed=1), numbers(5, 1), numbers(3, 5), numbers(3)
    indices = [None, LABELS, None]

    def op(x: Tensor, table: Tensor, c: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return torch.ops.fastgan.concat_linear_act([x, table, c], indices, w, b, *form)

    x, table, c, w, b = operands
    torch.testing.assert_close(op(*operands), plain([x, Embedded(LABELS, table), c], w, b, form))
    assert torch.autograd.gradcheck(op, operands)
    assert torch.autograd.gradgradcheck(op, operands)


@pytest.mark.parametrize("activation", ["tanh", "leaky_relu"])
@pytest.mark.parametrize("asked", [(0,), (1,), (0, 2), (2, 3), (0, 1, 2, 3)])
def test_third_order_of_some_of_the_operands(activation: str, asked: tuple[int, ...]) -> None:
    operands = [numbers(5, 1), numbers(3, 1, seed=1), numbers(5, 1, seed=2), numbers(2, 3)]

    def gradient(*tensors: Tensor) -> tuple[Tensor, ...]:
        x, table, c, w = [tensors[asked.index(at)] if at in asked else operands[at].detach() for at in range(4)]
        y = torch.ops.fastgan.concat_linear_act([x, table, c], [None, LABELS, None], w, None, activation, 0.2)
        return torch.autograd.grad(y.pow(2).sum(), tensors, create_graph=True)

    assert torch.autograd.gradgradcheck(gradient, [operands[at] for at in asked])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(
    form=st.sampled_from(EVERY_FORM),
    leading=st.lists(st.integers(1, 6), max_size=2),
    N=st.integers(1, 40),
    sizes=st.lists(st.integers(0, 20), min_size=1, max_size=5),
    embedded=st.sets(st.integers(0, 4)),
    frozen=st.sets(st.integers(0, 6)),
    with_bias=st.booleans(),
)
def test_first_and_second_gradients_are_the_references(
    device: str, form: tuple[str, float], leading: list[int], N: int, sizes: list[int], embedded: set[int],
    frozen: set[int], with_bias: bool,
) -> None:  # fmt: skip
    count = len(sizes)
    shapes = [(4, k) if at in embedded else (*leading, k) for at, k in enumerate(sizes)] + [(N, sum(sizes)), (N,)]
    wide = [numbers(*shape, device=device, seed=at) for at, shape in enumerate(shapes[: None if with_bias else -1])]
    wide = [t.requires_grad_(at not in frozen or at == count) for at, t in enumerate(wide)]
    index = torch.randint(0, 4, leading, generator=torch.Generator().manual_seed(0)).to(device)

    def layer(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*t: Tensor) -> Tensor:
            inputs = [Embedded(index, t[at]) if at in embedded else t[at] for at in range(count)]
            return function(inputs, t[count], t[count + 1] if with_bias else None, form)

        return call

    single = [t.detach().float().requires_grad_(t.requires_grad) for t in wide]
    results = gradients(layer(fused), single)
    assert all(result.dtype == torch.float32 for result in results)
    assert_same(results, gradients(layer(plain), wide))


def test_gradient_penalty_of_a_conditional_critic(device: str) -> None:
    """WGAN-GP's penalty on x alone, and its gradient in every weight and in the embedding's table, to 1e-4."""
    make = lambda *size: numbers(*size, device=device)  # noqa: E731
    operands, x, labels = [make(3, 4), make(9, 10), make(9), make(1, 9)], make(5, 6), LABELS.to(device)

    def penalty(layer: Callable[..., Tensor], x: Tensor, table: Tensor, w: Tensor, b: Tensor, head: Tensor) -> Tensor:
        score = layer([x, Embedded(labels, table)], w, b, ("tanh", 0.0)) @ head.t()
        (gradient,) = torch.autograd.grad(score.sum(), x, create_graph=True)
        return (gradient.norm(dim=1) - 1).square().mean()

    expected = torch.autograd.grad(penalty(plain, x, *operands), operands)
    single = [t.detach().float().requires_grad_() for t in operands]
    results = torch.autograd.grad(penalty(fused, x.detach().float().requires_grad_(), *single), single)
    for result, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(result, wanted.float(), rtol=1e-4, atol=1e-6)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the matrix products by name, whatever kernel file holds them."""
    from fastgan.kernels import concat_linear

    counts: Counter[str] = Counter()

    def counting(name: str, run: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **more: object) -> object:
            counts[name] += 1
            return run(*arguments, **more)

        return counted

    from fastgan.kernels import linear_bwd_input as input_kernels

    for name, owner in (
        ("concat_linear_fwd", concat_linear),
        ("concat_linear_bwd_weight", concat_linear),
        ("linear_bwd_input", input_kernels),
    ):
        monkeypatch.setattr(owner, name, counting(name.removeprefix("concat_"), getattr(owner, name)))
    return counts


def test_no_gradient_is_formed_that_nobody_asked_for(device: str, products: Counter[str]) -> None:
    make = lambda *size: numbers(*size, device=device, dtype=torch.float32)  # noqa: E731
    x, table, c, w, b = make(5, 4), make(3, 2), make(5, 3), make(7, 9), make(7)
    score = concat_linear_act([x, Embedded(LABELS.to(device), table), c], w, b).sum()
    for asked, expected in (
        ([x], {"linear_bwd_input": 1}),
        ([x, table], {"linear_bwd_input": 2}),
        ([w, b], {"linear_bwd_weight": 1}),
        ([b], {}),
        ([x, table, c, w, b], {"linear_bwd_input": 3, "linear_bwd_weight": 1}),
    ):
        products.clear()
        torch.autograd.grad(score, asked, retain_graph=True)
        assert products == expected
    products.clear()
    y = concat_linear_act([x, Embedded(LABELS.to(device), table.detach())], w[:, :6], b)
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    torch.autograd.grad(slope.square().sum(), w)  # the penalty's: its weight gradient, and nothing for label or bias
    assert products == {"linear_fwd": 1, "linear_bwd_input": 1, "linear_bwd_weight": 1}


def test_what_is_saved(device: str) -> None:
    """No concatenation and no gathered rows: the operands themselves, and the output as the mask."""
    make = lambda *size: numbers(*size, device=device, dtype=torch.float32)  # noqa: E731
    x, table, w, index = make(5, 4), make(3, 2), make(7, 6), LABELS.to(device)

    def saved(*operands: Tensor) -> tuple[Tensor, set[int]]:
        kept: list[Tensor] = []
        x, table, w = operands
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            return concat_linear_act([x, Embedded(index, table)], w), {t.data_ptr() for t in kept}

    y, kept = saved(x, table, w)
    assert kept == {t.data_ptr() for t in (x, table, index, w, y)}
    y, kept = saved(x, table.detach(), w.detach())
    assert kept == {w.data_ptr(), y.data_ptr()}
    y, kept = saved(x.detach(), table, w.detach())
    assert kept == {index.data_ptr(), w.data_ptr(), y.data_ptr()}


def test_odd_operands(device: str) -> None:
    """One condition for all, one tensor in two places, a transposed weight, a folded batch, a scalar's gradient."""
    make = lambda *size: numbers(*size, device=device, dtype=torch.float32)  # noqa: E731
    x, w, c, index = make(4, 6), make(12, 5), make(6), torch.tensor([1, 3, 3, 0], dtype=torch.int32, device=device)
    for inputs in ([x, c.expand(4, 6)], [x, x], [x.expand(4, 6), w[:4, :1].expand(4, 6)], [x, Embedded(index, x)]):
        results = [torch.autograd.grad(f(inputs, w.t(), None, ("tanh", 0.0)).sum(), (x, w)) for f in (fused, plain)]
        torch.testing.assert_close(*results)
    folded = [make(2, 6, 3).transpose(1, 2), Embedded(index[:3].expand(2, 3), make(4, 6))]
    torch.testing.assert_close(*(f(folded, w.t(), None, ("relu", 0.0)) for f in (fused, plain)))


def test_a_wrong_index_poisons_its_row_alone(device: str) -> None:
    """No row is NaN unless its index is wrong; a row of the table that nobody looks up gets no gradient."""
    x, table, w = (numbers(*size, device=device, dtype=torch.float32) for size in ((4, 2), (3, 2), (5, 4)))
    index = torch.tensor([0, 7, -2, 2], device=device)
    y = concat_linear_act([x, Embedded(index, table)], w, activation="relu")
    assert y.isnan().all(1).tolist() == y.isnan().any(1).tolist() == [False, True, True, False]
    assert torch.equal(torch.autograd.grad(y.sum(), table)[0][1], torch.zeros(2, device=device))
    if device == "cpu":  # a GPU's assert would end its context
        with fastgan.backend("reference"), pytest.raises(IndexError):
            concat_linear_act([x, Embedded(index, table)], w)


def test_what_torch_refuses_is_refused_in_its_words(device: str) -> None:
    x, w = (numbers(*size, device=device, dtype=torch.float32).detach() for size in ((4, 3), (5, 6)))
    for inputs in ([x, x[:2]], [x, x[:, :1]], [x, x[0]], [x, x.double()], [], [x[None], x]):
        with pytest.raises((RuntimeError, ValueError)) as theirs:
            plain(inputs, w, None, ("relu", 0.0))
        with pytest.raises(type(theirs.value)) as ours:
            concat_linear_act(inputs, w, activation="relu")
        assert str(ours.value) == str(theirs.value)
    with pytest.raises(UserError, match="did you mean 'leaky_relu'"):
        concat_linear_act([x, x], w, activation="leakyrelu")
    for backend in ("triton", "reference"):
        with fastgan.backend(backend), pytest.raises(UserError, match=r"write \[x, c\]"):
            concat_linear_act(x, w)  # type: ignore[arg-type]


def test_autocast_as_torch(device: str) -> None:
    """fp32 operands become the autocast dtype, mixed ones too, and gradients come back in each one's own."""
    x, table, w, b = (
        numbers(*size, device=device, dtype=torch.float32) for size in ((5, 3), (3, 2), (4, 5), (4,))
    )  # fmt: skip
    x16 = x.detach().half().requires_grad_()
    for dtype, first in ((torch.float16, x), (torch.float16, x16), (torch.bfloat16, x)):
        inputs = [first, Embedded(LABELS.to(device), table)]
        with torch.autocast(device, dtype=dtype):
            mine, theirs = fused(inputs, w, b, ("leaky_relu", 0.2)), plain(inputs, w, b, ("leaky_relu", 0.2))
        assert mine.dtype == theirs.dtype == dtype
        torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-3)
        results = [torch.autograd.grad(y.float().sum(), (first, table, w, b)) for y in (mine, theirs)]
        torch.testing.assert_close(*results, rtol=1e-2, atol=2e-2)
        assert results[0][1].dtype == torch.float32
