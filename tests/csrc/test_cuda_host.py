"""The shim that runs CUDA C++ on the CPU: what it computes, and that it shows the faults that it is there to show."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

SEEDS = range(5)
THREADS = 96


@pytest.fixture(scope="module")
def probes(cuda_host: ModuleType) -> Iterator[Any]:
    kernels = cuda_host.build("../tests/cuda_host/probes.cu")
    yield kernels
    kernels.close()


def tree_sum(probes: Any, fault: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(3, THREADS, generator=torch.Generator().manual_seed(seed))
    sums = torch.full((3,), float("nan"))
    assert probes.call("probe_tree_sum", x, sums, 3, fault, seed=seed) == 0
    return sums, x.sum(1)


def test_a_right_kernel_is_right_in_every_order(probes: Any) -> None:
    for seed in SEEDS:
        torch.testing.assert_close(*tree_sum(probes, 0, seed))


def test_a_missing_barrier_changes_the_result(probes: Any) -> None:
    differs = []
    for seed in SEEDS:
        sums, wanted = tree_sum(probes, 1, seed)
        differs.append(not torch.allclose(sums, wanted))
    assert sum(differs) >= 3 and not all(differs), "one order hides it, the others show it"


@pytest.mark.parametrize(
    "fault, says",
    [
        (
            2,
            r"(?s)not all threads reach.*returned: 64 threads, the first is 64.*wait at .*probes.cu:21: 64 threads",
        ),
        (3, r"(?s)different barriers.*probes.cu:23.*probes.cu:25"),
        (4, r"index 128 out of bounds|heap-buffer-overflow"),
    ],
)
def test_a_fault_is_reported_with_its_lines(probes: Any, cuda_host: ModuleType, fault: int, says: str) -> None:
    with pytest.raises(cuda_host.HostError, match=says):
        tree_sum(probes, fault, 0)
    torch.testing.assert_close(*tree_sum(probes, 0, 0))  # the next call has a process again


def test_a_step_beside_global_memory_is_seen(probes: Any, cuda_host: ModuleType) -> None:
    x, short = torch.randn(3, THREADS), torch.empty(2)
    with pytest.raises(cuda_host.HostError, match="heap-buffer-overflow"):
        probes.call("probe_tree_sum", x, short, 3, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_the_matrix_instruction(probes: Any, dtype: torch.dtype) -> None:
    a, b = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype)
    for way in (0, 1):
        d = torch.full((16, 8), float("nan"))
        probes.call("probe_product", a, b, d, int(dtype == torch.float16), way, seed=way)
        torch.testing.assert_close(d, a.float() @ b.float())


def test_copies_that_nobody_waits_for_are_not_there(probes: Any) -> None:
    a, b, d = torch.randn(16, 16).bfloat16(), torch.randn(16, 8).bfloat16(), torch.zeros(16, 8)
    probes.call("probe_product", a, b, d, 0, 2)
    assert d.isnan().any()


def test_warps(probes: Any) -> None:
    x = torch.randint(-50, 50, (THREADS,), dtype=torch.int32)
    out = torch.empty(THREADS, 8, dtype=torch.int32)
    t = torch.arange(THREADS)
    first, lane = t // 32 * 32, t % 32
    ballot = torch.stack([((row > 0).long() << torch.arange(32)).sum() for row in x.view(3, 32)])
    wanted = torch.stack(
        [
            x.view(3, 32).sum(1).repeat_interleave(32),
            x[first + torch.where(lane + 3 < 32, lane + 3, lane)],
            x[first + torch.where(lane >= 2, lane - 2, lane)],
            x[first + 5],
            ballot.repeat_interleave(32).to(torch.int32),
            1 + 2 * (x == x[0]).view(3, 32).any(1).repeat_interleave(32),
            x[torch.where(lane < 16, t ^ 1, t ^ 2)],
            (x > 0).sum().expand(THREADS),
        ],
        1,
    )
    for seed in SEEDS:
        probes.call("probe_warps", x, out, THREADS, seed=seed)
        assert torch.equal(out.long(), wanted.long())


def test_sixteen_bits_round_as_torch_rounds(probes: Any) -> None:
    odd = [
        0.0,
        -0.0,
        float("inf"),
        -float("inf"),
        65519.0,
        65520.0,
        6e-8,
        2.98e-8,
        2.99e-8,
        1e-45,
        3.4e38,
        float("nan"),
    ]
    x = torch.cat([torch.randn(4000) * torch.logspace(-12, 6, 4000), torch.tensor(odd)])
    bf16, fp16 = torch.empty(len(x), dtype=torch.bfloat16), torch.empty(len(x), dtype=torch.float16)
    wide = torch.empty(2, len(x))
    probes.call("probe_convert", x, bf16, fp16, wide[0], wide[1], len(x))
    for ours, wanted in ((bf16, x.bfloat16()), (fp16, x.half()), (wide[0], x.bfloat16()), (wide[1], x.half())):
        torch.testing.assert_close(ours.float(), wanted.float(), rtol=0, atol=0, equal_nan=True)
    assert bf16.signbit().equal(x.signbit())


def test_the_grid_barrier(probes: Any, cuda_host: ModuleType) -> None:
    for seed in SEEDS:
        values, word = torch.arange(5, dtype=torch.int32) * 100, torch.zeros(1, dtype=torch.int32)
        for _ in range(2):  # the word comes out of a launch fit for the next
            assert probes.call("probe_ring", values, word, 5, 7, 0, seed=seed) == 0
        assert values.tolist() == [114, 214, 314, 414, 14]
    values = torch.arange(5, dtype=torch.int32) * 100
    probes.call("probe_ring", values, word, 5, 7, 1, seed=2)
    assert values.tolist() != [307, 407, 7, 107, 207], "without its barriers the ring is another one"
    with pytest.raises(cuda_host.HostError, match=r"(?s)never written.*poll at .*grid.cuh.*1 threads"):
        probes.call("probe_ring", values, word, 5, 7, 2, seed=2)


def test_the_last_of_many_blocks_sees_them_all(probes: Any) -> None:
    x = torch.arange(1, 41, dtype=torch.int32)
    for seed in SEEDS:
        ticket, last, total = (torch.zeros(1, dtype=torch.int32) for _ in range(3))
        probes.call("probe_tickets", ticket, last, x, total, 40, seed=seed)
        assert (ticket.item(), last.item()) == (40, 820)


def test_a_launch_that_no_card_takes_is_refused(probes: Any) -> None:
    x, out = torch.zeros(2048, dtype=torch.int32), torch.zeros(2048, 8, dtype=torch.int32)
    assert probes.call("probe_warps", x, out, 2048) == 9
    assert probes.call("probe_tree_sum", torch.zeros(1), torch.zeros(1), 0, 0) == 0, "no blocks: nothing to do"
