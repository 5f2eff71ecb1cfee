"""concat_linear_act under PyTorch's machinery: compilers, exporters, fake tensors, functional transforms."""

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
from fastgan.nn.concat_linear import ConcatLinearAct
from fastgan.ops.concat_linear import Embedded, concat_linear_act

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


Operands = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # x, index, table, weight, bias


@pytest.fixture
def operands(route: tuple[str, str]) -> Operands:
    torch.manual_seed(0)
    x, table, w, b = (torch.randn(size, device=route[0], requires_grad=True) for size in ((5, 4), (3, 2), (6, 6), (6,)))
    return x, torch.tensor([2, 0, 2, 1, 2], device=route[0]), table, w, b


def fused(x: Tensor, index: Tensor, table: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return concat_linear_act([x, Embedded(index, table)], w, b)


def plain(x: Tensor, index: Tensor, table: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.leaky_relu(F.linear(torch.cat([x, F.embedding(index, table)], -1), w, b), 0.2)


def same(results: object, expected: object) -> None:
    torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-5)


def gradients(function: object, operands: Operands) -> tuple[Tensor, ...]:
    return torch.autograd.grad(function(*operands).square().sum(), [t for t in operands if t.requires_grad])  # type: ignore[operator]


@pytest.mark.parametrize("activation, slope", [("leaky_relu", 0.2), ("leaky_relu", -0.2), ("sigmoid", 0.0)])
def test_opcheck(operands: Operands, activation: str, slope: float) -> None:
    x, index, table, w, b = operands
    op = torch.ops.fastgan.concat_linear_act.default
    torch.library.opcheck(op, ([x, table], [None, index], w, b, activation, slope))


@pytest.mark.parametrize("wanted", [[True, True, True, True], [True, False, False, True], [False, True, True, False]])
def test_opcheck_of_the_backward(operands: Operands, wanted: list[bool]) -> None:
    x, index, table, w, _ = operands
    grad, saved = (torch.randn(5, 6, device=x.device).tanh().requires_grad_() for _ in range(2))
    parts = ([x, table], [None, index]) if wanted[0] else ([], [])
    arguments = (grad, *parts, w if any(wanted[2:]) else None, saved, [4, 2], wanted, "tanh", 0.0)
    torch.library.opcheck(torch.ops.fastgan.concat_linear_act_backward.default, arguments)


def test_compile_forward_and_training_step(route: tuple[str, str], operands: Operands) -> None:
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    same(compiled(*operands), plain(*operands))
    same(gradients(compiled, operands), gradients(plain, operands))

    class Critic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.labels = nn.Embedding(3, 2)
            self.first = ConcatLinearAct((4, 2), 7, activation="tanh")
            self.last = ConcatLinearAct((7, 1), 1, activation="none")

        def forward(self, x: Tensor, index: Tensor) -> Tensor:
            hidden = self.first(x, Embedded(index, self.labels.weight))
            return self.last(hidden, x.mean(1, keepdim=True))

    model = Critic().to(route[0])
    twin = copy.deepcopy(model)
    for step in (torch.compile(model, fullgraph=True, backend="aot_eager"), twin):
        score = step(operands[0].detach(), operands[1])
        F.binary_cross_entropy_with_logits(score, torch.ones_like(score)).backward()
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        same(mine.grad, theirs.grad)


def test_compiled_code_holds_one_opaque_operator(route: tuple[str, str], operands: Operands) -> None:
    graphs: list[torch.fx.GraphModule] = []
    compiled = torch.compile(fused, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph)
    compiled(*operands)
    code = str(graphs[-1].graph)
    assert ("fastgan.concat_linear_act" in code, "torch.cat" in code) == (route[1] == "triton", route[1] != "triton")


@pytest.mark.parametrize("strict", [True, False])
def test_export(route: tuple[str, str], operands: Operands, strict: bool) -> None:
    module, batch = ConcatLinearAct((4, 2), 3).to(route[0]), torch.export.Dim("batch")
    arguments = (operands[0].detach(), Embedded(operands[1], operands[2].detach()))
    shapes = (({0: batch}, Embedded({0: batch}, None)),)  # type: ignore[arg-type]
    program = torch.export.export(module, arguments, dynamic_shapes=shapes, strict=strict)
    x, table = torch.randn(9, 4, device=route[0]), torch.randn(3, 2, device=route[0])
    more = x, Embedded(torch.arange(9, device=route[0]) % 3, table)
    same(program.module()(*more), module(*more))


@pytest.mark.parametrize("mode", ["real", "symbolic"])
def test_make_fx_through_a_second_backward(operands: Operands, mode: str) -> None:
    x, index, table, w, b = operands

    def penalty(x: Tensor, index: Tensor, table: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        (slope,) = torch.autograd.grad(fused(x, index, table, w, b).sin().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), (x, table, w))

    given = x, index, table, w
    same(make_fx(penalty, tracing_mode=mode)(*given, b)(*given, b), penalty(*given, b))


def test_fake_and_meta_tensors(route: tuple[str, str]) -> None:
    with torch._subclasses.FakeTensorMode():
        x, c, w = (torch.empty(size, device=route[0]) for size in ((2, 5, 4), (2, 5, 3), (6, 7)))
        y = concat_linear_act([x, c], w)
        assert (y.shape, y.device.type, y.is_contiguous()) == ((2, 5, 6), route[0], True)
    x, c, w = (torch.empty(size, device="meta") for size in ((5, 4), (5, 3), (6, 7)))
    assert concat_linear_act([x, c], w).shape == (5, 6)


def test_functional_transforms(operands: Operands) -> None:
    x, _, table, w, _ = operands

    def by_op(x: Tensor, index: Tensor, table: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return torch.ops.fastgan.concat_linear_act([x, table], [None, index], w, b, "leaky_relu", 0.2)

    for layer in (fused, by_op):
        for at, operand in ((0, x), (2, table), (3, w)):
            expected = torch.autograd.grad(plain(*operands).square().sum(), operand)[0]
            value = lambda t, f=layer, at=at: f(*operands[:at], t, *operands[at + 1 :]).square().sum()  # noqa: E731
            same(torch.func.grad(value)(operand), expected)
    same(torch.func.vmap(fused, (0, 0, None, None, None))(*operands), plain(*operands))
    expected = torch.func.jvp(lambda x: plain(x, *operands[1:]), (x,), (x,))
    same(torch.func.jvp(lambda x: fused(x, *operands[1:]), (x,), (x,)), expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(operands: Operands, reentrant: bool) -> None:
    checkpoint(fused, *operands, use_reentrant=reentrant).square().sum().backward()
    same(tuple(t.grad for t in operands if t.requires_grad), gradients(plain, operands))


@pytest.mark.gpu
def test_cuda_graph_replays_forward_and_backward() -> None:
    """Labels and values change between replays; the graph reads them anew."""
    with fastgan.backend("triton"):
        x, table, w = (torch.randn(size, device="cuda", requires_grad=True) for size in ((64, 30), (7, 16), (32, 46)))
        index = torch.randint(0, 7, (64,), device="cuda")

        def run() -> tuple[Tensor, ...]:
            y = concat_linear_act([x, Embedded(index, table)], w)
            return (y, *torch.autograd.grad(y.square().sum(), (x, w)))

        with torch.cuda.stream(torch.cuda.Stream()):
            run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = run()
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
            index.copy_(torch.randint_like(index, 7))
        graph.replay()
        for result, wanted in zip(results, run(), strict=True):
            assert torch.equal(result, wanted)


@pytest.mark.gpu
def test_inductor(operands: Operands) -> None:
    same(gradients(torch.compile(fused, fullgraph=True), operands), gradients(plain, operands))
