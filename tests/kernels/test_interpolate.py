"""Random points between samples: every size and dtype against fp64, and where they lie against the reference's bits."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastgan.benchmarks.gate import Poisoned, check
from fastgan.ops.interpolate import uniform

pytest.importorskip("triton")
from fastgan.kernels import interpolate as kernels

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy interprets what wraps
DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = {"cpu": [torch.float32, torch.float16], "cuda": [torch.float32, torch.float16, torch.bfloat16]}
on_devices = pytest.mark.parametrize("device", DEVICES)


def seed(device: str) -> Tensor:
    return torch.tensor([2**33 + 1, 7], device=device)


def rows(numbers: Callable[..., Tensor], at: int, M: int, N: int, step: str, dtype: torch.dtype, device: str) -> Tensor:
    """[M, N] whose rows follow each other, stand apart, or are all one."""
    if step == "apart":
        return numbers(at, 2 * M, N + 3, dtype=dtype, device=device)[::2, 1 : N + 1]
    if step == "one":
        return numbers(at, 1, N, dtype=dtype, device=device).expand(M, N)
    return numbers(at, M, N, dtype=dtype, device=device)


def formula(real: Tensor, fake: Tensor, rng: Tensor, dtype: torch.dtype) -> Tensor:
    alpha = uniform(rng, len(real)).to(dtype)[:, None]
    return alpha * real.to(dtype) + (1 - alpha) * fake.to(dtype)


def judge(real: Tensor, fake: Tensor, rng: Tensor) -> str | None:
    """Say what is wrong with the kernel's result, by the fp64 rule on NaN-poisoned outputs; None if nothing is."""
    with Poisoned():
        got = kernels.interpolate(real, fake, rng)
    return check(got, formula(real, fake, rng, got.dtype), formula(real, fake, rng, torch.float64)).why


@on_devices
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_as_good_as_torch_against_fp64(device: str, numbers: Callable[..., Tensor], data: st.DataObject) -> None:
    M = data.draw(st.integers(1, 40) | st.sampled_from((64, 130)))
    N = data.draw(st.integers(1, 40) | st.sampled_from((2, 48, 784, 1024, 1025)))
    kinds = st.tuples(st.sampled_from(DTYPES[device]), st.sampled_from(("dense", "apart", "one")))
    (first, step), (second, other) = data.draw(kinds), data.draw(kinds)
    rng = torch.tensor([data.draw(st.integers(-(2**63), 2**63 - 1)) for _ in range(2)], device=device)
    real, fake = rows(numbers, 1, M, N, step, first, device), rows(numbers, 2, M, N, other, second, device)
    assert judge(real, fake, rng) is None


@on_devices
def test_where_they_lie_is_the_references_bits(device: str) -> None:
    """From 1 to 0 the point is alpha itself, the same in the whole row."""
    ones = torch.ones(4099, 2, device=device)
    got = kernels.interpolate(ones, torch.zeros_like(ones), seed(device))
    alpha = uniform(seed(device), 4099)
    assert torch.equal(got, alpha[:, None].expand(-1, 2))
    assert alpha.min() >= 0 and alpha.max() < 1 and len(set(alpha.tolist())) > 4090
    assert abs(alpha.mean() - 0.5) < 0.02 and abs(alpha.std() - 12**-0.5) < 0.01
    assert abs(torch.corrcoef(torch.stack([alpha[:-1], alpha[1:]]))[0, 1]) < 0.05


@on_devices
@pytest.mark.parametrize("M, N", [(0, 0), (0, 5), (5, 0)])
def test_sizes_of_zero(device: str, M: int, N: int) -> None:
    nothing = torch.empty(M, N, device=device)
    assert kernels.interpolate(nothing, nothing, seed(device)).shape == (M, N)


@on_devices
@pytest.mark.parametrize("bug", ["another seed", "another sample", "real for fake"])
def test_a_wrong_point_is_caught(device: str, numbers: Callable[..., Tensor], bug: str) -> None:
    """The rule has teeth."""
    real, fake, rng = numbers(0, 9, 20, device=device), numbers(1, 9, 20, device=device), seed(device)
    wrong = {
        "another seed": lambda: kernels.interpolate(real, fake, rng + 1),
        "another sample": lambda: kernels.interpolate(real, fake.roll(1, 0), rng),
        "real for fake": lambda: kernels.interpolate(fake, real, rng),
    }[bug]
    base, exact = (formula(real, fake, rng, dtype) for dtype in (torch.float32, torch.float64))
    assert check(wrong(), base, exact).why is not None
    assert judge(real, fake, rng) is None


FAR = 2**26  # elements from one row to the next: row 32 begins 2^31 elements on


@pytest.mark.interpret
def test_addresses_beyond_2_31_elements(numbers: Callable[..., Tensor], sparse: Callable[..., Tensor]) -> None:
    """Fails where an offset is formed in int32: it would wrap around, into the empty first half of the file."""
    memory = sparse(torch.float16)
    near = [numbers(at, 40, 6, dtype=torch.float16) for at in range(2)]
    far = [memory.as_strided((40, 6), (FAR, 1), 2**31 + 64 * at).copy_(values) for at, values in enumerate(near)]
    assert torch.equal(kernels.interpolate(*far, seed("cpu")), kernels.interpolate(*near, seed("cpu")))


@pytest.mark.gpu
def test_larger_sizes(numbers: Callable[..., Tensor]) -> None:
    for (M, N), dtype in product(((64, 12288), (65537, 3), (3, 100_001)), DTYPES["cuda"]):
        real, fake = (numbers(at, M, N, dtype=dtype, device="cuda") for at in range(2))
        assert judge(real, fake, seed("cuda")) is None


@pytest.mark.gpu
def test_a_graph_replays_with_the_seed_of_the_hour(numbers: Callable[..., Tensor]) -> None:
    real, fake, rng = numbers(0, 64, 48, device="cuda"), numbers(1, 64, 48, device="cuda"), seed("cuda")
    kernels.interpolate(real, fake, rng)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = kernels.interpolate(real, fake, rng)
    for value in (3, 4):
        rng.fill_(value)
        graph.replay()
        assert torch.equal(captured, kernels.interpolate(real, fake, rng))


@on_devices
def test_rows_of_a_larger_batch_have_its_numbers(device: str, numbers: Callable[..., Tensor]) -> None:
    real, fake = (numbers(at, 11, 6, device=device) for at in (1, 2))
    whole = kernels.interpolate(real, fake, seed(device))
    for first, count in ((3, 8), (5, 2)):
        part = slice(first, first + count)
        assert torch.equal(kernels.interpolate(real[part], fake[part], seed(device), first), whole[part])
        assert torch.equal(uniform(seed(device), count, first), uniform(seed(device), 11)[part])
