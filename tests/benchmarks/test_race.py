"""The gate and the clocks: what is wrong is never timed, what is slower is seen, what is equal is not told apart."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from fastgan.benchmarks import gate, table
from fastgan.benchmarks.race import Workload, race
from fastgan.benchmarks.record import Ceilings, Record, Timed
from fastgan.benchmarks.setting import Setting


def product(a: Tensor, b: Tensor) -> Tensor:
    return a @ b


def workload(contenders: Mapping[str, Callable[..., object]], size: int = 32, **options: object) -> Workload:
    def inputs(generator: torch.Generator) -> tuple[Tensor, ...]:
        return torch.randn(size, size, generator=generator), torch.randn(size, size, generator=generator)

    options = {"flops": 2.0 * size**3, "moved": 12.0 * size**2, **options}
    return Workload("product", f"{size}x{size}", "float32", inputs, contenders, product, **options)  # type: ignore[arg-type]


def shown(rows: list[Timed]) -> str:
    return table.render(Record("test", [], True, None, {}, rows=list(rows)))


def one_element_off(a: Tensor, b: Tensor) -> Tensor:
    result = product(a, b)
    result[-1, -1] += 1e-2
    return result


def right_by_luck(a: Tensor, b: Tensor) -> Tensor:
    """Never writes its last element, where the memory happens to hold the right value."""
    result = product(a, b)
    lucky = torch.empty(1)
    result[-1, -1] = torch.where(lucky.isnan(), lucky, result[-1, -1])
    return result


def gives_up(a: Tensor, b: Tensor) -> Tensor:
    raise RuntimeError("no such luck")


def one_channel_blurred(a: Tensor, b: Tensor) -> Tensor:
    """Nowhere off by more than the largest error may be, but all over one channel."""
    result = product(a, b)
    result[:, 3] += 5e-7 * result.abs().max()
    return result


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (one_element_off, "above"),
        (right_by_luck, "not written everywhere"),
        (gives_up, "RuntimeError: no such luck"),
        (one_channel_blurred, "channel 3 is off in 2-norm"),
        (lambda a, b: product(a, b).double(), "dtypes float64 instead of float32"),
        (lambda a, b: product(a, b)[:-1], "shapes 31x32 instead of 32x32"),
        (lambda a, b: (product(a, b), a), "shapes"),
    ],
)
def test_what_is_wrong_is_never_timed(wrong: Callable[..., object], why: str) -> None:
    calls = []

    def counted(a: Tensor, b: Tensor) -> object:
        calls.append(1)
        return wrong(a, b)

    good, bad = race(workload({"torch": product, "wrong": counted}), Setting(smoke=True))
    assert good.passed
    assert good.wall_us is not None
    assert bad.check is not None
    assert not bad.check.passed
    assert why in (bad.check.why or "")
    assert (bad.wall_us, bad.tflops, bad.gbs, bad.best) == (None, None, None, None)
    assert len(calls) <= 2  # the check's own
    line = shown([good, bad]).splitlines()[-1]
    assert "FAILED" in line
    assert "x " not in line.split("FAILED")[0].replace("32x32", "")


def test_a_wrong_baseline_condemns_everybody() -> None:
    rows = race(workload({"torch": lambda a, b: 2 * product(a, b), "ours": product}), Setting(smoke=True))
    assert [row.passed for row in rows] == [False, False]
    rows = race(workload({"torch": lambda a, b: product(a, b) * float("nan"), "ours": product}), Setting(smoke=True))
    assert [row.passed for row in rows] == [False, False]


def test_as_wrong_as_torch_is_right() -> None:
    """The rule is twice torch's own error: a product in another order of summation passes, in bf16 as well."""

    def inputs(generator: torch.Generator) -> tuple[Tensor, ...]:
        return tuple(torch.randn(48, 48, generator=generator).bfloat16() for _ in range(2))

    other = Workload("p", "48", "bfloat16", inputs, {"torch": product, "t": lambda a, b: (b.t() @ a.t()).t()}, product)
    assert all(row.passed for row in race(other, Setting(smoke=True)))


def test_poison_reaches_every_allocation() -> None:
    with gate.Poisoned():
        x = torch.ones(3)
        made = [torch.empty(3), torch.empty_like(x), x.new_empty(2, 2), torch.empty_strided((2,), (3,))]
        integers = torch.empty(3, dtype=torch.int64)
    assert all(bool(tensor.isnan().all()) for tensor in made)
    assert integers.dtype is torch.int64
    assert bool((x == 1).all())


@pytest.mark.parametrize("factor", [1, 2])
def test_a_planted_slow_down_is_seen_and_equals_are_not_told_apart(
    factor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal variants do not differ within the stated band; one that does its work twice does, and reads about 0.5x.

    The clock is this thread's own, so that the machine's other work counts for nothing.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(time, "perf_counter_ns", time.thread_time_ns)

    def planted(a: Tensor, b: Tensor) -> Tensor:
        for _ in range(factor - 1):
            product(a, b)
        return product(a, b)

    for _ in range(4):  # caches and clocks are shared with others: one quiet moment is enough
        torch_row, ours = race(workload({"torch": product, "ours": planted}, 64), Setting())
        assert torch_row.wall_us is not None
        assert ours.wall_us is not None
        ratio = ours.wall_us.median / torch_row.wall_us.median
        seen = ours.wall_us.differs(torch_row.wall_us)
        if seen == (factor == 2) and abs(ratio / factor - 1) < 0.3:
            break
    else:
        pytest.fail(f"{factor} times the work took {ratio:.2f} times as long, differs: {seen}")
    torch.set_num_threads(threads)
    assert shown([torch_row, ours]).splitlines()[-1].count("~") == (factor == 1)


def test_rates_and_roofline_are_counted_from_the_ceilings_of_the_run() -> None:
    unknown = race(workload({"torch": product}), Setting(smoke=True))[0]
    assert unknown.roofline is None
    known = Setting(smoke=True, ceilings=Ceilings(copy_gbs=10.0, tflops={"float32": 0.5}))
    row = race(workload({"torch": product}), known)[0]
    assert row.wall_us is not None
    assert row.tflops == pytest.approx(2 * 32**3 / row.wall_us.median / 1e6)
    assert row.gbs == pytest.approx(12 * 32**2 / row.wall_us.median / 1e3)
    assert row.roofline == pytest.approx(max(12 * 32**2 / 10e3, 2 * 32**3 / 0.5e6) / row.wall_us.median)
    assert row.l2 == "resident"
    assert (row.device_us, row.graph_us, row.kernel_us, row.launches, row.peak_bytes) == (None,) * 5


def test_gradients_are_checked_like_any_result() -> None:
    def inputs(generator: torch.Generator) -> tuple[Tensor, ...]:
        return (torch.randn(8, 8, generator=generator).requires_grad_(),)

    def gradient(scale: float) -> Callable[[Tensor], tuple[Tensor, ...]]:
        return lambda x: torch.autograd.grad((x * x * scale).sum(), x)

    contenders = {"torch": gradient(1.0), "ours": gradient(1.0), "wrong": gradient(1.1)}
    rows = race(Workload("grad", "8x8", "float32", inputs, contenders, gradient(1.0)), Setting(smoke=True))
    assert [row.passed for row in rows] == [True, True, False]


@pytest.mark.gpu
def test_every_clock_runs_on_a_gpu() -> None:
    device = torch.device("cuda", torch.cuda.current_device())

    def inputs(generator: torch.Generator) -> tuple[Tensor, ...]:
        return tuple(torch.randn(256, 256, device=device, generator=generator) for _ in range(2))

    contenders = {"torch": product, "syncs": lambda a, b: product(a, b) + 0 * float(a[0, 0].item())}
    torch_row, syncs = race(
        Workload("p", "256", "float32", inputs, contenders, product), Setting(device=device, smoke=True)
    )
    for clock in (torch_row.wall_us, torch_row.device_us, torch_row.graph_us):
        assert clock is not None
        assert clock.median > 0
    assert torch_row.launches is not None
    assert 1 <= torch_row.launches <= 2
    assert torch_row.kernel_us is not None
    assert syncs.graph_us is None
    assert "cannot be captured" in (syncs.note or "")
