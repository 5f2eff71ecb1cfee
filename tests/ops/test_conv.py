"""The convolution ops as people call them: values, first and second gradients, laziness, layouts, odd operands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastgan
from fastgan.ops import conv1d_act, conv2d_act, conv_transpose1d_act, conv_transpose2d_act
from fastgan.ops.activation import ACTIVATIONS, activate

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
EVERY_FORM = [*((name, 0.2) for name in ACTIVATIONS), ("leaky_relu", 0.0), ("leaky_relu", -0.3)]
OPS = {(1, False): conv1d_act, (2, False): conv2d_act, (1, True): conv_transpose1d_act, (2, True): conv_transpose2d_act}
PLAIN_FORM = (
    [1, 1],
    [0, 0],
    [1, 1],
    False,
    [0, 0],
    1,
)  # stride, padding, dilation, transposed, output padding, upsample


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device on which the kernels run, whatever ``auto`` would take there, with all bits of fp32."""
    former, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    with fastgan.backend("triton"):
        yield request.param
    torch.backends.cudnn.allow_tf32 = former


class Case(NamedTuple):
    """One convolution: its operands' sizes and what it is told."""

    dims: int
    transposed: bool
    input: tuple[int, ...]
    weight: tuple[int, ...]
    bias: int
    more: dict[str, Any]
    upsample: int = 1
    after: tuple[str, float] = ("leaky_relu", 0.2)
    before: tuple[str, float] = ("none", 0.0)

    def fused(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        named = {"activation": self.after[0], "negative_slope": self.after[1]}
        named |= {"pre_activation": self.before[0], "pre_negative_slope": self.before[1]}
        named |= {"upsample": self.upsample} if self.upsample > 1 else {}
        return OPS[self.dims, self.transposed](input, weight, bias, **self.more, **named)

    def plain(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = activate(input, *self.before)
        x = x.repeat_interleave(self.upsample, -1).repeat_interleave(self.upsample, -2) if self.upsample > 1 else x
        function = getattr(F, OPS[self.dims, self.transposed].__name__.removesuffix("_act"))
        return activate(function(x, weight, bias, **self.more), *self.after)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Geometries of every kind that PyTorch takes, on small images with few or many channels."""
    dims, transposed = draw(st.sampled_from([1, 2, 2])), draw(st.booleans())
    upsample = draw(st.sampled_from([1, 1, 2])) if dims == 2 and not transposed else 1
    each = lambda low, high: draw(  # noqa: E731
        st.one_of(st.integers(low, high), st.tuples(*[st.integers(low, high)] * dims))
    )
    stride, dilation = 1 if upsample > 1 else each(1, 3), each(1, 2)
    groups = draw(st.sampled_from([1, 1, 1, 2]))
    channels = [groups * draw(st.sampled_from([1, 3, 17])) for _ in range(2)]
    kernel, size = (tuple(draw(st.integers(1, high)) for _ in range(dims)) for high in (4, 6))
    padding = each(0, 2)
    more: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if transposed:
        wide = stride if isinstance(stride, int) else min(stride)
        more["output_padding"] = draw(st.integers(0, wide - 1))
    elif stride == 1 or isinstance(padding, tuple):
        more["padding"] = draw(st.sampled_from([padding, "valid", "same"])) if stride == 1 else padding
    image, grid = (channels[0], *size), (channels[1], channels[0] // groups, *kernel)
    image = (grid[0], *size) if transposed else image
    batch = draw(st.sampled_from([(), (1,), (3,)]))
    forms = st.sampled_from(EVERY_FORM)
    after, before = draw(forms), draw(st.one_of(st.just(("none", 0.0)), forms))
    return Case(dims, transposed, (*batch, *image), grid, channels[not transposed], more, upsample, after, before)


def numbers(*size: int, device: str = "cpu", dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(size))
    return torch.randn(size, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()


def single(*size: int, device: str) -> Tensor:
    return numbers(*size, device=device, dtype=torch.float32)


def gradients(function: Callable[..., Tensor], operands: list[Tensor]) -> list[Tensor]:
    """The output, its gradients with a graph and without one, and the gradients of a mix of the former."""
    y = function(*operands)
    asked = [t for t in operands if t.requires_grad]
    grad = numbers(*y.shape).detach().to(y)
    first = torch.autograd.grad(y, asked, grad, create_graph=True)
    mix = sum((part * numbers(*part.shape, seed=1).detach().to(part)).sum() for part in first)
    mix = mix + sum(0 * t.sum() for t in asked)  # a function of all of them, if only by name
    return [y, *first, *torch.autograd.grad(mix, asked, retain_graph=True), *torch.autograd.grad(y, asked, grad)]


def close(results: list[Tensor], expected: list[Tensor]) -> None:
    for result, wanted in zip(results, expected, strict=True):
        assert result.dtype == torch.float32
        scale = float(wanted.detach().abs().max()) if wanted.numel() else 0.0
        torch.testing.assert_close(result.double(), wanted, rtol=0, atol=2e-5 * scale + 1e-12)


FORMULAS = [
    ((2, 2, 4, 3), (3, 2, 2, 2), ([2, 1], [1, 0], [1, 2], False, [0, 0], 1)),
    ((2, 3, 2, 2), (3, 2, 3, 2), ([2, 2], [1, 0], [1, 1], True, [1, 0], 1)),
    ((1, 2, 2, 2), (2, 2, 3, 3), ([1, 1], [1, 1], [1, 1], False, [0, 0], 2)),
]


@pytest.mark.parametrize("input, weight, form", FORMULAS, ids=["conv", "transposed", "upsampled"])
@pytest.mark.parametrize("activation, slope", [("tanh", 0.0), ("leaky_relu", 0.2), ("leaky_relu", -0.3)])
def test_formulas_are_derivatives_of_each_other(
    input: tuple[int, ...], weight: tuple[int, ...], form: tuple[Any, ...], activation: str, slope: float
) -> None:
    """First and second order in fp64, on the op that the kernels stand behind, here with its reference formulas."""
    operands = numbers(*input), numbers(*weight), numbers(weight[form[3]])

    def op(*tensors: Tensor) -> Tensor:
        return torch.ops.fastgan.conv_act(*tensors, *form, activation, slope)

    assert torch.autograd.gradcheck(op, operands, fast_mode=True)
    assert torch.autograd.gradgradcheck(op, operands, fast_mode=True)


@pytest.mark.parametrize("activation", ["tanh", "leaky_relu"])
def test_third_order(activation: str) -> None:
    operands = numbers(1, 2, 3, 2), numbers(2, 2, 2, 2), numbers(2)

    def gradient(*tensors: Tensor) -> tuple[Tensor, ...]:
        y = torch.ops.fastgan.conv_act(*tensors, *PLAIN_FORM, activation, 0.2)
        return torch.autograd.grad(y.pow(2).sum(), tensors, create_graph=True)

    assert torch.autograd.gradgradcheck(gradient, operands, fast_mode=True)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(case=cases(), with_bias=st.booleans(), frozen=st.sampled_from([None, 0, 1]), innermost=st.booleans())
def test_first_and_second_gradients_are_the_references(
    device: str, case: Case, with_bias: bool, frozen: int | None, innermost: bool
) -> None:
    sizes = [case.input, case.weight, (case.bias,)][: 3 if with_bias else 2]
    pad = [] if with_bias else [None]
    double = [numbers(*size, device=device).requires_grad_(at != frozen) for at, size in enumerate(sizes)]
    operands = [t.detach().float() for t in double]
    if innermost and operands[0].dim() == 4:
        operands[0] = operands[0].contiguous(memory_format=torch.channels_last)
    operands = [t.requires_grad_(like.requires_grad) for t, like in zip(operands, double, strict=True)]
    try:
        expected = gradients(lambda *t: case.plain(*t, *pad), double)
    except RuntimeError:  # a size or a padding that PyTorch does not take
        with pytest.raises(RuntimeError):
            case.fused(*double, *pad)
        return
    close(gradients(lambda *t: case.fused(*t, *pad), operands), expected)


def test_every_activation_before_and_behind(device: str) -> None:
    for at, after in enumerate(EVERY_FORM):
        before = EVERY_FORM[(2 * at + 1) % len(EVERY_FORM)]
        for transposed in (False, True):
            case = Case(2, transposed, (2, 3, 4, 3), (3, 3, 2, 3), 3, {"padding": 1, "stride": 1}, 1, after, before)
            double = [numbers(*size, device=device) for size in (case.input, case.weight, (case.bias,))]
            operands = [t.detach().float().requires_grad_() for t in double]
            close(gradients(case.fused, operands), gradients(case.plain, double))


@pytest.mark.parametrize("pre", ["none", "leaky_relu", "sigmoid"])
def test_products_of_the_library_with_passes_of_ours(device: str, monkeypatch: pytest.MonkeyPatch, pre: str) -> None:
    """What ``auto`` does where cuDNN is faster."""
    monkeypatch.setattr("fastgan.ops.conv_compute.by_library", lambda *_: True)
    for transposed, upsample in ((False, 1), (True, 1), (False, 2)):
        weight = (17, 3, 3, 2) if transposed else (3, 17, 3, 2)
        case = Case(2, transposed, (2, 17, 4, 3), weight, 3, {"padding": 1}, upsample, ("tanh", 0.0), (pre, 0.2))
        double = [numbers(*size, device=device) for size in (case.input, case.weight, (case.bias,))]
        close(
            gradients(case.fused, [t.detach().float().requires_grad_() for t in double]), gradients(case.plain, double)
        )


def critic(layer: Callable[..., Tensor], x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, head: Tensor) -> Tensor:
    u = layer(x, w1, b1, 2, 1)
    return layer(layer(u, w2, None, 2, 1), head, activation="none").flatten()


def plain_layer(*operands: Any, activation: str = "leaky_relu") -> Tensor:
    return activate(F.conv2d(*operands), activation, 0.2)


@pytest.mark.parametrize("kind", ["wgan-gp", "r1"])
def test_gradient_penalty_through_a_critic(device: str, kind: str) -> None:
    """The penalty and its gradient with respect to every weight of a critic of three convolutions."""
    sizes = (4, 3, 4, 4), (4,), (5, 4, 4, 4), (1, 5, 2, 2)
    weights = [numbers(*size, device=device) for size in sizes]

    def penalty(layer: Callable[..., Tensor], x: Tensor, *weights: Tensor) -> Tensor:
        score = critic(layer, x, *weights)
        (gradient,) = torch.autograd.grad(score.sum(), x, create_graph=True)
        if kind == "r1":
            return gradient.square().sum((1, 2, 3)).mean() + F.softplus(score).mean()
        return (gradient.flatten(1).norm(dim=1) - 1).square().mean()

    mine = [w.detach().float().requires_grad_() for w in weights]
    x = numbers(2, 3, 8, 8, device=device)
    expected = penalty(plain_layer, x, *weights)
    result = penalty(conv2d_act, x.detach().float().requires_grad_(), *mine)
    expected.backward()
    result.backward()
    torch.testing.assert_close(result, expected.float())
    for parameter, theirs in zip(mine, weights, strict=True):
        assert (parameter.grad is None) == (theirs.grad is None or (kind == "wgan-gp" and theirs.dim() == 1))
        if parameter.grad is not None and theirs.grad is not None:
            close([parameter.grad], [theirs.grad])


def test_no_gradient_is_formed_that_nobody_asked_for(device: str, products: Counter[str]) -> None:
    z, g = single(2, 3, 1, 1, device=device), single(3, 2, 4, 4, device=device)
    d, head = single(3, 2, 3, 3, device=device), single(1, 3, 2, 2, device=device)
    score = conv2d_act(conv2d_act(conv_transpose2d_act(z.detach(), g), d), head, activation="none").sum()
    torch.autograd.grad(score, [g], retain_graph=True)  # the generator's step: no gradient of d, head or z
    assert products == {"conv_fwd": 3, "conv_bwd_input": 2, "conv_bwd_weight": 1}
    products.clear()
    torch.autograd.grad(score, [head])
    assert products == {"conv_bwd_weight": 1}
    products.clear()

    x = single(2, 2, 4, 4, device=device)
    y = conv2d_act(conv2d_act(x, d), head, activation="none").sum()
    (slope,) = torch.autograd.grad(y, x, create_graph=True)
    slope.square().sum().backward()  # L layers take 4 L products less one: the head's incoming gradient is constant
    assert products == {"conv_fwd": 3, "conv_bwd_input": 2, "conv_bwd_weight": 2}
    assert x.grad is None
    products.clear()

    bias = single(3, device=device)
    torch.autograd.grad(conv2d_act(x, d.detach(), bias).sum(), bias)
    torch.autograd.grad(conv2d_act(x.detach(), d, bias, pre_activation="relu").sum(), (d, bias))
    assert products == {"conv_fwd": 2, "conv_bwd_weight": 1}


@pytest.mark.parametrize("activation, hangs", [("leaky_relu", False), ("tanh", True)])
def test_a_penalty_hangs_on_the_forward_graph_only_where_it_bends(device: str, activation: str, hangs: bool) -> None:
    """The gradient through a piecewise linear layer depends on its weights alone: no zeros flow into y's graph."""
    x, w = single(1, 2, 3, 3, device=device), single(2, 2, 2, 2, device=device)
    (slope,) = torch.autograd.grad(conv2d_act(x, w, activation=activation).sum(), x, create_graph=True)
    names, nodes = set(), [slope.grad_fn]
    while nodes:
        node = nodes.pop()
        names.add(node.name())
        nodes += [following for following, _ in node.next_functions if following is not None]
    assert ("_ConvActBackward" in names) == hangs  # autograd's name for the node of _ConvAct


def test_what_is_saved(device: str) -> None:
    """The output serves as the mask, the input stays as it came; no activated input, no enlarged image is kept."""
    x, w = single(2, 3, 4, 4, device=device), single(5, 3, 2, 2, device=device)

    def saved(*operands: Tensor, **more: Any) -> tuple[Tensor, list[Tensor]]:
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            return conv2d_act(*operands, **more), kept

    for more in ({}, {"pre_activation": "tanh"}, {"upsample": 2}):
        y, kept = saved(x, w, **more)
        assert {t.data_ptr() for t in kept} == {x.data_ptr(), w.data_ptr(), y.data_ptr()}
    y, kept = saved(x, w.detach())
    assert {t.data_ptr() for t in kept} == {w.data_ptr(), y.data_ptr()}
    y, kept = saved(x, w, activation="none")
    assert {t.data_ptr() for t in kept} == {x.data_ptr(), w.data_ptr()}
    y, kept = saved(x, w, negative_slope=-0.2)
    assert len(kept) == 3 and y.data_ptr() not in {t.data_ptr() for t in kept}


@pytest.mark.gpu
@pytest.mark.parametrize("precision, ulp", [("ieee", 2**-23), ("tf32", 2**-10)])
def test_tf32_setting_is_pytorchs_own(precision: str, ulp: float) -> None:
    double = [numbers(*size, device="cuda") for size in ((8, 64, 16, 16), (96, 64, 3, 3), (96,))]
    case = Case(2, False, (), (), 96, {"padding": 1}, after=("tanh", 0.0))
    conv = torch.backends.cudnn.conv
    former, conv.fp32_precision = conv.fp32_precision, precision
    try:
        with fastgan.backend("triton"):
            results = gradients(case.fused, [t.detach().float().requires_grad_() for t in double])
    finally:
        conv.fp32_precision = former
    expected = gradients(case.plain, double)
    errors = [
        float((mine.double() - wanted).abs().max() / wanted.abs().max())
        for mine, wanted in zip(results, expected, strict=True)
    ]
    assert max(errors) < 64 * ulp
    assert precision == "ieee" or max(errors) > 2**-16  # it was TF32 indeed


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_graph_replays_forward_and_backward(dtype: torch.dtype) -> None:
    x, w, b = (numbers(*size, device="cuda", dtype=dtype) for size in ((8, 32, 16, 16), (64, 32, 4, 4), (64,)))

    def run() -> tuple[Tensor, ...]:
        y = conv2d_act(x, w, b, 2, 1)
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
        torch.testing.assert_close(result, wanted)
