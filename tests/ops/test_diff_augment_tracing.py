"""diff_augment under PyTorch's machinery: compilers, exporters, fake tensors, functional transforms, checkpoints."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import fastgan
from fastgan.errors import UserError
from fastgan.nn.diff_augment import DiffAugment
from fastgan.ops.diff_augment import POLICY, diff_augment

ROUTES = [
    pytest.param(("cpu", "auto"), id="reference"),
    pytest.param(("cpu", "triton"), id="interpreted", marks=pytest.mark.interpret),
    pytest.param(("cuda", "triton"), id="cuda", marks=pytest.mark.gpu),
]
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy interprets what wraps


@pytest.fixture(params=ROUTES)
def route(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """A device and the backend that is set: plain PyTorch, or the kernel."""
    device, backend = request.param
    torch._dynamo.reset()
    with fastgan.backend(backend):
        yield device, backend


@pytest.fixture
def operands(route: tuple[str, str]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 3, 8, 10, device=route[0], requires_grad=True), torch.tensor([9, 8], device=route[0])


def augmented(x: Tensor, rng: Tensor) -> Tensor:
    return diff_augment(x, rng=rng)


def plain(x: Tensor, rng: Tensor) -> Tensor:
    """In fp64, where plain PyTorch computes."""
    return diff_augment(x.double(), rng=rng).to(x.dtype)


def same(results: object, expected: object) -> None:
    torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", [(False, True, False), (True, False, True), (False, False, False)])
def test_opcheck(operands: tuple[Tensor, Tensor], how: tuple[bool, bool, bool]) -> None:
    torch.library.opcheck(torch.ops.fastgan.diff_augment.default, (*operands, POLICY, *how))


def test_compile_forward_and_training_step(operands: tuple[Tensor, Tensor]) -> None:
    x, rng = operands
    compiled = torch.compile(augmented, fullgraph=True, backend="aot_eager")
    for images in (x, x.contiguous(memory_format=torch.channels_last)):
        y, wanted = compiled(images, rng), plain(images, rng)
        same(y, wanted)
        assert y.stride() == images.stride()
        same(torch.autograd.grad(y.pow(3).sum(), x), torch.autograd.grad(wanted.pow(3).sum(), x))


def test_a_module_that_draws_compiles(operands: tuple[Tensor, Tensor]) -> None:
    """Drawing is part of the graph: the next call draws anew, and a seed governs it."""
    critic = nn.Sequential(DiffAugment(), nn.Flatten(), nn.Linear(240, 1)).to(operands[0].device)
    compiled = torch.compile(critic, fullgraph=True, backend="aot_eager")
    scores = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        scores.append(compiled(operands[0]))
    same(scores[0], scores[2])
    assert not torch.equal(scores[0], scores[1])
    scores[0].sum().backward()
    assert operands[0].grad is not None


def test_a_mistake_while_compiling_is_still_named(operands: tuple[Tensor, Tensor]) -> None:
    wrong = torch.compile(diff_augment, backend="eager")
    with pytest.raises(UserError, match="did you mean 'color'"):
        wrong(operands[0], "colour")
    with pytest.raises(UserError, match="reshape"):
        wrong(operands[0][0])


@pytest.mark.parametrize("strict", [True, False])
def test_export(operands: tuple[Tensor, Tensor], strict: bool) -> None:
    x, rng = operands
    shapes = {"input": {0: torch.export.Dim("batch")}, "rng": None}
    program = torch.export.export(DiffAugment(), (x.detach(), rng), dynamic_shapes=shapes, strict=strict)
    more = torch.randn(5, 3, 8, 10, device=x.device)
    same(program.module()(more, rng), plain(more, rng))


@pytest.mark.parametrize("mode", ["real", "symbolic"])
def test_make_fx_through_two_backwards(operands: tuple[Tensor, Tensor], mode: str) -> None:
    def gradients(x: Tensor, rng: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(augmented(x, rng).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), x)[0]

    same(make_fx(gradients, tracing_mode=mode)(*operands)(*operands), gradients(*operands))


def test_fake_and_meta_tensors(route: tuple[str, str]) -> None:
    with torch._subclasses.FakeTensorMode():
        y = diff_augment(torch.empty(2, 3, 4, 5, device=route[0]).to(memory_format=torch.channels_last))
        assert (y.shape, y.device.type, y.stride()) == ((2, 3, 4, 5), route[0], (60, 1, 15, 3))
    assert diff_augment(torch.empty(2, 3, 4, 5, device="meta")).shape == (2, 3, 4, 5)


def test_functional_transforms(operands: tuple[Tensor, Tensor]) -> None:
    x, rng = operands
    how = (POLICY, False, True, False)
    wanted = torch.autograd.grad(plain(x, rng).square().sum(), x)[0]
    for form in (augmented, lambda x, rng: torch.ops.fastgan.diff_augment(x, rng, *how)):
        same(torch.func.grad(lambda x, f=form: f(x, rng).square().sum())(x), wanted)
    many = torch.stack([x.detach(), -x.detach(), 2 * x.detach()])
    same(torch.func.vmap(augmented, (0, None))(many, rng), torch.stack([plain(each, rng) for each in many]))
    seeds = torch.stack([rng, rng + 1])
    same(torch.func.vmap(augmented, (None, 0))(x, seeds), torch.stack([plain(x, rng), plain(x, rng + 1)]))
    same(torch.func.jvp(lambda x: augmented(x, rng), (x,), (x,)), torch.func.jvp(lambda x: plain(x, rng), (x,), (x,)))


def test_batches_of_gradients(operands: tuple[Tensor, Tensor]) -> None:
    x, rng = operands
    many = torch.randn(3, *x.shape, device=x.device)
    y = augmented(x, rng)
    (together,) = torch.autograd.grad(y, x, many, is_grads_batched=True, retain_graph=True)
    same(together, torch.stack([torch.autograd.grad(y, x, one, retain_graph=True)[0] for one in many]))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(operands: tuple[Tensor, Tensor], reentrant: bool) -> None:
    """What is computed again is drawn again: the generator's state is put back around it."""
    x = operands[0]
    torch.manual_seed(5)
    checkpoint(diff_augment, x, use_reentrant=reentrant).square().sum().backward()
    torch.manual_seed(5)
    same(x.grad, torch.autograd.grad(diff_augment(x).square().sum(), x)[0])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_graph_draws_anew_at_each_replay(dtype: torch.dtype) -> None:
    """Its gradient is by the same draws as its images."""
    x = torch.randn(8, 3, 32, 32, device="cuda", dtype=dtype, requires_grad=True)

    def run() -> tuple[Tensor, Tensor]:
        y = diff_augment(x, "translation,cutout")
        return y, torch.autograd.grad(y.sum(), x)[0]

    with torch.cuda.stream(torch.cuda.Stream()):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, gradient = run()
    seen = []
    for _ in range(2):
        graph.replay()
        seen.append(y.detach().clone())
        assert torch.equal((y != 0).flatten(1).sum(1), (gradient != 0).flatten(1).sum(1))
    assert not torch.equal(*seen)


@pytest.mark.gpu
def test_inductor(operands: tuple[Tensor, Tensor]) -> None:
    compiled = torch.compile(augmented, fullgraph=True)
    x, _ = operands
    results = [torch.autograd.grad(f(*operands).pow(3).sum(), x) for f in (compiled, plain)]
    same(*results)
