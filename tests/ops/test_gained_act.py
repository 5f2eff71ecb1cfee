"""gained_act as people call it: StyleGAN's definition, gradients of any order, layouts, dtypes, mistakes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastgan
from fastgan.errors import UserError
from fastgan.ops.gained_act import ACTIVATIONS, gained_act
from fastgan.ops.gained_act_formulas import SMOOTH, Form, activated, bent, sloped

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy interprets what wraps
LAYOUTS = ("dense", "last", "crop", "vectors", "five")


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device on which the kernels run, whatever ``auto`` would take there."""
    with fastgan.backend("triton"):
        yield request.param


def numbers(*size: int, device: str = "cpu", dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(size))
    return torch.randn(size, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()


def by_hand(x: Tensor, b: Tensor, act: str, gain: float, clamp: float) -> Tensor:
    """The definition, with the exponential alone."""
    u = x + b.view(-1, *[1] * (x.dim() - 2))
    e = torch.exp(u)
    one = torch.ones_like(u)
    forms = {
        "linear": u,
        "relu": torch.where(u > 0, u, 0 * u),
        "lrelu": torch.where(u > 0, u, 0.2 * u),
        "tanh": (e - 1 / e) / (e + 1 / e),
        "sigmoid": e / (1 + e),
        "elu": torch.where(u > 0, u, e - 1),
        "selu": 1.0507009873554805 * torch.where(u > 0, u, 1.6732632423543772 * (e - 1)),
        "softplus": torch.log(one + e),
        "swish": u * e / (1 + e),
    }
    y = gain * forms[act]
    return torch.where(y > clamp, clamp * one, torch.where(y < -clamp, -clamp * one, y))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_the_reference_is_the_definition(act: str) -> None:
    x, b = numbers(3, 4, 5, 2), numbers(4)
    usual = math.sqrt(2) if act in ("relu", "lrelu", "swish") else 1.0
    torch.testing.assert_close(gained_act(x, b, activation=act), by_hand(x, b, act, usual, 1e9))
    torch.testing.assert_close(gained_act(x, b, 1, act, None, 1.3, 0.6), by_hand(x, b, act, 1.3, 0.6))
    assert ACTIVATIONS[act].def_gain == usual and ACTIVATIONS[act].def_alpha == (0.2 if act == "lrelu" else 0)


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("clamp", [None, 0.8])
def test_gradients_in_fp64(act: str, clamp: float | None) -> None:
    operands = numbers(2, 3, 4), numbers(3)

    def op(x: Tensor, b: Tensor) -> Tensor:
        return gained_act(x, b, 1, act, None, 1.3, clamp)

    assert torch.autograd.gradcheck(op, operands)
    assert torch.autograd.gradgradcheck(op, operands)


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("clamp", [-1.0, 0.8])
def test_what_the_kernels_compute_is_the_derivatives(act: str, clamp: float) -> None:
    """The formulas that stand beside the kernels, against autograd; and they are derivatives of each other."""
    form = Form(1, act, 0.2, 1.3, clamp)
    x, b, grad = numbers(2, 3, 4), numbers(3), numbers(2, 3, 4, seed=5)
    y = activated(x, b, form)
    keeps = form.keeps()
    saved = {"input": x, "output": y, "nothing": None}[keeps]
    kept = b if keeps == "input" else None
    (wanted,) = torch.autograd.grad(y, x, grad, create_graph=True)
    torch.testing.assert_close(sloped(grad, saved, kept, form), wanted)
    if act in SMOOTH:
        leaf = saved.detach().requires_grad_()
        v = numbers(2, 3, 4, seed=9)
        (second,) = torch.autograd.grad(sloped(grad, leaf, kept, form), leaf, v, create_graph=True)
        torch.testing.assert_close(bent(grad, v, leaf, kept, form), second)
        assert clamp > 0 or torch.autograd.gradcheck(lambda *given: bent(*given, kept, form), (grad, v, leaf))


def test_at_the_clamp_the_derivative_is_0_and_at_0_the_slope() -> None:
    x = torch.tensor([[-2.0, -1.0, 0.0, 0.5, 1.0, 2.0]], requires_grad=True)
    y = gained_act(x, None, 1, "lrelu", 0.5, 1.0, 1.0)
    assert y.tolist() == [[-1.0, -0.5, 0.0, 0.5, 1.0, 1.0]]
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [[0.0, 0.5, 0.5, 1.0, 0.0, 0.0]]


def test_clamped_where_the_dtype_rounds_to_the_clamp() -> None:
    """0.3 is no fp16 number: what is stored as the nearest one has reached the clamp."""
    x = torch.full((1, 1, 4), 5.0, dtype=torch.float16, requires_grad=True)
    y = gained_act(x, None, 1, "tanh", clamp=0.3)
    assert torch.equal(y, torch.full_like(y, 0.3)) and not torch.autograd.grad(y.sum(), x)[0].any()


def layout(x: Tensor, name: str) -> Tensor:
    if name == "last":
        return x.contiguous(memory_format=torch.channels_last)
    if name == "crop":
        return F.pad(x, (1, 2, 1, 1))[:, :, 1:-1, 1:-2]
    return x.flatten(1)[:, : x.shape[1]] if name == "vectors" else x.unflatten(3, (1, -1)) if name == "five" else x


def gradients(x: Tensor, b: Tensor, dtype: torch.dtype, act: str, clamp: float | None) -> list[Tensor]:
    """The output, first gradients, and gradients of a penalty on them."""
    x, b = (operand.detach().to(dtype).requires_grad_() for operand in (x, b))
    y = gained_act(x, b, 1, act, None, None, clamp)
    first = torch.autograd.grad(y.square().sum(), (x, b), create_graph=True)
    second = torch.autograd.grad(first[0].square().sum() + first[1].square().sum(), (x, b))
    return [y, *first, *second]


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("clamp", [None, 0.9])
def test_kernels_first_and_second_gradients_are_the_references(device: str, act: str, clamp: float | None) -> None:
    for name in LAYOUTS if act in ("lrelu", "swish") else LAYOUTS[1:2]:  # layouts and activations do not meet
        x = layout(numbers(2, 3, 4, 6, device=device, dtype=torch.float32).detach(), name)
        b = numbers(3, device=device, dtype=torch.float32)
        got = gradients(x, b, torch.float32, act, clamp)
        with fastgan.backend("reference"):
            wanted = gradients(x, b, torch.float64, act, clamp)
        assert [part.dtype for part in got] == [torch.float32] * 5
        for part, right in zip(got, wanted, strict=True):
            torch.testing.assert_close(part.double(), right, rtol=1e-4, atol=1e-4)
        if name not in ("crop", "vectors"):
            assert got[0].stride() == x.stride() and got[1].stride() == x.stride()


@pytest.mark.parametrize("act", ["lrelu", "tanh", "swish"])
def test_third_gradients(device: str, act: str) -> None:
    x = numbers(2, 3, 5, device=device, dtype=torch.float32)

    def third(x: Tensor) -> Tensor:
        (first,) = torch.autograd.grad(gained_act(x, None, 1, act).pow(3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
        return torch.autograd.grad(second.square().sum(), x)[0]

    got = third(x)
    with fastgan.backend("reference"):
        torch.testing.assert_close(got, third(x), rtol=1e-4, atol=1e-3)


def test_odd_gradients(device: str) -> None:
    """Expanded ones, of another layout, and only those that are asked for."""
    x, b = numbers(2, 3, 4, 5, device=device, dtype=torch.float32), numbers(3, device=device, dtype=torch.float32)
    weights = torch.randn(2, 3, 4, 5, device=device).contiguous(memory_format=torch.channels_last)
    for grad in (torch.ones((), device=device).expand(2, 3, 4, 5), weights):
        for act in ("lrelu", "swish"):
            got = torch.autograd.grad(gained_act(x, b, 1, act), (x, b), grad)
            with fastgan.backend("reference"):
                wanted = torch.autograd.grad(gained_act(x, b, 1, act), (x, b), grad)
            torch.testing.assert_close(got, wanted)
    assert torch.autograd.grad(gained_act(x.detach(), b).sum(), b)[0].tolist() == [40.0] * 3
    twice = numbers(4, 4, device=device, dtype=torch.float32)
    got = gained_act(twice, twice.diagonal(), 1, "lrelu", gain=1.0)  # the same tensor in both places
    torch.testing.assert_close(got, F.leaky_relu(twice + twice.diagonal(), 0.2))


def test_batches_of_gradients(device: str) -> None:
    x, many = numbers(2, 3, 4, device=device, dtype=torch.float32), torch.randn(3, 2, 3, 4, device=device)
    y = gained_act(x, None, 1, "tanh")
    (together,) = torch.autograd.grad(y, x, many, is_grads_batched=True, retain_graph=True)
    alone = torch.stack([torch.autograd.grad(y, x, one, retain_graph=True)[0] for one in many])
    torch.testing.assert_close(together, alone)


def test_launches_and_what_is_kept(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One launch a direction, and of an lrelu the output alone."""
    from fastgan.kernels import gained_act as kernels

    launches = []
    for name in ("gained_act", "gained_act_slope", "gained_act_bend"):
        right = getattr(kernels, name)

        def counted(*arguments: object, name: str = name, right: object = right) -> object:
            launches.append(name)
            return right(*arguments)  # type: ignore[operator]

        monkeypatch.setattr(kernels, name, counted)
    x, b = numbers(2, 3, 4, 5, device=device, dtype=torch.float32), numbers(3, device=device, dtype=torch.float32)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        y = gained_act(x, b, 1, "lrelu")
    assert len(kept) == 1 and kept[0].data_ptr() == y.data_ptr()
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    first.square().sum().backward()
    assert launches == ["gained_act", "gained_act_slope"]  # 1 had no slope to be asked about
    launches.clear()
    (first,) = torch.autograd.grad(gained_act(x, b, 1, "tanh").square().sum(), x, create_graph=True)
    first.square().sum().backward()
    assert launches == ["gained_act", "gained_act_slope", "gained_act_slope", "gained_act_bend", "gained_act_slope"]


def test_sizes_of_zero_and_one(device: str) -> None:
    for size in ((0, 3, 2), (2, 0, 2), (2, 3, 0), (1, 1, 1), (3, 1), (1, 3, 1, 1)):
        x = torch.randn(size, device=device, requires_grad=True)
        b = torch.randn(size[1], device=device, requires_grad=True)
        y = gained_act(x, b, 1, "lrelu")
        assert y.shape == x.shape
        first = torch.autograd.grad(y.sum(), (x, b))
        assert first[0].shape == x.shape and first[1].shape == b.shape
    assert gained_act(torch.tensor(-1.0, device=device), None, 1, "relu").item() == 0.0
    last = torch.randn(2, 4, 3, device=device)
    torch.testing.assert_close(gained_act(last, last[0, 0], 2, "relu", gain=1), F.relu(last + last[0, 0]))
    torch.testing.assert_close(gained_act(last[0, 0], last[0, 0], 0, "relu", gain=1), F.relu(2 * last[0, 0]))


def test_the_result_may_be_written_to(device: str) -> None:
    """As networks add to it: what it shows autograd is no view."""
    for x in (torch.randn(2, 3, 4, 4, device=device), torch.randn(2, 3, device=device)):
        leaf = x.requires_grad_()
        y = gained_act(leaf, None, 1, "linear", gain=2.0).add_(1.0)
        assert torch.autograd.grad(y.sum(), leaf)[0].unique().tolist() == [2.0]


def test_nothing_to_do_is_the_input_itself() -> None:
    x = torch.randn(2, 3)
    assert gained_act(x) is x and gained_act(x, gain=1.0) is x
    assert gained_act(x, gain=2.0) is not x


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_and_a_wider_bias(dtype: torch.dtype) -> None:
    x, b = torch.randn(2, 3, 4).to(dtype).requires_grad_(), torch.randn(3, requires_grad=True)
    y = gained_act(x, b, 1, "lrelu")
    first = torch.autograd.grad(y.float().sum(), (x, b))
    assert (y.dtype, first[0].dtype, first[1].dtype) == (dtype, dtype, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert gained_act(x, b, 1, "lrelu").dtype == dtype


def test_mistakes_are_named() -> None:
    x = torch.randn(2, 3, 4)
    with pytest.raises(UserError, match="did you mean 'lrelu'"):
        gained_act(x, activation="lrelo")
    with pytest.raises(UserError, match="does not fit dimension 1"):
        gained_act(x, torch.randn(4))
    with pytest.raises(UserError, match="clamp"):
        gained_act(x, clamp=-1.0)
    with pytest.raises(UserError, match="cast"):
        gained_act(x.long())


@pytest.mark.parametrize(("alpha", "gain"), [(-0.5, 1.0), (0.2, 0.0)])
def test_what_the_kernels_do_not_take_is_right_too(device: str, alpha: float, gain: float) -> None:
    x = numbers(2, 3, device=device, dtype=torch.float32)
    y = gained_act(x, None, 1, "lrelu", alpha, gain)
    torch.testing.assert_close(y, F.leaky_relu(x, alpha) * gain)
    assert torch.isfinite(torch.autograd.grad(y.sum(), x)[0]).all()


@pytest.mark.gpu
@pytest.mark.parametrize("act", ["lrelu", "swish"])
def test_a_graph_replays(act: str) -> None:
    x = torch.randn(4, 8, 16, 16, device="cuda", requires_grad=True)
    b = torch.randn(8, device="cuda", requires_grad=True)

    def run() -> list[Tensor]:
        y = gained_act(x, b, 1, act, clamp=1.0)
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return [y, *torch.autograd.grad(first.square().sum(), (x, b))]

    with torch.cuda.stream(torch.cuda.Stream()):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    with torch.no_grad():
        x.normal_()
    graph.replay()
    torch.testing.assert_close(captured, run())
