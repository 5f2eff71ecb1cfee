"""The clocks' own arithmetic, on a clock that does not tick by itself."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch

from fastgan.benchmarks.launches import add_up, by_name
from fastgan.benchmarks.measure import Call, WallClock, interleave, scaled
from fastgan.benchmarks.record import Spread
from fastgan.benchmarks.setting import Effort


class Scripted:
    """A clock on which each call takes as long as it says."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def sample(self, batch: Sequence[Call]) -> float:
        self.batches.append(len(batch))
        return float(sum(call() for call in batch))  # type: ignore[misc]


def test_variants_take_turns_and_a_sample_is_long_enough() -> None:
    order: list[str] = []

    def named(name: str, us: float) -> Call:
        def call() -> float:
            order.append(name)
            return us

        return call

    clock = Scripted()
    effort = Effort(repeats=6, sample_us=100.0)
    spreads = interleave({"a": [named("a", 100.0)], "b": [named("b", 25.0)]}, clock, effort)
    assert spreads == {"a": Spread(100.0, 100.0, 100.0, 6), "b": Spread(25.0, 25.0, 25.0, 6)}
    assert clock.batches[-12:] == [1, 4, 4, 1] * 3  # a, b, then b, a: none is always the second
    assert order[-5:] == ["b"] * 4 + ["a"]


def test_copies_are_called_in_turn_across_samples() -> None:
    seen: list[int] = []

    def copy(at: int) -> Call:
        def call() -> float:
            seen.append(at)
            return 40.0

        return call

    interleave({"a": [copy(0), copy(1), copy(2)]}, Scripted(), Effort(repeats=5, sample_us=80.0))
    assert seen == [at % 3 for at in range(len(seen))]


@pytest.mark.parametrize(("seconds", "taken"), [(0.0, 3), (60.0, 9)])
def test_time_that_is_over_ends_the_repeats_but_not_before_the_least(seconds: float, taken: int) -> None:
    effort = Effort(repeats=9, sample_us=1.0, seconds=seconds)
    assert interleave({"a": [lambda: 1.0]}, Scripted(), effort)["a"].n == taken


def test_no_batch_is_larger_than_allowed() -> None:
    clock = Scripted()
    interleave({"a": [lambda: 0.001]}, clock, Effort(repeats=3), most=7)
    assert max(clock.batches) == 7


def test_the_wall_clock_counts_what_passes() -> None:
    clock = WallClock(torch.device("cpu"))
    numbers = list(range(20_000))
    assert clock.sample([lambda: sum(numbers)] * 8) > clock.sample([lambda: None])


def test_a_graph_of_many_calls_is_shared_among_them() -> None:
    assert scaled(Spread(10.0, 8.0, 12.0, 20), 4) == Spread(2.5, 2.0, 3.0, 20)


def test_only_work_on_the_device_is_summed_up() -> None:
    def event(
        kind: str, us: float, note: bool = False, activity: str | None = None, name: str = "a"
    ) -> SimpleNamespace:
        device = getattr(torch.profiler.DeviceType, kind)
        span = SimpleNamespace(elapsed_us=lambda: us)
        return SimpleNamespace(
            device_type=device, time_range=span, is_user_annotation=note, activity_type=activity, name=name
        )

    events = [
        event("CPU", 500.0),
        event("CUDA", 3.0),
        event("CUDA", 5.0, activity="concurrent_kernel", name="b"),
        event("CUDA", 99.0, note=True),
        event("CUDA", 99.0, activity="cuda_sync"),
    ]
    assert add_up(events, 1) == (8.0, 2.0)
    assert by_name(events, 2) == {"b": 2.5, "a": 1.5}
    many = [event("CUDA", 1.0 + at, name=f"k{at}") for at in range(30)]
    parts = by_name(many, 1)
    assert len(parts) == 25 and parts["others"] == sum(range(1, 7)) and next(iter(parts)) == "k29"
    assert add_up(events, 4) == (2.0, 0.5)
