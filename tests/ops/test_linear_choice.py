"""Who makes a product and where its operand is normalised: the answers, and that every way gives the same results."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import fastgan
from fastgan.nn import Chain
from fastgan.ops import concat_linear_act, concat_linear_compute, linear_act, linear_choice, linear_compute

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
WAYS = {
    "ours, normalised in the load": (lambda op: False, True),
    "ours, normalised before": (lambda op: False, False),
    "library": (lambda op: True, True),
    "library for input gradients": (lambda op: "input" in op, True),
    "library for weight gradients": (lambda op: "weight" in op, True),
}


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    with fastgan.backend("triton"):
        yield request.param


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    library, in_load = WAYS[request.param]
    for module in (linear_compute, concat_linear_compute):
        monkeypatch.setattr(module, "by_library", lambda op, *rest, **more: library(op))
    monkeypatch.setattr(linear_compute, "in_load", lambda *rest: in_load)
    return str(request.param)


def network() -> list[nn.Module]:
    return [
        *(nn.Linear(10, 16), nn.LeakyReLU(0.2), nn.Linear(16, 24), nn.BatchNorm1d(24, 0.8), nn.LeakyReLU(0.2)),
        *(
            nn.Linear(24, 20),
            nn.BatchNorm1d(20),
            nn.ReLU(),
            nn.Linear(20, 12),
            nn.Sigmoid(),
            nn.Linear(12, 9),
            nn.Tanh(),
        ),
    ]


@pytest.mark.parametrize("rows", [None, 8])
def test_a_chain_is_the_same_every_way(
    device: str, way: str, rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where statistics and sums are left to passes of their own, as for batches of very many rows."""
    if rows is not None:
        monkeypatch.setattr(linear_compute, "MOST_ROWS", rows)
    torch.manual_seed(0)
    theirs = nn.Sequential(*network()).to(device).double()
    mine = Chain(*network()).to(device)
    mine.load_state_dict(theirs.state_dict())
    x = torch.randn(12, 10, device=device)
    xs = x.double().requires_grad_(), x.clone().requires_grad_()
    ys = torch.cat([theirs(part) for part in xs[0].chunk(2)]), mine(xs[1], groups=2)
    torch.testing.assert_close(ys[1].double(), ys[0], rtol=1e-4, atol=1e-5)
    wanted = torch.autograd.grad((ys[0] * ys[0]).sum(), [xs[0], *theirs.parameters()])
    results = torch.autograd.grad((ys[1] * ys[1]).sum(), [xs[1], *mine.parameters()])
    scale = max(float(t.abs().max()) for t in wanted)
    for got, expected in zip(results, wanted, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=2e-5 * scale)
    torch.testing.assert_close([b.double() for b in mine.buffers()], [b.double() for b in theirs.buffers()])


@pytest.mark.parametrize("activation, slope", [("leaky_relu", 0.2), ("leaky_relu", -0.3), ("tanh", 0.0), ("none", 0.0)])
def test_a_layer_is_the_same_every_way(device: str, way: str, activation: str, slope: float) -> None:
    torch.manual_seed(0)
    values = [torch.randn(size, device=device) for size in ((3, 4, 10), (7, 10), (7,))]

    def results(operands: list[Tensor]) -> list[Tensor]:
        y = linear_act(*operands, activation=activation, negative_slope=slope)
        parts = y[0], y[1:]
        joined = concat_linear_act(
            (operands[0][..., :6], operands[0][..., 6:]), *operands[1:], activation=activation, negative_slope=slope
        )
        loss = parts[0].square().sum() + parts[1].sum() + joined.square().sum()
        return [y, joined, *torch.autograd.grad(loss, operands)]

    got = results([v.clone().requires_grad_() for v in values])
    with fastgan.backend("reference"):
        wanted = results([v.double().requires_grad_() for v in values])
    torch.testing.assert_close([t.double() for t in got], wanted, rtol=1e-4, atol=1e-4)


def test_only_ours_where_our_kernels_were_asked_for() -> None:
    x = torch.empty(65536, 4096, device="meta", dtype=torch.bfloat16)
    with fastgan.backend("triton"):
        assert not linear_choice.by_library("linear_fwd", 65536, 4096, 4096, x)
    assert not linear_choice.by_library("linear_fwd", 0, 4096, 4096, x)


def test_questions_are_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And for each dtype, size, precision and room by itself."""
    asked: list[object] = []
    tile = pytest.importorskip("fastgan.kernels.tile")
    monkeypatch.setattr(tile, "prefers_library", lambda problem: asked.append(problem) or len(asked) % 2 == 1)
    linear_choice.forget()
    x = torch.empty(64, 32, device="meta")
    for _ in range(3):
        assert linear_choice.by_library("linear_fwd", 64, 48, 32, x)
        assert not linear_choice.by_library("linear_fwd", 64, 48, 32, x, room=32)
        assert linear_choice.by_library("linear_fwd", 64, 48, 32, x.half())
        assert not linear_choice.by_library("linear_fwd", 64, 48, 32, x, masked=True)
    assert len(asked) == 4
    linear_choice.forget()
