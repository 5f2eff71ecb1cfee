"""maxout under PyTorch's machinery: compilers, exporters, fake tensors, functional transforms, checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import fastgan
from fastgan.errors import UserError
from fastgan.nn.maxout import Maxout
from fastgan.ops.maxout import maxout

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
    x, w, b = (torch.randn(size, device=route[0], requires_grad=True) for size in ((5, 7), (6, 7), (6,)))
    return x, w, b


def same(results: object, expected: object) -> None:
    torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-5)


def layer(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return maxout(x, w, b, pieces=3)


def plain(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.linear(x, w, b).unflatten(-1, (2, 3)).max(-1).values


def test_opcheck(operands: tuple[Tensor, ...]) -> None:
    index = torch.randint(3, (5, 2), dtype=torch.int8, device=operands[0].device)
    for given in (None, index):
        torch.library.opcheck(torch.ops.fastgan.maxout.default, (*operands, given, 3))


@pytest.mark.parametrize("wanted", [[True, True, True], [True, False, True], [False, True, False]])
def test_opcheck_of_the_backward(operands: tuple[Tensor, ...], wanted: list[bool]) -> None:
    x, w, _ = operands
    grad = torch.randn(5, 2, device=x.device, requires_grad=True)
    index = torch.randint(3, (5, 2), dtype=torch.int8, device=x.device)
    arguments = (grad, x if wanted[1] else None, w if wanted[0] else None, index, 3, wanted)
    torch.library.opcheck(torch.ops.fastgan.maxout_backward.default, arguments)


def test_compile_forward_and_training_step(route: tuple[str, str], operands: tuple[Tensor, ...]) -> None:
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    same(compiled(*operands), plain(*operands))
    model = nn.Sequential(Maxout(7, 4, 5), Maxout(4, 3, 2), nn.Linear(3, 1)).to(route[0])
    twin = copy.deepcopy(model)
    whole = torch.compile(model, fullgraph=True, backend="aot_eager")
    for step in (whole, twin):
        F.binary_cross_entropy_with_logits(step(operands[0].detach()), torch.ones(5, 1, device=route[0])).backward()
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        same(mine.grad, theirs.grad)


def test_a_mistake_while_compiling_is_still_named(operands: tuple[Tensor, ...]) -> None:
    wrong = torch.compile(lambda x, w: maxout(x, w, pieces=4), backend="eager")
    with pytest.raises(UserError, match="maxout of 4 pieces"):
        wrong(*operands[:2])


@pytest.mark.parametrize("strict", [True, False])
def test_export(route: tuple[str, str], operands: tuple[Tensor, ...], strict: bool) -> None:
    module = Maxout(7, 2, 3).to(route[0])
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(module, (operands[0].detach(),), dynamic_shapes=shapes, strict=strict)
    more = torch.randn(9, 7, device=route[0])
    same(program.module()(more), module(more))


@pytest.mark.parametrize("mode", ["real", "symbolic"])
def test_make_fx_through_two_backwards(operands: tuple[Tensor, ...], mode: str) -> None:
    def gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
        (slope,) = torch.autograd.grad(layer(*tensors).square().sum(), tensors[0], create_graph=True)
        return torch.autograd.grad(slope.square().sum(), tensors)

    same(make_fx(gradients, tracing_mode=mode)(*operands)(*operands), gradients(*operands))


def test_fake_and_meta_tensors(route: tuple[str, str]) -> None:
    with torch._subclasses.FakeTensorMode():
        y = maxout(torch.empty(2, 5, 7, device=route[0]), torch.empty(6, 7, device=route[0]), pieces=3)
        assert (y.shape, y.device.type, y.is_contiguous()) == ((2, 5, 2), route[0], True)
    assert maxout(torch.empty(5, 7, device="meta"), torch.empty(6, 7, device="meta"), pieces=2).shape == (5, 3)


def test_functional_transforms(operands: tuple[Tensor, ...]) -> None:
    x, w, b = operands
    for form in (layer, lambda *t: torch.ops.fastgan.maxout(*t, None, 3)[0]):
        same(
            torch.func.grad(lambda x, f=form: f(x, w, b).square().sum())(x),
            2 * torch.func.vjp(lambda x: plain(x, w, b), x)[1](plain(x, w, b))[0],
        )
    same(torch.func.vmap(layer, (0, None, None))(x, w, b), plain(x, w, b))
    many = torch.stack([w, 2 * w])
    same(torch.func.vmap(layer, (None, 0, None))(x, many, b), torch.stack([plain(x, w, b), plain(x, 2 * w, b)]))
    expected = torch.func.jvp(lambda x: plain(x, w, b), (x,), (x,))
    same(torch.func.jvp(lambda x: layer(x, w, b), (x,), (x,)), expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(operands: tuple[Tensor, ...], reentrant: bool) -> None:
    checkpoint(layer, *operands, use_reentrant=reentrant).square().sum().backward()
    same([t.grad for t in operands], list(torch.autograd.grad(plain(*operands).square().sum(), operands)))


def test_autocast_inside_a_compiled_function(route: tuple[str, str], operands: tuple[Tensor, ...]) -> None:
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.autocast(route[0], dtype=torch.float16):
        y = compiled(*operands)
        assert torch.ops.fastgan.maxout(*operands, None, 3)[0].dtype == torch.float32  # the op itself never casts
    assert y.dtype == torch.float16
    gradients = torch.autograd.grad(y.float().sum(), operands)
    torch.testing.assert_close(gradients, torch.autograd.grad(plain(*operands).sum(), operands), rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_graph_replays_forward_and_backward(dtype: torch.dtype) -> None:
    x, w, b = (torch.randn(size, device="cuda", dtype=dtype, requires_grad=True) for size in ((64, 96), (160, 96), 160))

    def run() -> tuple[Tensor, ...]:
        y = maxout(x, w, b, pieces=5)
        return (y, *torch.autograd.grad(y.square().sum(), (x, w, b)))

    with torch.cuda.stream(torch.cuda.Stream()):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    for result, wanted in zip(results, run(), strict=True):
        assert torch.equal(result, wanted)


@pytest.mark.gpu
def test_inductor(operands: tuple[Tensor, ...]) -> None:
    compiled = torch.compile(layer, fullgraph=True)
    same(
        torch.autograd.grad(compiled(*operands).sum(), operands), torch.autograd.grad(plain(*operands).sum(), operands)
    )
