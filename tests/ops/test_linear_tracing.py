"""linear_act under PyTorch's machinery: compilers, exporters, fake tensors, functional transforms, checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import fastgan
from fastgan.nn import LinearAct
from fastgan.ops import linear_act

ROUTES = [
    pytest.param(("cpu", "auto"), id="reference"),
    pytest.param(("cpu", "triton"), id="interpreted", marks=pytest.mark.interpret),
    pytest.param(("cuda", "triton"), id="cuda", marks=pytest.mark.gpu),
]


@pytest.fixture(params=ROUTES)
def route(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """A device and the backend that is set: plain PyTorch, or the kernels."""
    device, backend = request.param
    torch._dynamo.reset()
    with fastgan.backend(backend):
        yield device, backend


@pytest.fixture
def operands(route: tuple[str, str]) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x, w, b = (torch.randn(size, device=route[0], requires_grad=True) for size in ((5, 7), (3, 7), (3,)))
    return x, w, b


def same(results: object, expected: object) -> None:
    torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-5)


def plain(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.leaky_relu(F.linear(x, w, b), 0.2)


@pytest.mark.parametrize("activation, slope", [("leaky_relu", 0.2), ("leaky_relu", -0.2), ("sigmoid", 0.0)])
def test_opcheck(operands: tuple[Tensor, ...], activation: str, slope: float) -> None:
    torch.library.opcheck(torch.ops.fastgan.linear_act.default, (*operands, activation, slope))


@pytest.mark.parametrize("wanted", [[True, True, True], [True, False, True], [False, True, False]])
def test_opcheck_of_the_backward(operands: tuple[Tensor, ...], wanted: list[bool]) -> None:
    x, w, _ = operands
    grad, saved = (torch.randn(5, 3, device=x.device).tanh().requires_grad_() for _ in range(2))
    arguments = (grad, x if wanted[1] else None, w if wanted[0] else None, saved, "tanh", 0.0, wanted)
    torch.library.opcheck(torch.ops.fastgan.linear_act_backward.default, arguments)


def test_compile_forward_and_training_step(route: tuple[str, str], operands: tuple[Tensor, ...]) -> None:
    compiled = torch.compile(linear_act, fullgraph=True, backend="aot_eager")
    same(compiled(*operands), plain(*operands))
    model = nn.Sequential(LinearAct(7, 6, activation="tanh"), LinearAct(6, 1, activation="none")).to(route[0])
    twin = copy.deepcopy(model)
    whole = torch.compile(model, fullgraph=True, backend="aot_eager")
    for step in (whole, twin):
        F.binary_cross_entropy_with_logits(step(operands[0].detach()), torch.ones(5, 1, device=route[0])).backward()
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        same(mine.grad, theirs.grad)


def test_compiled_code_follows_the_backend(route: tuple[str, str], operands: tuple[Tensor, ...]) -> None:
    """A guard sees the switch: with the kernels one opaque operator, with the reference torch's own."""
    graphs: list[torch.fx.GraphModule] = []
    compiled = torch.compile(linear_act, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph)
    names = []
    for backend in (route[1], "reference", route[1]):
        with fastgan.backend(backend):
            compiled(*operands)
        names.append("fastgan.linear_act" in str(graphs[-1].graph))
    assert names[:2] == [route[1] == "triton", False]
    assert len(graphs) == 2  # the third call found the first one's code


def test_compile_with_the_switch_inside(operands: tuple[Tensor, ...]) -> None:
    def inside(*tensors: Tensor) -> Tensor:
        with fastgan.backend("reference"):
            return linear_act(*tensors)

    before = fastgan.ops.backend.current_backend()
    same(torch.compile(inside, fullgraph=True, backend="aot_eager")(*operands), plain(*operands))
    assert fastgan.ops.backend.current_backend() == before


@pytest.mark.parametrize("strict", [True, False])
def test_export(route: tuple[str, str], operands: tuple[Tensor, ...], strict: bool) -> None:
    module = LinearAct(7, 3).to(route[0])
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(module, (operands[0].detach(),), dynamic_shapes=shapes, strict=strict)
    more = torch.randn(9, 7, device=route[0])
    same(program.module()(more), module(more))


@pytest.mark.parametrize("mode", ["real", "symbolic"])
def test_make_fx_through_a_backward(operands: tuple[Tensor, ...], mode: str) -> None:
    def gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(linear_act(*tensors).square().sum(), tensors)

    same(make_fx(gradients, tracing_mode=mode)(*operands)(*operands), gradients(*operands))


def test_fake_and_meta_tensors(route: tuple[str, str]) -> None:
    with torch._subclasses.FakeTensorMode():
        y = linear_act(torch.empty(2, 5, 7, device=route[0]), torch.empty(3, 7, device=route[0]))
        assert (y.shape, y.device.type, y.is_contiguous()) == ((2, 5, 3), route[0], True)
    assert linear_act(torch.empty(5, 7, device="meta"), torch.empty(3, 7, device="meta")).shape == (5, 3)


def test_functional_transforms(operands: tuple[Tensor, ...]) -> None:
    x, w, b = operands
    for layer in (linear_act, lambda *t: torch.ops.fastgan.linear_act(*t, "leaky_relu", 0.2)):
        same(
            torch.func.grad(lambda x, f=layer: f(x, w, b).square().sum())(x),
            2 * torch.func.vjp(lambda x: plain(x, w, b), x)[1](plain(x, w, b))[0],
        )
    same(torch.func.vmap(linear_act, (0, None, None))(x, w, b), plain(x, w, b))
    expected = torch.func.jvp(lambda x: plain(x, w, b), (x,), (x,))
    same(torch.func.jvp(lambda x: linear_act(x, w, b), (x,), (x,)), expected)
    with forward_ad.dual_level():
        same(forward_ad.unpack_dual(linear_act(forward_ad.make_dual(x, x.detach()), w, b)).tangent, expected[1])
    mapped = torch.compile(torch.func.vmap(lambda x: linear_act(x, w, b)), fullgraph=True, backend="aot_eager")
    same(mapped(x.detach()), plain(x, w, b))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(operands: tuple[Tensor, ...], reentrant: bool) -> None:
    x, w, b = operands
    y = checkpoint(linear_act, x, w, b, use_reentrant=reentrant)
    y.square().sum().backward()
    same([t.grad for t in operands], list(torch.autograd.grad(plain(*operands).square().sum(), operands)))


def test_autocast_inside_a_compiled_function(route: tuple[str, str], operands: tuple[Tensor, ...]) -> None:
    compiled = torch.compile(linear_act, fullgraph=True, backend="aot_eager")
    with torch.autocast(route[0], dtype=torch.float16):
        y = compiled(*operands)
        assert torch.ops.fastgan.linear_act(*operands, "relu", 0.0).dtype == torch.float32  # the op itself never casts
    assert y.dtype == torch.float16
    gradients = torch.autograd.grad(y.float().sum(), operands)
    torch.testing.assert_close(gradients, torch.autograd.grad(plain(*operands).sum(), operands), rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
def test_inductor_with_its_own_graphs() -> None:
    """Its warm-up takes all that this thread allocates for its own; tickets outlive it."""
    layer, x = LinearAct(512, 1).cuda(), torch.randn(64, 512, device="cuda")
    compiled = torch.compile(layer, mode="reduce-overhead")
    with fastgan.backend("triton"), torch.no_grad():
        for _ in range(3):
            same(compiled(x).clone(), layer(x))


@pytest.mark.gpu
def test_inductor(operands: tuple[Tensor, ...]) -> None:
    compiled = torch.compile(linear_act, fullgraph=True)
    same(
        torch.autograd.grad(compiled(*operands).sum(), operands), torch.autograd.grad(plain(*operands).sum(), operands)
    )
