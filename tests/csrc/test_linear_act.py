"""csrc/linear_act.cu on the CPU, against fp64 by the gate's rule: sizes, layouts, activations, orders, addresses."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.benchmarks.gate import check
from fastgan.ops.activation import activate, times_derivative

PHI = {"none": 0.0, "relu": 0.0, "leaky_relu": 0.2, "tanh": 0.0, "sigmoid": 0.0}
NAMES = list(PHI)
SIZES = [
    (1, 1, 1),
    (5, 24, 40),
    (33, 40, 70),
    (64, 64, 288),
    (3, 129, 31),
    (100, 8, 16),
    (0, 8, 8),
    (8, 8, 0),
    (40, 72, 136),
]
LAYOUTS = ("rows", "columns", "steps", "expanded", "shifted")


@pytest.fixture(scope="module")
def kernels(cuda_host: ModuleType) -> Iterator[Any]:
    kernels = cuda_host.build("linear_act.cu")
    yield kernels
    kernels.close()


def operand(rows: int, cols: int, layout: str, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = {"rows": (rows, cols), "columns": (cols, rows), "steps": (2 * rows, 3 * cols), "expanded": (1, 1)}
    if layout == "shifted":  # not on 16 bytes
        return torch.randn(rows * cols + 1, generator=generator).to(dtype)[1:].view(rows, cols)
    values = torch.randn(size[layout], generator=generator).to(dtype)
    views = {"columns": lambda v: v.t(), "steps": lambda v: v[::2, ::3], "expanded": lambda v: v.expand(rows, cols)}
    return views.get(layout, lambda v: v)(values)


def nan(*size: int, dtype: torch.dtype) -> Tensor:
    return torch.full(size, float("nan"), dtype=dtype)


def forward(kernels: Any, x: Tensor, w: Tensor, bias: Tensor | None, activation: str, seed: int = 0) -> Tensor:
    (M, K), N, half = x.shape, w.shape[0], int(x.dtype == torch.float16)
    y = nan(M, N, dtype=x.dtype)
    how = NAMES.index(activation), float(PHI[activation]), None
    code = kernels.call(
        "fastgan_linear_act_forward", half, x, *x.stride(), w, *w.stride(), bias, y, M, N, K, *how, seed=seed
    )
    assert code == 0
    return y


def backward(
    kernels: Any, gy: Tensor, saved: Tensor | None, x: Tensor | None, w: Tensor | None, activation: str,
    wide: tuple[torch.dtype, torch.dtype], bias: bool = True, seed: int = 0,
) -> list[Tensor | None]:  # fmt: skip
    (M, N), half, dtype = gy.shape, int(gy.dtype == torch.float16), gy.dtype
    K = next(t for t in (x, w) if t is not None).shape[1]
    gx = None if w is None else nan(M, K, dtype=dtype)
    gw, gb = (None, None) if x is None else (nan(N, K, dtype=wide[0]), nan(N, dtype=wide[1]) if bias else None)
    places = gx, gw, int(wide[0] == torch.float32), gb, int(wide[1] == torch.float32)
    operands = gy, *gy.stride(), saved, x, *(x.stride() if x is not None else (0, 0))
    operands += w, *(w.stride() if w is not None else (0, 0))
    how = NAMES.index(activation), float(PHI[activation]), None
    assert kernels.call("fastgan_linear_act_backward", half, *operands, *places, M, N, K, *how, seed=seed) == 0
    return [gx, gw, gb]


def plain(
    x: Tensor, w: Tensor, bias: Tensor | None, gy: Tensor, saved: Tensor | None, activation: str, wide: Any
) -> Any:
    y = activate(F.linear(x, w, bias), activation, PHI[activation])
    g = times_derivative(gy, saved, activation, PHI[activation])
    gw, gb = (g.to(wide[0]).t() @ x.to(wide[0])), g.to(wide[1]).sum(0)
    return [y, g @ w, gw, gb]


def judge(kernels: Any, case: int, dtype: torch.dtype) -> str | None:
    """One of many cases, drawn by its number: what is wrong with it."""
    pick = torch.Generator().manual_seed(case)
    draw = lambda n: int(torch.randint(n, (), generator=pick))  # noqa: E731
    M, N, K = SIZES[case % len(SIZES)]
    layouts = [LAYOUTS[0] if draw(2) else LAYOUTS[draw(len(LAYOUTS))] for _ in range(3)]
    activation, bias, seed = NAMES[case % len(NAMES)], bool(draw(4)), case % 4
    x, w, gy = (
        operand(*size, layout, dtype, case + at)
        for at, (size, layout) in enumerate(zip([(M, K), (N, K), (M, N)], layouts, strict=True))
    )
    b = operand(1, N, "rows", dtype, case + 3)[0] if bias else None
    wide = [(dtype, torch.float32)[draw(2)] for _ in range(2)]
    y = forward(kernels, x, w, b, activation, seed)
    saved = None if activation == "none" else y
    got = [y, *backward(kernels, gy, saved, x, w, activation, (wide[0], wide[1]), seed=seed)]
    double = [None if t is None else t.double() for t in (x, w, b, gy, saved)]
    exact = plain(*double, activation, (torch.float64, torch.float64))  # type: ignore[arg-type]
    alike = layouts[1] == layouts[2] == "expanded"  # then a channel's error is one rounding of gy act'(y), repeated
    ulp = torch.finfo(dtype).eps if alike else None
    return check(got, plain(x, w, b, gy, saved, activation, wide), exact, ulp).why


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_against_fp64(kernels: Any, dtype: torch.dtype, full: bool) -> None:
    wrong = {case: judge(kernels, case, dtype) for case in range(450 if full else 18)}
    assert {case: why for case, why in wrong.items() if why} == {}


def test_the_order_of_threads_and_blocks_changes_no_bit(kernels: Any) -> None:
    x, w, gy = (operand(*size, "rows", torch.bfloat16, at) for at, size in enumerate([(40, 320), (72, 320), (40, 72)]))
    results = []
    for seed in range(5):
        y = forward(kernels, x, w, None, "tanh", seed)
        wide = torch.float32, torch.bfloat16
        results.append([y, *backward(kernels, gy, y, x, w, "tanh", wide, seed=seed)])
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_only_what_is_asked_for(kernels: Any) -> None:
    x, w, gy = (operand(*size, "rows", torch.bfloat16, at) for at, size in enumerate([(9, 24), (16, 24), (9, 16)]))
    y = forward(kernels, x, w, None, "relu")
    both = backward(kernels, gy, y, x, w, "relu", (torch.bfloat16, torch.bfloat16))
    only_x = backward(kernels, gy, y, None, w, "relu", (torch.bfloat16, torch.bfloat16))
    only_w = backward(kernels, gy, y, x, None, "relu", (torch.bfloat16, torch.bfloat16), bias=False)
    assert torch.equal(only_x[0], both[0]) and only_x[1:] == [None, None]
    assert torch.equal(only_w[1], both[1]) and only_w[0] is None and only_w[2] is None


def test_nan_and_overflow_pass_through(kernels: Any) -> None:
    x, w = torch.full((2, 8), 300.0).half(), torch.full((8, 8), 300.0).half()
    assert forward(kernels, x, w, None, "none").isinf().all()
    x[1, 3] = float("nan")
    for activation in NAMES:
        y = forward(kernels, x, w, None, activation)
        assert y[1].isnan().all() and not y[0].isnan().any()
