"""Latents and labels by the kernel against the reference: the same bits, but for the rounding of normal numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastgan.benchmarks.gate import check
from fastgan.ops import streams
from fastgan.ops.latent import _formed

pytest.importorskip("triton")
import triton
import triton.language as tl

from fastgan.kernels import latent as kernels
from fastgan.kernels.streams import pair

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy interprets what wraps
DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = {"cpu": [torch.float32, torch.float16], "cuda": [torch.float32, torch.float16, torch.bfloat16]}
on_devices = pytest.mark.parametrize("device", DEVICES)


@triton.jit
def pair_kernel(words, out, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    one, other = pair(tl.load(words + 2 * at).to(tl.uint32), tl.load(words + 2 * at + 1).to(tl.uint32))
    tl.store(out + 2 * at, one)
    tl.store(out + 2 * at + 1, other)


def judge(clock: Tensor, out: Tensor, kind: str, seed: int, site: tuple[int, int], levels: int) -> str | None:
    """Say what is wrong with what the kernel puts into ``out``; None if nothing is."""
    kernels.draw(clock, out, kind=kind, seed=seed, site=site, levels=levels)
    purpose = streams.LABEL if kind == "label" else streams.LATENT
    generator = streams.rng(purpose, streams.count(clock, site), seed)
    base = _formed(generator, tuple(out.shape), kind, levels)
    if kind != "normal":
        return None if torch.equal(out, base.to(out.dtype)) else "other bits"
    exact = streams.normals(streams.words(generator, out.numel()), torch.float64).flatten()[: out.numel()]
    return check(out, base.to(out.dtype), exact.view(out.shape)).why


@on_devices
@pytest.mark.parametrize("kind", kernels.KINDS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_as_the_reference(device: str, kind: str, data: st.DataObject) -> None:
    clock = torch.tensor(data.draw(st.integers(0, 50) | st.integers(0, 2**40)), device=device)
    shape = (data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40)))
    seed, per_step = data.draw(st.integers(-(2**63), 2**63 - 1)), data.draw(st.integers(1, 3))
    site = (per_step, data.draw(st.integers(0, per_step - 1)))
    most = 2**31 - 1 if kind == "label" else 2**24
    levels = data.draw(st.integers(2, 9) | st.integers(2, most))
    if kind == "label":
        out = torch.full(shape, -1, device=device)
    else:
        out = torch.full(shape, math.nan, dtype=data.draw(st.sampled_from(DTYPES[device])), device=device)
    assert judge(clock, out, kind, seed, site, levels) is None


@on_devices
def test_normal_numbers_of_every_kind_of_word(device: str) -> None:
    """Around each eighth of a turn and at both ends of the radius: as good as fp32 in each number, and finite."""
    eighths = [at * 2**29 + near for at in range(9) for near in (-1, 0, 1, 12345)]
    angles = torch.tensor(eighths + [0] * 28).clamp(0, 2**32 - 1)
    radii = torch.tensor([0, 1, 2, 3, 2**31 - 1, 2**31, 2**32 - 2**8, 2**32 - 1])
    words = torch.cartesian_prod(radii, angles)  # (512, 2)
    out = torch.full((512, 2), math.nan, device=device)
    pair_kernel[(1,)](words.to(device), out, 512)
    assert out.isfinite().all() and out.abs().max() < 6.7641
    rounded = (radii.float() * 2.0**-32 + 2.0**-33).double()  # the kernel's radius begins with this
    radius = (rounded.log() * -2).sqrt().repeat_interleave(len(angles))
    angle = angles.double().repeat(len(radii)) * (2 * math.pi / 2**32)
    exact = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=1)
    assert (out.cpu() - exact).abs().max() < 2e-6


@on_devices
@pytest.mark.parametrize("kind", kernels.KINDS)
def test_what_lies_beyond_is_left_alone(device: str, kind: str) -> None:
    memory = torch.full((1100,), 77, dtype=torch.int64 if kind == "label" else torch.float32, device=device)
    assert judge(torch.tensor(1, device=device), memory[:1030], kind, 3, (1, 0), 5) is None
    assert (memory[1030:] == 77).all()


@on_devices
@pytest.mark.parametrize("bug", ["seed", "site", "clock", "levels"])
def test_another_draw_is_caught(device: str, bug: str) -> None:
    """The proof has teeth."""
    right = {"seed": 3, "site": (2, 0), "levels": 5}
    changed = {"seed": {"seed": 3 + 2**32}, "site": {"site": (2, 1)}, "levels": {"levels": 6}}.get(bug, {})
    clock, other = torch.tensor(4, device=device), torch.tensor(4 + (bug == "clock"), device=device)
    one, two = (torch.full((9, 5), math.nan, device=device) for _ in range(2))
    kernels.draw(clock, one, kind="discrete", **right)
    kernels.draw(other, two, kind="discrete", **{**right, **changed})
    assert not torch.equal(one, two) and judge(clock, one, "discrete", **right) is None


@pytest.mark.gpu
@pytest.mark.parametrize("kind", kernels.KINDS)
def test_larger_sizes(kind: str) -> None:
    dtypes = [torch.int64] if kind == "label" else DTYPES["cuda"]
    for total in (2**20, 2**20 + 3):
        for dtype in dtypes:
            out = torch.full((total,), 77, dtype=dtype, device="cuda")
            assert judge(torch.tensor(9, device="cuda"), out, kind, 3, (1, 0), 10) is None


@on_devices
@pytest.mark.parametrize("kind", kernels.KINDS)
def test_a_part_of_a_draw_has_its_bits(device: str, kind: str) -> None:
    clock, dtype = torch.tensor(5, device=device), torch.int64 if kind == "label" else torch.float32
    whole = torch.full((1100,), 77, dtype=dtype, device=device)
    kernels.draw(clock, whole, kind=kind, seed=3, site=(2, 1), levels=5)
    for first, count in ((1, 9), (514, 3), (516, 500), (7, 513)):
        memory = torch.full((count + 2,), 77, dtype=dtype, device=device)
        kernels.draw(clock, memory[1:-1], kind=kind, seed=3, site=(2, 1), levels=5, first=first)
        assert torch.equal(memory[1:-1], whole[first:][:count])
        assert memory[0] == memory[-1] == 77
