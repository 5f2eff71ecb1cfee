"""What profiles are made of: traces that are read, launches that are counted, rates, rows and words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastgan.benchmarks import profile_rates, profile_rows, profile_step, profile_table, profile_trace
from fastgan.benchmarks.profile_count import Counts, counting, moved, product_flops
from fastgan.benchmarks.profile_ranges import OURS, STEP, Range, Ranges
from fastgan.benchmarks.record import Ceilings


def test_bytes_count_what_lies_in_memory() -> None:
    assert moved(torch.zeros(4, 6)) == 96
    assert moved(torch.zeros(1, 6).expand(1000, 6)) == 24
    assert moved(torch.zeros(0, 6)) == 0
    ranges = Ranges(torch.device("cpu"), emits=False)
    table = torch.zeros(1000, 10)
    with counting(ranges) as found:
        a = torch.zeros(4, 6) + 1  # aten.zeros is an allocation and a fill
        table.index_select(0, torch.tensor([1, 2]))
        a.view(24)
    own = {name: size for name, (_, _, size) in zip(_names(found[STEP]), found[STEP].pieces, strict=True)}
    assert own["aten.add"] == 2 * 96
    assert own["aten.index_select"] == 16 + 2 * 2 * 40
    assert "aten.view" not in own


def _names(count: Any) -> list[str]:
    assert max(count.names.values()) == 1
    return list(count.names)


def test_products_of_our_launches() -> None:
    from fastgan.ops.conv_form import Form

    x, w = torch.empty(16, 8), torch.empty(5, 8)
    assert product_flops({"x": x, "w": w, "y": torch.empty(16, 5)}) == 2 * 16 * 8 * 5
    assert product_flops({"gy": torch.empty(16, 5), "x": x, "gw": w}) == 2 * 16 * 8 * 5
    assert product_flops({"x": x, "y": x}) == 0
    pytest.importorskip("triton")
    image, filters = torch.empty(2, 3, 8, 8), torch.empty(5, 3, 4, 4)
    geometry = Form((2, 2), (1, 1), (1, 1)).geometry(image.shape, filters.shape)
    assert product_flops({"x": image, "weight": filters, "geometry": geometry}) == 2 * 2 * 4 * 4 * filters.numel()


def event(category: str, name: str, start: float, length: float, thread: int = 1, **more: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": length, "tid": thread, "args": more}


def test_kernels_belong_to_the_range_that_launched_them(tmp_path: Path) -> None:
    forward, back = Range("D forward", "D.0 Linear", "forward"), Range("D backward", "D.0 Linear", "backward")
    phase = Range("backward")
    known = {range.name: range for range in (STEP, OURS, forward, back, phase)}
    found = [
        event("user_annotation", STEP.name, 0, 100),
        event("user_annotation", forward.name, 10, 20),
        event("user_annotation", "Optimizer.step#Adam.step", 12, 2),
        event("user_annotation", phase.name, 40, 40),
        event("user_annotation", back.name, 50, 10, thread=2),
        event("cuda_runtime", "cudaLaunchKernel", 15, 1, correlation=1),
        event("cuda_driver", "cuLaunchKernelEx", 52, 1, thread=2, correlation=2),
        event("cuda_runtime", "cudaLaunchKernel", 70, 1, thread=2, correlation=3),
        event("cuda_runtime", "cudaMemsetAsync", 90, 1, correlation=4),
        event("cuda_runtime", "cudaLaunchKernel", 150, 1, correlation=5),
        event("kernel", "forward", 30, 7, thread=7, correlation=1),
        event("kernel", "weight", 60, 5, thread=7, correlation=2),
        event("kernel", "loss", 95, 3, thread=7, correlation=3),
        event("gpu_memset", "Memset", 120, 2, thread=7, correlation=4),
        event("kernel", "of nobody", 160, 50, thread=7, correlation=5),
        event("gpu_user_annotation", forward.name, 30, 7, thread=7),
    ]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": found}), encoding="utf-8")
    events = profile_trace.events(path)
    spans = profile_trace.spans(events, known)
    pieces = {piece.name: piece for piece in profile_trace.on_device(events, spans)}
    assert {name: piece.range for name, piece in pieces.items()} == {
        "forward": forward,
        "weight": back,  # launched by autograd's thread
        "loss": phase,  # by that thread, outside all of its ranges: who waits for it says what it is
        "Memset": STEP,
    }
    assert pieces["forward"].us == 7
    assert profile_trace.kernels(events) == (67, 5)
    host = profile_trace.on_host(spans)
    assert [(piece.range, piece.start, piece.end) for piece in host] == [
        (STEP, 0, 10),
        (forward, 10, 30),
        (STEP, 30, 40),
        (phase, 40, 80),
        (STEP, 80, 100),
    ]


def test_reports_of_a_gpu_say_both_eager_and_replayed() -> None:
    piece = profile_trace.Piece(Range("G forward", "G.0 Linear", "forward"), 0, 0.0, 12.5, "linear_fwd_kernel")
    own: dict[str, float] = {"wall_us": 40.0, "kernel_us": 30.0, "gaps_us": 10.0, "launches": 9.0}
    counts = Counts()
    counts[piece.range].add("linear_fwd_kernel 64x64x64", "bfloat16", 5e8, 1e5)
    counts[piece.range].choices["our kernel: estimated 3 us, cuBLAS 5 us"] += 1
    speeds = Ceilings(copy_gbs=4000.0, tflops={"bfloat16": 400.0})
    many = [piece, piece._replace(range=STEP, name="copy")]
    profile = profile_step.Profile(
        torch.device("cuda"), 1, many, [([0], 1.0)], [(counts, 1.0)], speeds, 90.0, 120.0, 0.0, own
    )
    report = profile_rows.report(profile)
    row = report.layers[0] if report.layers[0].layer else report.layers[1]
    assert (row.us, row.launches, row.backend, row.bound) == (12.5, 1.0, "triton", "matrix rate")
    assert row.roofline == pytest.approx(1.25 / 12.5)
    assert row.why == "our kernel: estimated 3 us, cuBLAS 5 us"
    text = "\n".join(profile_table.render(report))
    assert "step, eager: kernels 25 us, host 90 us without the profiler, 120 us with it" in text
    assert "step, graph replay: host 40 us, kernels 30 us in 9 launches, gaps 10 us" in text


def test_losses_are_what_the_rates_would_spare() -> None:
    fast, slow = (Range("D forward", f"D.{at} Linear", "forward") for at in (0, 1))
    pieces = [profile_trace.Piece(fast, 0, 0.0, 60.0), profile_trace.Piece(slow, 0, 60.0, 100.0)]
    counts = Counts()
    counts[fast].add("aten.mm", "float32", 5e6, 100.0)  # 50 us at 0.1 TFLOP/s
    counts[slow].add("aten.add", "float32", 0.0, 2e4)  # 1 us at 20 GB/s
    counts[slow].add("aten.mul", "float32", 0.0, 2e4)
    speeds = Ceilings(copy_gbs=20.0, tflops={"float32": 0.1}, launch_us={"eager": 3.0})
    profile = profile_step.Profile(
        torch.device("cpu"), 1, pieces, [([0], 1.0)], [(counts, 1.0)], speeds, 90.0, 100.0, 0.0
    )
    assert profile_rows.report(profile).losses == [
        "D.1 Linear forward: 40% of the step, 5% of the copy bandwidth, bound by neither rate: 2 launches of 20 us,"
        " an empty one takes 3 us",
        "D.0 Linear forward: 60% of the step, 83% of the matrix rate, bound by the matrix rate",
    ]
    speeds.launch_us["eager"] = 12.0
    assert "bound by launches: 2 launches of 20 us" in profile_rows.report(profile).losses[0]


def test_rates_are_the_better_of_two_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_rates, "SECONDS", 0.0)
    before = Ceilings(copy_gbs=1e9, tflops={"float32": 1e-9})
    found = profile_rates.measure(torch.device("cpu"), ["float32", "", "float64"], before)
    assert found.copy_gbs == 1e9
    assert found.tflops["float32"] > 1e-3
    assert set(found.tflops) == {"float32"}
    assert found.launch_us["eager"] > 0
    assert profile_rates.floor_us(found, "float64", 1e9, 1e9)[1] == "copy bandwidth"


def test_kinds_of_steps_count_as_often_as_they_are() -> None:
    lazy = [profile_trace.Piece(STEP, step, 0.0, length) for step, length in enumerate((10.0, 90.0, 10.0, 10.0, 10.0))]
    kinds = [([0, 2, 3, 4], 0.8), ([1], 0.2)]
    assert profile_step.usual(lazy, kinds, every=False) == pytest.approx(0.8 * 10 + 0.2 * 90)
    noisy = [
        profile_trace.Piece(STEP, step, 0.0, length) for step, length in enumerate((10.0, 10.0, 500.0, 11.0, 12.0))
    ]
    assert profile_step.usual(noisy, [([0, 1, 2, 3, 4], 1.0)], every=False) == 10
    assert profile_step.usual(noisy[:2], [([0, 1, 2, 3], 1.0)], every=True) == 5  # in half of the steps
