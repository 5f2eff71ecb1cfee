"""gained_act and upfirdn2d under PyTorch's machinery: compilers, exporters, fake tensors, transforms, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import fastgan
from fastgan.errors import UserError
from fastgan.ops.gained_act import gained_act
from fastgan.ops.upfirdn2d import setup_filter, upfirdn2d

ROUTES = [
    pytest.param(("cpu", "auto"), id="reference"),
    pytest.param(("cpu", "triton"), id="interpreted", marks=pytest.mark.interpret),
    pytest.param(("cuda", "triton"), id="cuda", marks=pytest.mark.gpu),
]
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy interprets what wraps
Op = Callable[[Tensor], Tensor]
NAMES = ("swish", "upfirdn2d")


@pytest.fixture(params=ROUTES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device, with a backend set: plain PyTorch, or the kernels."""
    place, backend = request.param
    torch._dynamo.reset()
    with fastgan.backend(backend):
        yield place


@pytest.fixture(params=NAMES)
def op(request: pytest.FixtureRequest, device: str) -> Op:
    """One of the two as a function of its input."""
    if request.param == "upfirdn2d":
        f = setup_filter([1, 3, 3, 1], device)
        return lambda x: upfirdn2d(x, f, up=2, down=[1, 2], padding=[2, 1, -1, 3], gain=4)
    b = torch.tensor([0.5, -1.0, 0.1], device=device)
    return lambda x: gained_act(x, b, 1, request.param, clamp=1.5)


@pytest.fixture
def x(device: str) -> Tensor:
    return torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()


def plain(op: Op) -> Op:
    """In fp64, where plain PyTorch computes."""

    def by_reference(x: Tensor) -> Tensor:
        return op(x.double()).to(x.dtype)

    return by_reference


def same(results: object, expected: object) -> None:
    torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-4)


def penalty(op: Op) -> Op:
    """A gradient of a gradient."""

    def gradients(x: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(op(x).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), x)[0]

    return gradients


@pytest.mark.parametrize("last", [False, True])
def test_opcheck(device: str, x: Tensor, last: bool) -> None:
    layout = torch.channels_last if last else torch.contiguous_format
    x = x.detach().contiguous(memory_format=layout).requires_grad_()
    grad, b = torch.randn_like(x), torch.randn(3, device=device, requires_grad=True)
    ops: Any = torch.ops.fastgan
    how = (1, "tanh" if last else "swish", 0.2, 1.3, 0.7)
    saved = (ops.gained_act(x, b, *how).detach(), None) if last else (x, b)
    torch.library.opcheck(ops.gained_act.default, (x, b, *how))
    torch.library.opcheck(ops.gained_act_slope.default, (grad.requires_grad_(), *saved, *how))
    torch.library.opcheck(ops.gained_act_bend.default, (grad.detach(), grad.detach(), *saved, *how))
    f = torch.randn(3, 2, device=device)
    torch.library.opcheck(ops.upfirdn2d.default, (x, f, [2, 1], [1, 3], [1, -1], [3, 9], True, 1.5, last))


def test_compile_forward_and_training_step(op: Op, x: Tensor) -> None:
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    for images in (x, x.contiguous(memory_format=torch.channels_last)):
        y, wanted = compiled(images), plain(op)(images)
        same(y, wanted)
        assert y.stride() == op(images).stride()
        same(torch.autograd.grad(y.pow(3).sum(), x), torch.autograd.grad(wanted.pow(3).sum(), x))


def test_export_for_any_batch(op: Op, x: Tensor) -> None:
    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return op(x)

    shapes = {"x": {0: torch.export.Dim("batch")}}
    program = torch.export.export(Module(), (x.detach(),), dynamic_shapes=shapes, strict=False)
    more = torch.randn(5, 3, 4, 5, device=x.device)
    same(program.module()(more), plain(op)(more))


def test_make_fx_through_two_backwards(op: Op, x: Tensor) -> None:
    mode = "symbolic" if tuple(map(int, torch.__version__.split(".")[:2])) > (2, 11) else "real"  # 2.11's conv fails
    traced = make_fx(penalty(op), tracing_mode=mode, _allow_non_fake_inputs=True)(x)  # bias and filter
    same(traced(x), penalty(plain(op))(x))


def test_fake_and_meta_tensors(device: str) -> None:
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(2, 3, 4, 5, device=device).to(memory_format=torch.channels_last)
        for y in (gained_act(x, None, 1, "tanh"), upfirdn2d(x, torch.ones(2, 2, device=device), padding=[1, 0, 0, 1])):
            assert (y.shape, y.device.type, y.stride()) == ((2, 3, 4, 5), device, (60, 1, 15, 3))
    x = torch.empty(2, 3, 4, 5, device="meta")
    assert gained_act(x, None, 1, "tanh").shape == upfirdn2d(x, None).shape == (2, 3, 4, 5)


def test_functional_transforms(op: Op, x: Tensor) -> None:
    wanted = torch.autograd.grad(plain(op)(x).square().sum(), x)[0]
    same(torch.func.grad(lambda x: op(x).square().sum())(x), wanted)
    many = torch.stack([x.detach(), -x.detach(), 2 * x.detach()])
    same(torch.func.vmap(op)(many), torch.stack([plain(op)(each) for each in many]))
    same(torch.func.jvp(op, (x,), (x,)), torch.func.jvp(plain(op), (x,), (x,)))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(op: Op, x: Tensor, reentrant: bool) -> None:
    checkpoint(op, x, use_reentrant=reentrant).square().sum().backward()
    same(x.grad, torch.autograd.grad(plain(op)(x).square().sum(), x)[0])


def test_a_mistake_while_compiling_is_still_named() -> None:
    x = torch.randn(2, 3, 4, 5)
    with pytest.raises(UserError, match="did you mean 'relu'"):
        torch.compile(lambda x: gained_act(x, None, 1, "rellu"), backend="eager")(x)
    with pytest.raises(UserError, match="no pixel is left"):
        torch.compile(lambda x: upfirdn2d(x, torch.ones(9, 9)), backend="eager")(x)


@pytest.mark.gpu
def test_inductor(op: Op, x: Tensor) -> None:
    results = [torch.autograd.grad(f(x).pow(3).sum(), x) for f in (torch.compile(op, fullgraph=True), plain(op))]
    same(*results)
