"""Convolutions backward, either way: every geometry, layout, activation and tile against fp64, their addresses."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastgan.benchmarks.gate import check
from fastgan.ops.activation import ACTIVATIONS, activate, times_derivative

pytest.importorskip("triton")
from fastgan.kernels import conv_bwd_input as to_input
from fastgan.kernels import conv_bwd_weight as to_weight
from fastgan.kernels.conv_map import GATHER, PHASE, SPREAD, Axis, Geometry
from fastgan.kernels.launch import forget
from fastgan.kernels.linear_bwd_input import Below
from fastgan.kernels.tile import Problem, Target, candidates

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = {"cpu": [torch.float32, torch.float16], "cuda": [torch.float32, torch.float16, torch.bfloat16]}
SIDES = {"cpu": (16, 64), "cuda": (32, 64)}  # of the tiles here
LAYOUTS = ("rows", "last", "turned", "steps")
NOTHING = ("none", 0.0)
DOWN = Geometry(Axis(6, 3, 3, 2, 1), Axis(8, 4, 2, 2))
on_devices = pytest.mark.parametrize("device", DEVICES)
drawn = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
pytestmark = pytest.mark.usefixtures("ieee")


@dataclass(frozen=True)
class Form:
    """A layer from u = phi(x) on: ``stored`` where x holds u already. ``layouts`` of x, weight, gy, gx, gw."""

    samples: int
    K: int  # channels on the grid
    C: int  # channels of the image
    geometry: Geometry
    transposed: bool = False
    layouts: tuple[str, ...] = ("last",) * 5
    activation: str = "none"
    slope: float = 0.0
    phi: tuple[str, float] = NOTHING
    stored: bool = False
    dtype: torch.dtype = torch.float32

    @property
    def map(self) -> str:
        return GATHER if self.transposed else PHASE if self.geometry.h.up == 1 else SPREAD

    def sizes(self) -> dict[str, tuple[int, ...]]:
        h, w = self.geometry
        image, grid = (self.samples, self.C, h.image, w.image), (self.samples, self.K, h.grid, w.grid)
        x, gy = (grid, image) if self.transposed else (image, grid)
        weight = (self.K, self.C, h.kernel, w.kernel)
        return {"x": x, "weight": weight, "gy": gy, "gx": x, "gw": weight}


Operands = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]  # x, weight, gy, saved, below


@dataclass
class Bench:
    """What makes a form's tensors, and computes its gradients both ways."""

    device: str
    numbers: Any
    laid: Any
    convolved: Any

    def operands(self, form: Form) -> Operands:
        lays = dict(zip(form.sizes(), form.layouts, strict=True))

        def draw(seed: int, name: str) -> Tensor:
            return self.numbers(seed, *form.sizes()[name], dtype=form.dtype, device=self.device)

        raw, out = draw(0, "x"), activate(draw(3, "gy").float(), form.activation, max(form.slope, 0.0))
        u = activate(raw.float(), *form.phi).to(form.dtype)
        saved = None
        if form.activation != "none":
            saved = self.laid((draw(3, "gy") if form.slope < 0 else out).to(form.dtype), lays["gy"])
        below = self.laid(raw if form.phi[1] < 0 else u, lays["gx"])
        x = self.laid(u if form.stored else raw, lays["x"])
        return x, self.laid(draw(1, "weight"), lays["weight"]), self.laid(draw(2, "gy"), lays["gy"]), saved, below

    def empty(self, form: Form) -> tuple[Tensor, Tensor, Tensor | None]:
        """gx, gw and gb, not yet written."""
        lays = dict(zip(form.sizes(), form.layouts, strict=True))
        nothing = {"dtype": form.dtype, "device": self.device}
        gx, gw = (
            self.laid(torch.full(form.sizes()[name], float("nan"), **nothing), lays[name]) for name in ("gx", "gw")
        )
        return gx, gw, None if form.transposed else torch.full((form.K,), float("nan"), **nothing)

    def by_kernels(
        self, form: Form, operands: Operands | None = None, geometry: Geometry | None = None
    ) -> list[Tensor]:
        x, weight, gy, saved, below = operands or self.operands(form)
        gx, gw, gb = self.empty(form)
        how, geometry = (form.activation, form.slope), geometry or form.geometry
        through = None if form.phi == NOTHING else Below(below, *form.phi)
        to_input.conv_bwd_input(gy, saved, weight, gx, geometry, form.map, *how, below=through)
        before = NOTHING if form.stored else form.phi
        to_weight.conv_bwd_weight(gy, saved, x, gw, gb, geometry, form.transposed, *how, before=before)
        return [part for part in (gx, gw, gb) if part is not None]

    def by_torch(self, form: Form, dtype: torch.dtype) -> list[Tensor]:
        """By autograd; operands are rounded as they are for a product, unless in fp64."""
        x, weight, gy, saved, below = (None if part is None else part.to(dtype) for part in self.operands(form))

        def rounded(part: Tensor) -> Tensor:
            return part.to(form.dtype).to(dtype) if dtype == torch.float32 else part

        g = rounded(times_derivative(gy, saved, form.activation, form.slope))
        u = (x if form.stored else rounded(activate(x, *form.phi))).requires_grad_()
        y = self.convolved(u, weight.requires_grad_(), form.geometry, form.transposed)
        gu, gw = torch.autograd.grad(y, (u, weight), g)
        gx = times_derivative(gu, None if form.phi == NOTHING else below, *form.phi)
        return [gx, gw] if form.transposed else [gx, gw, g.sum((0, 2, 3))]

    def judge(self, form: Form, got: list[Tensor] | None = None) -> str | None:
        """Say what is wrong by the fp64 rule; torch's own convolutions accumulate in fp32, whatever the dtype."""
        got = self.by_kernels(form) if got is None else got
        for part, layout in zip(got, form.layouts[3:], strict=False):
            if layout == "steps":
                assert part._base.isfinite().sum() <= part.numel(), "written between the elements"
        plain = [part.to(form.dtype) for part in self.by_torch(form, torch.float32)]
        return check(got, plain, self.by_torch(form, torch.float64)).why


@pytest.fixture
def bench(numbers: Any, laid: Any, convolved: Any) -> Callable[[str], Bench]:
    return lambda device: Bench(device, numbers, laid, convolved)


@on_devices
@drawn
@given(data=st.data())
def test_as_good_as_torch_against_fp64(
    device: str, data: st.DataObject, bench: Any, geometries: Any, set_tile: Any
) -> None:
    draw, sides = data.draw, st.sampled_from(SIDES[device])
    set_tile(draw(sides), draw(sides), draw(sides), draw(st.sampled_from((1, 1, 2, 5))))
    transposed = draw(st.booleans())
    samples, geometry = draw(geometries(transposed, 1 if transposed else draw(st.sampled_from((1, 1, 1, 2, 3)))))
    activations = st.sampled_from([("none", 0.0), ("leaky_relu", -0.3), *((name, 0.2) for name in ACTIVATIONS[1:])])
    layouts = [draw(st.sampled_from((*LAYOUTS, "expanded") if at == 2 else LAYOUTS)) for at in range(5)]
    channels = st.integers(8, 20) | st.sampled_from((15, 16, 17, 33))  # of which a bias's gradient has one number each
    form = Form(
        samples, draw(channels), draw(channels | st.integers(1, 7)), geometry, transposed, tuple(layouts),
        *draw(activations), draw(activations), draw(st.booleans()), draw(st.sampled_from(DTYPES[device])),
    )  # fmt: skip
    assert bench(device).judge(form) is None


NAMED = {
    "4x4 and 1x1": Geometry(Axis(4, 1, 4), Axis(4, 1, 4)),
    "DCGAN's": Geometry(Axis(8, 4, 4, 2, 1), Axis(8, 4, 4, 2, 1)),
    "a pixel each": Geometry(Axis(3, 3, 1), Axis(5, 5, 1)),
    "a signal": Geometry(Axis(1, 1, 1), Axis(40, 10, 25, 4, 11)),
    "a kernel of 16": Geometry(Axis(17, 2, 16), Axis(4, 4, 1)),
    "strides of 8 and 1": Geometry(Axis(16, 2, 8, 8), Axis(4, 5, 2, 1, 1)),
    "phases without taps": Geometry(Axis(13, 5, 1, 3), Axis(11, 3, 2, 4, 0, 2)),
    "stride 6, dilation 4": Geometry(Axis(15, 3, 2, 6, 1, 4), Axis(5, 5, 1)),
    "fewer rows than phases": Geometry(Axis(3, 2, 1, 5, 2), Axis(11, 2, 3, 8)),
    "twice the size": Geometry(Axis(4, 8, 3, 1, 1, 1, 2), Axis(3, 6, 3, 1, 1, 1, 2)),
    "thrice, dilated": Geometry(Axis(3, 7, 2, 1, 0, 2, 3), Axis(2, 6, 3, 1, 2, 2, 3)),
}


@on_devices
@pytest.mark.parametrize("name", NAMED)
def test_geometries_of_all_kinds(device: str, name: str, bench: Any, set_tile: Any) -> None:
    """With few channels and with many; a grid of one position goes by the map of its own as well."""
    geometry, here = NAMED[name], bench(device)
    set_tile(*SIDES[device], 32)
    for K, C, transposed in ((18, 3, False), (2, 18, True)):
        if geometry.h.up == 1 or not transposed:
            form = Form(2 + 6 // geometry.positions(GATHER), K, C, geometry, transposed)
            assert here.judge(form) is None
            if geometry.lone() != geometry:
                assert here.judge(form, here.by_kernels(form, geometry=geometry.lone())) is None


@on_devices
def test_every_number_of_channels(device: str, bench: Any) -> None:
    """Around each multiple of a block's, by the tile that would be chosen."""
    geometry = Geometry(Axis(4, 2, 2, 2), Axis(5, 4, 2))
    for at, (K, C) in enumerate(((1, 15), (7, 2), (15, 1), (16, 16), (17, 31), (3, 264), (520, 2))):
        assert bench(device).judge(Form(2, K, C, geometry, at % 2 == 1)) is None, (K, C)


@on_devices
@pytest.mark.parametrize("transposed", [False, True])
def test_no_sample(device: str, transposed: bool, bench: Any) -> None:
    """Sums of nothing are 0."""
    gx, *sums = bench(device).by_kernels(Form(0, 20, 3, DOWN, transposed, activation="tanh"))
    assert not gx.numel() and not any(part.any() for part in sums)


@on_devices
@pytest.mark.parametrize("precision, dtype", [("tf32", torch.float16), ("ieee", torch.float32)])
@pytest.mark.parametrize("transposed", [False, True])
def test_every_tile(device: str, precision: str, dtype: torch.dtype, transposed: bool, bench: Any) -> None:
    """Each tile that a GPU's dispatcher may choose, whatever these sizes would make it choose."""
    here, form = bench(device), Form(3, 18, 17, DOWN, transposed, activation="relu", dtype=dtype)
    x, weight, gy, saved, _ = here.operands(form)
    how, target = (form.activation, form.slope), Target(80, precision)
    archs = (86, 90) if device == "cpu" else (Target.of(x).arch,)

    def tiles(problem: Problem) -> list[Any]:
        found = {}
        for arch, vectors in itertools.product(archs, (False, True)):
            asked = replace(problem, target=Target(arch, precision), vectors=vectors)
            found |= {str(tile): tile for tile in candidates(asked)}
        return list(found.values())

    base, exact = [part.to(dtype) for part in here.by_torch(form, torch.float32)], here.by_torch(form, torch.float64)
    for tile in tiles(to_input.bwd_input_problem(gy, saved, weight, DOWN, form.map, target)):
        gx = here.empty(form)[0]
        to_input.bwd_input_launch(gy, saved, weight, gx, None, DOWN, form.map, *how, target, config=tile).run()
        assert check(gx, base[0], exact[0]).why is None, tile
    for tile in tiles(to_weight.bwd_weight_problem(gy, saved, x, weight, DOWN, target)):
        _, gw, gb = here.empty(form)
        to_weight.bwd_weight_launch(gy, saved, x, gw, gb, DOWN, transposed, *how, target, config=tile).run()
        assert check([gw, gb], base[1:], exact[1:]).why is None, tile


@on_devices
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
def test_a_wrong_mask_or_place_is_caught(device: str, activation: str, transposed: bool, bench: Any) -> None:
    """The rule has teeth: derivatives from a neighbour's output, a row of padding, an element that is not written."""
    here, form = bench(device), Form(3, 18, 20, DOWN, transposed, activation=activation, slope=0.2)
    x, weight, gy, saved, below = here.operands(form)
    right = here.by_kernels(form)
    assert here.judge(form, right) is None
    off = here.by_kernels(form, (x, weight, gy, saved.roll(1, 3), below))
    moved = here.by_kernels(form, geometry=DOWN._replace(h=DOWN.h._replace(padding=0)))
    for at, part in enumerate(right):
        hole = part.clone()
        hole[(1,) * part.dim()] = float("nan")
        for wrong in (off[at], moved[at] if at < 2 else 1.001 * part, hole):
            assert here.judge(form, [*right[:at], wrong, *right[at + 1 :]]) is not None


@pytest.mark.interpret
@pytest.mark.parametrize("transposed, split", [(True, 1), (False, 3)])
def test_the_same_bits_whoever_comes_last(
    transposed: bool, split: int, bench: Any, set_tile: Any, renumber: Any, shared_tickets: Any
) -> None:
    buffer, here = shared_tickets("cpu"), bench("cpu")
    set_tile(16, 16, 16, split)
    form = Form(2, 18, 20, DOWN, transposed, activation="sigmoid", phi=("tanh", 0.0))
    expected = here.by_kernels(form)
    assert here.judge(form, expected) is None
    for order in (lambda i, count: count - 1 - i, lambda i, count: (i + count // 3) % count):
        renumber(order)
        assert all(torch.equal(*pair) for pair in zip(here.by_kernels(form), expected, strict=True))
        assert not buffer.any()


@on_devices
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", ["DCGAN's", "4x4 and 1x1", "phases without taps", "a signal"])
def test_rows_are_found_in_every_way(
    device: str, name: str, transposed: bool, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in 32 bits or in 64, of a grid with one step from row to row or with several: the same bits."""
    here = bench(device)
    form = Form(5, 18, 20, NAMED[name], transposed)
    expected = here.by_kernels(form)[1:]
    assert all(
        map(torch.equal, here.by_kernels(replace(form, layouts=("rows", "last", "rows", "last", "last")))[1:], expected)
    )
    forget()
    monkeypatch.setattr(to_weight, "MOST_ROWS", 0)
    assert all(map(torch.equal, here.by_kernels(form)[1:], expected))
    forget()


@on_devices
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy interprets the infinities
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("channels", [3, 20])
def test_nan_stays_where_it_is(device: str, channels: int, transposed: bool, bench: Any) -> None:
    here, form = bench(device), Form(3, channels, channels, DOWN, transposed)
    x, weight, gy, _, below = here.operands(form)
    x[0, 2, 1, 2], gy[1, 1, 1, 3], gy[2, 0, 2, 1] = float("nan"), float("nan"), float("inf")
    u, w = x.clone().requires_grad_(), weight.clone().requires_grad_()
    expected = torch.autograd.grad(here.convolved(u, w, DOWN, transposed), (u, w), gy)
    gx, gw = here.by_kernels(form, (x, weight, gy, None, below))[:2]
    torch.testing.assert_close([gx, gw], list(expected), equal_nan=True, rtol=1e-4, atol=1e-5)
    assert gx[1].isnan().any() and not gx[0].isnan().any() and not gw.isnan().all()


FAR = 2**31 + 2**20  # elements


@pytest.mark.interpret
@pytest.mark.parametrize("channels", [3, 20])
@pytest.mark.parametrize(
    "name, dimension, transposed",
    [(name, at, at == 1) for name in ("x", "gy", "gx", "gw", "weight") for at in (0, 1, 2)],
)
def test_addresses_beyond_2_31_elements(
    name: str, dimension: int, transposed: bool, channels: int, bench: Any, sparse: Callable[[torch.dtype], Tensor]
) -> None:
    """Fails where an offset is formed in int32: it would wrap around, into the empty part of the file."""
    geometry = Geometry(Axis(5, 2, 2, 2), Axis(4, 2, 2, 2))
    here, form = bench("cpu"), Form(2, channels, channels, geometry, transposed, dtype=torch.float16)
    x, weight, gy, *_ = here.operands(form)
    expected = here.by_kernels(form)
    named = {
        "x": x,
        "weight": weight,
        "gy": gy,
        "gx": torch.full_like(x, float("nan")),
        "gw": torch.full_like(weight, float("nan")),
    }
    steps = [2**18, 2**12, 2**6, 1]
    steps[dimension] = FAR // (named[name].shape[dimension] - 1)
    named[name] = sparse(torch.float16).as_strided(named[name].shape, steps, 2**32).copy_(named[name])
    how = geometry, transposed, "none", 0.0
    to_input.conv_bwd_input(named["gy"], None, named["weight"], named["gx"], geometry, form.map, "none", 0.0)
    to_weight.conv_bwd_weight(named["gy"], None, named["x"], named["gw"], None, *how)
    assert torch.equal(named["gx"], expected[0]) and torch.equal(named["gw"], expected[1])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES["cuda"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("K, C, side", [(128, 64, 32), (64, 3, 64), (520, 33, 10)])
def test_larger_sizes(dtype: torch.dtype, transposed: bool, K: int, C: int, side: int, bench: Any) -> None:
    axis = Axis(side, side // 2, 4, 2, 1)
    form = Form(32, K, C, Geometry(axis, axis), transposed, activation="leaky_relu", slope=0.2, dtype=dtype)
    assert bench("cuda").judge(form) is None
