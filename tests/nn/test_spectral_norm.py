"""Spectral norm on our layers: torch's own, capturable, once for each pass, and the same through the kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode

import fastgan
from fastgan.nn import Chain, Conv2dAct, ConvTranspose2dAct, LinearAct
from fastgan.nn.spectral_norm import spectral_norm

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy interprets what wraps
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: LinearAct(6, 5),
    "conv": lambda: Conv2dAct(2, 4, 3),
    "transposed conv": lambda: ConvTranspose2dAct(2, 4, 3),
}
PLAIN: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 5),
    "conv": lambda: nn.Conv2d(2, 4, 3),
    "transposed conv": lambda: nn.ConvTranspose2d(2, 4, 3),
}
DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
every = pytest.mark.parametrize("kind", LAYERS)


class Operations(TorchDispatchMode):
    """Lists operations, and notes on which devices their tensors are."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.devices: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names.append(func.overloadpacket.__name__)
        leaves = torch.utils._pytree.tree_leaves((args, kwargs, result))
        self.devices |= {leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)}
        return result


@every
def test_torchs_own_parameters_and_values(kind: str) -> None:
    layer, twin = spectral_norm(LAYERS[kind]()), parametrizations.spectral_norm(PLAIN[kind]())
    assert isinstance(layer, type(LAYERS[kind]()))
    layer.load_state_dict(twin.state_dict())  # the same keys
    for _ in range(20):
        torch.testing.assert_close(layer.weight, twin.weight)
    rows = layer.weight.detach().transpose(0, 1) if kind == "transposed conv" else layer.weight.detach()
    assert torch.linalg.matrix_norm(rows.flatten(1), 2).item() == pytest.approx(1, rel=0.05)


@every
@pytest.mark.parametrize("steps", [1, 3])
def test_nothing_is_read_back(kind: str, steps: int) -> None:
    """So a CUDA graph can hold it: tensors on the meta device have no values that anyone could read."""
    layer = spectral_norm(LAYERS[kind]().to("meta"), n_power_iterations=steps)
    before = [(buffer, buffer._version) for buffer in layer.buffers()]
    sample = torch.empty(2, 6, device="meta") if kind == "linear" else torch.empty(2, 2, 8, 8, device="meta")
    with Operations() as seen:
        layer(sample).sum().backward()
    assert seen.devices == {"meta"}
    for (buffer, version), after in zip(before, layer.buffers(), strict=True):
        assert after is buffer and buffer._version > version  # moved in place, where a graph finds it again


@every
def test_what_a_pass_costs(kind: str) -> None:
    """The launches that the module's file counts."""
    layer = spectral_norm(LAYERS[kind]())
    views = ("view", "expand", "transpose", "permute", "_unsafe_view")
    with Operations() as seen:
        _ = layer.weight
    launches = [name for name in seen.names if name not in views]
    assert len(launches) == 13 + (kind == "transposed conv")
    assert launches.count("mv") + launches.count("vdot") == 4


@pytest.mark.parametrize("device", DEVICES)
def test_through_the_kernels(device: str) -> None:
    """A chain forms each weight once for each pass, real and fake samples together, and the results are torch's."""
    torch.manual_seed(0)
    members = [spectral_norm(nn.Linear(6, 8)), nn.LeakyReLU(0.2), spectral_norm(nn.Linear(8, 1))]
    plain = nn.Sequential(*members).to(device)
    mine = Chain(*copy.deepcopy(members)).to(device)
    vectors = [list(network.buffers()) for network in (plain, mine)]
    real, fake = (torch.randn(5, 6, device=device) for _ in range(2))
    for _ in range(3):
        want = plain(torch.cat([real, fake]))
        with fastgan.backend("triton"):
            got = torch.cat(mine.fold(real, fake))
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(*vectors)  # as many power iterations
        slopes = (torch.autograd.grad(y.square().sum(), list(n.parameters())) for y, n in ((got, mine), (want, plain)))
        torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
def test_a_graph_replays_the_power_iteration() -> None:
    layer = spectral_norm(LinearAct(64, 32)).cuda()
    x = torch.randn(16, 64, device="cuda")
    with torch.cuda.stream(torch.cuda.Stream()):
        layer(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = layer(x)
    eager = copy.deepcopy(layer)
    for _ in range(3):
        graph.replay()
        torch.testing.assert_close(captured, eager(x))
