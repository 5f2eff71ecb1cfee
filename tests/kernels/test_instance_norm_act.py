"""Statistics of each sample by itself, against fp64."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastgan.benchmarks.gate import check

pytest.importorskip("triton")
from fastgan.kernels import conditional_batch_norm_act as shared
from fastgan.kernels import instance_norm_act as kernels
from fastgan.kernels.tile import Config

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = {"cpu": [torch.float32, torch.float16], "cuda": [torch.float32, torch.float16, torch.bfloat16]}
SMALL = Config(8, 16, 1, 4, 128)  # a tile of which a sample has several
on_devices = pytest.mark.parametrize("device", DEVICES)
Numbers = Callable[..., Tensor]


def by_kernel(y: Tensor, samples: int, tile: Config | None = None) -> list[Tensor]:
    mean, var = torch.full((2, samples, y.shape[1]), float("nan"), device=y.device)
    if tile is None:
        kernels.instance_norm_stats(y, mean, var)
    else:
        kernels.stats_launch(y, mean, var, tile).run()
    return [mean, var]


def by_torch(y: Tensor, samples: int) -> list[Tensor]:
    parts = y.view(samples, -1, y.shape[1])
    return [parts.mean(1), parts.var(1, unbiased=False)]


def judge(y: Tensor, samples: int, tile: Config | None = None) -> str | None:
    """Say what is wrong with the results, by the fp64 rule; None if nothing is."""
    return check(by_kernel(y, samples, tile), by_torch(y.float(), samples), by_torch(y.double(), samples)).why


@on_devices
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_as_good_as_torch_against_fp64(device: str, numbers: Numbers, data: st.DataObject) -> None:
    samples, rows, C = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 40)), data.draw(st.integers(8, 40))
    y = (2 * numbers(0, samples * rows, C, device=device) + 3).to(data.draw(st.sampled_from(DTYPES[device])))
    assert judge(y, samples, data.draw(st.sampled_from([None, SMALL]))) is None


@on_devices
@pytest.mark.parametrize("samples, rows, C", [(2, 201, 3), (6, 33, 1)])
def test_more_parts_than_are_merged_at_once(
    device: str, numbers: Numbers, samples: int, rows: int, C: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "PARTS", 20)
    assert judge(numbers(0, samples * rows, C, device=device) + 3, samples, SMALL) is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES["cuda"])
@pytest.mark.parametrize("samples, rows, C", [(64, 4096, 64), (16, 65536, 3), (256, 16, 512)])
def test_larger_sizes(numbers: Numbers, dtype: torch.dtype, samples: int, rows: int, C: int) -> None:
    y = (numbers(0, samples * rows, C, device="cuda") + 3).to(dtype)
    assert judge(y, samples) is None
    for first, second in zip(by_kernel(y, samples), by_kernel(y, samples), strict=True):
        assert torch.equal(first, second)


@on_devices
def test_a_large_mean_leaves_the_variance(device: str, numbers: Numbers) -> None:
    y = numbers(0, 2 * 300, 5, device=device) + 1e3
    y[:7] -= 500
    mean, var = by_kernel(y, 2)
    exact = by_torch(y.double(), 2)
    torch.testing.assert_close(mean.double(), exact[0], rtol=5e-7, atol=0)
    torch.testing.assert_close(var.double(), exact[1], rtol=5e-5, atol=0)


@on_devices
def test_nan_stays_in_its_sample_and_column(device: str, numbers: Numbers) -> None:
    y = numbers(0, 4 * 10, 20, device=device)
    y[25, 3] = float("nan")
    for vectors in by_kernel(y, 4, SMALL):
        assert vectors.isnan().nonzero().tolist() == [[2, 3]]


@pytest.mark.interpret
def test_same_bits_in_any_order(numbers: Numbers, renumber: Callable[..., None]) -> None:
    y = numbers(0, 3 * 20, 17)
    expected = by_kernel(y, 3, SMALL)
    renumber(lambda i, n: n - 1 - i)
    for first, second in zip(expected, by_kernel(y, 3, SMALL), strict=True):
        assert torch.equal(first, second)


@on_devices
def test_planted_errors_are_caught(device: str, numbers: Numbers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule has teeth: a sample that misses its last row, or has its neighbour's first."""
    launch, y = kernels.stats_launch, numbers(0, 3 * 20, 17, device=device) + 3
    assert judge(y, 3, SMALL) is None
    for plant in ({"rows": 19}, {"y": y.roll(1, 0)}):
        with monkeypatch.context() as patch:
            right = launch(y, *torch.empty(2, 3, 17, device=device), SMALL)
            wrong = dataclasses.replace(right, arguments={**right.arguments, **plant})
            patch.setattr(kernels, "stats_launch", lambda y, mean, var, _, wrong=wrong: placed(wrong, mean, var))
            assert judge(y, 3, SMALL) is not None


def placed(launch: Any, mean: Tensor, var: Tensor) -> Any:
    """The launch with other outputs."""
    return dataclasses.replace(launch, arguments={**launch.arguments, "mean": mean, "var": var})


@pytest.mark.interpret
def test_addresses_beyond_2_31_elements(sparse: Any, numbers: Numbers, renumber: Callable[..., None]) -> None:
    """The last program alone: an offset in int32 would lead into the file's empty beginning."""
    samples, C = 2**16 + 1, 1024
    y = sparse(torch.float16).as_strided((samples * 32, C), (C, 1))
    y[-32:, -64:] = numbers(0, 32, 64, dtype=torch.float16) + 3
    mean, var = torch.empty(samples, C), torch.empty(samples, C)
    launch = kernels.stats_launch(y, mean, var)
    assert launch.arguments["pieces"] == 1
    renumber(lambda i, n: launch.programs - 1)
    dataclasses.replace(launch, programs=1).run()
    torch.testing.assert_close(mean[-1, -64:], y[-32:, -64:].float().mean(0))
