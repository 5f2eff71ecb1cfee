"""Latents and labels as functions of a clock: the same everywhere, new at each tick, spread as they say."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import fastgan
from fastgan.errors import UserError
from fastgan.ops.latent import KINDS, labels, latent

KINDS_AND_LABELS = (*KINDS, "label")


def clock(ticks: int = 0, device: str = "cpu") -> Tensor:
    return torch.tensor(ticks, device=device)


def drawn(kind: str, at: Tensor, n: int = 60, seed: int = 3, site: tuple[int, int] = (1, 0), **more: Any) -> Tensor:
    if kind == "label":
        return labels(at, n=n, classes=7, seed=seed, site=site, **more)
    return latent(at, shape=(n // 4, 4), kind=kind, levels=7, seed=seed, site=site, **more)


@pytest.mark.parametrize("kind", KINDS_AND_LABELS)
def test_a_draw_is_its_seed_and_its_tick(kind: str) -> None:
    """Site i of k at tick t is draw k t + i; every draw and every seed has another."""
    draws = [drawn(kind, clock(t), seed=seed) for seed, t in product((3, 4, 3 + 2**32), range(4))]
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == len(draws)
    for t, index in product(range(2), range(2)):
        assert torch.equal(drawn(kind, clock(t), site=(2, index)), draws[2 * t + index])
    at = clock()
    drawn(kind, at)
    assert torch.equal(drawn(kind, at.add_(3)), draws[3])


@pytest.mark.parametrize("kind", KINDS_AND_LABELS)
def test_fewer_are_the_first_of_more(kind: str) -> None:
    assert torch.equal(drawn(kind, clock(), 60)[:9], drawn(kind, clock(), 100)[:9])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [1, 4, 7])
def test_a_part_of_a_draw_has_its_bits(kind: str, first: int) -> None:
    how = {"kind": kind, "seed": 3, "site": (2, 1), "levels": 5}
    whole = latent(clock(4), shape=(12, 3), **how)
    assert torch.equal(latent(clock(4), shape=(5, 3), first=first, **how), whole[first:][:5])
    with pytest.raises(UserError, match="first=-1"):
        latent(clock(), shape=(5, 3), first=-1, **how)


def test_purposes_have_words_of_their_own() -> None:
    """Labels of 2^24 classes and uniform latents of one site are the upper bits of words: of different ones."""
    numbers = labels(clock(), n=4096, classes=2**24, seed=1, site=(1, 0)).double()
    others = latent(clock(), shape=(4096,), kind="uniform", seed=1, site=(1, 0)).double()
    assert abs(torch.corrcoef(torch.stack((numbers, others)))[0, 1]) < 0.07


def test_spread() -> None:
    uniform = latent(clock(), shape=(100, 1000), kind="uniform", seed=1, site=(1, 0)).double()
    assert uniform.min() >= -1 and uniform.max() < 1 and uniform.min() < -0.999 and uniform.max() > 0.999
    assert abs(uniform.mean()) < 4.5 / math.sqrt(3e5)
    parts = ((uniform + 1) * 10).long().flatten().bincount(minlength=20)
    assert (parts - 5000).square().sum() / 5000 < 52  # chi-square of 19 at 1e-4
    normal = latent(clock(), shape=(100, 1000), seed=1, site=(1, 0)).double()
    assert abs(normal.mean()) < 4.5 / math.sqrt(1e5) and abs(normal.std() - 1) < 4.5 / math.sqrt(2e5)
    assert torch.corrcoef(normal[:, :30].T).fill_diagonal_(0).abs().max() < 0.5
    assert abs(torch.corrcoef(torch.stack((normal[:, :-1].flatten(), normal[:, 1:].flatten())))[0, 1]) < 0.015
    for levels in (2, 3, 10):
        discrete = latent(clock(), shape=(30_000,), kind="discrete", levels=levels, seed=1, site=(1, 0))
        values, counts = discrete.unique(return_counts=True)
        assert torch.equal(values, (2 * torch.arange(levels) - (levels - 1)).float() / torch.tensor(levels - 1.0))
        assert (counts - 30_000 / levels).abs().max() < 4.5 * math.sqrt(30_000 / levels)
    classes = labels(clock(), n=30_000, classes=10, seed=1, site=(1, 0)).bincount(minlength=10)
    assert len(classes) == 10 and (classes - 3000).square().sum() / 3000 < 34  # chi-square of 9 at 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_16_bits_are_the_same_numbers_rounded(kind: str, dtype: torch.dtype) -> None:
    assert torch.equal(drawn(kind, clock(), dtype=dtype), drawn(kind, clock()).to(dtype))


@pytest.mark.parametrize("kind", KINDS_AND_LABELS)
def test_memory_that_is_given_is_filled_and_returned(kind: str) -> None:
    fresh = drawn(kind, clock())
    out = torch.zeros_like(fresh)
    assert drawn(kind, clock(), out=out) is out and torch.equal(out, fresh)
    assert not fresh.requires_grad


def test_sizes_of_zero() -> None:
    assert latent(clock(), shape=(0, 5), seed=1, site=(1, 0)).shape == (0, 5)
    assert labels(clock(), n=0, classes=3, seed=1, site=(1, 0)).shape == (0,)


@pytest.mark.parametrize("kind", KINDS_AND_LABELS)
def test_compilers_see_the_same_numbers(kind: str) -> None:
    compiled = torch.compile(lambda at: drawn(kind, at), backend="eager", fullgraph=True)
    assert torch.equal(compiled(clock(5)), drawn(kind, clock(5)))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"kind": "normla"}, "did you mean 'normal'"),
        ({"kind": "discrete", "levels": 1}, "from 2 to"),
        ({"kind": "discrete", "levels": 2**24 + 1}, "from 2 to"),
        ({"dtype": torch.float64}, "not float64"),
        ({"out": torch.empty(3, 4)}, "out has to be"),
        ({"out": torch.empty(3, 2), "dtype": torch.float16}, "out has to be"),
        ({"out": torch.empty(2, 3).T}, "contiguous"),
        ({"site": (1, 1)}, "site"),
        ({"seed": 2**64}, "64 bits"),
        ({"clock": torch.zeros(1)}, "clock"),
    ],
)
def test_mistakes_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        latent(**{"clock": clock(), "shape": (3, 2), "seed": 0, "site": (1, 0), **wrong})
    assert "\n" not in str(error.value)
    for classes in (0, 2**31):
        with pytest.raises(UserError, match="classes"):
            labels(clock(), n=3, classes=classes, seed=0, site=(1, 0))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kind", KINDS_AND_LABELS)
def test_a_graph_replays_what_the_clock_has_come_to(kind: str, backend: str) -> None:
    at = clock(0, "cuda")
    with fastgan.backend(backend):
        drawn(kind, at)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = drawn(kind, at)
            at.add_(1)
    for t in range(4):
        graph.replay()
        want = drawn(kind, clock(t))
        if kind == "normal":
            torch.testing.assert_close(captured.cpu(), want, rtol=0, atol=4e-6)
        else:
            assert torch.equal(captured.cpu(), want)
