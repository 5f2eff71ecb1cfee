"""linear_act with dropout: the same mask forward, backward and twice over, drawn from PyTorch's generator or given."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastgan
from fastgan.errors import UserError
from fastgan.ops import dropout as drop
from fastgan.ops import linear_act
from fastgan.ops.activation import ACTIVATIONS, activate

BACKENDS = [
    pytest.param(("cpu", "auto"), id="reference"),
    pytest.param(("cpu", "triton"), id="interpreted", marks=pytest.mark.interpret),
    pytest.param(("cuda", "triton"), id="cuda", marks=pytest.mark.gpu),
]
FORMS = [*((name, 0.2) for name in ACTIVATIONS), ("leaky_relu", -0.3)]


@pytest.fixture(params=BACKENDS)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device and its backend: plain PyTorch, or the kernels."""
    name, backend = request.param
    with fastgan.backend(backend):
        yield name


def operands(device: str, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    sizes = ((33, 12), (20, 12), (20,))
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    return [value.to(device, dtype).requires_grad_() for value in values]


def seed(device: str) -> Tensor:
    return torch.tensor([3, 2**40], device=device)


def written_out(x: Tensor, w: Tensor, b: Tensor, form: tuple[str, float], p: float, first: bool) -> Tensor:
    """What the two orders mean, with the mask of the same seed."""
    kept = drop.keep_mask(seed(x.device.type), (33, 20), p) * drop.scale(p)
    v = F.linear(x, w, b)
    return activate(v * kept, *form) if first else activate(v, *form) * kept


def gradients(y: Tensor, asked: list[Tensor]) -> list[Tensor]:
    """First gradients for a random cotangent, and the gradients of a mix of them."""
    mixes = [torch.randn(t.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64) for t in (y, *asked)]
    first = torch.autograd.grad(y, asked, mixes[0].to(y), create_graph=True)
    mix = sum((part * factor.to(part)).sum() for part, factor in zip(first, mixes[1:], strict=True))
    mix = mix + sum(0 * t.sum() for t in asked)  # a function of all of them, if only by name
    return [y, *first, *torch.autograd.grad(mix, asked)]


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_first_and_second_gradients(device: str, form: tuple[str, float], first: bool) -> None:
    wide, single = operands(device), operands(device, torch.float32)
    y = linear_act(
        *single, activation=form[0], negative_slope=form[1], dropout=0.4, dropout_first=first, rng=seed(device)
    )
    for result, wanted in zip(gradients(y, single), gradients(written_out(*wide, form, 0.4, first), wide), strict=True):
        torch.testing.assert_close(
            result.double(), wanted, rtol=0, atol=3e-5 * float(wanted.detach().abs().max()) + 1e-12
        )


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("activation", ["leaky_relu", "tanh", "sigmoid"])
def test_everything_dropped(device: str, activation: str, first: bool) -> None:
    """p = 1: zeros, or phi(0), and gradients of zero rather than NaN."""
    x, w, b = operands(device, torch.float32)
    y = linear_act(x, w, b, activation=activation, dropout=1.0, dropout_first=first)
    assert torch.equal(y, torch.full_like(y, 0.5 if activation == "sigmoid" and first else 0.0))
    for gradient in torch.autograd.grad(y.sum(), (x, w, b)):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_masks_come_from_pytorchs_generator(device: str) -> None:
    """The same seed draws the same mask, the next call another, at the rate that was asked for."""
    x = torch.ones(64, 1, device=device)
    w = torch.ones(100, 1, device=device)

    def draw() -> Tensor:
        return linear_act(x, w, activation="none", dropout=0.3)

    torch.manual_seed(5)
    first, second = draw(), draw()
    torch.manual_seed(5)
    assert torch.equal(draw(), first) and not torch.equal(first, second)
    for y in (first, second):
        assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
        assert abs(float((y == 0).float().mean()) - 0.3) < 0.03


def test_no_dropout_draws_nothing(device: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    linear_act(*operands(device, torch.float32), dropout=0.0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_a_probability_outside_is_refused(device: str, p: float) -> None:
    with pytest.raises(UserError, match="0"):
        linear_act(*operands(device, torch.float32), dropout=p)


def test_seeds_are_checked_and_may_be_strided(device: str) -> None:
    x, w, b = operands(device, torch.float32)
    strided = torch.tensor([3, 0, 2**40, 0], device=device)[::2]
    assert torch.equal(
        linear_act(x, w, b, dropout=0.4, rng=strided), linear_act(x, w, b, dropout=0.4, rng=seed(device))
    )
    for wrong in (seed(device).int(), seed(device)[:1], seed(device).double()):
        with pytest.raises(UserError, match="rng has to be int64"):
            linear_act(x, w, b, dropout=0.4, rng=wrong)


def test_gradient_penalty_through_a_critic_with_dropout(device: str) -> None:
    """CTGAN's critic is penalised with its dropout on."""
    results = []
    for dtype in (torch.float64, torch.float32):
        x, w, b = operands(device, dtype)
        head = torch.linspace(-1, 1, 20, dtype=dtype, device=device)[None].requires_grad_()
        with fastgan.backend("reference" if dtype == torch.float64 else fastgan.ops.backend.current_backend()):
            score = linear_act(linear_act(x, w, b, dropout=0.5, rng=seed(device)), head, activation="none")
            (slope,) = torch.autograd.grad(score.sum(), x, create_graph=True)
            results.append(torch.autograd.grad((slope.norm(dim=1) - 1).square().mean(), (w, head)))
    for result, wanted in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(result.double(), wanted, rtol=1e-4, atol=1e-5)


def test_compile(device: str) -> None:
    x, w, b = operands(device, torch.float32)
    torch._dynamo.reset()

    def call(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return linear_act(x, w, b, dropout=0.5)

    y = torch.compile(call, fullgraph=True, backend="aot_eager")(x, w, b)
    plain = 2 * linear_act(x, w, b)
    assert (torch.isclose(y, plain, rtol=1e-4, atol=1e-5) | (y == 0)).all()
    assert 0.3 < float((y == 0).float().mean()) < 0.7


@pytest.mark.gpu
def test_a_replay_draws_anew() -> None:
    x, w, b = operands("cuda", torch.float32)

    def run() -> tuple[Tensor, ...]:
        y = linear_act(x, w, b, activation="none", dropout=0.5)
        return (y, *torch.autograd.grad(y.sum(), (x, w)))

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, gx, _ = run()
    masks = []
    for _ in range(2):
        graph.replay()
        kept = y != 0
        masks.append(kept.clone())
        torch.testing.assert_close(gx, 2 * kept.to(w) @ w, rtol=1e-4, atol=1e-4)
    assert not torch.equal(*masks)
