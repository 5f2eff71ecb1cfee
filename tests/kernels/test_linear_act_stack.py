"""The linear kernels over stacks: every tile against fp64, members that know nothing of each other, odd sizes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastgan.benchmarks.gate import Poisoned, check
from fastgan.ops.activation import ACTIVATIONS, activate, times_derivative

pytest.importorskip("triton")
from fastgan.kernels import linear_act_stack as kernels
from fastgan.kernels.linear import fwd_launch, fwd_problem
from fastgan.kernels.linear_bwd_input import bwd_input_launch, bwd_input_problem
from fastgan.kernels.linear_bwd_weight import bwd_weight_launch, bwd_weight_problem
from fastgan.kernels.tile import Config, Problem, Target, candidates

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = {"cpu": [torch.float32, torch.float16], "cuda": [torch.float32, torch.float16, torch.bfloat16]}
on_devices = pytest.mark.parametrize("device", DEVICES)
Case = tuple[Tensor, Tensor, Tensor | None, Tensor, str, float]  # x, w, bias, gy, activation, slope


def make(
    device: str, dtype: torch.dtype, sizes: tuple[int, int, int, int], activation: str, slope: float, bias: bool = True,
    strided: bool = False,
) -> Case:  # fmt: skip
    E, B, N, K = sizes
    random = torch.Generator().manual_seed(sum(sizes))

    def numbers(*size: int) -> Tensor:
        return torch.randn(size, generator=random).to(dtype).to(device)

    x, w = (numbers(B, E, K).transpose(0, 1), numbers(K, N, E).permute(2, 1, 0)) if strided else (None, None)
    x, w = numbers(E, B, K) if x is None else x, numbers(E, N, K) if w is None else w
    return x, w, numbers(E, N) if bias else None, numbers(E, B, N), activation, slope


def plain(case: Case, saved: Tensor | None) -> list[Tensor]:
    """Forward and the three gradients in the operands' own dtype, by torch."""
    x, w, bias, gy, *how = case
    pre = torch.bmm(x, w.transpose(1, 2)) if bias is None else torch.baddbmm(bias[:, None], x, w.transpose(1, 2))
    g = times_derivative(gy, saved, *how)
    return [activate(pre, *how), torch.bmm(g, w), torch.bmm(g.transpose(1, 2), x), g.sum(1)]


def double(case: Case) -> Any:
    return tuple(part.double() if isinstance(part, Tensor) else part for part in case)


def by_kernels(case: Case) -> tuple[list[Tensor], Tensor | None]:
    x, w, bias, gy, activation, slope = case
    y, pre = kernels.linear_act_stack_fwd(x, w, bias, activation, slope, slope < 0)
    saved = None if activation == "none" else y if pre is None else pre
    gx = kernels.linear_act_stack_bwd_input(gy, saved, w, activation, slope)
    gw, gb = kernels.linear_act_stack_bwd_weight(gy, saved, x, activation, slope, True)
    assert gb is not None
    return [y, gx, gw, gb], saved


def judge(case: Case) -> str | None:
    """Say what is wrong with the kernels' results, by the fp64 rule on NaN-poisoned outputs; None if nothing is."""
    with Poisoned():
        got, saved = by_kernels(case)
    return check(got, plain(case, saved), plain(double(case), None if saved is None else saved.double())).why


@on_devices
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_as_good_as_torch_against_fp64(device: str, data: st.DataObject) -> None:
    sizes = data.draw(st.tuples(st.integers(1, 4), *[st.integers(1, 40) | st.sampled_from((16, 32))] * 3))
    activation = data.draw(st.sampled_from(ACTIVATIONS))
    slope = data.draw(st.sampled_from([0.2, 0.0, -0.3])) if activation == "leaky_relu" else 0.0
    how = data.draw(st.sampled_from(DTYPES[device])), sizes, activation, slope
    assert judge(make(device, *how, bias=data.draw(st.booleans()), strided=data.draw(st.booleans()))) is None


@on_devices
@pytest.mark.filterwarnings("error:divide by zero")  # the interpreter gets 0 where a GPU gets anything
@pytest.mark.parametrize("sizes", [size for size in itertools.product((0, 3), repeat=4) if size.count(0) in (1, 2)])
def test_sizes_of_zero(device: str, sizes: tuple[int, int, int, int]) -> None:
    assert judge(make(device, torch.float32, sizes, "sigmoid", 0.0)) is None


@on_devices
@pytest.mark.parametrize("precision, dtype", [("tf32", torch.float16), ("ieee", torch.float32)])
def test_every_tile(device: str, precision: str, dtype: torch.dtype) -> None:
    """Each tile that a GPU's dispatcher may choose, the small ones shared by several programs: members share none."""
    case = make(device, dtype, (3, 37, 20, 24), "leaky_relu", 0.2)
    x, w, bias, gy, *how = case
    (y, *_), _ = by_kernels(case)
    base, exact = plain(case, y), plain(double(case), y.double())
    target = Target(90 if device == "cpu" else Target.of(x).arch, precision)
    rows, g, saved = (t.reshape(-1, t.shape[2]) for t in (x, gy, y))
    for tile in tiles(fwd_problem(rows, w, target)):
        out = torch.full_like(saved, float("nan"))
        fwd_launch(rows, w, bias, out, None, *how, target, config=tile).run()
        assert check(out.view_as(y), base[0], exact[0]).why is None, tile
    for tile in tiles(bwd_input_problem(g, saved, w, target)):
        gx = torch.full_like(rows, float("nan"))
        bwd_input_launch(g, saved, w, gx, *how, target, config=tile).run()
        assert check(gx.view_as(x), base[1], exact[1]).why is None, tile
    for tile in tiles(bwd_weight_problem(g, saved, rows, target, members=3)):
        gw, gb = torch.full_like(w, float("nan")), torch.full((3, 20), float("nan"), dtype=dtype, device=device)
        bwd_weight_launch(g, saved, rows, gw, gb, *how, target, config=tile).run()
        assert check([gw, gb], base[2:], exact[2:]).why is None, tile


def tiles(problem: Problem) -> list[Config]:
    return [tile for tile in candidates(problem) if tile.split == 1 or tile.rows <= 64]


@on_devices
def test_nothing_of_a_member_reaches_another(device: str) -> None:
    """A member full of NaN leaves the others' bits as they are."""
    case = make(device, torch.float32, (3, 21, 18, 20), "tanh", 0.0)
    sound, _ = by_kernels(case)
    for tensor in case[:4]:
        assert isinstance(tensor, Tensor)
        tensor[1] = float("nan")
    broken, _ = by_kernels(case)
    for before, after in zip(sound, broken, strict=True):
        assert torch.equal(before[::2], after[::2])
        assert after[1].isnan().all()


@on_devices
def test_a_wrong_member_is_caught(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule has teeth: a product with the next member's weight fails it."""
    case = make(device, torch.float32, (3, 21, 18, 20), "relu", 0.0)
    assert judge(case) is None
    right = kernels.linear_act_stack_bwd_input
    monkeypatch.setattr(kernels, "linear_act_stack_bwd_input", lambda g, s, w, *how: right(g, s, w.roll(1, 0), *how))
    assert judge(case) is not None
