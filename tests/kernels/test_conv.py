"""Convolutions forward, either way: every geometry, layout, activation and tile against fp64, and their addresses."""

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
from fastgan.ops.activation import ACTIVATIONS, activate

pytest.importorskip("triton")
from fastgan.kernels import conv as kernels
from fastgan.kernels.conv_map import GATHER, PHASE, Axis, Geometry
from fastgan.kernels.tile import Config, Target, candidates

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = {"cpu": [torch.float32, torch.float16], "cuda": [torch.float32, torch.float16, torch.bfloat16]}
SIDES = {"cpu": (16, 64), "cuda": (32, 64)}  # of the tiles here
LAYOUTS = ("rows", "last", "turned", "steps")
CHANNELS = st.integers(1, 20) | st.sampled_from((3, 15, 16, 17, 32, 33))
on_devices = pytest.mark.parametrize("device", DEVICES)
drawn = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
pytestmark = pytest.mark.usefixtures("ieee")


@dataclass(frozen=True)
class Form:
    """A layer, and how its tensors lie in memory."""

    samples: int
    K: int  # channels on the grid
    C: int  # channels of the image
    geometry: Geometry
    transposed: bool = False
    layouts: tuple[str, str, str] = ("last",) * 3  # of x, weight and y
    activation: str = "none"
    slope: float = 0.0
    before: tuple[str, float] = kernels.NOTHING
    bias: bool = True
    dtype: torch.dtype = torch.float32

    @property
    def map(self) -> str:
        return PHASE if self.transposed else GATHER

    def sizes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Of x, weight and y."""
        h, w = self.geometry
        image, grid = (self.samples, self.C, h.image, w.image), (self.samples, self.K, h.grid, w.grid)
        weight = (self.K, self.C, h.kernel, w.kernel)
        return (grid, weight, image) if self.transposed else (image, weight, grid)


@dataclass
class Bench:
    """What makes a form's tensors, and computes it both ways."""

    device: str
    numbers: Any
    laid: Any
    convolved: Any

    def operands(self, form: Form) -> tuple[Tensor, Tensor, Tensor | None]:
        """x, weight and bias."""
        x, weight, y = form.sizes()
        tensors = [
            self.laid(self.numbers(seed, *size, dtype=form.dtype, device=self.device), layout)
            for seed, (size, layout) in enumerate(zip((x, weight), form.layouts, strict=False))
        ]
        bias = self.numbers(2, y[1], dtype=form.dtype, device=self.device) if form.bias else None
        return tensors[0], tensors[1], bias

    def empty(self, form: Form) -> Tensor:
        """y, not yet written."""
        nothing = torch.full(form.sizes()[2], float("nan"), dtype=form.dtype, device=self.device)
        return self.laid(nothing, form.layouts[2])

    def by_kernel(self, form: Form, geometry: Geometry | None = None) -> Tensor:
        how = geometry or form.geometry, form.map, form.activation, form.slope
        return kernels.conv_fwd(*self.operands(form), self.empty(form), *how, before=form.before)

    def by_torch(self, form: Form, dtype: torch.dtype) -> Tensor:
        x, weight, bias = (None if part is None else part.to(dtype) for part in self.operands(form))
        u = activate(x, *form.before).to(form.dtype if dtype == torch.float32 else dtype).to(dtype)
        y = self.convolved(u, weight, form.geometry, form.transposed)
        return activate(y if bias is None else y + bias.view(-1, 1, 1), form.activation, form.slope)

    def judge(self, form: Form, got: Tensor | None = None) -> str | None:
        """Say what is wrong by the fp64 rule; torch's own convolution accumulates in fp32, whatever the dtype."""
        got = self.by_kernel(form) if got is None else got
        if got._base is not None and form.layouts[2] == "steps":
            assert got._base.isfinite().sum() <= got.numel(), "written between the elements"
        plain = self.by_torch(form, torch.float32).to(form.dtype)
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
    layouts = draw(st.tuples(*[st.sampled_from(LAYOUTS)] * 3))
    form = Form(
        samples, draw(CHANNELS), draw(CHANNELS), geometry, transposed, layouts, *draw(activations),
        draw(st.just(kernels.NOTHING) | activations), draw(st.booleans()), draw(st.sampled_from(DTYPES[device])),
    )  # fmt: skip
    assert bench(device).judge(form) is None


ONE = Axis(1, 1, 1)
NAMED = {
    "upsampling to 4x4": (True, Geometry(Axis(4, 1, 4), Axis(4, 1, 4))),
    "4x4 to a logit": (False, Geometry(Axis(4, 1, 4), Axis(4, 1, 4))),
    "DCGAN's, down": (False, Geometry(Axis(8, 4, 4, 2, 1), Axis(8, 4, 4, 2, 1))),
    "DCGAN's, up": (True, Geometry(Axis(8, 4, 4, 2, 1), Axis(8, 4, 4, 2, 1))),
    "a pixel each": (False, Geometry(Axis(3, 3, 1), Axis(5, 5, 1))),
    "a signal": (False, Geometry(ONE, Axis(40, 10, 25, 4, 11))),
    "a signal, up": (True, Geometry(ONE, Axis(40, 10, 25, 4, 11, 1))),
    "a kernel of 16": (False, Geometry(Axis(18, 3, 16), Axis(17, 2, 16))),
    "strides of 8 and 1": (True, Geometry(Axis(24, 3, 8, 8), Axis(5, 5, 3, 1, 1))),
    "phases without taps": (True, Geometry(Axis(13, 5, 1, 3), Axis(17, 5, 2, 4, 1, 1))),
    "stride 4, dilation 2": (True, Geometry(Axis(15, 3, 3, 4, 0, 2), Axis(17, 4, 3, 4, 0, 2))),
    "stride 6, dilation 4": (True, Geometry(Axis(21, 3, 3, 6, 1, 4), Axis(27, 4, 3, 6, 0, 4))),
    "more output than stride": (True, Geometry(Axis(11, 3, 3, 2, 0, 3), Axis(12, 3, 2, 1, 0, 8))),
    "fewer rows than phases": (True, Geometry(Axis(3, 2, 1, 5, 2, 1), Axis(11, 2, 3, 8))),
    "padding beyond the kernel": (False, Geometry(Axis(3, 9, 1, 1, 3), Axis(4, 6, 2, 2, 4))),
    "twice the size": (False, Geometry(Axis(4, 8, 3, 1, 1, 1, 2), Axis(3, 6, 3, 1, 1, 1, 2))),
    "thrice, dilated": (False, Geometry(Axis(3, 7, 2, 1, 0, 2, 3), Axis(2, 6, 3, 1, 2, 2, 3))),
    "thrice, one row": (False, Geometry(Axis(1, 3, 1, up=3), Axis(7, 20, 4, 1, 1, 1, 3))),
}


@on_devices
@pytest.mark.parametrize("name", NAMED)
def test_geometries_of_all_kinds(device: str, name: str, bench: Any, set_tile: Any) -> None:
    """With few channels and with many; a grid of one position goes by the map of its own as well."""
    (transposed, geometry), here = NAMED[name], bench(device)
    set_tile(*SIDES[device], 32)
    for K, C in ((18, 3), (3, 20)):
        form = Form(2 + 6 // geometry.positions(GATHER), K, C, geometry, transposed)
        assert here.judge(form, here.by_kernel(form, geometry)) is None
        if geometry.lone() != geometry:
            assert here.judge(form, here.by_kernel(form, geometry.lone())) is None


@on_devices
def test_every_number_of_channels(device: str, bench: Any) -> None:
    """Around each multiple of a block's, by the tile that would be chosen."""
    geometry = Geometry(Axis(4, 2, 2, 2), Axis(5, 4, 2))
    for C in (*range(1, 18), 31, 32, 33, 63, 64, 65, 520) if device == "cuda" else (1, 2, 7, 15, 16, 31, 33, 64, 520):
        for transposed in (False, True):
            K = 9 if transposed else 24
            assert (
                bench(device).judge(Form(2, C if transposed else K, K if transposed else C, geometry, transposed))
                is None
            )


@on_devices
@pytest.mark.filterwarnings("error:divide by zero")  # the interpreter gets 0 where a GPU gets anything
@pytest.mark.parametrize("transposed", [False, True])
def test_sizes_of_zero(device: str, transposed: bool, bench: Any) -> None:
    """No sample: nothing to write. No channel to sum over: the bias."""
    geometry, here = Geometry(Axis(4, 2, 2, 2), Axis(5, 4, 2)), bench(device)
    for samples, K, C in ((0, 3, 20), (2, 0, 5) if transposed else (2, 5, 0)):
        form = Form(samples, K, C, geometry, transposed)
        y = here.by_kernel(form)
        bias = here.operands(form)[2]
        assert torch.equal(y, bias.view(1, -1, 1, 1).expand(y.shape))


@on_devices
@pytest.mark.parametrize("precision, dtype", [("tf32", torch.float16), ("ieee", torch.float32)])
@pytest.mark.parametrize("transposed", [False, True])
def test_every_tile(device: str, precision: str, dtype: torch.dtype, transposed: bool, bench: Any) -> None:
    """Each tile that a GPU's dispatcher may choose, whatever these sizes would make it choose."""
    here, geometry = bench(device), Geometry(Axis(6, 3, 3, 2, 1), Axis(8, 4, 2, 2))
    form = Form(3, 18, 17, geometry, transposed, dtype=dtype, activation="leaky_relu", slope=0.2)
    x, weight, bias = here.operands(form)
    archs = (86, 90) if device == "cpu" else (Target.of(x).arch,)
    tiles: dict[str, Config] = {}
    for arch, vectors in itertools.product(archs, (False, True)):
        problem = kernels.fwd_problem(x, weight, geometry, form.map, Target(arch, precision))
        tiles |= {str(tile): tile for tile in candidates(replace(problem, vectors=vectors))}
    for tile in tiles.values():
        y, target = here.empty(form), Target(80, precision)
        kernels.fwd_launch(
            x, weight, bias, y, geometry, form.map, form.activation, form.slope, target, config=tile
        ).run()
        assert here.judge(form, y) is None, tile


@on_devices
@pytest.mark.parametrize("transposed", [False, True])
def test_a_wrong_sum_is_caught(device: str, transposed: bool, bench: Any) -> None:
    """The rule has teeth: one tap's weights, one row of padding, one position, the phase next door."""
    here, geometry = bench(device), Geometry(Axis(6, 3, 3, 2, 1), Axis(8, 4, 2, 2))
    form = Form(3, 18, 20, geometry, transposed)
    right = here.by_kernel(form)
    assert here.judge(form, right) is None
    assert here.judge(form, here.by_kernel(form, geometry._replace(h=geometry.h._replace(padding=0)))) is not None
    assert here.judge(form, right.roll(1, 3)) is not None
    spoilt = right.clone()
    spoilt[2, 1, 2, 3] = float("nan")
    assert here.judge(form, spoilt) is not None
    operands = here.operands(form)
    operands[1][:, :, 2, 1] *= 1.001
    assert here.judge(form, kernels.conv_fwd(*operands, here.empty(form), geometry, form.map, "none", 0.0)) is not None


@pytest.mark.interpret
@pytest.mark.parametrize("transposed, split", [(False, 1), (True, 3)])
def test_the_same_bits_whoever_comes_last(
    transposed: bool, split: int, bench: Any, set_tile: Any, renumber: Any, shared_tickets: Any
) -> None:
    buffer, here = shared_tickets("cpu"), bench("cpu")
    set_tile(16, 16, 16, split)
    form = Form(2, 20, 18, Geometry(Axis(7, 3, 3, 2), Axis(8, 4, 2, 2)), transposed, activation="sigmoid")
    expected = here.by_kernel(form)
    for order in (lambda i, count: count - 1 - i, lambda i, count: (i + count // 3) % count):
        renumber(order)
        assert torch.equal(here.by_kernel(form), expected)
        assert not buffer.any()


@on_devices
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy interprets the infinities
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("before, channels", [("none", 3), ("none", 20), ("sigmoid", 3), ("sigmoid", 20)])
def test_nan_and_infinity_stay_where_they_are(
    device: str, before: str, channels: int, transposed: bool, bench: Any
) -> None:
    """Also where the activation before would make of what lies outside another number than 0."""
    here, geometry = bench(device), Geometry(Axis(6, 3, 3, 2, 1), Axis(8, 4, 2, 2))
    form = Form(3, channels, channels, geometry, transposed)
    x, weight, bias = here.operands(form)
    x[1, 2, 1, 2], x[2, 1, 0, 0] = float("nan"), float("inf")
    y = kernels.conv_fwd(x, weight, bias, here.empty(form), geometry, form.map, "none", 0.0, before=(before, 0.0))
    expected = here.convolved(activate(x, before, 0.0), weight, geometry, transposed) + bias.view(-1, 1, 1)
    torch.testing.assert_close(y, expected, equal_nan=True, rtol=1e-4, atol=1e-5)
    assert y[1].isnan().any() and not y[0].isnan().any() and (before == "sigmoid" or y[2].isinf().any())


FAR = 2**31 + 2**20  # elements


@pytest.mark.interpret
@pytest.mark.parametrize("what", ["x's samples", "x's channels", "x's rows", "weights", "y's rows", "y's channels"])
@pytest.mark.parametrize("transposed, channels, up", [(False, 3, 1), (False, 20, 2), (False, 3, 2), (True, 20, 1)])
def test_addresses_beyond_2_31_elements(
    transposed: bool, channels: int, up: int, what: str, bench: Any, sparse: Callable[[torch.dtype], Tensor]
) -> None:
    """Fails where an offset is formed in int32: it would wrap around, into the empty part of the file."""
    here, room = bench("cpu"), sparse(torch.float16)
    h = Axis(3, 5, 3, 1, 1, 1, up) if up > 1 else Axis(5, 2, 2, 2)
    h = h._replace(grid=6) if up > 1 else h
    form = Form(2, channels, channels, Geometry(h, h), transposed, dtype=torch.float16)
    x, weight, bias = here.operands(form)
    expected = here.by_kernel(form)
    y = torch.full_like(expected, float("nan"))

    def moved(tensor: Tensor, dimension: int) -> Tensor:
        """The same values, the last index of a dimension beyond 2^31; steps fit in int32 all the same."""
        n = tensor.shape[dimension] - 1
        near = [2**18, 2**12, 2**6, 1]
        near[dimension] = FAR // n
        return room.as_strided(tensor.shape, near, 2**32).copy_(tensor)

    owner, _, part = what.partition("'s ")
    dimension = {"samples": 0, "channels": 1, "rows": 2, "": 0}[part]
    if owner == "x":
        x = moved(x, dimension)
    elif owner == "y":
        y = moved(y, dimension)
    else:
        weight = moved(weight, dimension)
    kernels.conv_fwd(x, weight, bias, y, form.geometry, form.map, "none", 0.0)
    assert torch.equal(y, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES["cuda"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("K, C, side", [(128, 64, 32), (64, 3, 64), (520, 33, 9)])
def test_larger_sizes(dtype: torch.dtype, transposed: bool, K: int, C: int, side: int, bench: Any) -> None:
    axis = Axis(side, (side - 2) // 2 + 1, 4, 2, 1)
    axis = axis._replace(image=2 * axis.grid) if transposed else axis
    assert bench("cuda").judge(Form(32, K, C, Geometry(axis, axis), transposed, dtype=dtype)) is None
