"""batch_norm_act under PyTorch's machinery: compilers, exporters, fake tensors, functional transforms, checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import fastgan
from fastgan.nn.batch_norm import BatchNorm1dAct, BatchNorm2dAct
from fastgan.ops.batch_norm_act import batch_norm_act

ROUTES = [
    pytest.param(("cpu", "auto"), id="reference"),
    pytest.param(("cpu", "triton"), id="interpreted", marks=pytest.mark.interpret),
    pytest.param(("cuda", "triton"), id="cuda", marks=pytest.mark.gpu),
]
OPS = torch.ops.fastgan


@pytest.fixture(params=ROUTES)
def route(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """A device and the backend that is set: plain PyTorch, or the kernels."""
    device, backend = request.param
    torch._dynamo.reset()
    with fastgan.backend(backend):
        yield device, backend


@pytest.fixture
def running(route: tuple[str, str]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(3, device=route[0]), torch.rand(3, device=route[0]) + 0.5


@pytest.fixture
def operands(route: tuple[str, str]) -> tuple[Tensor, Tensor, Tensor]:
    """Input, weight, bias."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 2, device=route[0]).contiguous(memory_format=torch.channels_last)
    w, b = torch.rand(3, device=route[0]) + 0.5, torch.randn(3, device=route[0])
    return x.requires_grad_(), w.requires_grad_(), b.requires_grad_()


def same(results: object, expected: object) -> None:
    torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-5)


def by_batch(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """By the batch's statistics, none of which is kept."""
    return batch_norm_act(x, None, None, w, b, True)


def plain(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.leaky_relu(F.batch_norm(x, None, None, w, b, True), 0.2)


@pytest.mark.parametrize("activation, slope", [("leaky_relu", 0.2), ("leaky_relu", -0.2), ("tanh", 0.0)])
@pytest.mark.parametrize("training", [True, False])
def test_opcheck(
    operands: tuple[Tensor, ...], running: tuple[Tensor, ...], activation: str, slope: float, training: bool
) -> None:
    given = (None, None) if training else running
    torch.library.opcheck(OPS.batch_norm_act.default, (*operands, *given, 1e-5, activation, slope))


@pytest.mark.parametrize(
    "training, layout, wanted",
    [
        (True, torch.channels_last, [True, True, True]),
        (True, torch.contiguous_format, [True, False, False]),
        (False, torch.channels_last, [True, False, True]),
    ],
)
def test_opcheck_of_the_backward(
    operands: tuple[Tensor, ...],
    running: tuple[Tensor, ...],
    training: bool,
    layout: torch.memory_format,
    wanted: list[bool],
) -> None:
    x, w, b = (t.detach() for t in operands)
    mean, var = (x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)) if training else running
    x, grad = x.contiguous(memory_format=layout), x.cos().contiguous(memory_format=layout)
    rest = w, b, mean[None], var[None], training, 1e-5, "tanh", 0.0, wanted
    torch.library.opcheck(OPS.batch_norm_act_backward.default, (grad, x, *rest))
    followed = (grad.requires_grad_(), x.requires_grad_(), *rest)
    torch.library.opcheck(OPS.batch_norm_act_backward.default, followed)


@pytest.mark.parametrize("tracked", [None, 3])
def test_opcheck_of_the_running_statistics(running: tuple[Tensor, ...], tracked: int | None) -> None:
    mean, var = (torch.rand(1, 3, device=running[0].device) for _ in range(2))
    count = None if tracked is None else torch.tensor(tracked, device=mean.device)
    torch.library.opcheck(OPS.batch_norm_track.default, (*running, mean, var, count, 0.1, 40))
    before = [t.clone() for t in running]
    versions = [t._version for t in running]
    OPS.batch_norm_track(*running, mean, var, count, 0.1, 40)
    step = 0.1 if tracked is None else 1 / (tracked + 1)
    for moved, former, batch in zip(running, before, (mean[0], var[0] * 40 / 39), strict=True):
        same(moved, former + step * (batch - former))
    assert all(t._version > version for t, version in zip(running, versions, strict=True))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_compile_training_steps(route: tuple[str, str], momentum: float | None) -> None:
    """One graph, buffers included: a momentum of None asks the device for nothing."""
    twin = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), BatchNorm2dAct(6, momentum=momentum), nn.Flatten()),
        *(nn.Linear(54, 5), BatchNorm1dAct(5, momentum=momentum, activation="tanh")),
    ).to(route[0])
    model = copy.deepcopy(twin)
    whole = torch.compile(model, fullgraph=True, backend="aot_eager")
    for seed in range(2):
        x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed)).to(route[0])
        for step in (whole, twin):
            step(x).square().sum().backward()
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        same(mine.grad, theirs.grad)
    same(list(model.buffers()), list(twin.buffers()))
    assert int(model[1].num_batches_tracked) == 2
    model.eval(), twin.eval()
    same(whole(x), twin(x))


def test_compiled_code_follows_the_backend(route: tuple[str, str], operands: tuple[Tensor, ...]) -> None:
    """A guard sees the switch: with the kernels opaque operators, with the reference torch's own."""
    graphs: list[torch.fx.GraphModule] = []
    compiled = torch.compile(by_batch, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph)
    names = []
    for backend in (route[1], "reference", route[1]):
        with fastgan.backend(backend):
            same(compiled(*operands), plain(*operands))
        names.append("fastgan.batch_norm_act" in str(graphs[-1].graph))
    assert names[:2] == [route[1] == "triton", False]
    assert len(graphs) == 2  # the third call found the first one's code


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_export(route: tuple[str, str], operands: tuple[Tensor, ...], strict: bool, training: bool) -> None:
    module = BatchNorm2dAct(3).to(route[0]).train(training)
    twin = copy.deepcopy(module)
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(module, (operands[0].detach(),), dynamic_shapes=shapes, strict=strict)
    more, exported = torch.randn(9, 3, 5, 2, device=route[0]).to(memory_format=torch.channels_last), program.module()
    same(exported(more), twin(more))
    for name, buffer in exported.named_buffers():
        same(buffer, getattr(twin, name))


@pytest.mark.parametrize("mode", ["real", "symbolic"])
def test_make_fx_through_two_backwards(operands: tuple[Tensor, ...], mode: str) -> None:
    def gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
        y = batch_norm_act(tensors[0], None, None, *tensors[1:], True, activation="tanh")
        first = torch.autograd.grad(y.square().sum(), tensors, create_graph=True)
        alone = torch.autograd.grad(by_batch(*tensors).square().sum(), tensors)
        return (*alone, *torch.autograd.grad(sum(part.square().sum() for part in first), tensors))

    same(make_fx(gradients, tracing_mode=mode)(*operands)(*operands), gradients(*operands))


def test_fake_and_meta_tensors(route: tuple[str, str]) -> None:
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(4, 3, 5, 2, device=route[0], memory_format=torch.channels_last)
        y = batch_norm_act(x, torch.empty(3, device=route[0]), torch.empty(3, device=route[0]), training=True)
        assert (y.shape, y.device.type, y.stride()) == (x.shape, route[0], x.stride())
    meta = torch.empty(4, 3, device="meta")
    assert batch_norm_act(meta, None, None, training=True).shape == (4, 3)


class Watching(TorchDispatchMode):
    """Sees every operator that is called."""

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.seen = [*getattr(self, "seen", []), str(func)]
        return func(*args, **(kwargs or {}))


def test_a_watched_module_does_the_same(route: tuple[str, str], operands: tuple[Tensor, ...]) -> None:
    """Under a dispatch mode the ops are seen as ops, and buffers and their versions move as they do else."""
    module = BatchNorm2dAct(3, momentum=None).to(route[0])
    twin, version = copy.deepcopy(module), module.running_mean._version
    for _ in range(2):
        with Watching() as mode:
            y = module(operands[0])
        same(y, twin(operands[0]))
    assert ("fastgan.batch_norm_track.default" in mode.seen) == (route[1] == "triton")
    same(list(module.buffers()), list(twin.buffers()))
    assert module.running_mean._version > version
    gradients = [
        torch.autograd.grad(m(operands[0]).cos().sum(), [operands[0], *m.parameters()]) for m in (module, twin)
    ]
    same(*gradients)


def test_functional_transforms(operands: tuple[Tensor, ...], running: tuple[Tensor, Tensor]) -> None:
    x, w, b = operands
    for layer in (by_batch, lambda *t: OPS.batch_norm_act(*t, None, None, 1e-5, "leaky_relu", 0.2)[0]):
        same(
            torch.func.grad(lambda x, f=layer: f(x, w, b).square().sum())(x),
            2 * torch.func.vjp(lambda x: plain(x, w, b), x)[1](plain(x, w, b))[0],
        )
    several = torch.stack((x, 2 * x + 1))
    same(torch.func.vmap(by_batch, (0, None, None))(several, w, b), torch.stack([plain(x, w, b) for x in several]))
    expected = torch.func.jvp(lambda x: plain(x, w, b), (x,), (x,))
    same(torch.func.jvp(lambda x: by_batch(x, w, b), (x,), (x,)), expected)
    with forward_ad.dual_level():
        same(forward_ad.unpack_dual(by_batch(forward_ad.make_dual(x, x.detach()), w, b)).tangent, expected[1])
    penalty = torch.func.hessian(lambda w: batch_norm_act(x, *running, w, b, activation="tanh").sum())
    same(penalty(w), torch.func.hessian(lambda w: torch.tanh(F.batch_norm(x, *running, w, b)).sum())(w))


def test_batches_of_gradients(operands: tuple[Tensor, ...], running: tuple[Tensor, Tensor]) -> None:
    grads = torch.randn(3, *operands[0].shape, device=operands[0].device)
    for training in (True, False):
        y = batch_norm_act(operands[0], *(t.clone() for t in running), *operands[1:], training, activation="tanh")
        together = torch.autograd.grad(y, operands, grads, is_grads_batched=True, retain_graph=True)
        alone = [torch.autograd.grad(y, operands, grad, retain_graph=True) for grad in grads]
        same(together, tuple(torch.stack(parts) for parts in zip(*alone, strict=True)))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(operands: tuple[Tensor, ...], reentrant: bool) -> None:
    checkpoint(by_batch, *operands, use_reentrant=reentrant).square().sum().backward()
    same([t.grad for t in operands], list(torch.autograd.grad(plain(*operands).square().sum(), operands)))


@pytest.mark.filterwarnings("ignore")
def test_jit_trace(operands: tuple[Tensor, ...]) -> None:
    detached = tuple(t.detach() for t in operands)
    same(torch.jit.trace(by_batch, detached)(*detached), plain(*detached))


@pytest.mark.gpu
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
def test_inductor(mode: str | None) -> None:
    module = BatchNorm2dAct(32).cuda()
    twin, compiled = copy.deepcopy(module), torch.compile(module, fullgraph=True, mode=mode)
    x = torch.randn(16, 32, 8, 8, device="cuda").to(memory_format=torch.channels_last)
    with fastgan.backend("triton"):
        for _ in range(3):
            compiled(x).square().sum().backward()
            twin(x).square().sum().backward()
    same([p.grad for p in module.parameters()], [p.grad for p in twin.parameters()])
    same(list(module.buffers()), list(twin.buffers()))
