"""A GAN's loss by the kernels: every form, size, stride and dtype against fp64 autograd of the formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastgan.benchmarks.gate import Poisoned, check
from fastgan.ops import dropout
from fastgan.ops import gan_loss_formulas as formulas

pytest.importorskip("triton")
from fastgan.kernels import loss as kernels

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy interprets what overflows
DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = {"cpu": [torch.float32, torch.float16], "cuda": [torch.float32, torch.float16, torch.bfloat16]}
TERMS = ("cross_entropy", "least_squares", "hinge", "linear")
RELATIONS = [("pairs", "real"), ("pairs", "fake"), ("average", "real"), ("average", "fake")]
FORMS = [*(formulas.Form(name) for name in TERMS), *(formulas.Form(TERMS[0], *how) for how in RELATIONS)]
STEPS = (1, 2, 3, 0)
on_devices = pytest.mark.parametrize("device", DEVICES)


@dataclass(frozen=True)
class Case:
    real: Tensor | None
    fake: Tensor
    form: formulas.Form
    real_weight: Tensor | None = None
    fake_weight: Tensor | None = None
    seed: int | None = None  # of the flips

    @property
    def rng(self) -> Tensor | None:
        return None if self.seed is None else torch.tensor([self.seed, 2**35 + 5], device=self.fake.device)


def logits(size: int, step: int, dtype: torch.dtype, device: str, seed: int, scale: float = 3.0) -> Tensor:
    """Random logits at one distance from each other; 0: all of them one."""
    generator = torch.Generator().manual_seed(seed)
    values = (torch.randn(max(size * step, 1), generator=generator) * scale).to(dtype).to(device)
    return values[: size * step : step] if step else values[:1].expand(size)


def by_kernels(case: Case) -> list[Tensor]:
    """Loss, what one watches, and the slopes."""
    told = kernels.Form(*case.form[:5], dropout.threshold(case.form.flip))
    fake = case.fake.detach()
    slopes = [None if t is None else torch.empty(t.numel(), dtype=t.dtype, device=t.device) for t in (case.real, fake)]
    watched = torch.empty(4, device=fake.device)
    operands = case.real, fake, case.real_weight, case.fake_weight, case.rng
    loss = kernels.gan_loss(*operands, *slopes, watched, told)
    return [loss, watched, *(t for t in slopes if t is not None)]


def by_autograd(case: Case, double: bool) -> list[Tensor]:
    """The same by the formulas, in fp64 or as the kernels form it."""

    def cast(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.double() if double else t

    batches = [None if t is None else t.detach().clone().requires_grad_() for t in map(cast, (case.real, case.fake))]
    weights = cast(case.real_weight), cast(case.fake_weight)
    loss = formulas.loss(case.form, *batches, *weights, case.rng)
    asked = [t for t in batches if t is not None]
    with torch.no_grad():
        watched = formulas.watch(case.form, *batches)
    none = torch.full((), math.nan, device=loss.device)
    values = torch.stack([none if t is None else t for t in watched])
    return [loss.detach(), values, *torch.autograd.grad(loss, asked)]


def sizes_of_terms(case: Case) -> float:
    """The mean size of what the loss adds up: what its rounding errors are relative to."""
    parts = [t.double() * (1 if w is None else w.double()) for t, w in
             ((case.real, case.real_weight), (case.fake, case.fake_weight)) if t is not None]  # fmt: skip
    squared = case.form.term == "least_squares"
    return sum(float((1 + (part.square() if squared else part.abs())).mean()) for part in parts)


def blur(case: Case) -> float:
    """What the rounding of an fp32 mean of large logits does to a sigmoid of the distance from it."""
    if case.form.relation != "average" or case.real is None:
        return 0.0
    return torch.finfo(torch.float32).eps * max(float(t.abs().max()) for t in (case.real, case.fake))


def judge(case: Case) -> str | None:
    """Say what is wrong with the kernels' results; None if nothing is."""
    with Poisoned():
        loss, watched, *slopes = by_kernels(case)
    base_loss, _, *base_slopes = by_autograd(case, double=False)
    exact_loss, exact_watched, *exact_slopes = by_autograd(case, double=True)
    eps = torch.finfo(torch.float32).eps
    allowed = 2 * abs(float(base_loss.double() - exact_loss)) + 4 * eps * sizes_of_terms(case)
    error = abs(float(loss.double() - exact_loss))
    if not error <= allowed:
        return f"the loss is off by {error:.2e} where {allowed:.2e} is allowed"
    given = [0, 1, 2, 3] if case.real is not None else [1, 3]
    try:
        size = float(exact_watched[given].abs().max())
        loose = 1e-5 * size + blur(case)
        torch.testing.assert_close(watched[given].double(), exact_watched[given].double(), rtol=0, atol=loose)
    except AssertionError as off:
        return f"what one watches: {off}"
    if case.real is None and not watched[::2].isnan().all():
        return "what belongs to a batch that is not there was written"
    kinds = {slope.dtype for slope in slopes}
    for kind in kinds:  # each by the rule of its own dtype
        own = [at for at, slope in enumerate(slopes) if slope.dtype == kind]
        ulp = torch.finfo(kind).eps + blur(case)
        why = check(*([parts[at] for at in own] for parts in (slopes, base_slopes, exact_slopes)), ulp).why
        if why is not None:
            return why
    return None


@on_devices
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(data=st.data())
def test_as_good_as_torch_against_fp64(device: str, data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(FORMS))
    n, m = (data.draw(st.integers(1, 300) | st.sampled_from((1024, 1025, 2500))) for _ in range(2))
    m = n if form.relation == "pairs" else m
    if form.relation == "none":
        labels = data.draw(st.sampled_from([(1.0, 0.0), (0.9, 0.0), (0.9, 0.2), (0.0, 1.0)]))
        form = form._replace(labels=labels, sign=data.draw(st.sampled_from((1.0, -1.0))))
    kinds = [data.draw(st.sampled_from(DTYPES[device])) for _ in range(2)]
    real, fake, one, two = (
        logits(size, data.draw(st.sampled_from(STEPS)), kind, device, seed)
        for seed, (size, kind) in enumerate(zip((n, m, n, m), kinds * 2, strict=True))
    )
    weighted = data.draw(st.booleans())
    case = Case(real, fake, form, one.abs() if weighted else None)
    if form.relation != "pairs" and weighted:
        case = replace(case, fake_weight=two.abs())
    if form.relation == "none":
        case = replace(case, real=None, real_weight=None) if data.draw(st.booleans()) else case
        flips = data.draw(st.booleans())
        case = replace(case, form=form._replace(flip=0.3), seed=7) if flips and case.real is not None else case
    assert judge(case) is None


@on_devices
@pytest.mark.parametrize("form", FORMS, ids=lambda form: " ".join(form[:3]))
def test_extreme_logits(device: str, form: formulas.Form) -> None:
    """1e4, -1e4, 0 and subnormal ones, next to each other and each by itself."""
    values = torch.tensor([1e4, -1e4, 0.0, -0.0, 1e-40, -1e-40, 30.0, -30.0, 104.0, -88.0, 5.5, 1.0, -1.0])
    if form.term == "hinge":
        values = values[:-2]  # where the hinge is, rounding may go either way
    for batch in (values, *(value.expand(5) for value in values[:3])):
        real, fake = batch.to(device), batch.flip(0).to(device)
        assert judge(Case(real, fake, form)) is None
        loss, _, *slopes = by_kernels(Case(real, fake, form))
        assert loss.isfinite() and all(slope.isfinite().all() for slope in slopes)


@on_devices
def test_each_logit_is_good_by_itself(device: str) -> None:
    """Not only the largest: relative errors of a single cross entropy and of its slope, from -80 to 80."""
    for value in torch.linspace(-80, 80, 33).tolist():
        for labels in ((1.0, 0.0), (0.0, 1.0)):
            case = Case(torch.full((1,), value, device=device), torch.zeros(0, device=device), FORMS[0])
            case = replace(case, real=None, fake=case.real, form=FORMS[0]._replace(labels=labels))
            got, exact = by_kernels(case), by_autograd(case, double=True)
            for mine, theirs in ((got[0], exact[0]), (got[2], exact[2])):
                torch.testing.assert_close(mine.double(), theirs.double(), rtol=2e-6, atol=0)


@on_devices
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: " ".join(form[:3]))
def test_nan_and_infinities_as_in_the_formula(device: str, form: formulas.Form, bad: float) -> None:
    real, fake = (logits(40, 1, torch.float32, device, seed) for seed in (0, 1))
    for at, batch in enumerate((real, fake)):
        batch = batch.clone()
        batch[7] = bad
        case = Case(real, batch, form) if at else Case(batch, fake, form)
        got, wanted = by_kernels(case), by_autograd(case, double=False)
        torch.testing.assert_close([got[0], *got[2:]], [wanted[0], *wanted[2:]], equal_nan=True, rtol=1e-5, atol=1e-6)
        assert not math.isnan(bad) or got[0].isnan()
        torch.testing.assert_close(got[1][2:], wanted[1][2:], rtol=0, atol=1e-6)  # NaN is never told rightly


@on_devices
@pytest.mark.parametrize("form", FORMS, ids=lambda form: " ".join(form[:3]))
def test_nothing_has_no_mean(device: str, form: formulas.Form) -> None:
    some, none = logits(5, 1, torch.float32, device, 0), torch.empty(0, device=device)
    for real, fake in ((none, none), *(((none, some), (some, none)) if form.relation != "pairs" else ())):
        loss, _, *slopes = by_kernels(Case(real, fake, form))
        assert loss.isnan() and [slope.numel() for slope in slopes] == [real.numel(), fake.numel()]


@on_devices
@pytest.mark.parametrize("form", FORMS, ids=lambda form: " ".join(form[:3]))
def test_same_bits_twice(device: str, form: formulas.Form) -> None:
    real, fake = (logits(5000, 1, torch.float32, device, seed) for seed in (0, 1))
    case = Case(real, fake, form)
    for first, second in zip(by_kernels(case), by_kernels(case), strict=True):
        assert torch.equal(first, second)


@pytest.mark.interpret
def test_the_order_of_arrival_is_all_the_same(renumber: Callable[..., None]) -> None:
    case = Case(*(logits(5000, 1, torch.float32, "cpu", seed) for seed in (0, 1)), FORMS[0])
    straight = by_kernels(case)
    renumber(lambda program, count: count - 1 - program)
    for first, second in zip(straight, by_kernels(case), strict=True):
        assert torch.equal(first, second)


@on_devices
def test_only_what_is_given_is_written(device: str) -> None:
    case = Case(*(logits(70, 1, torch.float32, device, seed) for seed in (0, 1)), FORMS[0])
    whole = by_kernels(case)
    slopes = torch.full((70,), math.nan, device=device)
    form = kernels.Form("cross_entropy")
    loss = kernels.gan_loss(case.real, case.fake, None, None, None, None, slopes, None, form)
    assert torch.equal(loss, whole[0]) and torch.equal(slopes, whole[3])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES["cuda"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: " ".join(form[:3]))
def test_larger_sizes(dtype: torch.dtype, form: formulas.Form) -> None:
    for n in (4096, 65536, 100_003, 1_000_000):
        real, fake = (logits(n, 1, dtype, "cuda", seed) for seed in (0, 1))
        assert judge(Case(real, fake, form)) is None


@pytest.mark.gpu
def test_a_graph_replays_with_the_flips_of_the_hour() -> None:
    case = Case(
        *(logits(3000, 1, torch.bfloat16, "cuda", seed) for seed in (0, 1)), FORMS[0]._replace(flip=0.4), seed=1
    )
    rng = case.rng
    assert rng is not None

    class Fixed(Case):
        rng = property(lambda self: rng)  # type: ignore[assignment]

    fixed = Fixed(case.real, case.fake, case.form)
    by_kernels(fixed)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = by_kernels(fixed)
    for seed in (3, 4):
        rng.fill_(seed)
        graph.replay()
        for replayed, direct in zip(captured, by_kernels(fixed), strict=True):
            assert torch.equal(replayed, direct)


BUGS: dict[str, Callable[[dict[str, Any]], None]] = {
    "labels exchanged": lambda told: told.update(real_label=told["fake_label"], fake_label=told["real_label"]),
    "a sum for a mean": lambda told: told.update(real_share=1.0),
    "one batch's count for the other's": lambda told: told.update(fake_share=told["real_share"]),
    "one logit too few": lambda told: told.update(N=told["N"] - 1),
    "another stride": lambda told: told.update(fake_n=0),
    "a wrong sign": lambda told: told.update(sign=-told["sign"]),
    "a weight left out": lambda told: told.update(real_weight=None),
    "flipped by other bits": lambda told: told.update(rng=told["rng"] + 1),
    "flipped more often": lambda told: told.update(threshold=2 * told["threshold"]),
    "another bound": lambda told: told.update(bound=1.5),
}


@on_devices
@pytest.mark.parametrize("bug", BUGS)
def test_a_wrong_launch_is_caught(device: str, bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule has teeth, whatever one tells the kernel that is not so."""
    real, fake, weight = (logits(n, 1, torch.float32, device, seed) for seed, n in enumerate((60, 40, 60)))
    case = Case(real, fake, FORMS[0]._replace(flip=0.3), weight.abs(), seed=3)
    assert judge(case) is None
    right = kernels.launch

    def wrong(*operands: Any) -> Any:
        launch = right(*operands)
        arguments = dict(launch.arguments)
        BUGS[bug](arguments)
        return replace(launch, arguments=arguments)

    monkeypatch.setattr(kernels, "launch", wrong)
    assert judge(case) is not None


@on_devices
@pytest.mark.parametrize("relation", ["none", "pairs"])
def test_nearly_2_31_logits(device: str, relation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 2^21 programs: fails where the number of blocks is rounded up past int32."""
    real = fake = torch.zeros(1, device=device).expand(2**31 - 1)
    loss, form = torch.empty((), device=device), kernels.Form("cross_entropy", relation)
    launch = kernels.launch(real, fake.detach(), None, None, None, None, None, loss, None, form)
    alone = {"part": None, "ticket": None, "programs": 2**21, "real_share": 1 / 1024, "fake_share": 1 / 1024}
    replace(launch, arguments={**launch.arguments, **alone}, programs=1).run()
    assert loss.item() == pytest.approx(math.log(2) * (1 if relation == "pairs" else 2))


@pytest.mark.interpret
def test_addresses_beyond_2_31_elements(sparse: Callable[[torch.dtype], Tensor]) -> None:
    """Fails where an offset is formed in int32: it would wrap around, into the empty part of the file."""
    near = [logits(40, 1, torch.float16, "cpu", seed) for seed in (0, 1)]
    places = [sparse(torch.float16).as_strided((40,), (2**27,), 2**30 + 64 * at) for at in (1, 2)]
    far = [place.copy_(t) for place, t in zip(places, near, strict=True)]
    for form in (FORMS[0], FORMS[4], FORMS[6]):
        for result, wanted in zip(by_kernels(Case(*far, form)), by_kernels(Case(*near, form)), strict=True):
            assert torch.equal(result, wanted)
