"""conditional_batch_norm_act as people call it: values, gradients, running statistics, precision, compilers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastgan
from fastgan.errors import UserError
from fastgan.ops import conditional_batch_norm_act
from fastgan.ops.activation import activate

ROUTES = [
    pytest.param(("cpu", "auto"), id="reference"),
    pytest.param(("cpu", "triton"), id="interpreted", marks=pytest.mark.interpret),
    pytest.param(("cuda", "triton"), id="cuda", marks=pytest.mark.gpu),
]
OPS = torch.ops.fastgan
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {  # all of (N, C, ...)
    "contiguous": lambda t: t,
    "channels last": lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1),
    "expanded": lambda t: t[:1].expand(t.shape),
}


@pytest.fixture(params=ROUTES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device, with plain PyTorch or the kernels running there."""
    torch._dynamo.reset()
    with fastgan.backend(request.param[1]):
        yield request.param[0]


def numbers(*size: int, device: str = "cpu", dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(size))
    return torch.randn(size, generator=generator, dtype=torch.float64).to(device, dtype)


def plain(
    x: Tensor, both: Tensor, mean: Tensor | None, var: Tensor | None, training: bool = False, momentum: float = 0.1,
    eps: float = 1e-5, activation: str = "leaky_relu", negative_slope: float = 0.2,
) -> Tensor:  # fmt: skip
    """As the module does that people copy: an embedding's row holds scales and shifts."""
    normal = F.batch_norm(x, mean, var, None, None, training, momentum, eps)
    scale, shift = (half[(..., *[None] * (x.dim() - 2))] for half in both.chunk(2, 1))
    return activate(scale * normal + shift, activation, negative_slope)


def mine(x: Tensor, both: Tensor, *rest: Any, **how: Any) -> Tensor:
    return conditional_batch_norm_act(x, *both.chunk(2, 1), *rest, **how)


def everything(function: Callable[..., Tensor], x: Tensor, operands: Sequence[Tensor | None], *how: Any) -> list[Any]:
    """The output, first gradients by both ways back, second gradients, and the running statistics."""
    both, *running = (None if t is None else t.detach().clone() for t in operands)
    *rest, activation, slope = how
    asked = [x.detach().requires_grad_(), both.requires_grad_()]
    y = function(*asked, *running, *rest, activation=activation, negative_slope=slope)
    mix = numbers(*y.shape, seed=9).to(y)
    alone = torch.autograd.grad(y, asked, mix, retain_graph=True)
    first = torch.autograd.grad(y, asked, mix, create_graph=True)
    total = sum((part * numbers(*part.shape, seed=3).to(part)).sum() for part in first) + sum(
        0 * t.sum() for t in asked
    )
    return [y, *alone, *first, *torch.autograd.grad(total, asked), *(t for t in running if t is not None)]


def close(got: Sequence[Tensor], exact: Sequence[Tensor], base: Sequence[Tensor]) -> None:
    """As near to fp64 as fp32 can be, or as PyTorch is: 1 / std magnifies rounding."""
    for result, wanted, other in zip(got, exact, base, strict=True):
        scale, off = float(wanted.detach().abs().max()), float((other - wanted).detach().abs().max())
        torch.testing.assert_close(result.double(), wanted.double(), rtol=0, atol=2e-5 * scale + 4 * off + 1e-12)


@pytest.mark.parametrize(
    ("activation", "slope", "layout", "size", "training", "tracks"),
    [
        ("leaky_relu", 0.2, "channels last", (3, 5, 2, 3), True, True),
        ("leaky_relu", -0.3, "channels last", (4, 3, 2, 2), False, True),
        ("tanh", 0.0, "contiguous", (3, 4, 5), True, False),
        ("relu", 0.0, "contiguous", (9, 5), True, True),
        ("sigmoid", 0.0, "expanded", (3, 4, 2, 2), True, False),
        ("none", 0.0, "contiguous", (1, 4, 6), True, True),
    ],
)
def test_values_and_gradients_are_torchs(
    device: str, activation: str, slope: float, layout: str, size: tuple[int, ...], training: bool, tracks: bool
) -> None:
    x, (N, C, *_) = LAYOUTS[layout](2 * numbers(*size, device=device) + 3), size
    running = [numbers(C, device=device), numbers(C, seed=1, device=device).abs() + 0.5] if tracks else [None, None]
    operands = [numbers(N, 2 * C, seed=2, device=device), *running]
    single = [None if t is None else t.float() for t in operands]
    how = training, 0.3, 1e-5, activation, slope
    results = everything(mine, x.float(), single, *how)
    assert all(result.dtype == torch.float32 for result in results)
    close(results, everything(plain, x, operands, *how), everything(plain, x.float(), single, *how))
    assert results[0].stride() == F.batch_norm(x.float(), None, None, training=True).stride()


@pytest.mark.parametrize("activation, slope", [("leaky_relu", -0.2), ("tanh", 0.0)])
@pytest.mark.parametrize("training", [True, False])
def test_formulas_are_derivatives_of_each_other(activation: str, slope: float, training: bool) -> None:
    """First and second order in fp64, on the op that the kernels stand behind, here with its plain arithmetic."""
    frozen = () if training else (numbers(2), numbers(2).abs() + 0.5)
    leaves = [t.requires_grad_() for t in (numbers(3, 2, 2), numbers(3, 4))]

    def op(x: Tensor, both: Tensor) -> Tensor:
        given = frozen or (None, None)
        return OPS.batch_norm_act(x, *both.chunk(2, 1), *given, 0.1, activation, slope)[0]

    expected = plain(*leaves, *(frozen or (None, None)), training, 0.1, 0.1, activation, slope)
    torch.testing.assert_close(op(*leaves), expected)
    assert torch.autograd.gradcheck(op, leaves)
    assert torch.autograd.gradgradcheck(op, leaves)


def test_sixteen_bits_and_autocast(device: str) -> None:
    """Scales in fp32 beside activations in 16 bits, as an embedding gives them under autocast, and wholly in 16."""
    x = (2 * numbers(3, 5, 4, 4, device=device) + 3).half().contiguous(memory_format=torch.channels_last)
    for kind in (torch.float32, torch.float16):
        operands = [
            numbers(3, 10, device=device, dtype=kind),
            torch.zeros(5, device=device),
            torch.ones(5, device=device),
        ]
        how = True, 0.1, 1e-5, "tanh", 0.0
        with torch.autocast(device, dtype=torch.float16):
            got = everything(mine, x, operands, *how)
        assert got[0].dtype == torch.float16 and got[2].dtype == kind
        for result, wanted in zip(
            got, everything(plain, x.double(), [t.double() for t in operands], *how), strict=True
        ):
            scale = float(wanted.detach().abs().max())
            torch.testing.assert_close(result.double(), wanted, rtol=0, atol=8e-3 * scale)


def test_a_large_mean_keeps_the_variance(device: str) -> None:
    x = (numbers(64, 4, 16) + 1e3).to(device, torch.float32)
    both = numbers(64, 8, device=device)
    got = mine(x, both.float(), None, None, True, activation="none")
    torch.testing.assert_close(
        got.double(), plain(x.double(), both, None, None, True, activation="none"), rtol=0, atol=5e-3
    )


def test_averages_over_batches(device: str) -> None:
    """Where the count of batches is given; it stands still."""
    module = torch.nn.BatchNorm2d(3, momentum=None, affine=False, device=device)
    running, count = [torch.zeros(3, device=device), torch.ones(3, device=device)], torch.zeros((), dtype=torch.long)
    count = count.to(device)
    for seed in range(2):
        x = numbers(2, 3, 4, 4, device=device, dtype=torch.float32, seed=seed)
        mine(x, numbers(2, 6, device=device, dtype=torch.float32), *running, True, num_batches_tracked=count)
        module(x)
        count += 1
    torch.testing.assert_close(running, [module.running_mean, module.running_var])


def test_opcheck(device: str) -> None:
    by_kernels = fastgan.ops.backend.current_backend() == "triton"
    how: Any = {"test_utils": ("test_schema", "test_faketensor")} if by_kernels else {}  # the rest is batch_norm_act's
    x = numbers(2, 3, 4, 2, device=device, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    both = numbers(2, 6, device=device, dtype=torch.float32)
    scale, shift = (half.detach().clone().requires_grad_() for half in both.chunk(2, 1))
    given = scale, shift, torch.zeros(3, device=device), torch.ones(3, device=device), 1e-5, "tanh", 0.0
    torch.library.opcheck(OPS.batch_norm_act.default, (x.clone().requires_grad_(), *given), **how)
    _, mean, var = OPS.batch_norm_act(x, scale, shift, None, None, 1e-5, "tanh", 0.0)
    more = (*both.chunk(2, 1), mean, var, True, 1e-5, "tanh", 0.0, [True, True, True])
    torch.library.opcheck(OPS.batch_norm_act_backward.default, (x.cos(), x, *more), **how)


def test_compiled(device: str) -> None:
    compiled = torch.compile(mine, fullgraph=True, backend="aot_eager")
    x = numbers(2, 3, 4, 4, device=device, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    both, results = numbers(2, 6, device=device, dtype=torch.float32).requires_grad_(), []
    for function in (compiled, mine):
        running = [torch.zeros(3, device=device), torch.ones(3, device=device)]
        y = function(x, both, *running, True)
        results.append([y, *torch.autograd.grad(y.square().sum(), both), *running])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_what_is_refused(device: str) -> None:
    x = torch.randn(2, 3, 4, 4, device=device).contiguous(memory_format=torch.channels_last)
    scale = torch.randn(2, 3, device=device)
    with pytest.raises(UserError, match="did you mean"):
        conditional_batch_norm_act(x, scale, scale, training=True, activation="tahn")
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        conditional_batch_norm_act(x[:1, :, :1, :1], scale[:1], scale[:1], training=True)
    for wrong in (scale[:, :2], torch.randn(3, 3, device=device)):
        with pytest.raises(RuntimeError):
            conditional_batch_norm_act(x, wrong, wrong, training=True)


def test_no_more_is_saved_than_the_input(device: str) -> None:
    """Nothing normalised: the input, scales and shifts, and vectors of the channels."""
    x = numbers(2, 3, 4, 4, device=device, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    both, kept = numbers(2, 6, device=device, dtype=torch.float32).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        mine(x, both, None, None, True, activation="tanh")
    if fastgan.ops.backend.current_backend() == "triton":
        assert sorted(t.numel() for t in kept) == [3, 3, 6, 6, x.numel()]
