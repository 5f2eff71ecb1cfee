"""Layers in a row with norms between them: gradients by hand equal autograd's, and far addresses of what they share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.benchmarks.gate import Poisoned, check

pytest.importorskip("triton")
from fastgan.kernels.linear import fwd_launch, linear_fwd
from fastgan.kernels.linear_bwd_input import Below, bwd_input_launch, linear_bwd_input
from fastgan.kernels.linear_bwd_weight import linear_bwd_weight
from fastgan.kernels.norm import Correction, Norm, NormGradients, Statistics
from fastgan.kernels.tile import Config, Target

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
on_devices = pytest.mark.parametrize("device", DEVICES)
EPS = 0.8
NAMES = ("x", "w1", "w2", "w3", "b3", "gamma1", "beta1", "gamma2", "beta2", "b1", "b2")


def parameters(device: str, numbers: Any) -> dict[str, Tensor]:
    """Of Linear-BatchNorm-LeakyReLU-Linear-BatchNorm-ReLU-Linear-Tanh, its input and the gradient of its output."""
    C0, C1, C2, C3, M = 19, 37, 34, 18, 84
    sizes = {
        "x": (M, C0), "gy": (M, C3), "w1": (C1, C0), "w2": (C2, C1), "w3": (C3, C2), "b1": (C1,), "b2": (C2,),
        "b3": (C3,), "gamma1": (C1,), "beta1": (C1,), "gamma2": (C2,), "beta2": (C2,),
    }  # fmt: skip
    return {name: numbers(seed, *size, device=device) for seed, (name, size) in enumerate(sizes.items())}


def by_torch(p: dict[str, Tensor], groups: int) -> list[Tensor]:
    """The output and the gradients, in the order of NAMES, by autograd."""
    p = {name: tensor.clone().requires_grad_() for name, tensor in p.items()}

    def norm(y: Tensor, layer: str) -> Tensor:
        gamma, beta = p["gamma" + layer], p["beta" + layer]
        return torch.cat([F.batch_norm(part, None, None, gamma, beta, True, 0.1, EPS) for part in y.chunk(groups)])

    u = F.leaky_relu(norm(F.linear(p["x"], p["w1"], p["b1"]), "1"), 0.2)
    u = torch.relu(norm(F.linear(u, p["w2"], p["b2"]), "2"))
    y = torch.tanh(F.linear(u, p["w3"], p["b3"]))
    return [y.detach(), *torch.autograd.grad(y, [p[name] for name in NAMES], p["gy"])]


def by_kernels(p: dict[str, Tensor], groups: int) -> list[Tensor]:
    """The same by three launches forward and six backward."""

    def statistics(w: Tensor) -> Statistics:
        return Statistics(w.new_empty(groups, len(w)), w.new_empty(groups, len(w)), None, None, None, 0.0)

    def gradients(norm: Norm) -> NormGradients:
        return NormGradients(*(torch.empty_like(part) for part in (norm.mean, norm.mean, norm.gamma, norm.beta)))

    of1, of2 = statistics(p["w1"]), statistics(p["w2"])
    y1, _ = linear_fwd(p["x"], p["w1"], p["b1"], "none", 0.0, statistics=of1)
    norm1 = Norm(of1.mean, of1.var, p["gamma1"], p["beta1"], EPS, "leaky_relu", 0.2)
    y2, _ = linear_fwd(y1, p["w2"], p["b2"], "none", 0.0, norm=norm1, statistics=of2)
    norm2 = Norm(of2.mean, of2.var, p["gamma2"], p["beta2"], EPS, "relu", 0.0)
    y3, _ = linear_fwd(y2, p["w3"], p["b3"], "tanh", 0.0, norm=norm2)

    to2, to1 = gradients(norm2), gradients(norm1)
    g2 = linear_bwd_input(p["gy"], y3, p["w3"], "tanh", 0.0, norm=norm2, raw=y2, to=to2)
    gw3, gb3 = linear_bwd_weight(p["gy"], y3, y2, "tanh", 0.0, True, norm=norm2)
    at2 = Correction(of2.mean, *to2[:2])  # type: ignore[arg-type]
    g1 = linear_bwd_input(g2, y2, p["w2"], "none", 0.0, correction=at2, norm=norm1, raw=y1, to=to1)
    gw2, gb2 = linear_bwd_weight(g2, y2, y1, "none", 0.0, True, correction=at2, norm=norm1)
    at1 = Correction(of1.mean, *to1[:2])  # type: ignore[arg-type]
    gx = linear_bwd_input(g1, y1, p["w1"], "none", 0.0, correction=at1)
    gw1, gb1 = linear_bwd_weight(g1, y1, p["x"], "none", 0.0, True, correction=at1)
    return [y3, gx, gw1, gw2, gw3, gb3, to1.gamma, to1.beta, to2.gamma, to2.beta, gb1, gb2]  # type: ignore[list-item]


@on_devices
@pytest.mark.parametrize("groups, split", [(1, 1), (2, 2)])
def test_the_chain_rule_as_a_whole(device: str, groups: int, split: int, numbers: Any, set_tile: Any) -> None:
    set_tile(32, 32, 32, split)
    p = parameters(device, numbers)
    with Poisoned():
        got = by_kernels(p, groups)
    plain, exact = by_torch(p, groups), by_torch({name: tensor.double() for name, tensor in p.items()}, groups)
    for name, *parts in zip(("y", *NAMES), got, plain, exact, strict=True):
        if name in ("b1", "b2"):  # a bias in front of a norm moves nothing: what is left is rounding
            assert parts[0].abs().max() < 1e-4 * exact[1 + NAMES.index("beta" + name[1])].abs().max()
        else:
            assert check(*parts).why is None, name


TILE = Config(16, 16, 16, 1, 255, 1)
IEEE = Target(80, "ieee")
WIDE = 2**28  # columns, of which the first tile is computed: 10 rows of them are more than 2^31 elements


def place(room: Tensor, number: int, rows: int) -> tuple[Tensor, Tensor]:
    """Room for a far [rows, WIDE], and its first 16 columns. It begins 2^31 on: what wraps around falls in the room."""
    start = room[2**31 + 64 * number :]
    return start, start.as_strided((rows, 16), (WIDE, 1), start.storage_offset())


@pytest.mark.interpret
def test_statistics_beyond_2_31_elements(numbers: Any, sparse: Callable[[torch.dtype], Tensor]) -> None:
    """Five groups of two rows: the outputs, and the parts of their statistics, stand in a file with holes."""
    x, w, room = numbers(1, 10, 20), numbers(2, 16, 20), sparse(torch.float32)
    to = Statistics(*torch.empty(2, 5, 16), None, None, None, 0.0)
    launch = fwd_launch(x, w, None, torch.empty(10, 16), None, "none", 0.0, IEEE, statistics=to, config=TILE)
    (y, y_near), (mean, mean_near), (var, var_near) = place(room, 1, 10), place(room, 2, 5), place(room, 3, 5)
    moved = {"N": WIDE, "y": y, "mean": mean, "var": var, "parts": place(room, 4, 10)[0], "ticket": sparse(torch.int32)}
    dataclasses.replace(launch, arguments={**launch.arguments, **moved}).run()
    assert check(y_near, F.linear(x, w), F.linear(x.double(), w.double())).why is None
    by_group = y_near.double().view(5, 2, 16)
    exact = [by_group.mean(1), by_group.var(1, unbiased=False)]
    assert check([mean_near, var_near], [part.float() for part in exact], exact).why is None


@pytest.mark.interpret
@pytest.mark.parametrize("normed", [False, True])
def test_the_layer_below_beyond_2_31_elements(
    normed: bool, numbers: Any, sparse: Callable[[torch.dtype], Tensor]
) -> None:
    gy, w, below, room = numbers(1, 10, 20), numbers(2, 20, 16), numbers(3, 10, 16), sparse(torch.float32)
    to = NormGradients(*numbers(6, 2, 5, 16), None, None)
    how: dict[str, Any] = {"below": Below(below, "tanh", 0.0)}
    if normed:
        norm = Norm(numbers(4, 5, 16), numbers(5, 5, 16).square(), None, None, EPS, "tanh", 0.0)
        how = {"norm": norm, "raw": below, "to": to}
    correction = Correction(*numbers(7, 3, 5, 20))  # for five groups where there is no norm
    expected = torch.empty(10, 16)
    launch = bwd_input_launch(gy, gy, w, expected, "none", 0.0, IEEE, correction=correction, **how, config=TILE)
    launch.run()
    (gx, gx_near), (saved, saved_near) = place(room, 1, 10), place(room, 2, 10)
    (lift, lift_near), (tilt, tilt_near) = place(room, 3, 5), place(room, 4, 5)
    saved_near.copy_(below)
    moved: dict[str, Any] = {"K": WIDE, "gx": gx, "below": saved}
    if normed:
        moved |= {"in_lift": lift, "in_tilt": tilt, "parts": place(room, 5, 10)[0], "ticket": sparse(torch.int32)}
    dataclasses.replace(launch, arguments={**launch.arguments, **moved}).run()
    assert torch.equal(gx_near, expected)
    if normed:
        assert torch.equal(lift_near, to.lift) and torch.equal(tilt_near, to.tilt)  # type: ignore[arg-type]
