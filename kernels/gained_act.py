"""StyleGAN's bias, activation, gain and clamp in one launch, and its first and second derivatives in one launch each.

    y    [A, C, B] = clamp(gain phi(x [A, C, B] + bias [C]), -c, c)
    gx   [A, C, B] = gy h,           h the derivative of y, as a function of what was saved
    bent [A, C, B] = gy v h',        h' the derivative of h by what was saved: of gx's gradient v

| name     | phi(u)                                | saved       | h / gain, of t = saved / gain | h', of the same   |
|----------|---------------------------------------|-------------|-------------------------------|-------------------|
| linear   | u                                     | y, clamped  | 1                             | 0                 |
| relu     | max(u, 0)                             | y           | t > 0                         | 0                 |
| lrelu    | u > 0 ? u : alpha u                   | y           | t > 0 ? 1 : alpha             | 0                 |
| tanh     | tanh(u)                               | y           | 1 - t^2                       | -2 t              |
| sigmoid  | 1 / (1 + e^-u)                        | y           | t (1 - t)                     | 1 - 2 t           |
| elu      | u > 0 ? u : e^u - 1                   | y           | t > 0 ? 1 : 1 + t             | t > 0 ? 0 : 1     |
| selu     | 1.0507 (u > 0 ? u : 1.6733 (e^u - 1)) | y           | t > 0 ? 1.0507 : t + 1.7581   | t > 0 ? 0 : 1     |
| softplus | log(1 + e^u)                          | y           | 1 - e^-t                      | e^-t              |
| swish    | u s, s = 1 / (1 + e^-u)               | x and bias  | s (1 + u (1 - s))             | see ``_bent``     |

Where |y| as it was stored reaches the clamp, which is rounded to y's dtype, h and h' are 0. NaN in gives NaN out.

Contract: bf16, fp16 or fp32, one dtype but for bias, which has its own; operands [A, C, B] by any strides; results are
dense, contiguous or with their channels innermost; formed in fp32 and rounded once. Any size may be 0; gain is not 0.
Addresses are int64.

Bytes, for items of s bytes and E elements: forward s E read and s E written; first derivative 2 s E read (s E of a
linear one without clamp), second 3 s E. Accesses are of 16 bytes where 16 divides rows and strides.

Registers a thread, the most of the variants on sm_80, 86, 89, 90, 100 and 120 (Triton 3.7.1): 128, where they are
capped; nothing spilled.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgan.kernels.activation import tanh
from fastgan.kernels.launch import Launch, submit
from fastgan.kernels.tile import Config
from fastgan.kernels.variant import Variant

REGISTERS = 128  # the cap: two blocks of 256 threads on an SM at the least
ELEMENTS = 2048  # of a tile
MOST_COLUMNS = 1024


@triton.jit
def _grown(u):
    """e^u - 1 where u <= 0, without cancellation near 0; 0 elsewhere."""
    u = tl.where(u > 0, 0.0, u)
    series = u * (1.0 + u * (0.5 + u * (1.0 / 6 + u * (1.0 / 24 + u * (1.0 / 120)))))
    return tl.where(u > -0.1, series, tl.exp(u) - 1.0)


@triton.jit
def _sigmoid(u):
    return 1.0 / (1.0 + tl.exp(-u))


@triton.jit
def _activated(u, alpha, ACT: tl.constexpr):
    """phi(u) in fp32."""
    if ACT == "relu":
        u = tl.where(u < 0, 0.0, u)
    elif ACT == "lrelu":
        u = tl.where(u > 0, u, u * alpha)
    elif ACT == "tanh":
        u = tanh(u)
    elif ACT == "sigmoid":
        u = _sigmoid(u)
    elif ACT == "elu":
        u = tl.where(u > 0, u, _grown(u))
    elif ACT == "selu":
        u = 1.0507009873554805 * tl.where(u > 0, u, 1.6732632423543772 * _grown(u))
    elif ACT == "softplus":
        small = tl.exp(-tl.abs(u))  # from 0 to 1
        series = small * (1.0 - small * (0.5 - small * (1.0 / 3)))  # log(1 + small) where 1 + small would round it
        u = tl.where(u < 0, 0.0, u) + tl.where(small < 1e-3, series, tl.log(1.0 + small))
    elif ACT == "swish":
        u = u * _sigmoid(u)
    return u


@triton.jit
def _sloped(saved, alpha, gain, ACT: tl.constexpr):
    """h, of the saved y or, of swish, of the saved x + bias."""
    t = saved / gain
    if ACT == "relu":
        h = tl.where(t > 0, gain, 0.0)
    elif ACT == "lrelu":
        h = tl.where(t > 0, gain, gain * alpha)
    elif ACT == "tanh":
        h = gain * (1.0 - t * t)
    elif ACT == "sigmoid":
        h = gain * (t * (1.0 - t))
    elif ACT == "elu":
        h = tl.where(t > 0, gain, gain * (1.0 + t))
    elif ACT == "selu":
        h = tl.where(t > 0, gain * 1.0507009873554805, gain * (t + 1.7580993408473766))
    elif ACT == "softplus":
        h = -gain * _grown(-t)
    else:  # swish
        s = _sigmoid(saved)
        h = gain * (s * (1.0 + saved * (1.0 - s)))
    return h


@triton.jit
def _bent(saved, gain, ACT: tl.constexpr):
    """h', of the saved y or, of swish, of the saved x + bias; of smooth activations alone."""
    t = saved / gain
    if ACT == "tanh":
        h = -2.0 * t
    elif ACT == "sigmoid":
        h = 1.0 - 2.0 * t
    elif ACT == "softplus":
        h = tl.exp(-t)
    elif ACT == "swish":
        s = _sigmoid(saved)
        h = gain * (s * (1.0 - s) * (2.0 + saved * (1.0 - 2.0 * s)))
    else:  # elu, selu
        h = tl.where(t > 0, 0.0, 1.0)
    return h


@triton.jit(do_not_specialize=["M"])
def gained_act_kernel(
    x, gy, v, bias, out, M, N, D, x_o, x_i, x_n, gy_o, gy_i, gy_n, v_o, v_i, v_n, alpha, gain, clamp,
    ACT: tl.constexpr, ORDER: tl.constexpr, CLAMPED: tl.constexpr, LAST: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """One [BM, BN] tile of y (ORDER 0, of x), gx (1, of gy and what was saved) or bent (2, of v as well).

    Row m is m // D along the outer and m % D along the inner rows' dimension; channels are columns (LAST) or inner
    rows. ``x`` is what was saved in orders 1 and 2, None where nothing was.
    """
    tiles = tl.cdiv(N, BN)
    m = (tl.program_id(0) // tiles).to(tl.int64) * BM + tl.arange(0, BM)  # [BM]
    n = (tl.program_id(0) % tiles).to(tl.int64) * BN + tl.arange(0, BN)  # [BN]
    inside = (m[:, None] < M) & (n[None, :] < N)
    outer, inner = m // D, m % D
    if x is not None:
        at = (outer * x_o + inner * x_i)[:, None] + (n * x_n)[None, :]
        u = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        if bias is not None:
            if LAST:
                u += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
            else:
                u += tl.load(bias + inner, mask=m < M, other=0.0).to(tl.float32)[:, None]
    if ORDER == 0:
        value = _activated(u, alpha, ACT) * gain
        if CLAMPED:
            value = tl.where(value > clamp, clamp, tl.where(value < -clamp, -clamp, value))
    else:
        at = (outer * gy_o + inner * gy_i)[:, None] + (n * gy_n)[None, :]
        value = tl.load(gy + at, mask=inside, other=0.0).to(tl.float32)
        if ORDER == 2:
            at = (outer * v_o + inner * v_i)[:, None] + (n * v_n)[None, :]
            value *= tl.load(v + at, mask=inside, other=0.0).to(tl.float32) * _bent(u, gain, ACT)
        elif ACT == "linear":
            value *= gain
        else:
            value *= _sloped(u, alpha, gain, ACT)
        if CLAMPED:
            y = u
            if ACT == "swish":
                y = (_activated(u, alpha, ACT) * gain).to(out.dtype.element_ty).to(tl.float32)
            value = tl.where(tl.abs(y) < clamp, value, 0.0)
    tl.store(out + m[:, None] * N + n[None, :], value.to(out.dtype.element_ty), mask=inside)


def act_launch(
    x: Tensor | None, gy: Tensor | None, v: Tensor | None, bias: Tensor | None, out: Tensor, act: str,
    alpha: float, gain: float, clamp: float, order: int, last: bool,
) -> Launch:  # fmt: skip
    """Prepare y, gx or bent [A, C, B]; a negative ``clamp``: none."""
    given = next(tensor for tensor in (x, gy) if tensor is not None)
    A, C, B = given.shape
    inner, N = (B, C) if last else (C, B)  # rows are (outer, inner), columns lie side by side in ``out``
    steps = [_steps(tensor, last) for tensor in (x, gy, v)]
    joined = (last or bias is None) and all(step[0] == inner * step[1] for step in steps)
    if joined:  # rows follow each other by one step: no division
        steps, divisor = [(step[1], 0, step[2]) for step in steps], 1
    else:
        divisor = inner
    tile = choose(N)
    if clamp >= 0:
        clamp = torch.tensor(clamp, dtype=given.dtype, device="cpu").item()
    arguments: dict[str, object] = {"x": x, "gy": gy, "v": v, "bias": bias, "out": out}
    arguments |= {"M": A * inner, "N": N, "D": divisor, "alpha": alpha, "gain": gain, "clamp": clamp}
    for name, step in zip(("x", "gy", "v"), steps, strict=True):
        arguments |= dict(zip((f"{name}_o", f"{name}_i", f"{name}_n"), step, strict=True))
    constexprs = {"ACT": act, "ORDER": order, "CLAMPED": clamp >= 0, "LAST": last, "BM": tile.rows, "BN": tile.cols}
    return Launch(gained_act_kernel, arguments, constexprs, tile.programs(A * inner, N), tile)


def _steps(tensor: Tensor | None, last: bool) -> tuple[int, int, int]:
    """Return the strides of outer rows, inner rows and columns."""
    if tensor is None:
        return 0, 0, 0
    a, c, b = tensor.stride()
    return (a, b, c) if last else (a, c, b)


def choose(N: int) -> Config:
    """Take a tile as wide as a row, within limits."""
    cols = min(MOST_COLUMNS, max(16, triton.next_power_of_2(N)))
    return Config(ELEMENTS // cols, cols, 1, 8, REGISTERS, stages=1)


def room(like: Tensor, last: bool) -> Tensor:
    """Return [A, C, B] of any content: contiguous, or with the channels innermost."""
    A, C, B = like.shape
    return like.new_empty((A, B, C)).transpose(1, 2) if last else like.new_empty((A, C, B))


def gained_act(
    x: Tensor, bias: Tensor | None, act: str, alpha: float, gain: float, clamp: float, last: bool,
    out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return y [A, C, B] = clamp(gain phi(x + bias)).

    Args:
        x: [A, C, B] by any strides.
        bias: [C], contiguous, of any of the dtypes; None: none.
        act: a name of the table above.
        alpha: lrelu's slope; the others have none.
        gain: not 0.
        clamp: the largest |y|; negative: none.
        last: whether the result's channels lie innermost.
        out: where it goes, dense and in that layout; None: new memory. The other two likewise.
    """
    y = room(x, last) if out is None else out
    if x.numel():
        submit(act_launch, (x, None, None, bias), (y,), act, alpha, gain, clamp, 0, last)
    return y


def gained_act_slope(
    gy: Tensor, saved: Tensor | None, bias: Tensor | None, act: str, alpha: float, gain: float, clamp: float,
    last: bool, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return gx = gy h: ``saved`` is y, or x (with its bias) of swish, or None of a linear one without clamp."""
    gx = room(gy, last) if out is None else out
    if gy.numel():
        submit(_slope_launch, (gy, saved, bias), (gx,), act, alpha, gain, clamp, last)
    return gx


def gained_act_bend(
    gy: Tensor, v: Tensor, saved: Tensor, bias: Tensor | None, act: str, alpha: float, gain: float, clamp: float,
    last: bool, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return gy v h', the gradient of what was saved where v is that of gx, of a smooth activation."""
    bent = room(gy, last) if out is None else out
    if gy.numel():
        submit(act_launch, (saved, gy, v, bias), (bent,), act, alpha, gain, clamp, 2, last)
    return bent


def _slope_launch(
    gy: Tensor, saved: Tensor | None, bias: Tensor | None, gx: Tensor, act: str, alpha: float, gain: float,
    clamp: float, last: bool,
) -> Launch:  # fmt: skip
    return act_launch(saved, gy, None, bias, gx, act, alpha, gain, clamp, 1, last)


ACTS = ("linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus", "swish")
SMOOTH = ACTS[3:]
_SHAPES = (  # A, C, B, and whether channels lie innermost
    (16, 64, 4096, False),
    (16, 64, 4096, True),
    (16, 512, 16, False),
    (16, 512, 1, True),
    (4, 5, 49, False),
    (4, 5, 49, True),
)


def variants(arch: int) -> Iterator[Variant]:
    """Yield compiled forms, each once; the same on every architecture.

    Every activation and order in the usual layout, and every layout with three of them: one does not change the other.
    """
    seen = set()
    for dtype, case in product((torch.bfloat16, torch.float32, torch.float16), _cases()):
        if dtype == torch.float16 and case[0] not in ("lrelu", "swish"):  # it differs from bf16 by its casts
            continue
        variant = _variant(dtype, *case)
        form = repr((variant.signature, variant.constexprs, variant.divisible))
        if form not in seen:
            seen.add(form)
            yield variant


def _cases() -> Iterator[tuple[Any, ...]]:
    """Yield act, order, clamped, biased, then A, C, B, last and whether operands are cut out of larger ones."""
    for act, order in [*product(ACTS, (0, 1)), *product(SMOOTH, (2,))]:
        yield act, order, True, order == 0 or act == "swish", *_SHAPES[0], False
    yield "linear", 1, False, False, *_SHAPES[0], False
    for shape, stepped in product(_SHAPES, (False, True)):
        if not stepped or shape[:3] == _SHAPES[0][:3]:
            yield "lrelu", 0, False, True, *shape, stepped
            yield "lrelu", 1, False, False, *shape, stepped
            yield "swish", 2, True, True, *shape, stepped


def _variant(
    dtype: torch.dtype, act: str, order: int, clamped: bool, biased: bool, A: int, C: int, B: int, last: bool,
    stepped: bool,
) -> Variant:  # fmt: skip
    """Describe one form; ``stepped``: operands are cut out of larger ones."""
    strides = (B * C, 1, C) if last else (B * C, B, 1)
    if stepped:
        strides = tuple(3 * step for step in strides)  # type: ignore[assignment]

    def operand() -> Tensor:
        return torch.empty_strided((A, C, B), strides, dtype=dtype, device="meta")

    saved = operand() if order != 1 or act != "linear" or clamped else None
    bias = torch.empty(C, dtype=dtype, device="meta") if biased else None
    out = torch.empty(A, C, B, dtype=dtype, device="meta")
    gy, v = operand() if order else None, operand() if order == 2 else None
    launch = act_launch(saved, gy, v, bias, out, act, 0.2, 1.5, 256.0 if clamped else -1.0, order, last)
    flags = (("clamp", clamped), ("bias", biased), ("last", last), ("steps", stepped))
    traits = " ".join(flag for flag, there in flags if there)
    name = str(dtype).removeprefix("torch.")
    return launch.variant("gained_act", f"{name} {act} order {order} {A}x{C}x{B} {traits}".strip(), 0)
