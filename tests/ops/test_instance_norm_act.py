"""instance_norm_act as people call it: values, gradients, running statistics, one scale for all or one a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastgan
from fastgan.errors import UserError
from fastgan.ops import instance_norm_act, peers
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
    "every other": lambda t: t.repeat_interleave(2, -1)[..., ::2],
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
    x: Tensor, mean: Tensor | None, var: Tensor | None, weight: Tensor | None, bias: Tensor | None, own: bool = True,
    momentum: float = 0.1, eps: float = 1e-5, activation: str = "leaky_relu",
) -> Tensor:  # fmt: skip
    normal = F.instance_norm(x, mean, var, None, None, own, momentum, eps)
    for vector, join in ((weight, torch.mul), (bias, torch.add)):
        if vector is not None:
            normal = join(normal, (vector if vector.dim() == 2 else vector[None])[(..., *[None] * (x.dim() - 2))])
    return activate(normal, activation, 0.2)


def everything(function: Callable[..., Tensor], x: Tensor, operands: Sequence[Tensor | None], **how: Any) -> list[Any]:
    """The output, first gradients by both ways back, second gradients, and the running statistics."""
    running = [None if t is None else t.clone() for t in operands[:2]]
    x, *asked = (t.detach().clone().requires_grad_() for t in (x, *operands[2:]) if t is not None)
    given = iter(asked)
    y = function(x, *running, *(None if t is None else next(given) for t in operands[2:]), **how)
    asked, mix = [x, *asked], numbers(*y.shape, seed=9).to(y)
    alone = torch.autograd.grad(y, asked, mix, retain_graph=True)
    first = torch.autograd.grad(y, asked, mix, create_graph=True)
    total = sum((part * numbers(*part.shape, seed=3).to(part)).sum() for part in first) + sum(
        0 * t.sum() for t in asked
    )
    return [y, *alone, *first, *torch.autograd.grad(total, asked), *(t for t in running if t is not None)]


def close(mine: Sequence[Tensor], exact: Sequence[Tensor], base: Sequence[Tensor]) -> None:
    """As near to fp64 as fp32 can be, or as PyTorch is: 1 / std magnifies rounding."""
    for got, wanted, other in zip(mine, exact, base, strict=True):
        scale, off = float(wanted.detach().abs().max()), float((other - wanted).detach().abs().max())
        torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=2e-5 * scale + 4 * off + 1e-12)


@pytest.mark.parametrize(
    ("activation", "layout", "vectors", "tracks", "space"),
    [
        ("leaky_relu", "channels last", "channels", True, (3, 2)),
        ("tanh", "channels last", "samples", False, (2, 2)),
        ("relu", "contiguous", "none", False, (5,)),
        ("sigmoid", "every other", "samples", True, (4,)),
        ("none", "contiguous", "channels", False, (2, 1, 3)),
    ],
)
def test_values_and_gradients_are_torchs(
    device: str, activation: str, layout: str, vectors: str, tracks: bool, space: tuple[int, ...]
) -> None:
    N, C = 3, 5
    x = LAYOUTS[layout](2 * numbers(N, C, *space, device=device) + 3)
    shape = {"channels": (C,), "samples": (N, C), "none": None}[vectors]
    running = [numbers(C, device=device), numbers(C, seed=1, device=device).abs() + 0.5] if tracks else [None, None]
    affine = [None if shape is None else numbers(*shape, seed=seed, device=device) for seed in (2, 3)]
    for own in (True, False) if tracks else (True,):
        exact = everything(plain, x, [*running, *affine], own=own, activation=activation)
        single = [None if t is None else t.float() for t in (*running, *affine)]
        base = everything(plain, x.float(), single, own=own, activation=activation)
        mine = everything(instance_norm_act, x.float(), single, use_input_stats=own, activation=activation)
        assert all(result.dtype == torch.float32 for result in mine)
        close(mine, exact, base)
        kept = F.batch_norm(x.float(), None, None, training=True).stride()  # channels_last, unlike instance_norm's
        by_kernels = fastgan.ops.backend.current_backend() == "triton"
        assert mine[0].stride() == (kept if by_kernels else base[0].stride())


@pytest.mark.parametrize("shape", [(2,), (2, 2)])
@pytest.mark.parametrize("activation", ["leaky_relu", "tanh"])
def test_formulas_are_derivatives_of_each_other(shape: tuple[int, ...], activation: str) -> None:
    """First and second order in fp64, on the op that the kernels stand behind, here with its plain arithmetic."""
    leaves = [t.requires_grad_() for t in (numbers(2, 2, 3), numbers(*shape), numbers(*shape, seed=1))]

    def op(*tensors: Tensor) -> Tensor:
        return OPS.batch_norm_act(*tensors, None, None, 0.1, activation, 0.2, True)[0]

    torch.testing.assert_close(op(*leaves), plain(leaves[0], None, None, *leaves[1:], eps=0.1, activation=activation))
    assert torch.autograd.gradcheck(op, leaves)
    assert torch.autograd.gradgradcheck(op, leaves)


def test_sixteen_bits_and_autocast(device: str) -> None:
    x = (2 * numbers(3, 5, 4, 4, device=device) + 3).half().contiguous(memory_format=torch.channels_last)
    for kind in (torch.float32, torch.float16):
        vectors = [numbers(3, 5, seed=seed, device=device, dtype=kind) for seed in (1, 2)]
        with torch.autocast(device, dtype=torch.float16):
            mine = everything(instance_norm_act, x, [None, None, *vectors], activation="tanh")
        exact = everything(plain, x.double(), [None, None, *(v.double() for v in vectors)], activation="tanh")
        assert mine[0].dtype == torch.float16 and mine[2].dtype == kind
        for got, wanted in zip(mine[:7], exact, strict=False):
            scale = float(wanted.detach().abs().max())
            torch.testing.assert_close(got.double(), wanted, rtol=0, atol=8e-3 * scale)


def test_running_statistics_tell_autograd(device: str) -> None:
    running = [torch.zeros(3, device=device), torch.ones(3, device=device)]
    x = numbers(2, 3, 4, 4, device=device, dtype=torch.float32)
    instance_norm_act(x, *running)
    assert all(t._version > 0 for t in running)
    expected = [torch.zeros(3, device=device), torch.ones(3, device=device)]
    F.instance_norm(x, *expected, use_input_stats=True)
    torch.testing.assert_close(running, expected)


def test_other_processes_change_nothing(device: str) -> None:
    """Each sample is whole where it is: nobody is asked, forward or backward."""
    x = numbers(2, 3, 4, 4, device=device, dtype=torch.float32).requires_grad_()
    wanted = instance_norm_act(x, activation="tanh")
    with peers.together(peers.Peers(0, 2)):  # of which nobody answers
        y = instance_norm_act(x, activation="tanh")
        got = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
        followed = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    expected = torch.autograd.grad(wanted.square().sum(), x)
    torch.testing.assert_close([y, *got, *followed], [wanted, *expected, *expected])


def test_opcheck(device: str) -> None:
    by_kernels = fastgan.ops.backend.current_backend() == "triton"
    how: Any = {"test_utils": ("test_schema", "test_faketensor")} if by_kernels else {}  # the rest is batch_norm_act's
    x = numbers(2, 3, 4, 2, device=device, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    vectors = [numbers(3, seed=seed, device=device, dtype=torch.float32).requires_grad_() for seed in (1, 2)]
    given = (*vectors, None, None, 1e-5, "tanh", 0.0, True)
    torch.library.opcheck(OPS.batch_norm_act.default, (x.clone().requires_grad_(), *given), **how)
    _, mean, var = OPS.batch_norm_act(x, *given)
    more = (*(v.detach() for v in vectors), mean, var, True, 1e-5, "tanh", 0.0, [True, True, True], True)
    torch.library.opcheck(OPS.batch_norm_act_backward.default, (x.cos(), x, *more), **how)


def test_compiled(device: str) -> None:
    """Whole, and running statistics move in the graph as they do outside."""
    twins = [[torch.zeros(3, device=device), torch.ones(3, device=device)] for _ in range(2)]
    compiled = torch.compile(instance_norm_act, fullgraph=True, backend="aot_eager")
    x = numbers(2, 3, 4, 4, device=device, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    ours, expected = (f(x, *running) for f, running in zip((compiled, instance_norm_act), twins, strict=True))
    torch.testing.assert_close([ours, *twins[0]], [expected, *twins[1]], rtol=1e-5, atol=1e-5)


def test_functional_transforms(device: str) -> None:
    x, w = numbers(2, 3, 4, device=device, dtype=torch.float32), numbers(2, 3, device=device, dtype=torch.float32)
    got = torch.func.grad(lambda x: instance_norm_act(x, weight=w, bias=w).square().sum())(x)
    wanted = torch.func.grad(lambda x: plain(x, None, None, w, w).square().sum())(x)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_what_is_refused(device: str) -> None:
    x = torch.randn(2, 3, 4, 4, device=device).contiguous(memory_format=torch.channels_last)
    with pytest.raises(UserError, match="did you mean"):
        instance_norm_act(x, activation="tahn")
    for bad in (x[..., :1, :1], x[:, :, 0, 0]):
        with pytest.raises(ValueError) as words:
            F.instance_norm(bad)
        with pytest.raises(ValueError) as ours:
            instance_norm_act(bad)
        assert str(ours.value) == str(words.value)
    with pytest.raises(RuntimeError):
        instance_norm_act(x, weight=torch.ones(4, device=device))
    with pytest.raises(RuntimeError):
        instance_norm_act(x, weight=torch.ones(3, 3, device=device), bias=torch.ones(3, 3, device=device))


def test_sizes_of_zero(device: str) -> None:
    for size in ((0, 3, 4), (2, 0, 4)):
        x = torch.zeros(size, device=device)
        try:
            wanted: Any = F.instance_norm(x).shape
        except (RuntimeError, ValueError) as error:
            with pytest.raises(type(error)):
                instance_norm_act(x)
        else:
            assert instance_norm_act(x).shape == wanted
