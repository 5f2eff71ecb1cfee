"""Predictions: they count what a step does, follow what a card offers, and stand beside what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastgan.benchmarks import main
from fastgan.benchmarks.findings import Findings
from fastgan.benchmarks.forecasts import PREDICTED, Forecast, beside, load
from fastgan.benchmarks.record import Check, Spread, Timed
from fastgan.benchmarks.step_rates import flops_of
from fastgan.benchmarks.step_workloads import workloads
from fastgan.errors import UserError

pytest.importorskip("triton")

from fastgan.benchmarks import compiled, predict
from fastgan.benchmarks.launch_list import launches
from fastgan.benchmarks.prediction import Guess, Work, extent, guess, without_memory
from fastgan.benchmarks.prediction_cards import GPUS
from fastgan.kernels import cost, linear, tick
from fastgan.kernels.problem import Config, Problem, Target

Steps = dict[str, list[tuple[str, str, Work]]]
Output = pytest.CaptureFixture[str]
SMALL = {workload.name: workload for workload in workloads(small=True)}
H200 = GPUS["h200"]


@pytest.fixture(scope="module")
def steps() -> Steps:
    return {name: predict.recorded(SMALL[name], 16, "triton", H200) for name in ("mlp", "dcgan-32")}


@pytest.mark.parametrize("name", ["mlp", "dcgan-32"])
def test_launches_and_operations_are_those_of_the_step(
    name: str, steps: dict[str, list[tuple[str, str, Work]]]
) -> None:
    found = steps[name]
    assert [(phase, launch) for phase, launch, _ in found] == [tuple(one) for one in launches(SMALL[name], 16)]
    assert sum(work.flops for *_, work in found) == pytest.approx(16 * flops_of(SMALL[name]), rel=0.02)
    assert all(work.problem is not None for _, launch, work in found if launch.startswith(("linear_", "conv_")))
    assert all(work.launch is not None for _, launch, work in found if launch.endswith("_kernel"))


def test_bytes_are_those_of_the_tensors(steps: Steps) -> None:
    moved = {(phase, name): work.moved for phase, name, work in steps["mlp"]}
    trainer = SMALL["mlp"].trainer(16, torch.device("cpu"))
    for side, network in (("G", trainer.generator), ("D", trainer.discriminator)):
        size = sum(weight.numel() for weight in network.parameters())
        assert moved[f"{side}'s optimiser", "optimizer_step_kernel"] == pytest.approx(30 * size, rel=0.05)
    assert moved["real batch", "real_batch_kernel"] == 16 * 784 * (2 + 1)
    assert moved["between", "aten.cat"] == 2 * 32 * 784 * 2  # read and written, bf16
    assert moved["latents", "latent_kernel"] == pytest.approx(16 * 100 * 2, abs=64)


def test_what_several_elements_share_counts_once() -> None:
    assert extent(torch.empty(4, 3)) == 48
    assert extent(torch.empty(1, 3).expand(4, 3)) == 12
    assert extent(torch.empty(0, 3)) == 0
    slim = without_memory(torch.empty(4, 3).t())
    assert isinstance(slim, torch.Tensor) and slim.is_meta and slim.stride() == (1, 3)
    assert without_memory(3) == 3


def problem(rows: int = 4096, cols: int = 4096, depth: int = 4096) -> Problem:
    return Problem("linear_fwd", rows, cols, depth, 2, Target(90, "tf32"))


def product(blocks: int, gpu: str = "h200", size: int = 4096) -> Guess:
    tile = Config(128, 128, 64, 8, 255)
    x, w, y = (torch.empty(size, size, dtype=torch.bfloat16, device="meta") for _ in range(3))
    launch = linear.fwd_launch(x, w, None, y, None, "none", 0.0, Target(90, "tf32"), config=tile)
    return guess(Work(2.0 * size**3, 6.0 * size**2, launch, problem(size, size, size)), GPUS[gpu], blocks)


def test_products_take_waves() -> None:
    one, two = product(1), product(2)
    assert (one.bound, one.waves, two.waves) == ("products", 8, 4)  # 1024 programs, 132 multiprocessors
    assert cost.LAUNCH + 2 * 4096**3 / 989e6 < two.us <= one.us
    assert product(1, "rtx4090").us > 2 * one.us
    assert product(1, size=8192).us > 6 * one.us


def test_bytes_take_bandwidth_and_small_ones_a_launch() -> None:
    large, small = Work(moved=1e9), Work(moved=1e4)
    assert guess(large, H200, 1).bound == "memory"
    ratio = (guess(large, GPUS["h100"], 1).us - cost.LAUNCH) / (guess(large, H200, 1).us - cost.LAUNCH)
    assert ratio == pytest.approx(4800 / 3350)
    assert guess(small, H200, 1).bound == "launch"
    assert guess(small, H200, 1).us == pytest.approx(cost.LAUNCH, abs=0.1)
    assert guess(Work(flops=1e12, moved=1.0), H200, 1).us > 1e12 / 989e6  # a product of the library's


def test_a_kernel_is_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path))
    variant = next(iter(tick.variants(90)))
    first = predict.compiled(variant, 90)
    assert first["registers"] > 0 and first["blocks"] > 0
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "compile_variant", None)
        assert predict.compiled(variant, 90) == first
        with pytest.raises(TypeError):
            predict.compiled(variant, 80)
    assert predict.identity(variant, 90) != predict.identity(replace(variant, num_warps=2), 90)
    next(iter(tmp_path.glob("compiled/*.json"))).write_text("{")  # a damaged file is written anew
    assert predict.compiled(variant, 90) == first


def forecast(**changes: object) -> Forecast:
    return replace(Forecast("h200", "mlp", 64, "auto", 42, 1.0, 0.1, 17.0, 150.0), **changes)  # type: ignore[arg-type]


def test_what_was_measured_stands_beside() -> None:
    spread = Spread(100.0, 99.0, 101.0, 20)
    row = Timed("mlp", "fastgan auto", "batch 64", "bfloat16", Check(True), wall_us=spread, graph_us=spread)
    found = [Findings("NVIDIA H200", rows={("mlp", "fastgan auto", "batch 64", "bfloat16"): row})]
    lines = list(beside([forecast(), forecast(gpu="a100"), forecast(backend="triton"), forecast(batch=16)], found))
    assert lines[0].startswith("Predictions, which rest on [stated assumptions]")
    assert lines[4] == "| h200 | `mlp` | 64 | `auto` | 42 | 17 | 150 | 100 | +50% |"
    assert all(line.endswith("| not measured | not measured |") for line in lines[5:])


def test_the_predictions_that_are_shown_are_of_all_steps_and_cards() -> None:
    found = load(PREDICTED)
    names = {workload.name for workload in workloads()}
    assert {(one.gpu, one.workload, one.backend) for one in found} == {
        (gpu, name, backend) for gpu in GPUS for name in names for backend in ("triton", "auto")
    }
    assert all(0 < one.floor_us < one.predicted_us for one in found)


def test_the_command_writes_what_the_report_reads(tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / "rtx4090.json"
    options = ["--gpu", "rtx4090", "--workload", "ring-8", "--batch", "16", "--guess", "--launches", "3"]
    assert main(["predict", *options, "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert "ring-8, batch 16, bf16, backend triton, on rtx4090" in out and "predicted, not measured" in out
    (one,) = load(tmp_path)
    assert (one.gpu, one.workload, one.batch, len(one.lines)) == ("rtx4090", "ring-8", 16, 3)
    path.write_text(json.dumps({"format": "another"}))
    with pytest.raises(UserError, match="is no prediction"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: --gpu"),
        (["--gpu", "h300"], "unknown GPU 'h300': did you mean 'h200'?"),
        (["--gpu", "h200", "--workload", "dcgan-46"], "unknown workload 'dcgan-46': did you mean 'dcgan-64'?"),
        (["--gpu", "h200", "--batch", "1"], "--batch must be at least 2"),
        (["--gpu", "h200", "--launches", "-1"], "0 or more"),
        (["--gpu", "h200", "--json", "."], "is a folder"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], said: str, capsys: Output) -> None:
    assert main(["predict", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
