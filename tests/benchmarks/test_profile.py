"""Profiles of steps: sums are whole, counts are those by hand, the path is the same, the slowest is named."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgan.benchmarks import profile_rates, profile_rows, profile_step, profile_trace
from fastgan.benchmarks.profile_count import Counts, counting
from fastgan.benchmarks.profile_ranges import OURS, STEP, Range, Ranges
from fastgan.benchmarks.record import Ceilings
from fastgan.nn import Chain
from fastgan.ops.chain_layer import Layer
from fastgan.train import Trainer

BATCH = 16


class Slow(nn.Module):
    """Takes its time."""

    def forward(self, values: Tensor) -> Tensor:
        time.sleep(0.01)
        return values * 1.0


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> Ceilings:
    """Rates that take no time to measure."""
    known = Ceilings(copy_gbs=20.0, tflops={"float32": 0.1}, launch_us={"eager": 3.0})
    monkeypatch.setattr(profile_rates, "measure", lambda device, dtypes, before=None: known)
    return known


def trainer(*more: nn.Module, **keys: Any) -> Trainer:
    torch.manual_seed(0)
    generator = Chain(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 6))
    discriminator = Chain(nn.Linear(6, 4), nn.LeakyReLU(0.2), *more, nn.Linear(4, 1), nn.Flatten(0))
    data = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    networks = {"generator": generator, "discriminator": discriminator}
    return Trainer(data=data, z_dim=3, batch_size=BATCH, device="cpu", **networks, **keys)


def counted(run: Trainer) -> Counts:
    ranges = Ranges(torch.device("cpu"), emits=False)
    with profile_step.running(run), ranges.installed(run), counting(ranges) as found:
        profile_step.advance(run, 1, ranges)
        assert ranges._stack == []  # each range has ended
    return found


def test_sums_are_the_step(rates: Ceilings, tmp_path: Path) -> None:
    profile = profile_step.profile(trainer(), tmp_path / "trace.json", steps=8)
    report = profile_rows.report(profile)
    assert sum(often for _, often in profile.kinds) == pytest.approx(1)
    for rows in (report.phases, report.layers):
        assert sum(row.us for row in rows) == pytest.approx(report.total_us, rel=1e-9)
        assert sum(row.share for row in rows) == pytest.approx(1)
    spans = profile_trace.spans(profile_trace.events(tmp_path / "trace.json"), {STEP.name: STEP})
    assert len(spans) == 8
    host = profile_trace.on_host(
        profile_trace.spans(profile_trace.events(tmp_path / "trace.json"), {STEP.name: STEP, OURS.name: OURS})
    )
    for at, span in enumerate(spans):  # nothing of a step is lost
        own = sum(piece.us for piece in profile.pieces if piece.step == at)
        ours = sum(piece.us for piece in host if piece.step == at and piece.range is OURS)
        assert own + ours == pytest.approx(span.end - span.start, rel=1e-6)
    assert {row.phase for row in report.phases} == {*profile_rows.PHASES} - {"penalty"}


def test_products_are_those_by_hand() -> None:
    flops: defaultdict[tuple[str, str], float] = defaultdict(float)
    for range, count in counted(trainer()).items():
        flops[range.layer.split(" ")[0], range.what] += count.flops
    one, two, first, last = (2.0 * BATCH * size for size in (3 * 5, 5 * 6, 6 * 4, 4 * 1))
    assert flops["G.0", "forward"] == 2 * one  # for D's update and for G's own
    assert flops["G.2", "forward"] == 2 * two
    assert flops["D.0", "forward"] == 3 * first  # real, fake, fake
    assert flops["D.2", "forward"] == 3 * last
    assert flops["D.0", "backward"] == 2 * first + first  # D's weights by two halves; then only G's way through
    assert flops["D.2", "backward"] == 2 * 2 * last + last
    assert flops["G.0", "backward"] == one  # none of the latents
    assert flops["G.2", "backward"] == 2 * two


def test_convolutions_are_those_by_hand() -> None:
    generator = nn.Sequential(nn.Unflatten(1, (8, 1, 1)), nn.ConvTranspose2d(8, 3, 4, bias=False), nn.Tanh())
    discriminator = nn.Sequential(nn.Conv2d(3, 1, 4, bias=False), nn.Flatten(0))
    data = torch.randn(32, 3, 4, 4).clamp(-1, 1)
    run = Trainer(generator=generator, discriminator=discriminator, data=data, z_dim=8, batch_size=8, device="cpu")
    found = {(range.layer.split(" ")[0], range.what): count.flops for range, count in counted(run).items()}
    product = 2.0 * 8 * 3 * 16
    assert found["G.1", "forward"] == 2 * product * 8
    assert found["G.1", "backward"] == product * 8
    assert found["D.0", "forward"] == 3 * product
    assert found["D.0", "backward"] == 3 * product


def test_the_slowest_layer_is_the_largest_loss(rates: Ceilings, tmp_path: Path) -> None:
    report = profile_rows.report(profile_step.profile(trainer(Slow()), tmp_path / "trace.json", steps=3))
    assert report.layers[0].name == "D.2 Slow forward"
    assert report.losses[0].startswith(f"D.2 Slow forward: {report.layers[0].share:.0%} of the step, ")
    assert "bound by neither rate: " in report.losses[0]
    assert report.layers[0].us >= 2 * 10_000
    assert len(report.losses) == 3


def test_a_profiled_run_is_the_same_run(rates: Ceilings, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"penalty": {"name": "r1", "weight": 1.0, "every": 2}, "log_every": 3}
    profiled, plain = trainer(nn.Dropout(0.5), **keys), trainer(nn.Dropout(0.5), **keys)
    before = nn.Module.__call__, Layer.product, {**vars(profiled._draws)}
    profile = profile_step.profile(profiled, tmp_path / "trace.json", steps=6)
    assert (nn.Module.__call__, Layer.product, {**vars(profiled._draws)}) == before
    assert "step" not in vars(profiled.players.generator_optimizer)
    with profile_step.running(plain):
        for _ in range(profile_step.WARM_UP):
            profile_step.advance(plain, 1)
        first = plain._iterate.pattern(plain.step)
        seen = [profile_step.make(plain, first)]
        profile_step.advance(plain, 2 + 6)
        patterns = profile_step.advance(plain, 6)
        for pattern in dict.fromkeys(patterns):
            if pattern not in seen:
                profile_step.make(plain, pattern)
    assert (profiled.step, profiled.images) == (plain.step, plain.images)
    assert len(profile.counts) > 1  # a penalty is due in some steps only
    for network in ("generator", "discriminator"):
        for name, own in getattr(profiled, network).state_dict().items():
            assert torch.equal(own, getattr(plain, network).state_dict()[name]), name
    fitted = trainer(nn.Dropout(0.5), **keys)
    fitted.fit(4, progress=False)
    stepped = trainer(nn.Dropout(0.5), **keys)
    with profile_step.running(stepped):
        profile_step.advance(stepped, 4)
    for own, other in zip(fitted.generator.parameters(), stepped.generator.parameters(), strict=True):
        assert torch.equal(own, other)  # steps that are made one by one are fit's


def test_penalties_have_ranges_of_their_own() -> None:
    found = counted(trainer(penalty={"name": "gradient_penalty", "weight": 10.0, "every": 1}))
    assert found[Range("penalty")].launches > 0
    second = [range for range in found if range.what == "second backward"]
    assert {range.layer for range in second} >= {"D.0 Linear", "D.2 Linear"}
    assert {range.phase for range in second} == {"D backward"}


@pytest.mark.parametrize("name", ["ring-8", "wgan-gp"])
def test_ranges_change_no_path(name: str) -> None:
    pytest.importorskip("triton")
    from fastgan.benchmarks import launch_count
    from fastgan.benchmarks.step_workloads import workloads
    from fastgan.train.capture import strict

    workload = {own.name: own for own in workloads(small=True)}[name]

    def launches(ranged: bool) -> tuple[list[str], Counts]:
        with strict(), launch_count.counting() as count:
            run = workload.trainer(8, torch.device("cpu"), precision="bf16")
            step, found = run._iterate, Counts()
            pattern = step.pattern(1)
            with launch_count.Operators(count):
                step(pattern)
            count.launches.clear()
            count.captures = True
            ranges = Ranges(torch.device("cpu"), emits=False)
            if ranged:
                with ranges.installed(run), launch_count.Operators(count), counting(ranges) as found, ranges.step():
                    step(pattern)
            else:
                with launch_count.Operators(count):
                    step(pattern)
        return [launched.name for launched in count.launches], found

    threads = torch.get_num_threads()
    plain, _ = launches(ranged=False)
    ranged, found = launches(ranged=True)
    torch.set_num_threads(threads)
    assert ranged == plain
    assert sum(count.launches for count in found.values()) == len(plain)
    ours = [range for range, count in found.items() if any("_bwd_weight_kernel" in name for name in count.names)]
    assert ours and {range.what for range in ours} <= {"weight gradient", "second backward"}
    assert all(range.layer for range in ours)  # the layers of a fused Chain are told apart
    assert any(": estimated" in choice for count in found.values() for choice in count.choices)


@pytest.mark.gpu
def test_kernels_of_a_gpu_are_told_apart(tmp_path: Path) -> None:
    from fastgan.benchmarks.step_workloads import workloads

    run = workloads(small=True)[0].trainer(64, torch.device("cuda"))
    profile = profile_step.profile(run, tmp_path / "trace.json", steps=3)
    report = profile_rows.report(profile)
    assert sum(row.us for row in report.phases) == pytest.approx(report.total_us)
    assert {"G forward", "D forward", "D backward", "G backward", "optimisers", "data"} <= {
        row.phase for row in report.phases
    }
    assert {"forward", "weight gradient", "input gradient"} <= {row.what for row in report.layers if row.launches}
    assert next(row for row in report.phases if row.phase == "between").share < 0.5
    assert profile.replay["launches"] > 10
    assert 0 < profile.replay["kernel_us"] <= profile.replay["wall_us"] * 1.5
    counted = sum(weight * sum(own.launches for own in counts.values()) for counts, weight in profile.counts)
    assert sum(row.launches for row in report.layers) == pytest.approx(counted, rel=0.5)
