"""The optimisers' kernels by themselves: numbers, sizes, addresses, blocks, what is left alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")
import triton
import triton.language as tl

from fastgan.kernels import optimizer_norm, optimizer_step
from fastgan.kernels.optimizer_form import Form, Rule
from fastgan.kernels.optimizer_rules import lerp, one_minus_power
from fastgan.kernels.optimizer_step import BLOCK
from fastgan.ops.optimizer_step import bits_of
from fastgan.ops.optimizer_table import Entry, Table

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = {"cpu": [torch.float32, torch.float16], "cuda": [torch.float32, torch.float16, torch.bfloat16]}
on_devices = pytest.mark.parametrize("device", DEVICES)
Numbers = Callable[..., Tensor]
LR, DECAY, MOMENTUM = 0.5, 0.25, 0.75


@triton.jit
def powers_kernel(betas, steps, out, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    beta = tl.load(betas + at)
    rest = (1 - beta).to(tl.float32)
    tl.store(out + at, one_minus_power(beta.to(tl.float32), rest, tl.load(steps + at)))


@triton.jit
def lerp_kernel(start, end, weight, out, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    tl.store(out + at, lerp(tl.load(start + at), tl.load(end + at), tl.load(weight + at)))


@on_devices
def test_bias_corrections_are_those_of_fp64(device: str) -> None:
    """Near 1 and far from it, at the first step and at the ten millionth."""
    betas = [0.0, 1e-3, 0.1, 0.45, 0.5, 0.55, 0.9, 0.95, 0.99, 0.999, 0.9995, 0.9999, 0.99999, 0.999999]
    cases = [(beta, step) for beta in betas for step in (1, 2, 3, 10, 100, 693, 1000, 10**4, 10**5, 10**7)]
    cases += [(0.5, 1)] * (256 - len(cases))
    beta, step = (torch.tensor(column, dtype=torch.float64) for column in zip(*cases, strict=True))
    out = torch.full((256,), float("nan"), device=device)
    powers_kernel[(1,)](beta.to(device), step.float().to(device), out, COUNT=256)
    exact = torch.tensor([-math.expm1(s * math.log(b)) if b else 1.0 for b, s in cases], dtype=torch.float64)
    assert float(((out.cpu().double() - exact) / exact).abs().max()) < 7e-7


@on_devices
def test_lerp_is_torchs(device: str, numbers: Numbers) -> None:
    start, end = numbers(0, 256).to(device) * 1e4, numbers(1, 256).to(device)
    weight = torch.linspace(0, 1, 256, device=device)
    out = torch.full_like(start, float("nan"))
    lerp_kernel[(1,)](start, end, weight, out, COUNT=256)
    torch.testing.assert_close(out, torch.lerp(start, end, weight), rtol=1e-6, atol=1e-3)
    assert torch.equal(out[-1], end[-1])


def momentum_step(
    values: list[Tensor], gradients: list[Tensor | None], form: Form, **more: Any
) -> tuple[list[Entry], Table, Tensor]:
    """Make one step of SGD with momentum in place; return what it was made of."""
    device = values[0].device
    entries = [
        Entry(
            value,
            (torch.full_like(value, 2.0), None, None),
            torch.ones((), device=device),
            torch.full_like(value, 3.0, dtype=torch.float32) if form.average else None,
            torch.full_like(value, float("nan"), dtype=form.shadow) if form.shadow else None,
            0,
        )
        for value in values
    ]
    table, counters = Table(entries), torch.zeros(2, dtype=torch.int64, device=device)
    numbers = (LR, 0.0, 0.0, 0.0, 0.0, MOMENTUM, 0.0, 1.0, DECAY, 0.0, 0.0)
    bits, _ = bits_of([numbers], device)
    moving = table.moving([0 if g is None else g.data_ptr() for g in gradients], bits)
    optimizer_step.optimizer_step(table.table, table.blocks, moving, counters, form, rounds=table.rounds, **more)
    return entries, table, counters


def check(entries: list[Entry], before: list[Tensor], gradients: list[Tensor | None], dtype: torch.dtype) -> None:
    """Everything that a step writes, in fp64."""
    eps = 2 * torch.finfo(dtype).eps
    for entry, value, gradient in zip(entries, before, gradients, strict=True):
        moved = gradient is not None
        momentum = 2.0 * MOMENTUM + gradient.double() if moved else torch.full_like(value, 2.0).double()
        after = value.double() - LR * momentum if moved else value.double()
        assert entry.states[0] is not None and entry.step is not None
        torch.testing.assert_close(entry.states[0].double(), momentum, rtol=eps, atol=eps)
        torch.testing.assert_close(entry.param.double(), after, rtol=eps, atol=4 * eps)
        assert float(entry.step) == 1 + moved
        if entry.average is not None:
            expected = 3 * DECAY + (1 - DECAY) * entry.param.double()
            torch.testing.assert_close(entry.average.double(), expected, rtol=1e-6, atol=1e-6)
        if entry.shadow is not None:
            assert torch.equal(entry.shadow, entry.param.to(entry.shadow.dtype))


@on_devices
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12)
@given(data=st.data())
def test_any_sizes_and_addresses(device: str, numbers: Numbers, data: st.DataObject) -> None:
    """Nothing between the tensors is written: each lies in a larger one, at any address."""
    dtype = data.draw(st.sampled_from(DTYPES[device]))
    size = st.integers(0, 40) | st.sampled_from((BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 8))
    sizes = data.draw(st.lists(size, min_size=1, max_size=5))
    wide, values, gradients = [], [], []
    for at, count in enumerate(sizes):
        offset = data.draw(st.sampled_from((0, 8, 1, 3)))
        wide.append(numbers(at, count + 16, dtype=dtype, device=device))
        values.append(wide[-1][offset : offset + count])
        gradient = numbers(at + 50, count + 16, dtype=dtype, device=device)[8 - offset : 8 - offset + count]
        gradients.append(gradient if data.draw(st.booleans()) and count else None)
    untouched, before = [value.clone() for value in wide], [value.clone() for value in values]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastgan.ops.optimizer_table.PROGRAMS", data.draw(st.sampled_from((1, 8192))))
        form = Form(Rule("sgd", momentum=True), dtype, True, torch.float16)
        entries, _, counters = momentum_step(values, gradients, form)
    check(entries, before, gradients, dtype)
    assert counters.tolist() == [0, 1]
    for value, former, now in zip(values, untouched, wide, strict=True):
        begin = value.storage_offset()
        assert torch.equal(now[:begin], former[:begin])
        assert torch.equal(now[begin + len(value) :], former[begin + len(value) :])


@on_devices
def test_order_of_arrival_does_not_matter(
    device: str, numbers: Numbers, renumber: Callable[[Callable[[int, int], int]], None]
) -> None:
    """Steps are counted once, by whoever comes last, and norms have the same bits."""
    if device == "cpu":
        renumber(lambda i, n: n - 1 - i)
    gradients: list[Tensor | None] = [numbers(at, 3000, device=device) for at in (0, 1)]
    values = [numbers(at, 3000, device=device) for at in (2, 3)]
    before = [value.clone() for value in values]
    entries, table, counters = momentum_step(values, gradients, Form(Rule("sgd", momentum=True), torch.float32))
    check(entries, before, gradients, torch.float32)
    assert counters.tolist() == [0, 0]
    bits, _ = bits_of([[1.0] * 11], table.device)
    moving = table.moving([g.data_ptr() for g in gradients if g is not None], bits)
    verdicts = [
        optimizer_norm.optimizer_norm(table.table, table.blocks, moving, torch.float32, rounds=1, most=1.0)
        for _ in range(2)
    ]
    exact = torch.cat([g.double() for g in gradients if g is not None]).norm()
    torch.testing.assert_close(verdicts[0][1][0].double(), exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(verdicts[0][0].double(), torch.stack([1 / exact, 0 * exact]), rtol=1e-6, atol=0)
    assert all(torch.equal(*pair) for pair in zip(*verdicts, strict=True))


@on_devices
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 3 * BLOCK, 3 * BLOCK + 4])
def test_a_verdict_finds_what_is_not_finite(device: str, bad: float, at: int, numbers: Numbers) -> None:
    """In a whole block, in the tail, in a tensor without alignment; but not squares that overflow."""
    gradient = numbers(0, 3 * BLOCK + 5, device=device)
    gradient[1] = 1e30
    table = Table([Entry(torch.zeros_like(gradient), (None, None, None), None, None, None, 0)])
    bits, _ = bits_of([[1.0] * 11], table.device)

    def verdict(given: Tensor, **how: Any) -> list[float]:
        moving = table.moving([given.data_ptr()], bits)
        pair, _ = optimizer_norm.optimizer_norm(table.table, table.blocks, moving, torch.float32, rounds=1, **how)
        return pair.tolist()

    assert verdict(gradient, guards=True, most=1.0) == [0.0, 0.0]
    gradient[at] = bad
    shifted = torch.zeros(len(gradient) + 1, device=device)[1:].copy_(gradient)
    assert verdict(gradient, guards=True)[1] == verdict(shifted, guards=True)[1] == 1.0
    assert verdict(gradient, guards=False)[1] == 0.0


@pytest.mark.interpret
def test_addresses_pass_2_to_31_elements(sparse: Callable[[torch.dtype], Tensor]) -> None:
    """The last block of a parameter of more elements than an int32 counts."""
    count = 2**31 + 3 * BLOCK
    file = sparse(torch.float16)
    value, gradient, momentum = file[:count], file[count : 2 * count], file[2 * count : 3 * count]
    for tensor, number in ((value, 1.0), (gradient, 2.0), (momentum, 4.0)):
        tensor[-5:] = number
    step = torch.ones(())
    table = Table([Entry(value, (momentum, None, None), step, None, None, 0)])
    bits, _ = bits_of([(LR, 0.0, 0.0, 0.0, 0.0, MOMENTUM, 0.0, 1.0, 0.0, 0.0, 0.0)], table.device)
    moving = table.moving([gradient.data_ptr()], bits)
    last = table.blocks[-1:].clone()
    turns = -(-(count - int(last[0, 1]) * table.rounds * BLOCK) // BLOCK)
    last[0, 1], rounds = int(last[0, 1]) * table.rounds + turns - 1, 1  # the last block alone
    form = Form(Rule("sgd", momentum=True), torch.float16)
    optimizer_step.optimizer_step(table.table, last, moving, torch.zeros(2, dtype=torch.int64), form, rounds=rounds)
    assert torch.equal(value[-6:], torch.tensor([0.0] + [1 - LR * 5] * 5).half())
    pair, norm = optimizer_norm.optimizer_norm(table.table, last, moving, torch.float16, rounds=rounds, guards=True)
    assert float(norm) == pytest.approx(20**0.5) and pair.tolist() == [1.0, 0.0]
    gradient[-1] = float("nan")
    pair, _ = optimizer_norm.optimizer_norm(table.table, last, moving, torch.float16, rounds=rounds, guards=True)
    assert pair.tolist() == [1.0, 1.0]


def test_variants_differ() -> None:
    for module in (optimizer_step, optimizer_norm):
        forms = [repr((v.signature, v.constexprs, v.divisible)) for v in module.variants(90)]
        assert len(set(forms)) == len(forms)
