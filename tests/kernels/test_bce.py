"""Binary cross entropy by the kernels: values and slopes against fp64, sizes, strides, extremes, planted errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastgan.benchmarks.gate import Poisoned, check
from fastgan.ops import gan_loss_formulas as formulas

pytest.importorskip("triton")
from fastgan.kernels import bce as kernels

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy interprets what overflows
DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = {"cpu": [torch.float32, torch.float16], "cuda": [torch.float32, torch.float16, torch.bfloat16]}
REDUCTIONS = ("none", "mean", "sum")
on_devices = pytest.mark.parametrize("device", DEVICES)


@dataclass(frozen=True)
class Case:
    x: Tensor
    target: Tensor
    weight: Tensor | None = None
    pos_weight: Tensor | None = None
    logits: bool = True
    reduction: str = "mean"


def numbers(size: int, step: int, dtype: torch.dtype, device: str, seed: int, probabilities: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    many = max(size * step, 1)
    values = torch.rand(many, generator=generator) if probabilities else torch.randn(many, generator=generator) * 4
    values = values.to(dtype).to(device)
    return values[: size * step : step] if step else values[:1].expand(size)


def by_kernels(case: Case) -> list[Tensor]:
    slopes = torch.empty(case.x.shape, dtype=case.x.dtype, device=case.x.device)
    operands = case.x, case.target, case.weight, case.pos_weight
    loss = kernels.bce(*operands, slopes, logits=case.logits, reduction=case.reduction, dtype=case.x.dtype)
    return [loss, slopes]


def by_torch(case: Case, dtype: torch.dtype) -> list[Tensor]:
    x = case.x.detach().to(dtype).clone().requires_grad_()
    target, weight, pos_weight = (
        None if t is None else t.to(dtype) for t in (case.target, case.weight, case.pos_weight)
    )
    if case.logits:
        loss = F.binary_cross_entropy_with_logits(x, target, weight, reduction=case.reduction, pos_weight=pos_weight)
    else:
        loss = F.binary_cross_entropy(x, target, weight, reduction=case.reduction)
    return [loss.detach(), *torch.autograd.grad(loss.sum(), x)]


def judge(case: Case) -> str | None:
    """Say what is wrong by the fp64 rule on NaN-poisoned outputs; a sum of sums gets the scale of its terms."""
    with Poisoned():
        got = by_kernels(case)
    return check(got, by_torch(case, case.x.dtype), by_torch(case, torch.float64)).why


@on_devices
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(data=st.data())
def test_as_good_as_torch_against_fp64(device: str, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 300) | st.sampled_from((1024, 1025, 2500)))
    dtype, logits = data.draw(st.sampled_from(DTYPES[device])), data.draw(st.booleans())
    steps = [data.draw(st.sampled_from((1, 2, 0))) for _ in range(4)]
    x, target, weight, pos_weight = (
        numbers(size, step, dtype, device, seed, seed > 0 or not logits) for seed, step in enumerate(steps)
    )
    if not logits:
        x = x.clamp(0.01, 0.99) if dtype != torch.float32 else x
    reductions = ("none", "mean") if dtype == torch.float16 else REDUCTIONS  # a sum may leave fp16
    case = Case(x, target, logits=logits, reduction=data.draw(st.sampled_from(reductions)))
    case = replace(case, weight=weight) if data.draw(st.booleans()) else case
    case = replace(case, pos_weight=3 * pos_weight) if logits and data.draw(st.booleans()) else case
    assert judge(case) is None


@on_devices
@pytest.mark.parametrize("logits", [True, False])
def test_each_input_is_good_by_itself(device: str, logits: bool) -> None:
    """Not only the largest: relative errors of single values, tiny and extreme ones too."""
    if logits:
        x = torch.cat([torch.linspace(-80, 80, 65), torch.tensor([1e4, -1e4, 1e-30, 1e-40])])
    else:
        near = torch.tensor([0.0, 1e-40, 1e-30, 1e-12, 1e-6, 0.3, 0.5, 0.9])
        x = torch.cat([near, 1 - near[4:], torch.ones(1)])
    x = x.to(device).repeat(2)
    target = (torch.arange(x.numel(), device=device) < x.numel() // 2).float()
    case = Case(x, target, logits=logits, reduction="none")
    wanted = by_torch(case, torch.float32)
    if logits:  # torch subtracts large numbers from each other
        wide, softplus = x.double(), formulas.softplus
        loss = torch.where(target == 1, softplus(-wide), softplus(wide))
        slope = torch.where(target == 1, -torch.sigmoid(-wide), torch.sigmoid(wide))
        wanted = [loss.float(), slope.float()]
    torch.testing.assert_close(by_kernels(case), wanted, rtol=2e-6, atol=1e-37)


@on_devices
@pytest.mark.parametrize("logits", [True, False])
def test_nan_and_nothing(device: str, logits: bool) -> None:
    x, target = torch.rand(7, device=device), torch.rand(7, device=device)
    loss, slopes = by_kernels(Case(x.index_fill(0, torch.tensor(3, device=device), math.nan), target, logits=logits))
    assert loss.isnan() and slopes.isnan().tolist() == [at == 3 for at in range(7)]
    for reduction in REDUCTIONS:
        nothing = Case(x[:0], target[:0], logits=logits, reduction=reduction)
        torch.testing.assert_close(by_kernels(nothing), by_torch(nothing, torch.float32), equal_nan=True)
    torch.testing.assert_close(
        by_kernels(Case(x + 1.5, target, logits=False))[0].isnan(), torch.tensor(True).to(device)
    )


@on_devices
def test_many_programs_give_the_same_bits_twice(device: str) -> None:
    case = Case(numbers(5000, 1, torch.float32, device, 0), numbers(5000, 1, torch.float32, device, 1, True))
    assert judge(case) is None
    for first, second in zip(by_kernels(case), by_kernels(case), strict=True):
        assert torch.equal(first, second)


@on_devices
def test_nearly_2_31_inputs(device: str) -> None:
    """One of 2^21 programs: fails where the number of blocks is rounded up past int32."""
    x, loss = torch.zeros(1, device=device).expand(2**31 - 1), torch.empty((), device=device)
    launch = kernels.launch(x, x.detach(), None, None, loss, None, True, "mean")
    alone = {"part": None, "ticket": None, "programs": 2**21, "share": 1 / 1024}
    replace(launch, arguments={**launch.arguments, **alone}, programs=1).run()
    assert loss.item() == pytest.approx(math.log(2))


BUGS: dict[str, Callable[[dict[str, Any]], None]] = {
    "a sum for a mean": lambda told: told.update(share=1.0),
    "another target": lambda told: told.update(target=1 - told["target"]),
    "one too few": lambda told: told.update(N=told["N"] - 1),
    "a weight left out": lambda told: told.update(weight=None),
    "a pos_weight left out": lambda told: told.update(pos_weight=None),
    "the weights exchanged": lambda told: told.update(weight=told["pos_weight"], pos_weight=told["weight"]),
}


@on_devices
@pytest.mark.parametrize("bug", BUGS)
def test_a_wrong_launch_is_caught(device: str, bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, target, weight, pos_weight = (numbers(60, 1, torch.float32, device, seed, seed > 0) for seed in range(4))
    case = Case(x, target, weight, pos_weight)
    assert judge(case) is None
    right = kernels.launch

    def wrong(*operands: Any) -> Any:
        launch = right(*operands)
        arguments = dict(launch.arguments)
        BUGS[bug](arguments)
        return replace(launch, arguments=arguments)

    monkeypatch.setattr(kernels, "launch", wrong)
    assert judge(case) is not None
