"""The suite ``conv``: its plan, every kind of layer raced, no times for what is wrong, its last lines."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastgan.benchmarks import conv, main
from fastgan.benchmarks.baselines import conv as torchs
from fastgan.benchmarks.baselines.linear import Forward
from fastgan.benchmarks.record import Check, Spread, Timed
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.workloads import CONVOLUTIONS, Convolution
from fastgan.errors import UserError

KINDS = {
    "plain": Convolution("w", "d1", 3, 8, 4, 4, 2, 1, activation="leaky_relu"),
    "logits": Convolution("w", "d5", 8, 1, 4, 4),
    "block": Convolution("w", "d2", 8, 4, 4, 4, 2, 1, activation="leaky_relu", norm=1e-5),
    "transposed": Convolution("w", "g2", 8, 4, 2, 5, 2, 2, 1, transposed=True, bias=True, activation="relu", norm=1e-5),
    "image": Convolution("w", "g5", 4, 3, 4, 4, 2, 1, transposed=True, activation="tanh"),
    "scaled up": Convolution("w", "g1", 4, 4, 2, 3, 1, 1, upsample=2, bias=True, activation="relu", norm=1e-5),
    "signal": Convolution("w", "r", 4, 4, 8, 3, 1, 3, dilation=3, dims=1, bias=True, before="leaky_relu"),
    "longer signal": Convolution("w", "u", 8, 4, 4, 4, 2, 1, transposed=True, dims=1, bias=True, before="relu"),
}
PUBLISHED = {  # multiply-adds twice, of a sample, in millions: G and D
    "dcgan-64": (209, 208),
    "wgan-gp": (217 - 2, 215),  # without the linear layers
    "sngan-32": (3361, 544),
    "hifigan-v1": (19651,),
}


def setting(device: str = "cpu", smoke: bool = True, **options: object) -> Setting:
    return Setting(device=torch.device(device), smoke=smoke, options=Namespace(**options))


def measured(layer: Convolution, direction: str, device: str = "cpu", dtype: str = "float32") -> dict[str, Timed]:
    rows = conv.measure(setting(device), layer, 3, dtype, direction)
    return {row.variant: row for row in rows if isinstance(row, Timed)}


def inputs_of(layer: Convolution, direction: str, dtype: str = "float32", batch: int = 3) -> tuple[Tensor, ...]:
    return torchs.operands_of(layer, batch, dtype, direction, torch.Generator().manual_seed(0))


@pytest.mark.full
def test_the_smoke_form_races_kinds_of_layers_in_every_direction(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    some = ["--workload", "dcgan-64", "hifigan-v1", "--layer", "g2", "d1", "res1-k3-d3"]
    assert main(["conv", "--smoke", "--device", "cpu", "--json", str(path), *some]) == 0
    body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert body["left_out"] == []
    rows = [row for row in body["rows"] if row["baseline"] == "eager" and row["variant"] != "torch"]
    timed = [row for row in rows if row["wall_us"]]
    assert all(row["check"]["passed"] and row["roofline"] for row in timed)
    assert {row["variant"] for row in timed} == {"eager", "fastgan auto"}
    untimed = [row for row in rows if not row["wall_us"]]
    assert all(row["check"] is None and row["note"].startswith("not measured: ") for row in untimed)
    for layer in ("dcgan-64 g2", "dcgan-64 d1", "hifigan-v1 res1-k3-d3"):
        of_layer = [row for row in timed if row["workload"].startswith(f"{layer} ")]
        assert {row["workload"].split()[-1] for row in of_layer} == set(conv.DIRECTIONS), layer
        assert {row["dtype"] for row in of_layer} == {"float32", "bfloat16"}


def test_the_small_form_has_every_kind_once() -> None:
    layers = [layer for layer, _, _ in conv.chosen(setting())]
    assert {layer.likeness for layer in layers} == {conv.shrunk(layer).likeness for layer in CONVOLUTIONS}
    assert len({layer.likeness for layer in layers}) == len(layers)
    assert max(max(layer.in_channels, layer.out_channels, layer.size) for layer in layers) <= 8


def planned(smoke: bool = False, device: str = "cpu", **options: object) -> list[str]:
    tasks = conv.tasks(setting(device, smoke, **options))
    return [task.name for task in sorted(tasks, key=lambda task: task.priority)]


def test_what_matters_most_comes_first_and_nothing_comes_twice() -> None:
    names = planned()
    assert names[0] == "dcgan-64 g1 block batch 64 bfloat16"
    assert len(set(names)) == len(names)
    assert not any("tf32" in name for name in names)
    order = [name for name in planned(device="cuda") if name.startswith("dcgan-64 d2 block")]
    assert order == [
        f"dcgan-64 d2 block batch {batch} {dtype}"
        for dtypes in (("bfloat16", "tf32"), ("float32", "float16"))
        for batch in (64, 128)
        for dtype in dtypes
    ]


def test_filters_choose() -> None:
    names = planned(workload=["dcgan-64"], layer=["d2"], dtype=["float16"], direction=["input"], batch=[16, 1024])
    assert names == [f"dcgan-64 d2 input batch {batch} float16" for batch in (16, 1024)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layer": ["g22"]}, "unknown layer 'g22': did you mean 'g2'"),
        ({"workload": ["dcgan-64"], "layer": ["g6"]}, "unknown layer 'g6'"),
        ({"dtype": ["tf32"]}, "needs a GPU"),
        ({"batch": [1]}, "at least 2"),
    ],
)
def test_a_filter_that_leaves_nothing_is_a_mistake(options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        planned(**options)  # type: ignore[arg-type]


def off_by_a_little(layer: Convolution) -> Forward:
    right = torchs.eager(layer)
    return lambda *operands: right(*operands) * 1.01


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * 1.01


def wrong_gradient(layer: Convolution) -> Forward:
    right = torchs.eager(layer)
    return lambda *operands: WrongBackward.apply(right(*operands))


@pytest.mark.parametrize("kind", ["transposed", "longer signal"])
@pytest.mark.parametrize("direction", conv.DIRECTIONS)
@pytest.mark.parametrize("wrong", [off_by_a_little, wrong_gradient])
def test_a_contender_that_errs_has_no_times(
    kind: str, direction: str, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conv, "ours", wrong)
    rows = measured(KINDS[kind], direction)
    seen = not (wrong is wrong_gradient and direction == "forward")
    assert rows["eager"].wall_us is not None
    assert (rows["fastgan auto"].wall_us is None, rows["fastgan auto"].passed) == (seen, not seen)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_of_what_the_direction_says(kind: str) -> None:
    layer = replace(KINDS[kind], norm=None)
    *operands, cotangent = inputs_of(layer, "block")
    wanted = torch.autograd.grad(torchs.eager(layer)(*operands), operands, cotangent)
    for direction, its in (("input", wanted[:1]), ("weight", wanted[1:])):
        gradients = conv.directed(layer, direction, torchs.eager(layer))(*inputs_of(layer, direction))
        assert isinstance(gradients, tuple)
        for got, right in zip(gradients, its, strict=True):
            assert torch.allclose(got, right, atol=1e-6)


@pytest.mark.parametrize("kind", [kind for kind, layer in KINDS.items() if layer.norm is not None])
def test_a_block_is_what_its_modules_compute(kind: str) -> None:
    """The chain has the modules' arguments, and the operands as their parameters and buffers."""
    layer = KINDS[kind]
    *operands, cotangent = inputs_of(layer, "block")
    twins = [tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in operands]
    chained = conv.directed(layer, "block", conv.Chained(layer))(*operands, cotangent)
    assert isinstance(chained, tuple)
    wanted = conv.directed(layer, "block", torchs.eager(layer))(*twins, cotangent)
    for got, right in zip(chained, wanted, strict=True):  # type: ignore[arg-type]
        assert (got is None and right is None) or torch.allclose(got, right, atol=1e-5)
    assert sum(part is None for part in chained) == layer.bias  # the gradient of a bias before a norm
    for moved, right in zip(operands[-3:], twins[-3:], strict=True):
        assert torch.allclose(moved, right, atol=1e-6)


def test_images_are_channels_last_and_signals_are_not() -> None:
    x, weight, *_, cotangent = inputs_of(KINDS["block"], "block")
    for tensor in (x, weight, cotangent):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert all(tensor.is_contiguous() for tensor in inputs_of(KINDS["signal"], "input"))


@pytest.mark.parametrize("kind", ["plain", "block"])
def test_no_gradient_is_asked_for_where_rounding_decides_which_piece_it_takes(kind: str) -> None:
    *operands, cotangent = inputs_of(KINDS[kind], "block", "bfloat16", batch=8192)
    pre = torchs.pre_activation(KINDS[kind])(*(tensor.detach() for tensor in operands)).float()
    assert bool((cotangent[pre.abs() < 1e-6] == 0).all())
    assert 0 < float((cotangent == 0).float().mean()) < 0.1


def test_cudnn_tries_its_algorithms_while_a_race_lasts() -> None:
    flags = torch.backends.cudnn
    before = flags.benchmark, flags.allow_tf32, torch.get_float32_matmul_precision()
    for dtype, exact in (("tf32", False), ("float32", True)):
        with torchs.cudnn(dtype):
            assert flags.benchmark and flags.allow_tf32 is not exact
            assert (flags.conv.fp32_precision != "tf32") is exact  # what our kernels go by
    assert (flags.benchmark, flags.allow_tf32, torch.get_float32_matmul_precision()) == before


def module_of(layer: Convolution) -> nn.Module:
    """The layer as torch.nn has it, for the size of its output."""
    kind = {(1, False): nn.Conv1d, (2, False): nn.Conv2d, (1, True): nn.ConvTranspose1d, (2, True): nn.ConvTranspose2d}
    more: dict[str, int] = {"output_padding": layer.output_padding} if layer.transposed else {}
    product = kind[layer.dims, layer.transposed](
        layer.in_channels, layer.out_channels, layer.kernel, layer.stride, layer.padding, dilation=layer.dilation,
        device="meta", **more,
    )  # fmt: skip
    return nn.Sequential(nn.Upsample(scale_factor=layer.upsample), product) if layer.upsample > 1 else product


def test_the_layers_are_what_they_say() -> None:
    assert len({(layer.workload, layer.name) for layer in CONVOLUTIONS}) == len(CONVOLUTIONS)
    for layer in CONVOLUTIONS:
        x = torch.empty(2, layer.in_channels, *(layer.size,) * layer.dims, device="meta")
        module = module_of(layer)
        y = module(x)
        assert y.shape == (2, layer.out_channels, *(layer.out_size,) * layer.dims), layer
        assert y.numel() == 2 * layer.outputs and x.numel() == 2 * layer.inputs
        weight = next(parameter for parameter in module.parameters() if parameter.dim() > 1)
        assert weight.shape == layer.weight_shape and weight.numel() == layer.weights
        assert layer.norm is None or layer.activation in ("relu", "leaky_relu")


@pytest.mark.parametrize("workload", PUBLISHED)
def test_the_networks_do_the_published_work(workload: str) -> None:
    layers = [layer for layer in CONVOLUTIONS if layer.workload == workload]
    networks = ("g", "d") if len(PUBLISHED[workload]) == 2 else ("",)
    for name, millions in zip(networks, PUBLISHED[workload], strict=True):
        flops = sum(layer.flops * layer.times for layer in layers if layer.name.startswith(name))
        assert flops / 1e6 == pytest.approx(millions, rel=0.01)


def test_work_is_counted_once() -> None:
    layer = KINDS["block"]
    x, w, y = 3 * 8 * 4 * 4, 8 * 4 * 16, 3 * 4 * 2 * 2
    product = 2 * y * 8 * 16
    assert torchs.work(layer, 3, "forward", 2) == (product, 2 * (x + w + y))
    assert torchs.work(layer, 3, "weight", 2) == (product, 2 * (x + w + 2 * y))
    assert torchs.work(layer, 3, "block", 2) == (3 * product, 2 * (3 * (x + w + y) + 2 * y + y))


def row(variant: str, us: float, workload: str, shape: str = "64x3", note: str | None = None) -> Timed:
    spread = Spread(us, us, us, 20)
    return Timed(workload, variant, shape, "bfloat16", check=Check(True), baseline="eager", wall_us=spread, note=note)


def test_the_closing_lines_compare_with_the_best_other_and_say_who_computed() -> None:
    chosen, left = f"backend triton; {conv.CHOSEN}", f"backend triton; forward {conv.LEFT}"

    def rows() -> Iterator[Timed]:
        for layer, ours, note in (("g2", 4.0, chosen), ("d1", 16.0, left)):
            for variant, us in (("eager", 16.0), ("compiled", 8.0)):
                yield row(variant, us, f"dcgan-64 {layer} forward", f"64x{layer}")
            yield row("fastgan auto", ours, f"dcgan-64 {layer} forward", f"64x{layer}", note)
        yield row("fastgan auto", 1.0, "dcgan-64 g2 block", note=left)  # made of products that have rows of their own
        yield row("fastgan auto", 1.0, "wgan-gp g2 forward", note=left)

    g2, d1 = (next(layer for layer in CONVOLUTIONS if layer.name == name) for name in ("g2", "d1"))
    assert list(conv.closing(list(rows()))) == [
        "fastgan auto, forward: 1.00x the best other over 2 shapes; worst 0.50x:"
        " dcgan-64 d1 forward 64xd1 bfloat16, against compiled",
        f"dcgan-64, batch 64, bfloat16: auto gave {g2.flops / (g2.flops + d1.flops):.0%} of the FLOPs of 2 products"
        " to ours",
    ]


def test_rows_of_auto_say_who_would_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from fastgan.ops import backend

    def remarks(direction: str) -> list[str]:
        return list(conv.remarks(setting(), KINDS["plain"], 64, "bfloat16", direction, "fastgan auto"))

    assert isinstance(conv.by_ours(KINDS["plain"], 64, "bfloat16", "weight", torch.device("cpu")), bool)
    assert remarks("weight") == ["backend reference"]
    choice = backend.Choice(conv.OP, torch.bfloat16, "triton", "a card")
    monkeypatch.setattr(backend, "choose", lambda *_: choice)
    monkeypatch.setattr(conv, "by_ours", lambda layer, batch, dtype, direction, device: direction == "weight")
    assert remarks("weight") == ["backend triton", conv.CHOSEN]
    assert remarks("input") == ["backend triton", f"input {conv.LEFT}"]
    assert remarks("block") == ["backend triton", f"forward and input {conv.LEFT}"]


def test_rows_of_a_cpu_are_said_to_be_such() -> None:
    lines = list(conv.closing([row("eager", 1.0, "w d1 block", note="CPU"), row("fastgan auto", 1.0, "w d1 block")]))
    assert "say nothing about a GPU" in lines[0]
    assert not any("FLOPs" in line for line in lines)


INTERPRETED = (("block", "block"), ("transposed", "block"), ("scaled up", "input"), ("signal", "weight"))
ALONE = [
    *(pytest.param("cpu", *each, marks=pytest.mark.interpret) for each in INTERPRETED),
    *(pytest.param("cuda", kind, way, marks=pytest.mark.gpu) for kind in KINDS for way in conv.DIRECTIONS),
]


@pytest.mark.parametrize(("device", "kind", "direction"), ALONE)
def test_ours_alone_is_raced_beside_auto(device: str, kind: str, direction: str) -> None:
    ours = measured(KINDS[kind], direction, device)["fastgan triton"]
    assert ours.check is not None
    assert ours.passed, ours.check.why
    assert ours.wall_us is not None


@pytest.mark.full
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("direction", conv.DIRECTIONS)
def test_a_compiled_layer_is_raced(direction: str) -> None:
    rows = conv.measure(Setting(budget=0.1), KINDS["transposed"], 3, "float32", direction)
    compiled = next(row for row in rows if isinstance(row, Timed) and row.variant == "compiled")
    assert compiled.passed
    assert compiled.wall_us is not None


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_who_computes_is_known_and_gradients_can_be_captured(kind: str) -> None:
    for direction in ("input", "weight"):
        rows = measured(KINDS[kind], direction, "cuda", "bfloat16")
        assert [row.variant for row in rows.values() if row.check is not None and row.graph_us is None] == []
        note = rows["fastgan auto"].note or ""
        assert conv.CHOSEN in note or conv.LEFT in note
