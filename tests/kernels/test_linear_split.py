"""Programs of the linear kernels that share a tile: the parts of a sum, their tickets, and any order of arrival."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.benchmarks.gate import Poisoned, check
from fastgan.ops.activation import activate, times_derivative

pytest.importorskip("triton")
from fastgan.kernels.linear import fwd_launch, linear_fwd
from fastgan.kernels.linear_bwd_input import linear_bwd_input
from fastgan.kernels.linear_bwd_weight import linear_bwd_weight
from fastgan.kernels.norm import Correction, Norm, NormGradients, Statistics
from fastgan.kernels.tile import Config, Target

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = {"cpu": [torch.float32, torch.float16], "cuda": [torch.float32, torch.float16, torch.bfloat16]}
on_devices = pytest.mark.parametrize("device", DEVICES)
Order = Callable[[int, int], int]
SIDE = {"cpu": 16, "cuda": 32}  # of the tiles here, and their depth


def three_products(numbers: Any, depth: int, dtype: torch.dtype, device: str) -> dict[str, list[Tensor]]:
    """Operands of the three launches, each with a reduction of that depth."""

    def operands(seed: int, *sizes: tuple[int, ...]) -> list[Tensor]:
        return [numbers(seed + i, *size, dtype=dtype, device=device) for i, size in enumerate(sizes)]

    return {
        "forward": operands(1, (20, depth), (12, depth), (12,)),
        "input": operands(5, (20, depth), (20, depth), (depth, 12)),
        "weight": operands(9, (depth, 20), (depth, 20), (depth, 12)),
    }


def by_kernels(launch: str, operands: list[Tensor]) -> list[Tensor]:
    if launch == "forward":
        return [linear_fwd(*operands, "leaky_relu", 0.2)[0]]
    if launch == "input":
        return [linear_bwd_input(*operands, "leaky_relu", 0.2)]
    gw, gb = linear_bwd_weight(*operands, "leaky_relu", 0.2, True)
    assert gb is not None
    return [gw, gb]


def by_torch(launch: str, operands: list[Tensor]) -> list[Tensor]:
    if launch == "forward":
        return [activate(F.linear(*operands), "leaky_relu", 0.2)]
    gy, saved, other = operands
    g = times_derivative(gy, saved, "leaky_relu", 0.2)
    return [g @ other] if launch == "input" else [g.t() @ other, g.sum(0)]


@on_devices
@pytest.mark.parametrize("split", [2, 4, 8])
def test_any_depth_shared_by_some(
    device: str, split: int, numbers: Any, set_tile: Callable[..., None], shared_tickets: Callable[[str], Tensor]
) -> None:
    """One launch after another, of other shapes, with the same tickets; also where most parts have nothing to do."""
    buffer, side = shared_tickets(device), SIDE[device]
    dtypes = DTYPES["cuda"] if device == "cuda" else [torch.float16 if split == 4 else torch.float32]
    set_tile(side, side, side, split)
    for depth in (0, 1, (split - 1) * side, split * side, split * side + 1, 2 * split * side - 9):
        for dtype in dtypes:
            for launch, operands in three_products(numbers, depth, dtype, device).items():
                with Poisoned():
                    got = by_kernels(launch, operands)
                exact = by_torch(launch, [operand.double() for operand in operands])
                assert check(got, by_torch(launch, operands), exact).why is None, (launch, depth, dtype)
                assert not buffer.any(), (launch, depth, dtype)


def everything(device: str, numbers: Any) -> dict[str, Tensor]:
    """What the three launches write with all that they can do beside the product, two groups of rows each."""

    def vectors(seed: int, *size: int) -> Tensor:
        return numbers(seed, *size, device=device)

    x, w, y, gy = vectors(1, 40, 35), vectors(2, 20, 35), vectors(3, 40, 20), vectors(4, 40, 20)
    norm = Norm(vectors(5, 2, 35), vectors(6, 2, 35).square(), vectors(7, 35), vectors(8, 35), 0.8, "relu", 0.0)
    to = Statistics(vectors(9, 2, 20), vectors(9, 2, 20), vectors(9, 20), vectors(9, 20), None, 0.1)
    gradients = NormGradients(vectors(9, 2, 35), vectors(9, 2, 35), vectors(9, 35), vectors(9, 35))
    correction = Correction(vectors(10, 2, 20), vectors(11, 2, 20), vectors(12, 2, 20))
    written: dict[str, Any] = {**to._asdict(), **{"to " + name: part for name, part in gradients._asdict().items()}}
    written["y"], _ = linear_fwd(x, w, None, "none", 0.0, norm=norm, statistics=to)
    more: dict[str, Any] = {"correction": correction, "norm": norm}
    written["gx"] = linear_bwd_input(gy, y, w, "none", 0.0, **more, raw=x, to=gradients)
    written["gw"], written["gb"] = linear_bwd_weight(gy, y, x, "none", 0.0, True, **more)
    return {name: part for name, part in written.items() if isinstance(part, Tensor)}


ORDERS: dict[str, Order] = {
    "backwards": lambda i, count: count - 1 - i,
    "rotated": lambda i, count: (i + count // 3) % count,
    "shuffled": lambda i, count: int(torch.randperm(count, generator=torch.Generator().manual_seed(count))[i]),
}


@pytest.mark.interpret
@pytest.mark.parametrize("order, split", [("backwards", 1), *((order, 3) for order in ORDERS)])
def test_the_same_bits_whoever_comes_last(
    order: str, split: int, numbers: Any, set_tile: Callable[..., None], renumber: Callable[[Order], None]
) -> None:
    set_tile(16, 16, 16, split)
    expected = everything("cpu", numbers)
    renumber(ORDERS[order])
    for name, part in everything("cpu", numbers).items():
        assert torch.equal(part, expected[name]), name


@on_devices
@pytest.mark.parametrize("split", [1, 3])
def test_the_same_bits_every_time(device: str, split: int, numbers: Any, set_tile: Callable[..., None]) -> None:
    set_tile(SIDE[device], SIDE[device], SIDE[device], split)
    expected = everything(device, numbers)
    for _ in range(200 if device == "cuda" else 1):
        for name, part in everything(device, numbers).items():
            assert torch.equal(part, expected[name]), name


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES["cuda"])
@pytest.mark.parametrize("depth", [4096, 5000])
def test_larger_depths(dtype: torch.dtype, depth: int, numbers: Any, set_tile: Callable[..., None]) -> None:
    set_tile(32, 32, 32, 8)
    for launch, operands in three_products(numbers, depth, dtype, "cuda").items():
        with Poisoned():
            got = by_kernels(launch, operands)
        exact = by_torch(launch, [operand.double() for operand in operands])
        assert check(got, by_torch(launch, operands), exact).why is None, launch


@pytest.mark.interpret
def test_parts_beyond_2_31_elements(
    numbers: Any, sparse: Callable[[torch.dtype], Tensor], renumber: Callable[[Order], None]
) -> None:
    """The two programs of the last of 2^22 tiles, whose parts stand beyond 2^31: int32 offsets would wrap around."""
    x, w, y, tile = numbers(1, 5, 20), numbers(2, 16, 20), torch.empty(5, 16), Config(16, 16, 16, 1, 255, 1, split=2)
    launch = fwd_launch(x, w, None, y, None, "none", 0.0, Target(80, "ieee"), config=tile)
    last, room = 2**22 + 3, sparse(torch.float32)
    work = room[2**31 :]
    moved = {
        "N": 16 * (last + 1),
        "w_n": 0,
        "y": room,
        "work": work,
        "ticket": torch.zeros(last + 1, dtype=torch.int32),
    }
    renumber(lambda i, count: 2 * last + i)
    dataclasses.replace(launch, arguments={**launch.arguments, **moved}, programs=2).run()
    got = room.as_strided((5, 16), (16 * (last + 1), 1), 16 * last)
    expected = F.linear(x, w[:1]).expand(5, 16)
    assert check(got, expected, F.linear(x.double(), w[:1].double()).expand(5, 16)).why is None
    assert work[2**31 :][3 * 512 : 4 * 512].view(2, 16, 16)[:, :5].all()
