"""Chain of convolutions against the nn.Sequential that it replaces: values, gradients, buffers, and what it keeps."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fastgan
from fastgan.nn import Chain, Conv2dAct, ConvTranspose2dAct

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
LAST = torch.channels_last


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device on which the kernels run, whatever ``auto`` would take there."""
    exact = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    with fastgan.backend("triton"):
        yield request.param
    torch.backends.cudnn.conv.fp32_precision = exact


def generator() -> list[nn.Module]:
    """DCGAN's, from 2x2 to 4x4."""
    return [
        *(nn.ConvTranspose2d(10, 24, 2, 1, 0, bias=False), nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.ConvTranspose2d(24, 17, 4, 2, 1, bias=False), nn.BatchNorm2d(17, momentum=None), nn.LeakyReLU(0.2)),
        *(nn.Conv2d(17, 3, 3, 1, 1), nn.Tanh()),
    ]


def discriminator() -> list[nn.Module]:
    return [
        *(nn.Conv2d(3, 16, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)),
        *(nn.Conv2d(16, 20, 4, 2, 1, bias=False), nn.BatchNorm2d(20, 0.8), nn.LeakyReLU(0.2)),
        nn.Conv2d(20, 1, 2, 1, 0, bias=False),
    ]


def scaled() -> list[nn.Module]:
    """PyTorch-GAN's way up, layers of ours, and what cannot be fused in between."""
    return [
        *(nn.Conv2d(10, 16, 3, 1, 1), nn.BatchNorm2d(16, 0.8), nn.LeakyReLU(0.2)),
        *(nn.Upsample(scale_factor=2), nn.Conv2d(16, 18, 3, padding="same"), nn.BatchNorm2d(18, affine=False)),
        *(nn.Softplus(), nn.Conv2d(18, 16, 3, groups=2), nn.Dropout2d(0.0)),
        *(Conv2dAct(16, 8, 1, activation="tanh"), ConvTranspose2dAct(8, 16, 2, 2, activation="none")),
        *(nn.BatchNorm2d(16, track_running_stats=False), nn.Sigmoid(), nn.Flatten(), nn.Linear(16 * 16, 3)),
    ]


def signals() -> list[nn.Module]:
    return [
        *(nn.Conv1d(10, 16, 7, padding=3), nn.BatchNorm1d(16), nn.LeakyReLU(0.1)),
        *(nn.ConvTranspose1d(16, 8, 4, 2, 1), nn.LeakyReLU(0.1), nn.Conv1d(8, 9, 3, dilation=3, padding=3)),
    ]


NETWORKS: dict[str, tuple[Callable[[], list[nn.Module]], tuple[int, ...]]] = {
    "generator": (generator, (10, 1, 1)),
    "discriminator": (discriminator, (3, 8, 8)),
    "scaled": (scaled, (10, 2, 2)),
    "signals": (signals, (10, 9)),
}


def twins(members: Sequence[nn.Module], device: str) -> tuple[nn.Sequential, Chain]:
    """The members as torch runs them in fp64, and as a Chain in fp32."""
    torch.manual_seed(0)
    for member in members:
        for tensor in (*member.parameters(), *(b for b in member.buffers() if b.is_floating_point())):
            torch.nn.init.uniform_(tensor, 0.2, 1.0) if tensor.dim() == 1 else torch.nn.init.normal_(tensor, 0, 0.2)
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


def same_results(theirs: nn.Sequential, mine: Chain, x: Tensor, groups: int) -> None:
    """Two training steps' outputs, gradients and buffers."""
    xs = x.clone().requires_grad_(), x.float().requires_grad_()
    for _ in range(2):
        ys = in_groups(theirs, xs[0], groups), mine(xs[1], groups)
        close(ys[1:], ys[:1])
        assert ys[1].stride() == in_groups(copy.deepcopy(theirs), xs[0], groups).stride()
        mix = numbers(*ys[0].shape, device=x.device.type, seed=2)
        wanted = torch.autograd.grad(ys[0], [xs[0], *theirs.parameters()], mix)
        close(torch.autograd.grad(ys[1], [xs[1], *mine.parameters()], mix.float()), wanted, 1e-4)
    for got, expected in zip(mine.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(got.double(), expected.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "groups"), [(name, 1) for name in NETWORKS] + [("generator", 3), ("scaled", 2)])
def test_is_the_sequential_in_training(device: str, name: str, groups: int) -> None:
    members, size = NETWORKS[name]
    same_results(*twins(members(), device), numbers(6, *size, device=device), groups)


@pytest.mark.parametrize("name", NETWORKS)
def test_is_the_sequential_in_eval(device: str, name: str) -> None:
    members, size = NETWORKS[name]
    theirs, mine = twins(members(), device)
    same_results(theirs.eval(), mine.eval(), numbers(2, *size, device=device), 1)
    with torch.no_grad():
        x = numbers(3, *size, device=device)
        close([mine(x.float())], [theirs(x)])


@pytest.mark.parametrize("name", ["generator", "discriminator"])
def test_channels_last(device: str, name: str) -> None:
    members, size = NETWORKS[name]
    theirs, mine = (network.to(memory_format=LAST) for network in twins(members(), device))
    same_results(theirs, mine, numbers(4, *size, device=device).contiguous(memory_format=LAST), 2)


def test_a_frozen_norm_in_a_training_network(device: str) -> None:
    theirs, mine = twins(generator(), device)
    for network in (theirs, mine):
        network[1].eval()
    same_results(theirs, mine, numbers(4, 10, 1, 1, device=device), 2)


@pytest.mark.parametrize("name", NETWORKS)
def test_second_gradients(device: str, name: str) -> None:
    """A penalty on the input's gradient, differentiated with respect to everything."""
    members, size = NETWORKS[name]
    x = numbers(3, *size, device=device)
    results = []
    for network, input in zip(twins(members(), device), (x, x.float()), strict=True):
        input = input.clone().requires_grad_()
        y = network(input)
        mix = numbers(*y.shape, device=device, seed=2).to(y)
        (slope,) = torch.autograd.grad((y.tanh() * mix).sum(), input, create_graph=True)
        penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
        results.append(torch.autograd.grad(penalty, [input, *network.parameters()], allow_unused=True))
    close(results[1], results[0], 2e-4)


@pytest.mark.parametrize("penalty", ["wgan-gp", "r1"])
def test_penalties_through_a_critic(device: str, penalty: str) -> None:
    """Without norms, as WGAN-GP has it; with its batch norm, for R1."""
    members = [m for m in discriminator() if penalty == "r1" or not isinstance(m, nn.BatchNorm2d)]
    x = numbers(4, 3, 8, 8, device=device)
    results = []
    for network, input in zip(twins(members, device), (x, x.float()), strict=True):
        input = input.clone().requires_grad_()
        (slope,) = torch.autograd.grad(network(input).sum(), input, create_graph=True)
        squares = slope.flatten(1).square().sum(1)
        loss = squares.mean() if penalty == "r1" else (squares.sqrt() - 1).square().mean()
        results.append(torch.autograd.grad(loss, list(network.parameters()), allow_unused=True))
    close(results[1], results[0], 2e-4)


def test_no_gradient_is_formed_that_nobody_asked_for(device: str, products: Counter[str]) -> None:
    _, g = twins(generator(), device)
    _, d = twins(discriminator(), device)
    images = g(numbers(3, 10, 1, 1, device=device).float())
    score = d(nn.functional.interpolate(images, scale_factor=2)).sum()
    torch.autograd.grad(score, list(g.parameters()))  # the generator's step: no gradient of d, or of z
    assert products == {"conv_fwd": 6, "conv_bwd_input": 5, "conv_bwd_weight": 3}

    products.clear()
    _, c = twins([m for m in discriminator() if not isinstance(m, nn.BatchNorm2d)], device)
    x = numbers(3, 3, 8, 8, device=device).float().requires_grad_()
    (slope,) = torch.autograd.grad(c(x).sum(), x, create_graph=True)
    slope.square().sum().backward()  # L layers: 4 L products less one, the head's incoming gradient being constant
    assert products.total() == 4 * 3 - 1 and x.grad is None


def test_nothing_normalised_is_saved(device: str) -> None:
    """What is kept for backward: the input, the parameters, raw outputs, and a few vectors."""
    _, mine = twins(generator(), device)
    x = numbers(5, 10, 1, 1, device=device).float()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        mine(x)
    maps = [t.shape[1:] for t in kept if t.dim() == 4 and t.shape[0] == 5]
    assert sorted(maps) == sorted([(10, 1, 1), (24, 2, 2), (17, 4, 4), (3, 4, 4)])


@pytest.mark.parametrize("wrap", [parametrizations.spectral_norm, parametrizations.weight_norm])
def test_parametrized_weights(device: str, wrap: Callable[[nn.Module], nn.Module], products: Counter[str]) -> None:
    """They are fused as well, and computed once a pass: a power iteration is a step of its own."""
    members = [m for m in discriminator() if not isinstance(m, nn.BatchNorm2d)]
    theirs, mine = twins(members, device)
    for network in (theirs, mine):
        torch.manual_seed(1)
        for member in network:
            if isinstance(member, nn.Conv2d):
                wrap(member)
    mine.load_state_dict(theirs.state_dict())
    x = numbers(3, 3, 8, 8, device=device)
    for _ in range(2):
        ys = theirs(x), mine(x.float())
        close(ys[1:], ys[:1])
    gradients = [torch.autograd.grad(y.sum(), list(n.parameters())) for y, n in zip(ys, (theirs, mine), strict=True)]
    close(gradients[1], gradients[0], 1e-4)
    assert products["conv_fwd"] == 6
    for got, expected in zip(mine.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(got.double(), expected.double(), rtol=1e-4, atol=1e-5)


def test_hooks_run_as_they_are(device: str) -> None:
    theirs, mine = twins(generator(), device)
    seen: list[tuple[int, ...]] = []
    mine[3].register_forward_hook(lambda module, arguments, output: seen.append(tuple(output.shape)))
    for network in (theirs, mine):
        torch.nn.utils.spectral_norm(network[6])
    mine.load_state_dict(theirs.state_dict())
    x = numbers(4, 10, 1, 1, device=device)
    close([mine(x.float())], [theirs(x)])
    assert seen == [(4, 17, 4, 4)]


def test_a_norm_that_is_not_fused_runs_between(device: str) -> None:
    """SyncBatchNorm, without a process group, and an InstanceNorm."""
    members = [
        *discriminator()[:3],
        nn.SyncBatchNorm(20),
        nn.ReLU(),
        nn.ConvTranspose2d(20, 9, 2),
        nn.InstanceNorm2d(9),
    ]
    same_results(*twins(members, device), numbers(4, 3, 10, 10, device=device), 2)


@pytest.mark.parametrize(
    "conv",
    [
        Conv2dAct(5, 6, 3, 2, 1, upsample=2, activation="relu"),
        nn.Conv2d(5, 6, 2, padding="same"),
        nn.Conv2d(5, 6, 3, padding=1, padding_mode="reflect"),
        Conv2dAct(5, 6, 3, pre_activation="leaky_relu", activation="none"),
        nn.Sequential(nn.Upsample(scale_factor=3), nn.Conv2d(5, 6, 3, 2)),
    ],
    ids=["upsample and stride", "even", "reflect", "pre-activation", "scaled and strided"],
)
def test_what_the_maps_do_not_take_runs_between(device: str, conv: nn.Module) -> None:
    conv = conv if isinstance(conv, nn.Sequential) else nn.Sequential(conv)
    same_results(*twins([*conv, nn.Conv2d(6, 3, 1), nn.ReLU()], device), numbers(3, 5, 6, 6, device=device), 1)


@pytest.mark.parametrize("wrong", [{"stride": 2, "output_padding": 2}, {"padding": -1}])
def test_what_torch_refuses_is_refused(device: str, wrong: dict[str, int]) -> None:
    theirs, mine = twins([nn.ConvTranspose2d(5, 16, 3, **wrong), nn.ReLU()], device)
    with pytest.raises(RuntimeError) as words:
        theirs(numbers(2, 5, 4, 4, device=device))
    with pytest.raises(RuntimeError) as ours:
        mine(numbers(2, 5, 4, 4, device=device).float())
    assert str(ours.value).partition("[")[0] == str(words.value).partition("[")[0]


def test_an_in_place_member_behind_a_fused_one(device: str) -> None:
    members = [nn.Conv2d(5, 16, 3), nn.LeakyReLU(0.2), nn.ELU(inplace=True), nn.Conv2d(16, 3, 1)]
    theirs, mine = (network.to(memory_format=LAST) for network in twins(members, device))
    same_results(theirs, mine, numbers(2, 5, 5, 5, device=device).contiguous(memory_format=LAST), 1)


def test_a_parametrized_layer_that_stands_twice(device: str) -> None:
    """Each use is a power iteration."""
    torch.manual_seed(0)
    layer = parametrizations.spectral_norm(nn.Conv2d(16, 16, 1))
    theirs = nn.Sequential(layer, nn.ReLU(), layer).to(device).double()
    mine = Chain(*copy.deepcopy(theirs)).float()
    x = numbers(2, 16, 3, 3, device=device)
    for _ in range(2):
        close([mine(x.float())], [theirs(x)])


LAYERS = st.lists(
    st.tuples(
        st.booleans(),  # transposed
        st.integers(1, 20),
        st.integers(1, 4),
        st.integers(1, 3),
        st.booleans(),  # bias
        st.none() | st.sampled_from([{}, {"eps": 0.8}, {"affine": False}, {"track_running_stats": False}]),
        st.sampled_from([nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, None]),
    ),
    min_size=1,
    max_size=3,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10)
@given(layers=LAYERS, groups=st.integers(1, 2), side=st.integers(3, 6), training=st.booleans())
def test_any_chain(device: str, layers: list[tuple], groups: int, side: int, training: bool) -> None:
    members: list[nn.Module] = []
    width, size = 5, side
    for transposed, channels, kernel, stride, bias, norm, activation in layers:
        padding = min(1, kernel - 1)
        out = (size - 1) * stride - 2 * padding + kernel if transposed else (size + 2 * padding - kernel) // stride + 1
        if not 1 <= out <= 14:
            continue
        kind = nn.ConvTranspose2d if transposed else nn.Conv2d
        members.append(kind(width, channels, kernel, stride, padding, bias=bias))
        width, size = channels, out
        members += [nn.BatchNorm2d(channels, **norm)] if norm is not None else []
        members += [activation()] if activation is not None else []
    exact, mine = twins(members, device)
    plain = copy.deepcopy(exact).float()
    x = numbers(groups * 4, 5, side, side, device=device)
    results = []
    for network, input in ((exact, x), (plain, x.float()), (mine, x.float())):
        network.train(training)
        y = network(input, groups) if network is mine else in_groups(network, input, groups)
        results.append((y, *network.buffers()))
    scale = max(1e-3, *(float(t.detach().abs().max()) for t in results[0]))
    theirs = [float((a.double() - b.double()).detach().abs().max()) for a, b in zip(*results[1::-1], strict=True)]
    close(results[2], results[0], max(1e-4, 4 * max(theirs) / scale))
