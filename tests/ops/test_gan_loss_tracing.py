"""gan_loss and bce under PyTorch's machinery: compilers, exporters, fake tensors, transforms, checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import fastgan
from fastgan.errors import UserError
from fastgan.nn import BCELoss, BCEWithLogitsLoss, GANLoss
from fastgan.ops import bce_with_logits, gan_loss
from fastgan.ops.gan_loss_formulas import RECIPES

ROUTES = [
    pytest.param(("cpu", "auto"), id="reference"),
    pytest.param(("cpu", "triton"), id="interpreted", marks=pytest.mark.interpret),
    pytest.param(("cuda", "triton"), id="cuda", marks=pytest.mark.gpu),
]
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy interprets what overflows
NAMES = ("non_saturating", "relativistic", "relativistic_average")


@pytest.fixture(params=ROUTES)
def route(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device with the backend that is set there: plain PyTorch, or the kernels."""
    device, backend = request.param
    torch._dynamo.reset()
    with fastgan.backend(backend):
        yield device


@pytest.fixture
def batches(route: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    real, fake = (torch.randn(6, 1, device=route, requires_grad=True) for _ in range(2))
    return real, fake


def same(results: object, expected: object) -> None:
    torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-5)


def plain(name: str, *batches: Tensor, **options: Any) -> Tensor:
    with fastgan.backend("reference"):
        return gan_loss(name, *batches, **options)


@pytest.mark.parametrize("wanted", [[True, True], [False, True], [False, False]])
@pytest.mark.parametrize("relation", ["none", "average"])
def test_opcheck(batches: tuple[Tensor, Tensor], wanted: list[bool], relation: str) -> None:
    real, fake = batches[0].detach().requires_grad_(wanted[0]), batches[1].detach().requires_grad_(wanted[1])
    rng = torch.tensor([1, 2], device=real.device) if relation == "none" else None
    how = ("cross_entropy", relation, "real", [0.9, 0.0], 1.0, 0.3 if rng is not None else 0.0)
    operands = (real, fake, real.detach().abs(), None, rng, *how, wanted, True)
    torch.library.opcheck(torch.ops.fastgan.gan_loss.default, operands)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("logits", [True, False])
def test_opcheck_of_bce(batches: tuple[Tensor, Tensor], reduction: str, logits: bool) -> None:
    x = batches[0].detach().sigmoid().requires_grad_()
    operands = (x, batches[1].detach().sigmoid(), None, None, logits, reduction, torch.float32, True)
    torch.library.opcheck(torch.ops.fastgan.bce.default, operands)


@pytest.mark.parametrize("name", NAMES)
def test_compile_both_sides_with_monitors(batches: tuple[Tensor, Tensor], name: str) -> None:
    def losses(real: Tensor, fake: Tensor, monitors: Tensor) -> Tensor:
        loss = gan_loss(name, real, fake, monitors=monitors)
        return loss + 2 * gan_loss(name, real, fake, side="generator")

    watched = [torch.zeros(4, device=batches[0].device) for _ in range(2)]
    compiled = torch.compile(losses, fullgraph=True, backend="aot_eager")
    results = []
    for run, monitors in zip((compiled, losses), watched, strict=True):
        loss = run(*batches, monitors)
        results.append([loss, *torch.autograd.grad(loss, batches)])
    same(*results)
    same(*watched)


def test_compile_modules_in_a_training_step(route: str) -> None:
    model, losses = nn.Linear(5, 1).to(route), [GANLoss("hinge", label_flip=0.2), BCEWithLogitsLoss(), BCELoss()]

    def step(x: Tensor, y: Tensor) -> Tensor:
        real, fake = model(x), model(y)
        target = torch.ones_like(real)
        return losses[0](real, fake) + losses[1](real, target) + losses[2](real.sigmoid(), target)

    torch.compile(step, fullgraph=True, backend="aot_eager")(*torch.randn(2, 4, 5, device=route)).backward()
    assert model.weight.grad is not None and model.weight.grad.isfinite().all()


def test_a_mistake_while_compiling_is_still_named(batches: tuple[Tensor, Tensor]) -> None:
    wrong = torch.compile(lambda x, y: gan_loss("hinge", x, y, label_smoothing=0.1), backend="eager")
    with pytest.raises(UserError, match="hinge has no labels"):
        wrong(*batches)


def test_export(batches: tuple[Tensor, Tensor]) -> None:
    given = tuple(t.detach() for t in batches)
    batch = torch.export.Dim("batch")
    program = torch.export.export(GANLoss("non_saturating"), given, dynamic_shapes=({0: batch}, {0: batch}))
    more = tuple(torch.cat([t, 2 * t]) for t in given)
    same(program.module()(*more), plain("non_saturating", *more))


@pytest.mark.parametrize("mode", ["real", "symbolic"])
def test_make_fx_through_two_backwards(batches: tuple[Tensor, Tensor], mode: str) -> None:
    def gradients(real: Tensor, fake: Tensor) -> tuple[Tensor, ...]:
        loss = gan_loss("non_saturating", real, fake)
        first = torch.autograd.grad(loss, (real, fake), create_graph=True)
        return torch.autograd.grad(sum(part.square().sum() for part in first), (real, fake))

    same(make_fx(gradients, tracing_mode=mode)(*batches)(*batches), gradients(*batches))


def test_fake_and_meta_tensors(route: str) -> None:
    with torch._subclasses.FakeTensorMode():
        real = torch.empty(5, 1, device=route, requires_grad=True)
        loss = gan_loss("hinge", real, torch.empty(3, device=route))
        assert (loss.shape, loss.dtype, loss.device.type) == ((), torch.float32, route)
        assert torch.autograd.grad(loss, real)[0].shape == (5, 1)
    real = torch.empty(5, device="meta", requires_grad=True)
    assert torch.autograd.grad(gan_loss("relativistic_average", real, real), real)[0].device.type == "meta"


@pytest.mark.parametrize("name", RECIPES)
def test_functional_transforms(batches: tuple[Tensor, Tensor], name: str) -> None:
    real, fake = batches
    loss = lambda x: gan_loss(name, x, fake)  # noqa: E731
    same(torch.func.grad(loss)(real), torch.autograd.grad(plain(name, real, fake), real)[0])
    many = torch.stack([real, 2 * real])
    same(torch.func.vmap(loss)(many), torch.stack([plain(name, part, fake) for part in many]))
    same(torch.func.jvp(loss, (real,), (real,))[0], plain(name, real, fake))


def test_functional_transforms_of_the_ops_themselves(batches: tuple[Tensor, Tensor]) -> None:
    real, fake = batches
    how = ("cross_entropy", "none", "real", [1.0, 0.0], 1.0, 0.0, [True, True], False)
    direct = lambda x: torch.ops.fastgan.gan_loss(x, fake, None, None, None, *how)[0]  # noqa: E731
    same(torch.func.grad(direct)(real), torch.autograd.grad(plain("minimax", real, fake), real)[0])
    target = fake.detach().sigmoid()
    same(
        torch.func.vmap(lambda x: bce_with_logits(x, target))(torch.stack([real, real])),
        bce_with_logits(real, target).expand(2),
    )


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(batches: tuple[Tensor, Tensor], reentrant: bool) -> None:
    checkpoint(gan_loss, "minimax", *batches, use_reentrant=reentrant).backward()
    same([t.grad for t in batches], list(torch.autograd.grad(plain("minimax", *batches), batches)))


def test_autocast_leaves_losses_in_fp32(batches: tuple[Tensor, Tensor]) -> None:
    real, fake = batches
    low = [t.detach().to(torch.bfloat16 if t.is_cuda else torch.float16).requires_grad_() for t in batches]
    with torch.autocast(real.device.type, dtype=torch.bfloat16):
        assert gan_loss("hinge", real, fake).dtype == gan_loss("hinge", *low).dtype == torch.float32
        assert bce_with_logits(low[0], torch.ones_like(real)).dtype == torch.float32
        loss = gan_loss("least_squares", *low)
    same(loss, plain("least_squares", *(t.detach().float() for t in low)))
    assert torch.autograd.grad(loss, low[0])[0].dtype == low[0].dtype


@pytest.mark.gpu
@pytest.mark.parametrize("name", RECIPES)
def test_cuda_graph_replays_forward_and_backward(name: str) -> None:
    batches = [torch.randn(3000, 1, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(2)]
    monitors = torch.zeros(4, device="cuda")

    def run() -> tuple[Tensor, ...]:
        loss = gan_loss(name, *batches, monitors=monitors)
        return (loss, *torch.autograd.grad(loss, batches, fastgan.ops.unit_gradient(loss)))

    with torch.cuda.stream(torch.cuda.Stream()):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    with torch.no_grad():
        for batch in batches:
            batch.copy_(torch.randn_like(batch))
    graph.replay()
    for result, wanted in zip(results, run(), strict=True):
        assert torch.equal(result, wanted)
