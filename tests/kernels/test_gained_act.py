"""The kernel of bias, activation, gain and clamp by itself: values and both derivatives against fp64."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastgan.benchmarks.gate import Poisoned, check
from fastgan.ops.gained_act import ACTIVATIONS
from fastgan.ops.gained_act_formulas import SMOOTH, Form, activated, bent, sloped

pytest.importorskip("triton")
from fastgan.kernels import gained_act as kernels

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy interprets what wraps
DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = {"cpu": [torch.float32, torch.float16], "cuda": [torch.float32, torch.float16, torch.bfloat16]}
LAYOUTS = ("dense", "last", "steps", "expanded")
on_devices = pytest.mark.parametrize("device", DEVICES)
Numbers = Callable[..., Tensor]


def laid(values: Tensor, layout: str) -> Tensor:
    """[A, C, B] in one of the layouts; what lies between is NaN."""
    A, C, B = values.shape
    if layout == "last":
        return values.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "steps":
        return values.new_full((A, 2 * C, 3 * B), float("nan"))[:, 1::2, ::3].copy_(values)
    return values[:1, :1].expand(values.shape) if layout == "expanded" else values


def judge(x: Tensor, bias: Tensor | None, gy: Tensor, v: Tensor, form: Form, last: bool) -> str | None:
    """Say what is wrong with y, gx and, of smooth activations, the gradient of what is saved; None if nothing is.

    The right ones are autograd's in fp64, but for which of the values are clamped: that follows from the stored y.
    """
    how = form[1:]
    with Poisoned():
        y = kernels.gained_act(x, bias, *how, last)
        keeps = form.keeps()
        saved = {"input": x, "output": y, "nothing": None}[keeps]
        kept = bias if keeps == "input" else None
        got = [y, kernels.gained_act_slope(gy, saved, kept, *how, last)]
        if form.act in SMOOTH:
            got.append(kernels.gained_act_bend(gy, v, saved, kept, *how, last))
    if any(result.stride(1) != 1 for result in got if last and x.shape[1] > 1):
        return "another layout"
    free = torch.ones_like(y) if form.clamp < 0 else (y.abs() < torch.tensor(form.clamp, dtype=y.dtype)).to(y.dtype)
    base = [activated(x, bias, form), sloped(gy, saved, kept, form._replace(clamp=-1.0)) * free]
    if form.act in SMOOTH:
        base.append(bent(gy, v, saved, kept, form._replace(clamp=-1.0)) * free)
    return check(got, base, by_autograd(x, bias, gy, v, form, free)).why


def by_autograd(x: Tensor, bias: Tensor | None, gy: Tensor, v: Tensor, form: Form, free: Tensor) -> list[Tensor]:
    with torch.enable_grad():
        u = x.double() + (0 if bias is None else bias.double()[None, :, None])
        u = u.detach().requires_grad_()
        y = activated(u, None, form._replace(clamp=-1.0))
        (h,) = torch.autograd.grad(y, u, torch.ones_like(y), create_graph=True)
        wanted = [y if form.clamp < 0 else y.clamp(-form.clamp, form.clamp), gy.double() * h * free.double()]
        if form.act in SMOOTH:
            (second,) = torch.autograd.grad(h, u, torch.ones_like(h))
            second = second if form.act == "swish" else second / h  # by u, or by y
            wanted.append(gy.double() * v.double() * second * free.double())
    return [part.detach() for part in wanted]


@on_devices
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_as_good_as_torch_against_fp64(device: str, numbers: Numbers, data: st.DataObject) -> None:
    A, C = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 40))
    B = data.draw(st.sampled_from((1, 2, 16, 49, 130)))
    dtype = data.draw(st.sampled_from(DTYPES[device]))
    x, gy, v = (
        laid(numbers(at, A, C, B, dtype=dtype, device=device), data.draw(st.sampled_from(LAYOUTS))) for at in range(3)
    )
    bias = numbers(3, C, dtype=data.draw(st.sampled_from((dtype, torch.float32))), device=device)
    act = data.draw(st.sampled_from(list(ACTIVATIONS)))
    clamp, gain = data.draw(st.sampled_from((-1.0, 0.0, 0.7, 256.0))), data.draw(st.sampled_from((1.0, 1.4, -0.6)))
    form = Form(1, act, 0.2, gain, clamp)
    assert judge(x, data.draw(st.sampled_from((bias, None))), gy, v, form, data.draw(st.booleans())) is None


@on_devices
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_every_activation_wide_and_narrow(device: str, numbers: Numbers, act: str) -> None:
    for scale, dtype, clamp in product((0.01, 1.0, 8.0), DTYPES[device], (-1.0, 1.5)):
        x, gy, v = (numbers(at, 3, 8, 40, device=device).to(dtype) for at in range(3))
        bias = numbers(4, 8, device=device).to(dtype) * scale
        assert judge(x * scale, bias, gy, v, Form(1, act, 0.2, 1.4, clamp), False) is None


@on_devices
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_what_is_not_finite_stays_so_where_torch_has_it(device: str, act: str) -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 100.0, -100.0, 0.0], device=device)
    for clamp in (-1.0, 2.0):
        form = Form(1, act, 0.2, 1.0, clamp)
        y = kernels.gained_act(x.view(1, 1, 8), None, *form[1:], False).flatten()
        torch.testing.assert_close(y, activated(x, None, form), equal_nan=True)


@on_devices
def test_sizes_of_zero(device: str) -> None:
    for size in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        x = torch.empty(size, device=device)
        assert kernels.gained_act(x, torch.ones(size[1], device=device), "lrelu", 0.2, 1.0, -1.0, False).shape == size
        assert kernels.gained_act_slope(x, x, None, "tanh", 0.2, 1.0, -1.0, True).shape == size
        assert kernels.gained_act_bend(x, x, x, None, "tanh", 0.2, 1.0, -1.0, False).shape == size


@on_devices
@pytest.mark.parametrize("planted", ["another slope", "another channel's bias", "clamped later", "another gain"])
def test_a_planted_error_is_caught(
    device: str, numbers: Numbers, planted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, gy, v, bias = (numbers(at, *size, device=device) for at, size in enumerate([(2, 5, 9)] * 3 + [(5,)]))
    form, right = Form(1, "lrelu", 0.2, 1.4, 0.9), kernels.gained_act
    assert judge(x, bias, gy, v, form, False) is None

    def wrong(x: Tensor, bias: Tensor, act: str, alpha: float, gain: float, clamp: float, last: bool) -> Tensor:
        if planted == "another slope":
            return right(x, bias, act, 0.21, gain, clamp, last)
        if planted == "another channel's bias":
            return right(x, bias.roll(1), act, alpha, gain, clamp, last)
        if planted == "another gain":
            return right(x, bias, act, alpha, 1.0, clamp, last)
        return right(x, bias, act, alpha, gain, 0.95, last)

    monkeypatch.setattr(kernels, "gained_act", wrong)
    assert judge(x, bias, gy, v, form, False) is not None


FAR = 2**30 + 64  # times 2


@pytest.mark.interpret
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_addresses_beyond_2_31_elements(sparse: Callable[..., Tensor], numbers: Numbers, dim: int) -> None:
    """Fails where an offset is formed in int32: it would wrap around, to elsewhere in the file with holes."""
    size = tuple(3 if at == dim else 4 for at in range(3))
    near = numbers(1, *size, dtype=torch.float16)
    strides = tuple(FAR if at == dim else step for at, step in enumerate((16, 4, 1)))
    far = sparse(torch.float16).as_strided(size, strides, 64).copy_(near)
    for last in (False, True):
        results = [kernels.gained_act(x, None, "lrelu", 0.2, 1.4, 1.0, last) for x in (far, near)]
        assert torch.equal(*results)
        results = [kernels.gained_act_bend(x, x, x, None, "tanh", 0.2, 1.4, -1.0, last) for x in (far, near)]
        assert torch.equal(*results)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES["cuda"])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_larger_sizes(numbers: Numbers, dtype: torch.dtype, act: str) -> None:
    for (A, C, B), last in product(((16, 512, 64), (8, 64, 16384), (4, 3, 65537), (512, 512, 1)), (False, True)):
        x, gy, v = (
            laid(numbers(at, A, C, B, dtype=dtype, device="cuda"), "last" if last else "dense") for at in range(3)
        )
        bias = numbers(3, C, dtype=dtype, device="cuda")
        assert judge(x, bias, gy, v, Form(1, act, 0.2, 1.4, 2.0), last) is None
