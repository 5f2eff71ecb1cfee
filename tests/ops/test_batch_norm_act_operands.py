"""What batch_norm_act takes and refuses, saves and launches: layouts, odd operands, sizes of zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastgan
from fastgan.ops.activation import activate
from fastgan.ops.batch_norm_act import batch_norm_act

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {  # all of (N, C, ...)
    "rows": lambda t: t,
    "transposed rows": lambda t: t.t().contiguous().t(),
    "every other": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "wide": lambda t: t.repeat_interleave(2, 1)[:, ::2],
    "channels last": lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1),
    "wide channels last": lambda t: t.movedim(1, -1).repeat_interleave(2, 1)[:, ::2].movedim(-1, 1),
    "some of the channels": lambda t: torch.cat([t, t], 1).movedim(1, -1).contiguous().movedim(-1, 1)[:, : t.shape[1]],
    "batch innermost": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "expanded": lambda t: t[:1].expand(t.shape),
}


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device on which the kernels run, whatever ``auto`` would take there."""
    with fastgan.backend("triton"):
        yield request.param


def numbers(*size: int, device: str = "cpu", dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(size))
    return torch.randn(size, generator=generator, dtype=torch.float64).to(device, dtype)


def vectors(C: int, device: str, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """running_mean, running_var, weight, bias."""
    mean, var, weight, bias = (numbers(C, seed=seed, device=device, dtype=dtype) for seed in range(4))
    return [mean, var.abs() + 0.5, weight / 4 + 1, bias]


def images(*size: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return (2 * numbers(*size, device=device) + 3).to(dtype)


def plain(*operands: Any) -> Tensor:
    return activate(F.batch_norm(*operands), "leaky_relu", 0.2)


@pytest.mark.parametrize(
    "size, training",
    [
        *(((4, 3), True), ((4, 3), False), ((4, 3, 5), True), ((4, 3, 5, 2), True), ((4, 3, 5, 2), False)),
        *(((4, 3, 2, 5, 2), True), ((4, 3, 1, 1), True), ((4, 1, 5, 2), True)),
    ],
)
def test_layouts_are_torchs(device: str, size: tuple[int, ...], training: bool) -> None:
    """Of output and gradient, for any strides; as torch has them on the CPU, where it has but one implementation."""
    for name, view in LAYOUTS.items():
        if name == "transposed rows" and len(size) > 2:
            continue
        x = view(images(*size, device=device)).requires_grad_()
        operands = vectors(size[1], device, torch.float32)
        y = batch_norm_act(x, *operands, training)
        mix = numbers(*size, seed=9)
        (gx,) = torch.autograd.grad(y, x, mix.to(y))
        twin = view(images(*size, device="cpu")).requires_grad_()
        wanted = plain(twin, *vectors(size[1], "cpu", torch.float32), training)
        assert y.stride() == wanted.stride(), name
        torch.testing.assert_close(y.cpu(), wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gx.cpu(), *torch.autograd.grad(wanted, twin, mix.to(wanted)), rtol=1e-4, atol=1e-4)
        if min(size[1], size[-1]) > 1:
            assert gx.is_contiguous() == wanted.is_contiguous(), name


def test_channels_last_is_read_as_it_lies(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is copied: the kernels get a view of the input and of its gradient, and their outputs are returned."""
    from fastgan.kernels import batch_norm_act as kernels

    seen: list[Tensor] = []
    for name in ("batch_norm_stats", "batch_norm_act_fwd", "batch_norm_act_bwd", "batch_norm_correct"):
        run = getattr(kernels, name)

        def recorded(*arguments: Any, run: Callable[..., Any] = run) -> Any:
            result = run(*arguments)
            seen.extend(t for t in (*arguments, result) if isinstance(t, Tensor))
            return result

        monkeypatch.setattr(kernels, name, recorded)
    x = images(4, 3, 5, 2, device=device).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = batch_norm_act(x, None, None, training=True)
    gy = numbers(4, 5, 2, 3).to(y).movedim(-1, 1)
    (gx,) = torch.autograd.grad(y, x, gy)
    ours = {t.data_ptr() for t in (x, y, gy, gx)}
    assert ours <= {t.data_ptr() for t in seen} and len({t.data_ptr() for t in seen} - ours) <= 1  # s dv, on its way


def test_odd_gradients_and_vectors(device: str) -> None:
    """Expanded and strided gradients, strided and expanded vectors, one tensor as weight and as bias."""
    x = images(4, 6, 3, 2, device=device).contiguous(memory_format=torch.channels_last).requires_grad_()
    mean, var, w, _ = vectors(6, device, torch.float32)
    wide = numbers(12, device=device, dtype=torch.float32).requires_grad_()
    one = numbers(1, device=device, dtype=torch.float32).requires_grad_()
    w.requires_grad_()
    gy = [numbers(4, 6, 3, 4)[..., ::2], numbers(1, 1, 1, 1).expand(4, 6, 3, 2), numbers(4, 6, 3, 2)]
    for weight, bias in ((w, w), (wide[::2], w), (one.expand(6), wide[1::2]), (x[0, :, 0, 0], w)):
        for grad in gy:
            asked = [x, w, wide, one]
            results = []
            whole = weight.contiguous(), bias.contiguous()  # of a strided weight torch's gradient on the CPU is wrong
            for function, pair in ((batch_norm_act, (weight, bias)), (plain, whole)):
                y = function(x, mean.clone(), var.clone(), *pair, True)
                results.append(torch.autograd.grad(y, asked, grad.to(y), allow_unused=True))
            torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    strided = torch.stack((mean, var), 1)
    for training in (True, False):
        mine, theirs = strided.clone(), strided.clone()
        y = batch_norm_act(x, mine[:, 0], mine[:, 1], training=training)
        torch.testing.assert_close(y, plain(x, theirs[:, 0], theirs[:, 1], None, None, training))
        torch.testing.assert_close(mine, theirs)


def test_inference_mode_and_no_grad(device: str) -> None:
    x, operands = images(6, 3, device=device), vectors(3, device, torch.float32)
    twins = [t.clone() for t in operands]
    for training in (True, False):
        with torch.inference_mode():
            y = batch_norm_act(x, *operands, training)
            within = [t.clone() for t in operands]
            batch_norm_act(x, *within, training)
        expected = plain(x, *twins, training)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(operands, twins)
        with torch.no_grad():
            out = batch_norm_act(x.requires_grad_(), *[t.clone() for t in operands], False)
        assert not out.requires_grad


def test_no_gradient_is_formed_that_nobody_asked_for(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastgan.kernels import batch_norm_act as kernels

    launched: list[object] = []
    backward, correct = kernels.batch_norm_act_bwd, kernels.batch_norm_correct

    def counted(gu: Tensor, y: Tensor, norm: object, to: Any) -> Tensor:
        launched.append(tuple(vector is not None for vector in to))
        return backward(gu, y, norm, to)

    monkeypatch.setattr(kernels, "batch_norm_act_bwd", counted)
    monkeypatch.setattr(kernels, "batch_norm_correct", lambda *a: launched.append("correct") or correct(*a))
    x = images(6, 3, device=device).requires_grad_()
    mean, var, w, b = vectors(3, device, torch.float32)
    w.requires_grad_(), b.requires_grad_()

    def back(training: bool, *asked: Tensor) -> list[object]:
        launched.clear()
        torch.autograd.grad(batch_norm_act(x, mean, var, w, b, training).sum(), asked)
        return launched

    assert back(True, x, w, b) == [(True, True, True, True), "correct"]
    assert back(True, x) == [(True, True, False, False), "correct"]
    assert back(True, b) == [(False, False, False, True)]
    assert back(False, x) == [(False, False, False, False)]
    assert back(False, x, w) == [(False, False, True, False)]
    launched.clear()
    batch_norm_act(x, mean, var, w.detach(), b.detach(), True).sum().backward()
    assert launched == [(True, True, False, False), "correct"]


def test_what_is_saved(device: str) -> None:
    """The input, the parameters and two vectors: nothing normalised."""
    x = images(16, 3, 2, 2, device=device).contiguous(memory_format=torch.channels_last).requires_grad_()
    operands = vectors(3, device, torch.float32)
    kept: list[Tensor] = []
    for training in (True, False):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            batch_norm_act(x, *operands, training)
        assert {t.data_ptr() for t in kept if t.numel() > 3} == {x.data_ptr()}
        assert len(kept) == 5 and {operands[2].data_ptr(), operands[3].data_ptr()} <= {t.data_ptr() for t in kept}


def test_what_torch_refuses_is_refused_in_its_words(device: str) -> None:
    x = images(4, 3, device=device)
    mean, var, w, b = vectors(3, device, torch.float32)
    wrong: list[tuple[Any, ...]] = [
        (x[:1], mean, var, w, b, True),  # one value per channel
        (x[:1, :, None, None], mean, var, w, b, True),
        (x, None, None, w, b, False),
        (x, mean, None, w, b, False),
        (x, mean[:2], var[:2], w, b, True),
        (x, mean, var, w[:2], b, True),
        (x, mean, var, w, w[:2], False),
        (x, mean, var, w, b, True, 0.1, 0.0),
        (x, mean, var, w, b, False, 0.1, -1.0),
        (x.double(), mean, var, w, b, True),
        (x.long(), mean, var, w, b, False),
    ]
    for operands in wrong:
        theirs, ours = (refusal(function, operands) for function in (F.batch_norm, batch_norm_act))
        assert ours == theirs and (theirs is not None or device == "cuda"), operands[5:]
    with pytest.raises(fastgan.errors.UserError, match="did you mean 'leaky_relu'"):
        batch_norm_act(x, mean, var, activation="leakyrelu")


def refusal(function: Callable[..., Tensor], operands: tuple[Any, ...]) -> tuple[type, str] | None:
    try:
        function(*operands)
    except Exception as error:
        return type(error), str(error)
    return None


@pytest.mark.parametrize("size", [(0, 3), (4, 0), (0, 3, 2, 2)])
@pytest.mark.parametrize("training", [True, False])
def test_sizes_of_zero(device: str, size: tuple[int, ...], training: bool) -> None:
    x, operands = images(*size, device=device), vectors(size[1], device, torch.float32)
    twins = [t.clone() for t in operands]
    assert refusal(batch_norm_act, (x, *operands, training)) == refusal(F.batch_norm, (x, *twins, training))
    torch.testing.assert_close(operands, twins, equal_nan=True)
