"""What penalties cost, leave alone and refuse: products, graphs, values read back, compiled critics, mistakes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastgan
from fastgan.errors import UserError
from fastgan.nn import Chain, Conv2dAct, LinearAct
from fastgan.objectives.penalties import Penalty, dragan, gradient_penalty, r1, r1_from, r2, zero_centered

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy interprets what wraps
Call = Callable[..., Penalty]  # (critic, real, fake)
PENALTIES: dict[str, Call] = {
    "gradient_penalty": lambda critic, real, fake: gradient_penalty(critic, real, fake, rng=rng(real)),
    "zero_centered": lambda critic, real, fake: zero_centered(critic, real, fake, rng=rng(real)),
    "r1": lambda critic, real, fake: r1(critic, real),
    "r2": lambda critic, real, fake: r2(critic, fake),
    "dragan": lambda critic, real, fake: dragan(critic, real),
}
every = pytest.mark.parametrize("name", PENALTIES)


def rng(samples: Tensor) -> Tensor:
    return torch.arange(5, 7, device=samples.device)


def numbers(*size: int, seed: int = 0, device: str = "cpu") -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(device)


def mlp() -> tuple[nn.Module, tuple[int, ...]]:
    """A critic of ours and the shape of a sample."""
    return Chain(LinearAct(6, 8, negative_slope=0.2), LinearAct(8, 5, activation="tanh"), LinearAct(5, 1)), (6,)


def convolutions() -> tuple[nn.Module, tuple[int, ...]]:
    """A critic of images, and the shape of one."""
    layers = Conv2dAct(2, 4, 3, 2, 1, activation="leaky_relu"), Conv2dAct(4, 3, 3, 2, 1, activation="leaky_relu")
    return Chain(*layers, nn.Flatten(), LinearAct(12, 1)), (2, 8, 6)


class Operations(TorchDispatchMode):
    """Counts operations, and notes on which devices their tensors are."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.devices: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count[func.overloadpacket.__name__] += 1
        leaves = torch.utils._pytree.tree_leaves((args, kwargs, result))
        self.devices |= {leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)}
        return result


@every
def test_no_gradient_of_a_weight_is_formed_for_the_value(name: str) -> None:
    """Forward once and back once; without a graph too."""
    critic = nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear(6, 6), nn.LeakyReLU(0.2))])
    real, fake = (numbers(5, 6, seed=seed) for seed in (1, 2))
    for recorded in (True, False):
        with torch.set_grad_enabled(recorded), Operations() as seen:
            penalty = PENALTIES[name](critic, real, fake).value
        assert sum(seen.count[product] for product in ("mm", "addmm")) == 8
        assert penalty.requires_grad == recorded


@every
def test_no_graph_is_kept_where_none_is_recorded(name: str) -> None:
    """All that is saved is what the critic saves for its own gradient."""
    critic, shape = mlp()
    real, fake = (numbers(5, *shape, seed=seed) for seed in (1, 2))
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        critic(real.clone().requires_grad_())
        of_the_critic = len(saved)
        with torch.no_grad():
            assert not PENALTIES[name](critic, real, fake).value.requires_grad
    assert len(saved) == 2 * of_the_critic


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_what_a_penalty_costs_in_products(device: str, products: Counter[str]) -> None:
    """Through L layers 2 L for the value and 2 L - 1 for its gradient, whatever the penalty."""
    critic = Chain(LinearAct(6, 5, activation="leaky_relu"), LinearAct(5, 4, activation="relu"), LinearAct(4, 1))
    critic.to(device)
    real, fake = (numbers(5, 6, seed=seed, device=device) for seed in (1, 2))
    for penalty in PENALTIES.values():
        products.clear()
        with fastgan.backend("triton"):
            value = penalty(critic, real, fake).value
            assert products == {"linear_fwd": 3, "linear_bwd_input": 3}
            value.backward()
        assert products.total() == 4 * 3 - 1 and products["linear_bwd_weight"] == 3


def test_what_dragans_points_cost() -> None:
    """The three launches that its docstring counts."""
    names: list[Counter[str]] = []

    def critic(x: Tensor) -> Tensor:
        names.append(seen.count.copy())
        return x.sum(1)

    with Operations() as seen:
        dragan(critic, numbers(4, 3))
    silent = ("detach", "alias", "randn", "empty_like", "normal_")  # views, and what randn_like is made of
    assert {name: n for name, n in names[0].items() if name not in silent} == {"randn_like": 1, "std": 1, "addcmul": 1}


@every
def test_nothing_else_is_touched(name: str) -> None:
    critic = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    data, z = numbers(4, 3), numbers(4, 3, seed=1).requires_grad_()
    for real, fake in ((data, data.clone()), (z, z * 2)):
        before = real.clone(), fake.clone(), real.requires_grad
        PENALTIES[name](critic, real, fake).value.backward()
        assert torch.equal(real, before[0]) and torch.equal(fake, before[1]) and real.requires_grad == before[2]
        assert real.grad is None and z.grad is None


@every
def test_nothing_is_read_back(name: str) -> None:
    """So a CUDA graph can hold it: tensors on the meta device have no values that anyone could read."""
    critic, shape = convolutions()
    critic.to("meta")
    samples = torch.empty(4, *shape, device="meta")
    drawn: dict[str, Call] = {"gradient_penalty": gradient_penalty, "zero_centered": zero_centered}
    with Operations() as seen:
        for penalty in (PENALTIES[name], drawn.get(name, PENALTIES[name])):
            penalty(critic, samples, samples).value.backward()
    assert seen.devices == {"meta"}


@pytest.mark.parametrize("backend", ["aot_eager"])
@pytest.mark.parametrize("inner", [False, True])
def test_a_compiled_critic_is_refused_in_a_line(backend: str, inner: bool) -> None:
    torch._dynamo.reset()
    layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    compiled = torch.compile(layers, backend=backend)
    critic = nn.Sequential(nn.Linear(3, 3), compiled, nn.Tanh()) if inner else compiled
    with pytest.raises(UserError, match="keep the critic eager"):
        r1(critic, torch.randn(4, 3))
    with torch.no_grad():
        assert r1(critic, torch.randn(4, 3)).norm > 0  # first derivatives it has
    assert r1(layers, torch.randn(4, 3)).value.requires_grad


def test_a_compiled_generator_is_welcome() -> None:
    torch._dynamo.reset()
    generator, critic = torch.compile(nn.Linear(2, 3), backend="aot_eager"), nn.Linear(3, 1)
    fake, real = generator(torch.randn(4, 2)), torch.randn(4, 3, requires_grad=True)
    gradient_penalty(critic, real, fake).value.backward()
    logits = critic(torch.cat([real, fake])).chunk(2)
    r1_from(logits[0], real).value.backward()


def test_mistakes_are_named_in_a_line() -> None:
    x = torch.randn(4, 3)
    critic = nn.Linear(3, 1)
    for penalty in (gradient_penalty, zero_centered):
        with pytest.raises(UserError, match=r"\(4, 3\) and \(3, 3\): draw as many of each"):
            penalty(critic, x, x[:3])
    with pytest.raises(UserError, match="before the critic"):
        r1_from(critic(x), x)
    for blind in (lambda x: critic(x.detach()), lambda x: critic(x).detach()):
        with pytest.raises(UserError, match="do not depend on its samples"):
            r1(blind, x)
    for penalty in (r1, dragan):
        with pytest.raises(UserError, match="floating point, not uint8"):
            penalty(critic, x.byte())
