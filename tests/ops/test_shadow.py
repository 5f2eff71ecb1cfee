"""Shadows: ops compute with them and differentiate by the weight; weights' gradients come out in the weight's dtype."""

from __future__ import annotations

import copy
import gc
import io
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastgan
from fastgan import nn as fnn
from fastgan.errors import UserError
from fastgan.ops import concat_linear_compute, conv_compute, destination, linear_compute, shadow
from fastgan.ops.linear import linear_act

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
HALF = {"cpu": torch.float16, "cuda": torch.bfloat16}  # the interpreter's bfloat16 is broken
Forward = Callable[[nn.Module, Tensor], Tensor]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device on which the kernels run, whatever ``auto`` would take there."""
    with fastgan.backend("triton"):
        yield request.param


def numbers(*size: int, device: str, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed + sum(size))).to(device)


def in_order(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """A shadow as an optimiser lays it: rows contiguous, filters channels_last."""
    copied = parameter.detach().to(dtype)
    return copied.contiguous() if copied.dim() < 3 else copied.movedim(1, -1).contiguous().movedim(-1, 1)


def pairs(layer: nn.Module, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    return [(parameter, in_order(parameter, dtype)) for parameter in layer.parameters()]


def plainly(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)  # type: ignore[no-any-return]


def with_label(layer: nn.Module, x: Tensor) -> Tensor:
    labels = torch.arange(len(x), device=x.device) % 3
    table = torch.arange(-3, 3, device=x.device, dtype=x.dtype).view(3, 2) / 4
    return layer(x, fnn.Embedded(labels, table))  # type: ignore[no-any-return]


def dense_critic() -> nn.Module:
    layers = nn.Linear(20, 24), nn.LeakyReLU(0.2), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1)
    return fnn.Chain(*layers)


def straight_critic() -> nn.Module:
    """The gradient of whose input gets a graph layer by layer."""
    return fnn.Chain(nn.Linear(20, 24), nn.LeakyReLU(0.2), nn.Linear(24, 18), nn.ReLU(), nn.Linear(18, 1))


def dense_generator() -> nn.Module:
    return fnn.Chain(nn.Linear(20, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 18), nn.Tanh())


def images() -> nn.Module:
    layers = nn.ConvTranspose2d(3, 5, 2, 2), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 3, 3, 2)
    return fnn.Chain(*layers, nn.Tanh())


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Forward]] = {
    "LinearAct": (lambda: fnn.LinearAct(20, 18), (10, 20), plainly),
    "ConcatLinearAct": (lambda: fnn.ConcatLinearAct((20, 2), 18), (10, 20), with_label),
    "Maxout": (lambda: fnn.Maxout(20, 6, 3), (10, 20), plainly),
    "Conv2dAct": (lambda: fnn.Conv2dAct(16, 18, 3, 2, activation="tanh"), (2, 16, 7, 6), plainly),
    "Conv1dAct": (lambda: fnn.Conv1dAct(16, 18, 3), (2, 16, 9), plainly),
    "ConvTranspose2dAct": (lambda: fnn.ConvTranspose2dAct(16, 18, 2, 2), (2, 16, 3, 3), plainly),
    "dense critic": (dense_critic, (10, 20), plainly),
    "straight critic": (straight_critic, (10, 20), plainly),
    "dense generator": (dense_generator, (10, 20), plainly),
    "images": (images, (2, 3, 2, 2), plainly),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def made(kind: str, device: str) -> tuple[nn.Module, Tensor, Forward]:
    make, size, forward = KINDS[kind]
    torch.manual_seed(0)
    return make().to(device), numbers(*size, device=device), forward


def gradients(layer: nn.Module, x: Tensor, forward: Forward, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    with torch.autocast(x.device.type, dtype=dtype):
        y = forward(layer, x)
    cotangent = numbers(*y.shape, device=x.device.type, seed=1).to(y)
    return y.detach(), list(torch.autograd.grad(y, list(layer.parameters()), cotangent))


class Seen(TorchDispatchMode):
    """The calls of PyTorch's operators, with the shapes of their first operands."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple[str, tuple[int, ...]]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shape = tuple(args[0].shape) if args and isinstance(args[0], Tensor) else ()
        self.calls[func.overloadpacket.__name__, shape] += 1
        return func(*args, **(kwargs or {}))


@every_kind
def test_what_is_computed_is_what_autocast_computes(device: str, kind: str) -> None:
    """The shadow's values, not the weight's, go in; gradients come out in fp32, laid out as their parameters."""
    layer, x, forward = made(kind, device)
    dtype = HALF[device]
    y, without = gradients(layer, x, forward, dtype)
    with shadow.shadows(pairs(layer, dtype)):
        shaded, given = gradients(layer, x, forward, dtype)
    torch.testing.assert_close(shaded, y, rtol=0, atol=0)
    for gradient, parameter, same in zip(given, layer.parameters(), without, strict=True):
        assert gradient.dtype == torch.float32 and gradient.stride() == parameter.stride()
        torch.testing.assert_close(gradient, same, rtol=1e-5, atol=1e-5)
    with shadow.shadows([(parameter, 2 * half) for parameter, half in pairs(layer, dtype)]):
        other, _ = gradients(layer, x, forward, dtype)
    assert not torch.allclose(other, y, atol=1e-2)


@pytest.mark.parametrize("kind", ["LinearAct", "Maxout", "ConcatLinearAct", "Conv2dAct"])
@pytest.mark.parametrize("shaded", [False, True])
def test_weights_gradients_are_not_rounded(device: str, kind: str, shaded: bool) -> None:
    """Against the same 16-bit operands in fp64, a gradient that was rounded to them would err a thousandfold."""
    layer, x, forward = made(kind, device)
    dtype = HALF[device]
    layer.register_parameter("bias", None)
    if hasattr(layer, "activation"):
        layer.activation = "none"
    with shadow.shadows(pairs(layer, dtype) if shaded else []), torch.autocast(device, dtype=dtype):
        y = forward(layer, x)
        (gradient,) = torch.autograd.grad(y, layer.weight, torch.ones_like(y))
    exact = copy.deepcopy(layer).double()
    with torch.no_grad():
        exact.weight.copy_(layer.weight.to(dtype))  # of these Maxout takes the largest
    with fastgan.backend("reference"):
        (wanted,) = torch.autograd.grad(forward(exact, x.to(dtype).double()).sum(), exact.weight)
    error = (gradient.double() - wanted).abs().max() / wanted.abs().max()
    assert gradient.dtype == torch.float32
    assert float(error) < 2**-20


@every_kind
def test_no_weight_is_cast(device: str, kind: str) -> None:
    """Forward and backward with shadows hand PyTorch no weight to cast; without them, each goes once."""
    layer, x, forward = made(kind, device)
    shapes = {tuple(parameter.shape) for parameter in layer.parameters() if parameter.dim() > 1}
    shapes |= {(*shape[:2], 1, *shape[2:]) for shape in shapes if len(shape) == 3}

    def casts(attached: list[tuple[Tensor, Tensor]]) -> int:
        from fastgan.ops import registration  # a mode that looks on would have the op go another way

        with pytest.MonkeyPatch.context() as patch, shadow.shadows(attached), Seen() as seen:
            patch.setattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
            assert not registration.traced(x)
            gradients(layer, x, forward, HALF[device])
        casting = ("_to_copy", "copy_", "clone")
        return sum(count for (name, shape), count in seen.calls.items() if name in casting and shape in shapes)

    gradients(layer, x, forward, HALF[device])  # what is done once for ever
    assert casts(pairs(layer, HALF[device])) == 0
    assert casts([]) >= len([parameter for parameter in layer.parameters() if parameter.dim() > 1])


@pytest.mark.parametrize(
    "kind",
    ["LinearAct", "ConcatLinearAct", "Maxout", "Conv2dAct", "dense critic", "straight critic", "dense generator"],
)
def test_penalties(device: str, kind: str) -> None:
    """A gradient's gradient reaches every weight as the reference's does in fp64, and goes by shadows' values alone."""
    layer, x, forward = made(kind, device)
    dtype = HALF[device]
    held = [parameter for parameter in layer.parameters() if parameter.dim() > 1]

    def penalty(layer: nn.Module, x: Tensor) -> list[Tensor]:
        x = x.detach().requires_grad_()
        chosen = [parameter for parameter in layer.parameters() if parameter.dim() > 1]
        y = forward(layer, x).to(x.dtype)
        asked = [x] if kind == "straight critic" else [x, *chosen]
        (slope, *first) = torch.autograd.grad(y.square().sum(), asked, create_graph=True)
        mixed = slope.square().sum() + sum(0.1 * part.square().sum() for part in first)
        return list(torch.autograd.grad(mixed, chosen))

    exact = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter in exact.parameters():
            parameter.copy_(parameter.to(dtype))
    exact = exact.double()
    with fastgan.backend("reference"):
        wanted = penalty(exact, x.to(dtype).double())
    other = copy.deepcopy(layer)
    with torch.no_grad():
        for module in other.modules():
            if not isinstance(module, nn.BatchNorm1d):  # whose vectors are read as they are
                for parameter in module.parameters(recurse=False):
                    parameter.add_(1.0)
    results = []
    for taken in (layer, other):
        attached = [(own, half) for own, (_, half) in zip(taken.parameters(), pairs(layer, dtype), strict=True)]
        with shadow.shadows([] if taken is layer else attached), torch.autocast(device, dtype=dtype):
            results.append(penalty(taken, x))
    for at, parameter in enumerate(held):
        assert results[0][at].dtype == torch.float32 and results[0][at].shape == parameter.shape
        torch.testing.assert_close(results[1][at], results[0][at], rtol=1e-4, atol=1e-4)
        bound = 32 * torch.finfo(dtype).eps * float(wanted[at].abs().max())
        torch.testing.assert_close(results[1][at].double(), wanted[at], rtol=0, atol=bound)


@every_kind
def test_products_of_the_library(device: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where cuBLAS or cuDNN multiplies, it takes the shadow, and the gradient goes where the kernels' would."""
    layer, x, forward = made(kind, device)
    dtype = HALF[device]
    parameters = list(layer.parameters())
    expected, wanted = gradients(layer, x, forward, dtype)
    modules = linear_compute, conv_compute, concat_linear_compute, sys.modules["fastgan.ops.maxout"]
    for module in modules:
        monkeypatch.setattr(module, "by_library", lambda *about, **more: True)
    _, views = destination.flat(parameters)
    with shadow.shadows(pairs(layer, dtype)), destination.into(dict(zip(parameters, views, strict=True))):
        y, given = gradients(layer, x, forward, dtype)
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)
    for gradient, view, parameter, same in zip(given, views, parameters, wanted, strict=True):
        assert gradient.dtype == torch.float32 and gradient.stride() == parameter.stride()
        torch.testing.assert_close(gradient, same, rtol=5e-2, atol=5e-2 * float(same.abs().max()))
        assert destination.landed(gradient, view)


@pytest.mark.gpu
def test_cublas_rounds_no_gradient_of_an_fp32_weight() -> None:
    torch.manual_seed(0)
    layer, x = fnn.LinearAct(1024, 1024, bias=False, activation="none").cuda(), numbers(4096, 1024, device="cuda")
    with fastgan.backend("auto"), torch.autocast("cuda", dtype=torch.bfloat16):
        y = layer(x)
    cotangent = numbers(*y.shape, device="cuda", seed=1).to(y)
    (gradient,) = torch.autograd.grad(y, layer.weight, cotangent)
    wanted = cotangent.double().t() @ x.bfloat16().double()
    assert float((gradient - wanted).abs().max() / wanted.abs().max()) < 2**-16


def test_a_shadow_that_moved_before_backward_is_seen(device: str) -> None:
    for kind in ("LinearAct", "Conv2dAct", "dense critic", "images"):
        layer, x, forward = made(kind, device)
        attached = pairs(layer, HALF[device])
        with shadow.shadows(attached), torch.autocast(device, dtype=HALF[device]):
            y = forward(layer, x.requires_grad_())
        attached[-2][1].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.float().sum().backward()


def test_frozen_weights_and_no_grad_take_shadows_too(device: str) -> None:
    layer, x, forward = made("dense critic", device)
    attached = [(parameter, torch.zeros_like(half)) for parameter, half in pairs(layer, HALF[device])]
    with shadow.shadows(attached), torch.autocast(device, dtype=HALF[device]):
        with torch.no_grad():
            assert not forward(layer, x).any()
        y = forward(layer.requires_grad_(False), x.requires_grad_())
        assert not y.detach().any() and y.requires_grad


def test_only_under_autocast_to_that_dtype(device: str) -> None:
    layer, x, forward = made("LinearAct", device)
    zero = [(parameter, torch.zeros_like(half)) for parameter, half in pairs(layer, HALF[device])]
    with shadow.shadows(zero):
        assert forward(layer, x).detach().any()
        assert forward(layer.to(torch.float64), x.double()).any()


def test_a_compiler_sees_autocasts_own_casts() -> None:
    layer, x = fnn.LinearAct(5, 4), torch.randn(3, 5)
    zero = [(parameter, torch.zeros_like(half)) for parameter, half in pairs(layer, torch.bfloat16)]
    with shadow.shadows(zero), torch.autocast("cpu", dtype=torch.bfloat16), fastgan.backend("reference"):
        compiled = torch.compile(layer, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), layer(x))
        assert layer(x).any()  # and plain PyTorch knows nothing of shadows


def test_parameters_know_nothing_of_their_shadows() -> None:
    layer = nn.Linear(4, 3)
    bare = io.BytesIO()
    torch.save(layer, bare)
    half = layer.weight.detach().bfloat16()
    shadow.attach(layer.weight, half)
    with_it = io.BytesIO()
    torch.save(layer, with_it)
    assert len(bare.getvalue()) == len(with_it.getvalue()) and list(layer.state_dict()) == ["weight", "bias"]
    assert shadow.shadow_of(layer.weight, torch.bfloat16) is half
    assert shadow.shadow_of(layer.weight, torch.float16) is None
    assert shadow.shadow_of(copy.deepcopy(layer).weight, torch.bfloat16) is None
    number = id(layer.weight)
    shadow.detach(layer.weight)
    shadow.detach(layer.weight)  # there is none: nothing happens
    assert number not in shadow._shadows
    shadow.attach(layer.weight, half)
    del layer
    gc.collect()
    assert number not in shadow._shadows  # memory comes back with the parameter


def test_a_signals_weights_as_an_images() -> None:
    weight = nn.Parameter(torch.randn(3, 4, 5))
    half = in_order(weight, torch.bfloat16)
    with shadow.shadows([(weight, half)]):
        found = shadow.shadow_of(weight.unsqueeze(2), torch.bfloat16)
        assert found is not None and found.shape == (3, 4, 1, 5) and found.data_ptr() == half.data_ptr()
        assert shadow.shadow_of(weight.unsqueeze(1), torch.bfloat16) is None
        assert shadow.shadow_of(weight * 1, torch.bfloat16) is None


def test_the_context_restores_what_was_there() -> None:
    weight = nn.Parameter(torch.randn(3))
    first, second = weight.detach().bfloat16(), weight.detach().bfloat16()
    shadow.attach(weight, first)
    with shadow.shadows([(weight, second)]):
        assert shadow.shadow_of(weight, torch.bfloat16) is second
    assert shadow.shadow_of(weight, torch.bfloat16) is first
    shadow.detach(weight)


def test_what_is_no_shadow() -> None:
    weight = nn.Parameter(torch.randn(3, 2))
    half = weight.detach().bfloat16()
    for wrong in (half[:2], half.float(), half.long(), half.clone().requires_grad_(), half.to("meta")):
        with pytest.raises(UserError, match="a shadow has"):
            shadow.attach(weight, wrong)
    with pytest.raises(UserError, match="leaf"):
        shadow.attach(weight * 2, half)


def test_without_autocast_dtypes_do_not_mix(device: str) -> None:
    with pytest.raises(RuntimeError, match="dtype"):
        linear_act(numbers(3, 4, device=device).to(HALF[device]), numbers(5, 4, device=device))
