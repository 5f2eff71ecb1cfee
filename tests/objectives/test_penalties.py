"""Penalties in closed form, against plain PyTorch through our critics, where gradients vanish, and in 16 bits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import fastgan
from fastgan.nn import Chain, Conv2dAct, LinearAct
from fastgan.objectives.penalties import Penalty, dragan, gradient_penalty, r1, r1_from, r2, zero_centered
from fastgan.ops.interpolate import interpolate

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy interprets what wraps
ROUTES = [
    pytest.param(("cpu", "auto", torch.float64), id="reference"),
    pytest.param(("cpu", "triton", torch.float32), id="interpreted", marks=pytest.mark.interpret),
    pytest.param(("cuda", "triton", torch.float32), id="cuda", marks=pytest.mark.gpu),
]
Call = Callable[..., Penalty]  # (critic, real, fake, *args)
PENALTIES: dict[str, Call] = {
    "gradient_penalty": lambda critic, real, fake, *args: gradient_penalty(critic, real, fake, *args, rng=rng(real)),
    "one sided": lambda c, r, f, *args: gradient_penalty(c, r, f, *args, rng=rng(r), one_sided=True, center=0.3),
    "zero_centered": lambda critic, real, fake, *args: zero_centered(critic, real, fake, *args, rng=rng(real)),
    "r1": lambda critic, real, fake, *args: r1(critic, real, *args),
    "r2": lambda critic, real, fake, *args: r2(critic, fake, *args),
    "dragan": lambda critic, real, fake, *args: dragan(critic, real, *args),
}
every = pytest.mark.parametrize("name", PENALTIES)


def rng(samples: Tensor) -> Tensor:
    return torch.arange(5, 7, device=samples.device)


def numbers(*size: int, seed: int = 0, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device, dtype)


def formula(name: str, norms: Tensor) -> Tensor:
    """A penalty from the norms (n,) of the gradients where it is taken."""
    if name == "one sided":
        return (norms - 0.3).clamp(min=0).square().mean()
    if name in ("gradient_penalty", "dragan"):
        return (norms - 1).square().mean()
    return norms.square().mean() / (1 if name == "zero_centered" else 2)


def plain(name: str, critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Penalty:
    """The penalty as people write it in PyTorch."""
    where = {"r1": real, "r2": fake}.get(name)
    if name == "dragan":
        torch.manual_seed(0)
        where = real + 0.5 * real.std(correction=0) * torch.randn_like(real)
    elif where is None:
        where = interpolate(real, fake, rng(real))
    where = where.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(where).sum(), where, create_graph=True)
    norms = gradient.flatten(1).norm(dim=1)
    return Penalty(formula(name, norms), norms.detach().mean())


@every
def test_of_a_linear_critic(name: str) -> None:
    """D(x) = w x: the gradient is w wherever it is taken."""
    w = numbers(6).requires_grad_()
    got = PENALTIES[name](lambda x: x @ w, numbers(4, 6, seed=1), numbers(4, 6, seed=2))
    torch.testing.assert_close(got.value, formula(name, w.norm().expand(4)))
    torch.testing.assert_close(got.norm, w.detach().norm())
    (slope,) = torch.autograd.grad(got.value, w)
    length = w.detach().norm()
    factor = {"r1": length, "r2": length, "zero_centered": 2 * length, "one sided": 2 * (length - 0.3)}
    torch.testing.assert_close(slope, factor.get(name, 2 * (length - 1)) * w.detach() / length)


def test_of_a_quadratic_critic() -> None:
    """D(x) = x A x / 2: the gradient is A x, so the penalties know where it is taken."""
    half, real, fake = numbers(3, 3), numbers(5, 3, seed=1), numbers(5, 3, seed=2)
    A = (half + half.t()).requires_grad_()
    places = {"r1": real, "r2": fake, "gradient_penalty": interpolate(real, fake, rng(real))}
    for name, x in places.items():
        got = PENALTIES[name](lambda x: (x @ A * x).sum(1) / 2, real, fake)
        torch.testing.assert_close(got.value, formula(name, (x @ A).norm(dim=1)))
        torch.testing.assert_close(got.norm, (x @ A).norm(dim=1).mean().detach())
    (slope,) = torch.autograd.grad(r1(lambda x: (x @ A * x).sum(1) / 2, real).value, A)
    outer = real.t() @ real / 5  # of A x / 2 + x A / 2, by which D sees A
    torch.testing.assert_close(slope, (A @ outer + outer @ A).detach() / 2)


def test_one_sided_and_the_center() -> None:
    w, x = numbers(6), numbers(3, 6, seed=1)
    for length, center in ((0.5, 1.0), (2.0, 1.0), (2.0, 0.5), (2.0, 0.0)):
        v = w / w.norm() * length
        both, one = (
            gradient_penalty(lambda x, v=v: x @ v, x, -x, center=center, one_sided=side).value for side in (False, True)
        )
        assert both.item() == pytest.approx((length - center) ** 2)
        assert one.item() == pytest.approx(max(0, length - center) ** 2)


@pytest.fixture(params=ROUTES)
def route(request: pytest.FixtureRequest) -> Iterator[tuple[str, torch.dtype]]:
    """A device and a dtype, under the backend whose turn it is: the reference, or the kernels."""
    device, backend, dtype = request.param
    with fastgan.backend(backend):
        yield device, dtype


def fused(kind: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A critic of ours and the shape of a sample."""
    if kind == "linear":
        return Chain(LinearAct(6, 8, negative_slope=0.2), LinearAct(8, 5, activation="tanh"), LinearAct(5, 1)), (6,)
    first = Conv2dAct(2, 4, 3, 2, 1, activation="leaky_relu", negative_slope=0.2)
    if kind == "conv":
        return Chain(first, Conv2dAct(4, 3, 3, 2, 1, activation="leaky_relu"), nn.Flatten(), LinearAct(12, 1)), (
            2,
            8,
            6,
        )
    return Chain(first, Conv2dAct(4, 1, 3, 1, 1, activation="none")), (2, 8, 6)  # a logit for each patch


def unfused(critic: nn.Module) -> nn.Sequential:
    """The same layers of torch.nn, with the same weights."""
    layers: list[nn.Module] = []
    for layer in copy.deepcopy(critic).children():
        if isinstance(layer, LinearAct):
            twin: nn.Module = nn.Linear(layer.in_features, layer.out_features)
        elif isinstance(layer, Conv2dAct):
            twin = nn.Conv2d(layer.in_channels, layer.out_channels, 3, layer.stride, 1)  # type: ignore[arg-type]
        else:
            layers.append(layer)
            continue
        twin.load_state_dict(layer.state_dict())
        acts = {"none": nn.Identity(), "tanh": nn.Tanh(), "leaky_relu": nn.LeakyReLU(layer.negative_slope)}
        layers += [twin, acts[layer.activation]]
    return nn.Sequential(*layers)


@every
@pytest.mark.parametrize("kind", ["linear", "conv", "patches"])
@pytest.mark.parametrize("batch", [5, 1])
def test_through_our_critics_as_in_plain_pytorch(
    route: tuple[str, torch.dtype], kind: str, name: str, batch: int
) -> None:
    device, dtype = route
    torch.manual_seed(0)
    critic, shape = fused(kind)
    critic.to(device, dtype)
    twin = unfused(critic).to(device, dtype)
    real, fake = (numbers(batch, *shape, seed=seed, dtype=dtype, device=device) for seed in (1, 2))
    want = plain(name, twin, real, fake)
    torch.manual_seed(0)
    got = PENALTIES[name](critic, real, fake)
    tight = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2e-4, "atol": 2e-6}
    torch.testing.assert_close(tuple(got), tuple(want), **tight)
    slopes = (
        torch.autograd.grad(penalty.value, list(of.parameters()), allow_unused=True, materialize_grads=True)
        for penalty, of in ((got, critic), (want, twin))
    )
    torch.testing.assert_close(*slopes, **tight)


@every
def test_channels_last_gives_the_same(route: tuple[str, torch.dtype], name: str) -> None:
    device, dtype = route
    critic, shape = fused("conv")
    critic.to(device, dtype)
    real, fake = (numbers(3, *shape, seed=seed, dtype=dtype, device=device) for seed in (1, 2))
    results = []
    for form in (torch.contiguous_format, torch.channels_last):
        seen: list[Tensor] = []
        torch.manual_seed(0)
        pair = (samples.contiguous(memory_format=form) for samples in (real, fake))
        penalty = PENALTIES[name](lambda x, seen=seen: critic(seen.append(x) or x), *pair)
        assert seen[0].is_contiguous(memory_format=form)
        if name == "dragan":  # noise is drawn as it lies in memory
            assert penalty.value.isfinite()
        else:
            results.append([*penalty, *torch.autograd.grad(penalty.value, critic[0].weight)])
    if results:
        torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


@every
def test_differentiable_twice_in_the_weights(name: str) -> None:
    real, fake = numbers(3, 2, seed=1), numbers(3, 2, seed=2)
    w, v = numbers(2, 4, seed=3).requires_grad_(), numbers(4, seed=4).requires_grad_()

    def value(w: Tensor, v: Tensor) -> Tensor:
        torch.manual_seed(0)
        return PENALTIES[name](lambda x: (x @ w).tanh() @ v, real, fake).value

    assert torch.autograd.gradcheck(value, (w, v))
    assert torch.autograd.gradgradcheck(value, (w, v))


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_of_zero_has_no_nan(name: str, dtype: torch.dtype) -> None:
    """One sample of two is where the critic is flat; then both are."""
    w = torch.ones(3, dtype=dtype, requires_grad=True)
    for flat in (torch.tensor([1, 0]), torch.tensor([0, 0])):
        real = fake = torch.ones(2, 3, dtype=dtype)
        value, norm = PENALTIES[name](lambda x, flat=flat: (x @ w) * flat, real, fake)
        (slope,) = torch.autograd.grad(value, w)
        lengths = flat.to(dtype) * 3**0.5
        torch.testing.assert_close(value.detach(), formula(name, lengths))
        torch.testing.assert_close(norm, lengths.mean())
        assert slope.isfinite().all() and bool(slope.any()) == bool(flat.any())


@every
def test_what_else_a_critic_takes(name: str) -> None:
    labels, table = torch.tensor([0, 2, 1, 0]), numbers(3, 5)
    real, fake = numbers(4, 5, seed=1), numbers(4, 5, seed=2)
    got = PENALTIES[name](lambda x, y, scale: (x * table[y]).sum(1) * scale, real, fake, labels, 2.0)
    torch.testing.assert_close(got.value, formula(name, 2 * table[labels].norm(dim=1)))


@every
def test_samples_of_one_number_and_logits_of_several(name: str) -> None:
    got = PENALTIES[name](lambda x: x[:, None].expand(-1, 3) * 0.5, numbers(4), numbers(4, seed=1))
    torch.testing.assert_close(got.value, formula(name, torch.full((4,), 1.5, dtype=torch.float64)))


@every
def test_fp32_where_sixteen_bits_would_overflow(name: str) -> None:
    """Gradients of 300 an element: the square is past what fp16 holds."""
    for dtype in (torch.float16, torch.bfloat16):
        w = torch.full((4,), 300.0, dtype=dtype, requires_grad=True)
        real, fake = (numbers(2, 4, seed=seed, dtype=dtype) for seed in (1, 2))
        value, norm = PENALTIES[name](lambda x, w=w: (x * w).sum(1), real, fake)
        assert value.dtype == norm.dtype == torch.float32
        torch.testing.assert_close(value.detach(), formula(name, torch.full((2,), 600.0)))
        assert value.isfinite() and torch.autograd.grad(value, w)[0].isfinite().all()


@every
def test_under_autocast(name: str) -> None:
    critic, shape = fused("linear")
    real, fake = (numbers(64, *shape, seed=seed, dtype=torch.float32) for seed in (1, 2))
    results = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            penalty = PENALTIES[name](critic, real, fake)
        assert penalty.value.dtype == torch.float32
        results.append([*penalty, *torch.autograd.grad(penalty.value, critic[0].weight)])
    torch.testing.assert_close(*results, rtol=0.05, atol=0.02)


def test_logits_that_are_there_already() -> None:
    """Real and generated samples in one batch, and the penalty with no pass of its own."""
    critic, shape = fused("conv")
    real, fake = (numbers(4, *shape, seed=seed, dtype=torch.float32) for seed in (1, 2))
    want = [r1(critic, real), r2(critic, fake)]
    real.requires_grad_()
    fake.requires_grad_()
    logits = critic(torch.cat([real, fake])).chunk(2)
    got = [r1_from(part, samples) for part, samples in zip(logits, (real, fake), strict=True)]
    torch.testing.assert_close([list(p) for p in got], [list(p) for p in want])
    slopes = (torch.autograd.grad(p.value, critic[0].weight, retain_graph=True) for p in (got[0], want[0]))
    torch.testing.assert_close(*slopes)


def test_where_dragan_looks() -> None:
    seen: list[Tensor] = []
    real = 3 + 4 * numbers(500, 20, dtype=torch.float32)
    dragan(lambda x: (seen.append(x), x.sum(1))[1], real)
    noise = seen[0].detach() - real
    assert abs(noise.mean()) < 0.1 and noise.std().item() == pytest.approx(0.5 * real.std().item(), rel=0.03)
    assert abs(torch.corrcoef(torch.stack([noise[:, 0], noise[:, 1]]))[0, 1]) < 0.15


def test_points_are_drawn_anew_unless_told() -> None:
    critic, shape = fused("linear")
    real, fake = (numbers(8, *shape, seed=seed, dtype=torch.float32) for seed in (1, 2))
    for penalty in (gradient_penalty, zero_centered):
        first, second = (penalty(critic, real, fake).value for _ in range(2))
        assert first != second
        fixed = [penalty(critic, real, fake, rng=rng(real) + at).value for at in (0, 0, 1)]
        assert fixed[0] == fixed[1] != fixed[2]
