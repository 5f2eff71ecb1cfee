"""gan_loss as people call it: the kernels beside the formulas, options, what one watches, laziness, mistakes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastgan
from fastgan.errors import UserError
from fastgan.ops import gan_loss, unit_gradient
from fastgan.ops import gan_loss_autograd as autograd
from fastgan.ops import gan_loss_formulas as formulas
from fastgan.ops.gan_loss_formulas import RECIPES
from fastgan.ops.gan_loss_slopes import slopes as plain_slopes

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy interprets what overflows
DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
ROUTES = [pytest.param(("cpu", "reference"), id="reference"), *(
    pytest.param((its.values[0], "triton"), id=str(its.values[0]), marks=its.marks) for its in DEVICES
)]  # fmt: skip
SIDES = ("discriminator", "generator")
every = pytest.mark.parametrize(("name", "side"), [(name, side) for name in RECIPES for side in SIDES])


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device on which the kernels run, whatever ``auto`` would take there."""
    with fastgan.backend("triton"):
        yield request.param


@pytest.fixture(params=ROUTES)
def route(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device, with plain PyTorch or the kernels on it."""
    with fastgan.backend(request.param[1]):
        yield request.param[0]


def logits(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * 3).to(device, dtype).requires_grad_()


def outcome(name: str, real: Tensor, fake: Tensor, **options: Any) -> list[Tensor]:
    """The loss, what one watches, first gradients, and the gradients of a mix of those."""
    monitors = torch.full((4,), -7.0, device=real.device)
    loss = gan_loss(name, real, fake, monitors=monitors, **options)
    first = torch.autograd.grad(loss * 3, (real, fake), retain_graph=True, materialize_grads=True)
    graph = torch.autograd.grad(loss, (real, fake), create_graph=True, materialize_grads=True)
    mix = sum((part.square() * torch.arange(1, part.numel() + 1, device=part.device).view(part.shape)).sum()
              for part in graph) + 0 * (real.sum() + fake.sum())  # fmt: skip
    return [loss.detach(), monitors, *first, *torch.autograd.grad(mix, (real, fake))]


@every
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=5)
@given(data=st.data())
def test_kernels_give_what_the_formulas_give(device: str, name: str, side: str, data: st.DataObject) -> None:
    """Shapes as critics return them, strides, sizes, weights and flips: loss, gradients to second order, monitors."""
    shapes = st.sampled_from([(6,), (9, 1), (3, 1, 1, 1), (2, 1, 3, 4), (1,)])
    shape = data.draw(shapes)
    other = shape if name == "relativistic" else data.draw(shapes)
    real, fake = (logits(*size, device=device, seed=seed) for seed, size in enumerate((shape, other)))
    options: dict[str, Any] = {"side": side}
    if data.draw(st.booleans()):
        options["real_weight"] = logits(shape[0], *(1,) * (len(shape) - 1), device=device, seed=5).detach().abs()
        if name != "relativistic":
            options["fake_weight"] = logits(*other, device=device, seed=6).detach().abs()
    if side == "discriminator" and RECIPES[name].labels != "none":
        options |= {"label_flip": 0.4, "rng": torch.tensor([5, 2**34], device=device)}
    if side == "discriminator" and RECIPES[name].labels == "both":
        options["label_smoothing"] = data.draw(st.sampled_from([0.0, 0.1, (0.1, 0.2), (0.0, 0.3)]))
    turn = data.draw(st.sampled_from(["as it is", "turned", "of every other"]))
    lay: dict[str, Callable[[Tensor], Tensor]] = {
        "as it is": lambda t: t,
        "turned": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
        "of every other": lambda t: torch.stack([t, t], 0)[0] if t.dim() > 1 else t.repeat_interleave(2)[::2],
    }
    mine = outcome(name, *(lay[turn](t) for t in (real, fake)), **options)
    with fastgan.backend("reference"):
        theirs = outcome(name, real, fake, **options)
    for got, wanted in zip(mine, theirs, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=2e-6)


@every
def test_slopes_written_out_are_the_formulas_derivatives(name: str, side: str) -> None:
    """What the op returns where its kernels do not run; and the kernels' formulas in fp64."""
    real, fake, weight = (logits(6, dtype=torch.float64, seed=seed) for seed in range(3))
    recipe = RECIPES[name]
    labelled = side == "discriminator" and recipe.labels != "none"
    form = formulas.Form(recipe.term, recipe.relation, "real" if side == "discriminator" else "fake",
                         (0.9, 0.2) if labelled else (1.0, 0.0), -1.0, 0.4)  # fmt: skip
    operands = real, fake, weight.detach(), None if name == "relativistic" else weight.detach().flip(0)
    rng = torch.tensor([3, 4]) if labelled else None
    loss = formulas.loss(form._replace(sign=1.0) if recipe.relation != "none" else form, *operands, rng)
    wanted = torch.autograd.grad(loss, (real, fake))
    torch.testing.assert_close(plain_slopes(form, *operands, rng), wanted)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits(route: str, name: str, side: str, dtype: torch.dtype) -> None:
    """The loss is formed in fp32 and returned so; gradients come in the logits' dtype, each in its own."""
    for kinds in ((dtype, dtype), (dtype, torch.float32)):
        real, fake = (logits(40, 1, device=route, dtype=kind, seed=seed) for seed, kind in enumerate(kinds))
        loss = gan_loss(name, real, fake, side=side)
        exact = gan_loss(name, real.detach().double(), fake.detach().double(), side=side)
        assert loss.dtype == torch.float32 and exact.dtype == torch.float64
        torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-5)
        found = torch.autograd.grad(loss, (real, fake), allow_unused=True)
        assert all(part is None or part.dtype == kind for part, kind in zip(found, kinds, strict=True))


def test_small_fp16_slopes_survive_until_they_are_scaled(route: str) -> None:
    real, fake = (logits(20_000, device=route, dtype=torch.float16, seed=seed) for seed in (0, 1))
    loss = gan_loss("non_saturating", real.detach(), fake) * 2**15
    (found,) = torch.autograd.grad(loss, fake)
    torch.testing.assert_close(
        found.float(), 2**15 * torch.sigmoid(fake.detach().float()) / 20_000, rtol=2e-3, atol=1e-7
    )


@every
def test_monitors(route: str, name: str, side: str) -> None:
    """Scores and shares as the docstring says; entries of a batch that is not read are left alone."""
    real, fake = (logits(40, 1, device=route, seed=seed).detach() for seed in (0, 1))
    monitors = torch.full((4,), -7.0, device=route)
    version = monitors._version
    gan_loss(name, real, fake, side=side, monitors=monitors)
    assert monitors._version > version
    r, f = real, fake
    if name == "relativistic":
        r, f = real - fake, fake - real
    elif name == "relativistic_average":
        r, f = real - fake.mean(), fake - real.mean()
    score = torch.sigmoid if RECIPES[name].term == "cross_entropy" else lambda t: t
    bound = 0.5 if name == "least_squares" else 0.0
    wanted = torch.stack([score(r).mean(), score(f).mean(), (r > bound).float().mean(), (f <= bound).float().mean()])
    if side == "generator" and not name.startswith("relativistic"):
        wanted[::2] = -7.0
    torch.testing.assert_close(monitors, wanted, rtol=1e-5, atol=1e-6)


def test_a_tied_pair_and_nan_are_never_told_rightly(route: str) -> None:
    real, fake, nan = (
        torch.tensor(values, device=route) for values in ([2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [float("nan")] * 3)
    )
    shares = {}
    for key, name, batches in (("tied", "relativistic", (real, fake)), ("nan", "hinge", (nan, nan))):
        monitors = torch.full((4,), -7.0, device=route)
        gan_loss(name, *batches, monitors=monitors)
        shares[key] = monitors[2:].tolist()
    assert shares["tied"] == pytest.approx([1 / 3, 1 / 3]) and shares["nan"] == [0.0, 0.0]


def test_flips_are_as_many_as_asked_for_and_follow_the_seed(route: str) -> None:
    ones = torch.full((4000,), 30.0, device=route)
    flipped = lambda **how: gan_loss("non_saturating", ones, -ones, label_flip=0.25, **how).item() / 60  # noqa: E731
    torch.manual_seed(0)
    first, second = flipped(), flipped()
    assert first == pytest.approx(0.25, abs=0.03) and first != second
    torch.manual_seed(0)
    assert flipped() == first
    rng = torch.tensor([1, 2], device=route)
    assert flipped(rng=rng) == flipped(rng=rng)
    everything = gan_loss("hinge", ones, -ones, label_flip=1.0)
    torch.testing.assert_close(everything, torch.tensor(62.0, device=route))
    torch.testing.assert_close(everything, gan_loss("hinge", -ones, ones))


def test_smoothed_labels_and_weights_are_those_of_bce(route: str) -> None:
    """One-sided, two-sided, and weights that are divided by the count: as BCE with logits does it."""
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    real, fake = (logits(50, 1, device=route, seed=seed) for seed in (0, 1))
    weight = logits(50, 1, device=route, seed=2).detach().abs()
    for smoothing, labels in ((0.1, (0.9, 0.0)), ((0.2, 0.3), (0.8, 0.3))):
        mine = gan_loss("non_saturating", real, fake, label_smoothing=smoothing, real_weight=weight)
        theirs = bce(real, torch.full_like(real, labels[0]), weight) + bce(fake, torch.full_like(fake, labels[1]))
        torch.testing.assert_close(mine, theirs, rtol=2e-6, atol=0)
    wanted = 0.5 * (real - 0.9).square().mean() + 0.5 * (fake - 0.2).square().mean()
    for pair in ((0.1, 0.2), [0.1, 0.2]):  # a configuration file's pairs are lists
        torch.testing.assert_close(gan_loss("least_squares", real, fake, label_smoothing=pair), wanted)


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> list[list[bool]]:
    """Which slopes each launch stores."""
    from fastgan.kernels import loss as kernels

    seen: list[list[bool]] = []
    run = kernels.gan_loss
    monkeypatch.setattr(kernels, "gan_loss", lambda *its: seen.append([t is not None for t in its[5:7]]) or run(*its))
    return seen


def test_no_slope_is_formed_that_nobody_asked_for(device: str, stored: list[list[bool]]) -> None:
    real, fake = (logits(9, 1, device=device, seed=seed) for seed in (0, 1))
    gan_loss("hinge", real, fake.detach())
    gan_loss("hinge", real.detach(), fake)
    gan_loss("hinge", real, fake)
    gan_loss("hinge", fake_logits=fake, side="generator")
    with torch.no_grad():
        assert gan_loss("hinge", real, fake).grad_fn is None
    assert stored == [[True, False], [False, True], [True, True], [False, True], [False, False]]
    loss = gan_loss("hinge", real, fake)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        (found,) = torch.autograd.grad(loss, fake, unit_gradient(loss), retain_graph=True)
        torch.autograd.grad(loss + fake.sum(), (real, fake), unit_gradient(loss), retain_graph=True)
    assert not any(event.key == "aten::mul" for event in profile.key_averages())
    torch.testing.assert_close(found, torch.autograd.grad(loss, fake, retain_graph=True)[0])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.autograd.grad(loss, (real, fake), torch.tensor(2.0, device=device))
    assert sum(event.count for event in profile.key_averages() if event.key == "aten::mul") == 1


def test_the_unit_gradient_is_what_backward_begins_with(route: str) -> None:
    real, fake = (logits(9, 1, device=route, dtype=torch.bfloat16, seed=seed) for seed in (0, 1))
    for grown in (lambda loss: loss, lambda loss: loss + 0.5 * loss.detach(), lambda loss: 2 * loss):
        found = []
        for seed in (None, unit_gradient):
            loss = grown(gan_loss("non_saturating", real, fake))
            real.grad = fake.grad = None
            loss.backward(None if seed is None else seed(loss))
            assert real.grad is not None and fake.grad is not None
            found.append([real.grad.clone(), fake.grad.clone()])
        torch.testing.assert_close(*found, rtol=1e-2, atol=1e-4)
    assert unit_gradient(loss).item() == 1


def test_the_same_tensor_as_real_and_fake(route: str) -> None:
    both = logits(9, 1, device=route)
    for name in RECIPES:
        for graph in (False, True):
            loss = gan_loss(name, both, both)
            (found,) = torch.autograd.grad(loss, both, create_graph=graph)
            parts = torch.autograd.grad(gan_loss(name, both, both * 1) + 0 * both.sum(), both)[0]
            torch.testing.assert_close(found.detach(), parts, rtol=1e-5, atol=1e-6)


def test_expanded_logits(route: str) -> None:
    one = logits(1, device=route)
    loss = gan_loss("non_saturating", one.expand(6), one.view(1, 1).expand(4, 2))
    (found,) = torch.autograd.grad(loss, one)
    torch.testing.assert_close(found, torch.sigmoid(one.detach()) - torch.sigmoid(-one.detach()))


@pytest.mark.parametrize("name", RECIPES)
def test_an_empty_batch_has_no_mean(route: str, name: str) -> None:
    none = logits(0, 1, device=route)
    for fake in (none, logits(0 if name == "relativistic" else 3, device=route)):
        loss = gan_loss(name, none, fake)
        assert loss.isnan()
        assert torch.autograd.grad(loss, none)[0].shape == none.shape


def test_gradients_of_weights_and_batched_ones(route: str) -> None:
    real, fake, weight = (logits(5, device=route, seed=seed) for seed in range(3))
    (found,) = torch.autograd.grad(gan_loss("wasserstein", real, fake, real_weight=weight), weight)
    torch.testing.assert_close(found, -real.detach() / 5)
    loss = gan_loss("wasserstein", real, fake)
    grads = torch.tensor([1.0, 2.0, -3.0], device=route)
    (many,) = torch.autograd.grad(loss, real, grads, is_grads_batched=True)
    torch.testing.assert_close(many, -grads[:, None].expand(3, 5) / 5)


def test_large_averages_go_by_pytorch_unless_ours_are_asked_for(
    device: str, stored: list[list[bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["fastgan.ops.gan_loss"]  # not the function of its name
    monkeypatch.setattr(module, "MOST_AVERAGED", 10)
    real = logits(11, device=device)
    gan_loss("relativistic_average", real, real)
    monkeypatch.setattr(module, "only_ours", lambda: False)
    gan_loss("relativistic_average", real, real)
    assert len(stored) == 1


MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    ("hinged", {}, "unknown objective 'hinged': did you mean 'hinge'"),
    ("hinge", {"side": "critic"}, "unknown side 'critic'"),
    ("hinge", {"label_smoothing": 0.1}, "hinge has no labels for label_smoothing: .* minimax, non_saturating, least"),
    ("wasserstein", {"label_flip": 0.1}, "wasserstein has no labels for label_flip: .* least_squares, hinge"),
    ("relativistic", {"label_smoothing": (0.0, 0.1)}, "relativistic has no labels"),
    ("minimax", {"label_smoothing": 0.1, "side": "generator"}, "label_smoothing is the discriminator's"),
    ("minimax", {"label_smoothing": 1.1}, "have to be between 0 and 1"),
    ("minimax", {"label_smoothing": (0.1,)}, r"label_smoothing \(0.1,\): give one number, or one for each of the two"),
    ("minimax", {"label_flip": -0.1}, "have to be between 0 and 1"),
    ("relativistic", {"fake_logits": torch.zeros(3)}, "judges pairs and got 2 real and 3 fake logits"),
    ("relativistic", {"fake_weight": torch.ones(2)}, "a pair has one weight"),
    ("relativistic", {"real_logits": None, "side": "generator"}, "needs real_logits"),
    ("hinge", {"real_logits": None}, "the discriminator's loss needs real_logits"),
    ("hinge", {"fake_logits": None}, "the discriminator's loss needs fake_logits"),
    ("hinge", {"real_weight": torch.ones(3)}, r"real_weight of shape \(3,\) does not expand to the logits' \(2,\)"),
    ("hinge", {"monitors": torch.zeros(3)}, r"monitors have to be a contiguous float32 \(4\) buffer on cpu"),
    ("hinge", {"monitors": torch.zeros(8)[::2]}, "monitors have to be a contiguous"),
    ("hinge", {"real_logits": torch.zeros(2, device="meta")}, "real_logits are on meta and fake_logits on cpu"),
    ("minimax", {"label_flip": 0.1, "rng": torch.zeros(2)}, "rng has to be int64"),
]


@pytest.mark.parametrize(("name", "options", "said"), MISTAKES)
def test_mistakes_are_named_in_a_line(name: str, options: dict[str, Any], said: str) -> None:
    batches = {"real_logits": torch.zeros(2), "fake_logits": torch.zeros(2)}
    with pytest.raises(UserError, match=said) as error:
        gan_loss(name, **(batches | options))
    assert "\n" not in str(error.value)


def test_both_halves_of_the_slopes_begin_where_vectors_may_be_stored() -> None:
    for n in (1, 15, 16, 17, 64):
        slopes, (real, fake) = autograd._room((torch.empty(n), torch.empty(5)), (True, True))
        assert real is not None and fake is not None and (real.numel(), fake.numel()) == (n, 5)
        assert fake.storage_offset() % autograd.ALIGNED == 0 and fake.storage_offset() >= n
        assert fake.storage_offset() + 5 == slopes.numel()
