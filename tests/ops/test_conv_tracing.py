"""The convolution ops under PyTorch's machinery: compilers, exporters, fake tensors, transforms, checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import fastgan
from fastgan.nn import Conv1dAct, Conv2dAct, ConvTranspose2dAct
from fastgan.ops import conv1d_act, conv2d_act, conv_transpose2d_act

ROUTES = [
    pytest.param(("cpu", "auto"), id="reference"),
    pytest.param(("cpu", "triton"), id="interpreted", marks=pytest.mark.interpret),
    pytest.param(("cuda", "triton"), id="cuda", marks=pytest.mark.gpu),
]
FORM = ([2, 1], [1, 0], [1, 1], False, [0, 0], 1)  # stride, padding, dilation, transposed, output padding, upsample
BACK = ([2, 1], [1, 0], [1, 1], True, [1, 0], 1)
UPSAMPLED = ([1, 1], [1, 1], [1, 1], False, [0, 0], 2)


@pytest.fixture(params=ROUTES)
def route(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """A device and the backend that is set: plain PyTorch, or the kernels with all bits of fp32."""
    device, backend = request.param
    torch._dynamo.reset()
    former, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    with fastgan.backend(backend):
        yield device, backend
    torch.backends.cudnn.allow_tf32 = former


@pytest.fixture
def operands(route: tuple[str, str]) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x, w, b = (torch.randn(size, device=route[0], requires_grad=True) for size in ((2, 3, 4, 4), (3, 3, 2, 2), (3,)))
    return x, w, b


def same(results: object, expected: object) -> None:
    torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-5)


def fused(x: Tensor, w: Tensor, b: Tensor, **more: Any) -> Tensor:
    return conv2d_act(x, w, b, (2, 1), padding=(1, 0), pre_activation="tanh", **more)


def plain(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.leaky_relu(F.conv2d(x.tanh(), w, b, (2, 1), (1, 0)), 0.2)


@pytest.mark.parametrize(
    "form, activation, slope, layout",
    [
        (FORM, "leaky_relu", 0.2, torch.channels_last),
        (FORM, "leaky_relu", -0.2, torch.contiguous_format),
        (BACK, "sigmoid", 0.0, torch.contiguous_format),
    ],
)
def test_opcheck(
    operands: tuple[Tensor, ...], form: tuple[Any, ...], activation: str, slope: float, layout: torch.memory_format
) -> None:
    x, w, b = operands
    x = x.detach().to(memory_format=layout).requires_grad_()
    torch.library.opcheck(torch.ops.fastgan.conv_act.default, (x, w, b, *form, activation, slope))


@pytest.mark.parametrize(
    "form, wanted", [(FORM, [True, True, True]), (BACK, [False, True, False]), (UPSAMPLED, [True, False, True])]
)
def test_opcheck_of_the_backward(operands: tuple[Tensor, ...], form: tuple[Any, ...], wanted: list[bool]) -> None:
    x, w, _ = operands
    y = torch.ops.fastgan.conv_act(x, w, None, *form, "none", 0.0).detach()
    grad, saved = torch.randn_like(y).requires_grad_(), y.tanh().requires_grad_()
    arguments = (grad, x if wanted[1] else None, w, saved, x.shape, *form, "tanh", 0.0, wanted)
    torch.library.opcheck(torch.ops.fastgan.conv_act_backward.default, arguments)


def test_compile_forward_and_training_step(route: tuple[str, str], operands: tuple[Tensor, ...]) -> None:
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    same(compiled(*operands), plain(*operands))
    layers = (
        Conv2dAct(3, 4, 3, padding="same", activation="tanh"),
        ConvTranspose2dAct(4, 3, 4, 2, 1, pre_activation="relu"),
        Conv2dAct(3, 1, 4, 2, activation="none", upsample=1),
    )
    model = nn.Sequential(*layers).to(route[0])
    twin = copy.deepcopy(model)
    whole = torch.compile(model, fullgraph=True, backend="aot_eager")
    for step in (whole, twin):
        step(operands[0].detach()).square().sum().backward()
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        same(mine.grad, theirs.grad)


def test_compile_with_sizes_that_change(route: tuple[str, str], operands: tuple[Tensor, ...]) -> None:
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in ((2, 3, 4, 4), (3, 3, 6, 5)):
        x = torch.randn(size, device=route[0])
        same(compiled(x, *operands[1:]), plain(x, *operands[1:]))


def test_compiled_code_follows_the_backend(route: tuple[str, str], operands: tuple[Tensor, ...]) -> None:
    """A guard sees the switch: with the kernels one opaque operator, with the reference torch's own."""
    graphs: list[torch.fx.GraphModule] = []
    compiled = torch.compile(conv2d_act, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph)
    names = []
    for backend in (route[1], "reference", route[1]):
        with fastgan.backend(backend):
            compiled(*operands)
        names.append("fastgan.conv_act" in str(graphs[-1].graph))
    assert names[:2] == [route[1] == "triton", False]
    assert len(graphs) == 2  # the third call found the first one's code


@pytest.mark.parametrize("strict", [True, False])
def test_export(route: tuple[str, str], operands: tuple[Tensor, ...], strict: bool) -> None:
    module = Conv2dAct(3, 5, 3, 2, 1, activation="sigmoid", pre_activation="leaky_relu").to(route[0])
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(module, (operands[0].detach(),), dynamic_shapes=shapes, strict=strict)
    more = torch.randn(5, 3, 4, 4, device=route[0])
    same(program.module()(more), module(more))


@pytest.mark.parametrize("mode", ["real", "symbolic"])
def test_make_fx_through_a_backward(operands: tuple[Tensor, ...], mode: str) -> None:
    def gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(fused(*tensors).square().sum(), tensors)

    same(make_fx(gradients, tracing_mode=mode)(*operands)(*operands), gradients(*operands))


def test_fake_and_meta_tensors(route: tuple[str, str]) -> None:
    last = torch.channels_last
    with torch._subclasses.FakeTensorMode():
        x, w = torch.empty(2, 3, 8, 6, device=route[0]), torch.empty(18, 3, 3, 3, device=route[0])
        y = conv2d_act(x, w, None, 2, 1)
        assert (y.shape, y.device.type, y.is_contiguous()) == ((2, 18, 4, 3), route[0], True)
        y = conv_transpose2d_act(x.to(memory_format=last), w.transpose(0, 1), None, 2, 1, 1)
        assert y.shape == (2, 18, 16, 12) and y.is_contiguous(memory_format=last)
        assert conv1d_act(x[..., 0], w[..., 0]).shape == (2, 18, 6)
    assert Conv1dAct(3, 4, 3, device="meta")(torch.empty(2, 3, 9, device="meta")).shape == (2, 4, 7)


def test_functional_transforms(operands: tuple[Tensor, ...]) -> None:
    x, w, b = operands
    expected = 2 * torch.func.vjp(lambda x: plain(x, w, b), x)[1](plain(x, w, b))[0]
    same(torch.func.grad(lambda x: fused(x, w, b).square().sum())(x), expected)
    registered = lambda x: torch.ops.fastgan.conv_act(x.tanh(), w, b, *FORM, "leaky_relu", 0.2)  # noqa: E731
    same(torch.func.grad(lambda x: registered(x).square().sum())(x), expected)
    same(torch.func.vmap(fused, (0, None, None))(x, w, b), plain(x, w, b))
    expected = torch.func.jvp(lambda x: plain(x, w, b), (x,), (x,))
    same(torch.func.jvp(lambda x: fused(x, w, b), (x,), (x,)), expected)
    with forward_ad.dual_level():
        same(forward_ad.unpack_dual(fused(forward_ad.make_dual(x, x.detach()), w, b)).tangent, expected[1])


@pytest.mark.parametrize("again", [False, True], ids=["first", "second"])
def test_batches_of_gradients(operands: tuple[Tensor, ...], again: bool) -> None:
    """``is_grads_batched``, as vectorised Jacobians are formed: of the output, and of its gradients."""
    results = []
    for layer in (fused, plain):
        y = layer(*operands)
        if again:
            first = torch.autograd.grad(y.square().sum(), operands, create_graph=True)
            y = torch.cat([gradient.flatten() for gradient in first])
        batch = torch.randn(3, *y.shape, generator=torch.Generator().manual_seed(0)).to(y)
        results.append(torch.autograd.grad(y, operands[:2], batch, is_grads_batched=True))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(operands: tuple[Tensor, ...], reentrant: bool) -> None:
    y = checkpoint(fused, *operands, use_reentrant=reentrant)
    y.square().sum().backward()
    same([t.grad for t in operands], list(torch.autograd.grad(plain(*operands).square().sum(), operands)))


def test_autocast_inside_a_compiled_function(route: tuple[str, str], operands: tuple[Tensor, ...]) -> None:
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    with torch.autocast(route[0], dtype=torch.float16):
        y = compiled(*operands)
        of_op = torch.ops.fastgan.conv_act(*operands, *FORM, "relu", 0.0)
        assert of_op.dtype == torch.float32  # the op itself never casts
    assert y.dtype == torch.float16
    gradients = torch.autograd.grad(y.float().sum(), operands)
    torch.testing.assert_close(gradients, torch.autograd.grad(plain(*operands).sum(), operands), rtol=1e-2, atol=2e-2)


@pytest.mark.gpu
def test_inductor(operands: tuple[Tensor, ...]) -> None:
    compiled = torch.compile(fused, fullgraph=True)
    same(
        torch.autograd.grad(compiled(*operands).sum(), operands), torch.autograd.grad(plain(*operands).sum(), operands)
    )
