"""The suite ``linear``: its plan, every kind of layer raced, no times for what is wrong, its last lines."""

from __future__ import annotations

import importlib.util
import json
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastgan.benchmarks import linear, main
from fastgan.benchmarks.baselines import linear as torchs
from fastgan.benchmarks.record import Check, Spread, Timed, validate
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.workloads import LAYERS, Layer
from fastgan.errors import UserError

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
KINDS = {
    "plain": Layer("w", "d1", 16, 8),
    "no activation": Layer("w", "d3", 16, 1, "none"),
    "relu": Layer("w", "g1", 16, 8, "relu"),
    "block": Layer("w", "g2", 16, 8, norm=0.8),
    "joined values": Layer("w", "g1-joined", 20, 8, "none", joined=4),
    "joined label": Layer("w", "c1", 20, 8, joined=4, classes=10),
    "maxout": Layer("w", "m1", 16, 8, "none", pieces=5),
}
Output = pytest.CaptureFixture[str]


def setting(device: str = "cpu", smoke: bool = True, **options: object) -> Setting:
    return Setting(device=torch.device(device), smoke=smoke, options=Namespace(**options))


def measured(
    layer: Layer, direction: str, device: str = "cpu", dtype: str = "float32", **options: object
) -> list[Timed]:
    rows = linear.measure(setting(device, **options), layer, 8, dtype, direction)
    return [row for row in rows if isinstance(row, Timed)]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("linear") / "record.json"
    assert main(["linear", "--smoke", "--device", "cpu", "--json", str(path)]) == 0
    body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return body


@pytest.mark.full
def test_the_smoke_form_races_every_kind_of_layer_in_every_direction(smoke: dict[str, Any]) -> None:
    if importlib.util.find_spec("jsonschema"):
        validate(smoke)
    assert smoke["left_out"] == []
    rows = [row for row in smoke["rows"] if row["baseline"] == "eager" and row["variant"] != "torch"]
    assert all(row["note"].endswith("CPU") or "CPU; " in row["note"] for row in rows)
    timed = [row for row in rows if row["wall_us"]]
    assert all(row["check"]["passed"] for row in timed)
    assert not any(row[key] for row in rows for key in ("graph_us", "device_us", "kernel_us", "launches"))
    whole = [row for row in timed if row["dtype"] == "float32"]
    for kind in ("leaky_relu", "tanh", "sigmoid", "relu", "none", "batch_norm + relu", "maxout 5", "joined 4 + none"):
        of_kind = [row for row in whole if row["shape"].partition(" ")[2] == kind]
        assert {row["workload"].split()[-1] for row in of_kind} == {"forward", "backward", "both"}, kind
        assert {"eager", "fastgan auto"} <= {row["variant"] for row in of_kind}
    assert {row["dtype"] for row in timed} == {"float32", "bfloat16"}
    assert all(row["roofline"] for row in timed)


@pytest.mark.full
def test_contenders_that_were_not_raced_say_why(smoke: dict[str, Any]) -> None:
    untimed = [row for row in smoke["rows"] if row["variant"] in ("compiled", "fastgan triton") and not row["wall_us"]]
    assert {row["variant"] for row in untimed} >= {"compiled"}
    assert all(row["check"] is None and row["note"].startswith("not measured: ") for row in untimed)


def planned(smoke: bool = False, device: str = "cpu", **options: object) -> list[str]:
    tasks = linear.tasks(setting(device, smoke, **options))
    return [task.name for task in sorted(tasks, key=lambda task: task.priority)]


def test_what_matters_most_comes_first_and_shared_work_comes_once() -> None:
    names = planned()
    assert names[0] == "mlp g1 both batch 64 bfloat16"
    assert len(set(names)) == len(names)
    assert not any(name.startswith("wgan") for name in names)  # its layers are mlp's
    assert not any("tf32" in name for name in names)
    order = [name for name in planned(device="cuda") if name.startswith("mlp d1 both")]
    assert order == [
        f"mlp d1 both batch {batch} {dtype}"
        for dtypes in (("bfloat16", "tf32"), ("float32", "float16"))
        for batch in (64, 1024, 16384)
        for dtype in dtypes
    ]


def test_filters_choose() -> None:
    names = planned(workload=["wgan", "square"], layer=["d1", "4096"], dtype=["float16"], direction=["forward"])
    assert names == ["wgan d1 forward batch 64 float16", "square 4096 forward batch 4096 float16"]
    assert planned(layer=["d3"], workload=["mlp"], batch=[7], dtype=["float32"]) == [
        f"mlp d3 {direction} batch 7 float32" for direction in ("both", "forward", "backward")
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layer": ["d11"]}, "unknown layer 'd11': did you mean 'd1'"),
        ({"workload": ["mlp"], "layer": ["d4"]}, "unknown layer 'd4'"),
        ({"dtype": ["tf32"]}, "needs a GPU"),
        ({"batch": [1]}, "at least 2"),
    ],
)
def test_a_filter_that_leaves_nothing_is_a_mistake(options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        planned(**options)  # type: ignore[arg-type]


def test_a_mistake_on_the_command_line_ends_with_2(capsys: Output) -> None:
    assert main(["linear", "--workload", "mpl"]) == 2
    assert "invalid choice" in capsys.readouterr().err


def off_by_a_little(layer: Layer) -> torchs.Forward:
    right = torchs.eager(layer)
    return lambda *operands: right(*operands) * 1.01


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * 1.01


def wrong_gradient(layer: Layer) -> torchs.Forward:
    right = torchs.eager(layer)
    return lambda *operands: WrongBackward.apply(right(*operands))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direction", linear.DIRECTIONS)
def test_a_contender_that_errs_has_no_times(kind: str, direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in (off_by_a_little, wrong_gradient):
        monkeypatch.setattr(linear, "ours", wrong)
        rows = {row.variant: row for row in measured(KINDS[kind], direction)}
        seen = not (wrong is wrong_gradient and direction == "forward")
        assert rows["eager"].wall_us is not None
        assert (rows["fastgan auto"].wall_us is None, rows["fastgan auto"].passed) == (seen, not seen)


def test_a_compiler_that_fails_costs_only_its_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(layer: Layer, mode: str | None = None) -> torchs.Forward:
        def call(*operands: Tensor) -> Tensor:
            raise RuntimeError("no compiler here")

        return call

    monkeypatch.setattr(torchs, "compiled", broken)
    rows = list(linear.measure(Setting(budget=0.1), KINDS["plain"], 8, "float32", "both"))
    compiled = [row for row in rows if isinstance(row, Timed) and row.variant == "compiled"]
    assert [row.note for row in compiled] == ["not measured: RuntimeError: no compiler here; CPU"]
    assert [row.check for row in compiled] == [None]
    assert any(isinstance(row, Timed) and row.variant == "eager" and row.wall_us for row in rows)


def test_the_epilogues_that_pytorch_exposes_are_raced_where_they_fit() -> None:
    assert {kind for kind, layer in KINDS.items() if torchs.cublaslt(layer) is not None} == {"no activation", "relu"}
    for kind in ("no activation", "relu"):
        for direction in linear.DIRECTIONS:
            rows = {row.variant: row for row in measured(KINDS[kind], direction)}
            assert rows["cublaslt"].passed
            assert rows["cublaslt"].wall_us is not None


def test_backward_builds_its_graph_once_for_each_copy() -> None:
    calls = []

    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        calls.append(1)
        return F.linear(x, weight, bias)

    contender = linear.Backward(KINDS["no activation"], forward)
    copies = [inputs_of(KINDS["no activation"], "backward", seed) for seed in (0, 1)]
    for _ in range(3):
        for x, weight, bias, cotangent in copies:
            to_x, to_weight, to_bias = contender(x, weight, bias, cotangent)
            assert to_x is not None and to_weight is not None and to_bias is not None
            assert torch.allclose(to_x, cotangent @ weight)
            assert torch.allclose(to_weight, cotangent.T @ x)
    assert len(calls) == 2


def test_a_graph_moves_on_running_statistics_of_its_own() -> None:
    """Others are differentiated later: what they saved may not change under them."""
    inputs = inputs_of(KINDS["block"], "backward")
    before = [tensor.clone() for tensor in inputs]
    linear.Backward(KINDS["block"], torchs.eager(KINDS["block"]))(*inputs)
    assert all(torch.equal(tensor, same) for tensor, same in zip(inputs, before, strict=True))
    linear.directed(KINDS["block"], "both", torchs.eager(KINDS["block"]))(*inputs)
    assert not all(torch.equal(tensor, same) for tensor, same in zip(inputs, before, strict=True))


def inputs_of(
    layer: Layer, direction: str, seed: int = 0, batch: int = 64, dtype: str = "float32"
) -> tuple[Tensor, ...]:
    return torchs.operands_of(layer, batch, dtype, direction, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["plain", "block", "maxout"])
def test_no_gradient_is_asked_for_where_rounding_decides_which_piece_it_takes(kind: str) -> None:
    layer = replace(KINDS[kind], in_features=16, out_features=256)
    *operands, cotangent = inputs_of(layer, "both", batch=512, dtype="bfloat16")
    pre = torchs.pre_activation(layer)(*(tensor.detach() for tensor in operands)).float()
    near = pre.topk(2, dim=2).values.diff(dim=2).abs().squeeze(2) if layer.pieces > 1 else pre.abs()
    assert bool((cotangent[near < 1e-6] == 0).all())
    assert 0 < float((cotangent == 0).float().mean()) < 0.1
    assert len(inputs_of(layer, "forward")) == len(operands)


def test_work_is_counted_once() -> None:
    layer = Layer("w", "d1", 784, 512)
    product, read, written = 2 * 64 * 784 * 512, 64 * 784 + 512 * 785, 64 * 512
    assert torchs.work(layer, 64, "forward", 2) == (product, 2 * (read + written))
    assert torchs.work(layer, 64, "backward", 2) == (2 * product, 2 * (2 * read + 2 * written))
    assert torchs.work(layer, 64, "both", 2) == (3 * product, 2 * (3 * read + 3 * written))
    maxout = Layer("w", "m", 784, 240, "none", pieces=5)
    assert torchs.work(maxout, 1, "forward", 4) == (2 * 784 * 1200, 4 * (784 + 1200 * 785 + 240))


def test_the_layers_are_well_formed() -> None:
    assert len({(layer.workload, layer.name) for layer in LAYERS}) == len(LAYERS)
    for layer in LAYERS:
        assert layer.activation in ("leaky_relu", *torchs.ACTIVATIONS)
        assert layer.joined < layer.in_features
        assert layer.norm is None or (layer.activation in ("relu", "leaky_relu") and layer.pieces == 1)
        assert layer.classes == 0 or layer.joined > 0


def row(variant: str, us: float, workload: str = "mlp d1 both", shape: str = "64x8x8 relu", **options: Any) -> Timed:
    options = {"dtype": "bfloat16", "check": Check(True), "wall_us": Spread(us, us, us, 20), **options}
    return Timed(workload, variant, shape, **options)


def closing_of(rows: Callable[[], Iterator[Timed]]) -> list[str]:
    return list(linear.closing(list(rows())))


def test_the_closing_lines_compare_with_the_best_other() -> None:
    def rows() -> Iterator[Timed]:
        yield from (row("eager", 8.0), row("compiled", 4.0), row("fastgan auto", 2.0), row("fastgan triton", 4.0))
        yield row("cublaslt", 0.1, check=Check(False, why="planted"))
        second = {"shape": "1024x8x8 relu"}
        yield from (row("eager", 8.0, **second), row("compiled", 16.0, **second), row("fastgan auto", 16.0, **second))
        yield row("eager", 3.0, "mlp d1 forward")
        yield row("fastgan triton", 1.0, "mlp d1 forward", check=Check(False, why="planted"))

    assert closing_of(rows) == [
        "fastgan auto, both: 1.00x the best other over 2 shapes; worst 0.50x:"
        " mlp d1 both 1024x8x8 relu bfloat16, against eager",
        "fastgan triton, both: 1.00x the best other over 1 shapes; worst 1.00x:"
        " mlp d1 both 64x8x8 relu bfloat16, against compiled",
    ]


def test_the_closing_lines_go_by_the_clock_nearest_to_the_device_that_timed_both() -> None:
    def rows() -> Iterator[Timed]:
        yield row("eager", 1.0, device_us=Spread(9.0, 9.0, 9.0, 20))  # could not be captured
        yield row("compiled", 1.0, device_us=Spread(1.0, 1.0, 1.0, 20), graph_us=Spread(12.0, 12.0, 12.0, 20))
        spreads = {"device_us": Spread(3.0, 3.0, 3.0, 20), "graph_us": Spread(2.0, 2.0, 2.0, 20)}
        yield row("fastgan auto", 5.0, **spreads)

    assert closing_of(rows)[0].startswith("fastgan auto, both: 3.00x the best other over 1 shapes; worst 3.00x:")


def test_the_closing_lines_give_the_share_of_the_matrix_rate_on_large_squares() -> None:
    def rows() -> Iterator[Timed]:
        yield row("torch", 1.0, "matrix bfloat16", "8192x8192x8192", tflops=800.0)
        for size in (2048, 4096):
            shape = f"{size}x{size}x{size} leaky_relu"
            yield row("eager", 1.0, f"square {size} forward", shape, tflops=700.0)
            yield row("fastgan triton", 1.0, f"square {size} forward", shape, tflops=600.0)

    lines = closing_of(rows)
    assert lines[-1] == "square 4096 forward, fastgan triton: 75% of the measured matrix rate in bfloat16"
    assert sum("matrix rate" in line for line in lines) == 1


def test_rows_of_a_cpu_are_said_to_be_such() -> None:
    lines = closing_of(
        lambda: iter([row("eager", 1.0, note="CPU"), row("fastgan auto", 1.0, note="CPU; backend reference")])
    )
    assert "say nothing about a GPU" in lines[0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_ours_alone_is_raced_beside_auto(kind: str, device: str) -> None:
    rows = {row.variant: row for row in measured(KINDS[kind], "both", device)}
    ours = rows["fastgan triton"]
    assert ours.check is not None
    assert ours.passed, ours.check.why
    assert ours.wall_us is not None


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_backward_pass_alone_can_be_captured(kind: str) -> None:
    rows = [row for row in measured(KINDS[kind], "backward", "cuda") if row.check is not None]
    assert [row.variant for row in rows if row.graph_us is None] == []
    assert all(row.passed for row in rows)


@pytest.mark.full
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("direction", linear.DIRECTIONS)
def test_a_compiled_layer_is_raced(direction: str) -> None:
    rows = linear.measure(Setting(budget=0.1), KINDS["block"], 8, "float32", direction)
    compiled = next(row for row in rows if isinstance(row, Timed) and row.variant == "compiled")
    assert compiled.passed
    assert compiled.wall_us is not None
