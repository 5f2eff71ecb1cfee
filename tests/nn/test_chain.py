"""Chain against the nn.Sequential that it replaces: values, gradients, buffers, and what it fuses."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fastgan
from fastgan.errors import UserError
from fastgan.nn import Chain, LinearAct
from fastgan.ops import chain as op

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
FEATURES = 10


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device on which the kernels run, whatever ``auto`` would take there."""
    with fastgan.backend("triton"):
        yield request.param


def generator() -> list[nn.Module]:
    """Every kind of norm that people write, in one network."""
    return [
        *(nn.Linear(FEATURES, 24), nn.LeakyReLU(0.2)),
        *(nn.Linear(24, 40), nn.BatchNorm1d(40, 0.8), nn.LeakyReLU(0.2, inplace=True)),
        *(nn.Linear(40, 33, bias=False), nn.BatchNorm1d(33, momentum=None), nn.ReLU()),
        *(nn.Linear(33, 20), nn.BatchNorm1d(20, affine=False, track_running_stats=False), nn.Sigmoid()),
        *(nn.Linear(20, 17), nn.Tanh()),
    ]


def critic() -> list[nn.Module]:
    return [nn.Linear(FEATURES, 24), nn.LeakyReLU(0.2), nn.Linear(24, 30), nn.ReLU(), nn.Linear(30, 1)]


def tailed() -> list[nn.Module]:
    """A norm at the end, one behind a layer of ours, and what cannot be fused in between."""
    return [
        *(LinearAct(FEATURES, 12, activation="none"), nn.BatchNorm1d(12), nn.Tanh()),
        *(nn.Unflatten(1, (3, 4)), nn.Flatten(), nn.Softplus()),
        *(LinearAct(12, 9, negative_slope=-0.3), LinearAct(9, 8, activation="tanh"), nn.Linear(8, 6)),
        nn.BatchNorm1d(6, affine=False),
    ]


NETWORKS = {"generator": generator, "critic": critic, "tailed": tailed}


def twins(members: Sequence[nn.Module], device: str) -> tuple[nn.Sequential, Chain]:
    """The members as torch runs them in fp64, and as a Chain in fp32."""
    torch.manual_seed(0)
    for member in members:
        for tensor in (*member.parameters(), *(b for b in member.buffers() if b.is_floating_point())):
            torch.nn.init.uniform_(tensor, 0.2, 1.0) if tensor.dim() == 1 else torch.nn.init.normal_(tensor, 0, 0.3)
    theirs = nn.Sequential(*(copy.deepcopy(m) for m in members)).to(device).double()
    return theirs, Chain(*(copy.deepcopy(m) for m in members)).to(device)


def numbers(*size: int, device: str, seed: int = 1) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)


def in_groups(network: nn.Module, x: Tensor, groups: int) -> Tensor:
    return torch.cat([network(part) for part in x.chunk(groups)])


def close(mine: Sequence[Tensor | None], theirs: Sequence[Tensor | None], tolerance: float = 3e-5) -> None:
    """As near as fp32 can be, relative to the largest of all: a bias in front of a norm has a true gradient of 0."""
    scale = max([1e-3, *(float(t.detach().abs().max()) for t in theirs if t is not None)])
    for got, wanted in zip(mine, theirs, strict=True):
        assert (got is None) == (wanted is None)
        if got is not None and wanted is not None:
            torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=tolerance * scale)


def same_results(theirs: nn.Sequential, mine: Chain, n: int, groups: int, device: str) -> None:
    """Two training steps' outputs, gradients and buffers."""
    x = numbers(n, FEATURES, device=device)
    xs = x.clone().requires_grad_(), x.float().requires_grad_()
    for _ in range(2):
        ys = in_groups(theirs, xs[0], groups), mine(xs[1], groups)
        close(ys[1:], ys[:1])
        mix = numbers(*ys[0].shape, device=device, seed=2)
        wanted = torch.autograd.grad(ys[0], [xs[0], *theirs.parameters()], mix)
        close(torch.autograd.grad(ys[1], [xs[1], *mine.parameters()], mix.float()), wanted, 1e-4)
    for got, expected in zip(mine.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(got.double(), expected.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_is_the_sequential_in_training(device: str, name: str, groups: int) -> None:
    same_results(*twins(NETWORKS[name](), device), 12, groups, device)


@pytest.mark.parametrize("name", NETWORKS)
def test_is_the_sequential_in_eval(device: str, name: str) -> None:
    theirs, mine = twins(NETWORKS[name](), device)
    same_results(theirs.eval(), mine.eval(), 7, 1, device)
    with torch.no_grad():
        x = numbers(5, FEATURES, device=device)
        close([mine(x.float())], [theirs(x)])


def test_a_frozen_norm_in_a_training_network(device: str) -> None:
    theirs, mine = twins(generator(), device)
    for network in (theirs, mine):
        network[3].eval()
    same_results(theirs, mine, 8, 2, device)


def test_running_statistics_may_move_before_backward(device: str) -> None:
    """The gradient is that of the statistics that the forward pass went by."""
    _, mine = twins(tailed(), device)
    x = numbers(8, FEATURES, device=device).float().requires_grad_()
    expected = torch.autograd.grad(mine.eval()(x).sum(), x)[0]
    y = mine.eval()(x).sum()
    mine.train()(5 * x.detach())
    assert torch.equal(torch.autograd.grad(y, x)[0], expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_second_gradients(device: str, name: str) -> None:
    """A penalty on the input's gradient, differentiated with respect to everything."""
    x = numbers(8, FEATURES, device=device)
    results = []
    for network, input in zip(twins(NETWORKS[name](), device), (x, x.float()), strict=True):
        input = input.clone().requires_grad_()
        y = network(input)
        mix = numbers(*y.shape, device=device, seed=2).to(y)
        (slope,) = torch.autograd.grad((y.tanh() * mix).sum(), input, create_graph=True)
        penalty = (slope.norm(dim=1) - 1).square().mean()
        results.append(torch.autograd.grad(penalty, [input, *network.parameters()], allow_unused=True))
    close(results[1], results[0], 2e-4)


NORMS = st.sampled_from(
    [
        {},
        {"eps": 0.8},
        {"momentum": None},
        {"eps": 0.8, "affine": False},
        {"affine": False, "track_running_stats": False},
    ]
)
LAYERS = st.lists(
    st.tuples(
        st.integers(1, 40),
        st.booleans(),
        st.none() | NORMS,
        st.sampled_from([nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, None]),
    ),
    min_size=1,
    max_size=4,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(layers=LAYERS, groups=st.integers(1, 3), rows=st.integers(2, 40), training=st.booleans())
def test_any_chain(device: str, layers: list[tuple], groups: int, rows: int, training: bool) -> None:
    members: list[nn.Module] = []
    width = FEATURES
    for features, bias, norm, activation in layers:
        members.append(nn.Linear(width, features, bias))
        if norm is not None:
            members.append(nn.BatchNorm1d(features, **norm))
        if activation is not None:
            members.append(activation())
        width = features
    exact, mine = twins(members, device)
    plain = copy.deepcopy(exact).float()
    x = numbers(groups * rows, FEATURES, device=device)
    results = []
    for network, input in ((exact, x), (plain, x.float()), (mine, x.float())):
        network.train(training)
        y = network(input, groups) if network is mine else in_groups(network, input, groups)
        results.append((y, *network.buffers()))
    scale = max(
        1e-3, *(float(t.detach().abs().max()) for t in results[0])
    )  # over a few rows 1 / std magnifies rounding
    theirs = [float((a.double() - b.double()).detach().abs().max()) for a, b in zip(*results[1::-1], strict=True)]
    close(results[2], results[0], max(1e-4, 4 * max(theirs) / scale))


def test_no_gradient_is_formed_that_nobody_asked_for(device: str, products: Counter[str]) -> None:
    _, g = twins(generator()[:5], device)
    _, d = twins([nn.Linear(40, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1)], device)
    score = d(g(numbers(6, FEATURES, device=device).float())).sum()
    torch.autograd.grad(score, list(g.parameters()))  # the generator's step: no gradient of d, or of z
    assert products == {"linear_fwd": 4, "linear_bwd_input": 3, "linear_bwd_weight": 2}

    products.clear()
    _, c = twins(critic(), device)
    x = numbers(6, FEATURES, device=device).float().requires_grad_()
    (slope,) = torch.autograd.grad(c(x).sum(), x, create_graph=True)
    slope.square().sum().backward()  # L layers: 4 L products less one, the head's incoming gradient being constant
    assert products.total() == 4 * 3 - 1 and x.grad is None
    assert all(p.grad is not None for p in c.parameters() if p.dim() > 1)


def test_nothing_normalised_is_saved(device: str) -> None:
    """What is kept for backward: the input, the parameters, raw outputs, and a few vectors."""
    _, mine = twins(generator(), device)
    x = numbers(64, FEATURES, device=device).float()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        mine(x)
    rows = [t for t in kept if t.dim() == 2 and t.shape[0] == 64]
    assert sorted(t.shape[1] for t in rows) == sorted([FEATURES, 24, 40, 33, 20, 17])


def test_dropout_where_people_write_it(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after the activation, at the end, none in eval: the masks are those of the seeds that were drawn."""
    seeds = iter(torch.tensor([[at, 2 * at] for at in range(1, 9)], device=device))
    drawn: list[Tensor] = []
    monkeypatch.setattr(op.drop, "draw", lambda device: (drawn.append(next(seeds)), drawn[-1])[1])
    members = [
        *(nn.Linear(FEATURES, 16), nn.Dropout(0.4), nn.LeakyReLU(0.2)),
        *(nn.Linear(16, 14), nn.Tanh(), nn.Dropout(0.3)),
        *(nn.Linear(14, 12), nn.Dropout(0.5), nn.Sigmoid()),
        *(nn.Linear(12, 9), nn.LeakyReLU(0.2), nn.Dropout(0.5)),
    ]
    theirs, mine = twins(members, device)
    x = numbers(6, FEATURES, device=device)
    results = []
    for create_graph in (False, True):  # the tape's two ways back
        input = x.float().requires_grad_()
        drawn.clear()
        y = mine(input)
        results.append([y, *torch.autograd.grad(y.sum(), [input, *mine.parameters()], create_graph=create_graph)])
        with fastgan.backend("reference"):
            u = input = x.clone().requires_grad_()
            masks = iter(drawn)
            for member in theirs:
                u = op.drop.dropped(u, next(masks), member.p) if isinstance(member, nn.Dropout) else member(u)
            close(results[-1], [u, *torch.autograd.grad(u.sum(), [input, *theirs.parameters()])])
        seeds = iter(torch.tensor([[at, 2 * at] for at in range(1, 9)], device=device))
    monkeypatch.undo()
    close([mine.eval()(x.float())], [theirs.eval()(x)])


def test_members_with_hooks_run_as_they_are(device: str) -> None:
    theirs, mine = twins(generator(), device)
    seen: list[tuple[int, ...]] = []
    mine[3].register_forward_hook(lambda module, arguments, output: seen.append(tuple(output.shape)))
    torch.nn.utils.parametrizations.weight_norm(mine[5])
    torch.nn.utils.parametrizations.weight_norm(theirs[5])
    x = numbers(6, FEATURES, device=device)
    close([mine(x.float())], [theirs(x)])
    assert seen == [(6, 40)]


def test_autocast(device: str) -> None:
    theirs, mine = twins(critic(), device)
    x = numbers(6, FEATURES, device=device).float()
    with torch.autocast(device, dtype=torch.float16):
        y, wanted = mine(x), theirs.float()(x)
    assert y.dtype == wanted.dtype == torch.float16
    torch.testing.assert_close(y, wanted, rtol=1e-2, atol=1e-2)
    gradients = [
        torch.autograd.grad(out.float().sum(), list(net.parameters())) for out, net in ((y, mine), (wanted, theirs))
    ]
    close(*gradients, 2e-2)
    assert {g.dtype for g in gradients[0]} == {torch.float32}


ROUTES = [pytest.param("reference", id="reference"), pytest.param("triton", marks=pytest.mark.interpret)]


@pytest.mark.parametrize("backend", ROUTES)
def test_what_is_refused(backend: str) -> None:
    theirs, mine = twins(generator(), "cpu")
    with fastgan.backend(backend):
        for n, groups in ((1, 1), (3, 3)):
            with pytest.raises(ValueError, match="more than 1 value per channel") as ours:
                mine(torch.randn(n, FEATURES), groups)
            with pytest.raises(ValueError) as words:
                theirs(torch.randn(1, FEATURES).double())
            assert str(ours.value).partition("[")[0] == str(words.value).partition("[")[0]
        with pytest.raises(UserError, match="a batch of 5 does not fall into 2 equal groups"):
            mine(torch.randn(5, FEATURES), 2)
        with pytest.raises(UserError, match="batches to fold have one shape"):
            mine.fold(torch.randn(4, FEATURES), torch.randn(3, FEATURES))
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            mine(torch.randn(4, FEATURES + 1))


@pytest.mark.parametrize("backend", ROUTES)
def test_real_and_fake_in_one_pass(backend: str) -> None:
    """Each by statistics of its own, as in two passes."""
    _, mine = twins(tailed(), "cpu")
    twin = copy.deepcopy(mine)
    real, fake = torch.randn(6, FEATURES), torch.randn(6, FEATURES) + 3
    with fastgan.backend(backend):
        together, apart = mine.fold(real, fake), (twin(real), twin(fake))
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(list(mine.buffers()), list(twin.buffers()))


def test_is_nn_sequential_to_everyone_else() -> None:
    theirs, mine = twins(generator(), "cpu")
    assert isinstance(mine, nn.Sequential) and list(mine.state_dict()) == list(theirs.state_dict())
    theirs.float().load_state_dict(mine.state_dict())
    x = torch.randn(6, FEATURES)
    for copied in (copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):  # noqa: S301 -- our own bytes
        assert torch.equal(copied(x), theirs(x))
        theirs.load_state_dict(mine.state_dict())
    assert isinstance(mine[:3], Chain)


@pytest.mark.parametrize("backend", ROUTES)
def test_compile_a_training_step(backend: str) -> None:
    """One graph, norms and their buffers included: what it fuses then is the compiler's affair."""
    torch._dynamo.reset()
    _, mine = twins(generator(), "cpu")
    mine[6].momentum = 0.1  # plain averages branch on the count of batches, which torch.nn itself cannot have compiled
    twin, x = copy.deepcopy(mine), torch.randn(6, FEATURES)
    with fastgan.backend(backend):
        torch.compile(mine, fullgraph=True, backend="aot_eager")(x).square().sum().backward()
        twin(x).square().sum().backward()
    close([p.grad for p in mine.parameters()], [p.grad for p in twin.parameters()], 1e-4)
    torch.testing.assert_close(list(mine.buffers()), list(twin.buffers()))
