"""The account of a training step: FLOPs as published and as PyTorch counts them, bytes by hand, the page as printed."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fastgan.benchmarks import accounting
from fastgan.benchmarks.accounting import account, counted, saved_bytes, total
from fastgan.benchmarks.chains import AROUND, FORWARD, INPUT, WEIGHT, Place, Run, networks, places, step
from fastgan.benchmarks.workloads import Convolution
from fastgan.models.dcgan import DCGANDiscriminator, DCGANGenerator

PAGE = Path(__file__).resolve().parents[2] / "docs" / "kernels.md"
SIDES = {"dcgan-64": 64, "dcgan-128": 128}
LAYERS = (  # small numbers, all different: 5 samples of 3x8x8 -> 4x4x4 -> 7x4x4
    Convolution("w", "d1", 3, 4, 8, 4, 2, 1, activation="leaky_relu"),
    Convolution("w", "d2", 4, 7, 4, 3, 1, 1, activation="leaky_relu", norm=1e-5),
)
X0, Y1, Y2, W1, W2 = 5 * 192, 5 * 64, 5 * 112, 192, 252  # elements


def models(side: int) -> tuple[tuple[nn.Module, Tensor], tuple[nn.Module, Tensor]]:
    with torch.device("meta"):
        return (
            (DCGANGenerator(100, (3, side, side)), torch.empty(2, 100)),
            (DCGANDiscriminator((3, side, side)), torch.empty(2, 3, side, side)),
        )


def flops_of(module: nn.Module, *inputs: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("workload", SIDES)
def test_the_layers_are_those_of_the_models_and_do_their_work(workload: str) -> None:
    for chain, (module, input) in zip(networks(workload), models(SIDES[workload]), strict=True):
        assert sum(2 * place.layer.flops for place in chain) == flops_of(module, input)
        members = list(module.modules())
        weights = [m.weight.shape for m in members if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        assert [place.layer.weight_shape for place in chain] == weights
        norms = sum(isinstance(m, nn.BatchNorm2d) for m in members)
        assert sum(place.normed for place in chain) == norms
        assert all(below.layer.outputs == place.layer.inputs for below, place in pairwise(chain))


def test_the_flops_are_the_published_ones() -> None:
    for chain, millions in zip(networks("dcgan-64"), (209, 208), strict=True):
        assert sum(place.layer.flops for place in chain) / 1e6 == pytest.approx(millions, rel=0.02)


def test_a_step_is_what_pytorch_counts_over_a_whole_step() -> None:
    """PyTorch's counter sees the gradients of D's weights in G's step as well, which nobody uses."""
    (g, z), (d, real) = models(64)
    with FlopCounterMode(display=False) as counter:
        fake = g(z)
        (d(real).sum() + d(fake.detach()).sum()).backward()
        d(fake).sum().backward()
    parts = [account(run, place) for run in step("dcgan-64", 2) for place in run.places]
    assert total(parts).eager_flops == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        fake = g(z)
        (d(real).sum() + d(fake.detach()).sum()).backward()
        d.requires_grad_(False)(fake).sum().backward()
    assert total(parts).flops == counter.get_total_flops()


def run_of(directions: tuple[str, ...] = (FORWARD, AROUND, INPUT, WEIGHT), **more: Any) -> tuple[Run, Place, Place]:
    chain = places(LAYERS)
    return (Run("D", chain, 5, directions, **more), *chain)


def test_bytes_are_those_of_operands_and_results() -> None:
    run, first, last = run_of()
    assert counted(run, first, FORWARD)[:3] == (2 * W1 * 5 * 16, 2 * (X0 + W1 + Y1), 1)  # activated in its epilogue
    assert counted(run, first, FORWARD)[4:] == (2 * (X0 + W1 + 3 * Y1), 2)
    assert counted(run, first, AROUND)[1:3] == (0, 0)  # done in the epilogue of the layer above
    assert counted(run, first, AROUND)[4:] == (2 * 3 * Y1, 1)
    assert counted(run, first, WEIGHT)[1:3] == (2 * (X0 + W1 + Y1), 1)

    ending, statistics, correction = 2 * 2 * Y2, 4 * 2 * 7, 4 * 3 * 7  # its norm has no load of ours behind it
    assert counted(run, last, FORWARD)[1:3] == (2 * (Y1 + W2 + Y2) + statistics + ending, 2)
    assert counted(run, last, FORWARD)[4:] == (2 * (Y1 + W2 + Y2 + 3 * Y2 + 2 * Y2), 4)
    assert counted(run, last, AROUND)[1:3] == (2 * 3 * Y2, 1)
    assert counted(run, last, AROUND)[4:] == (2 * (3 + 5) * Y2, 3)
    assert counted(run, last, INPUT)[1:3] == (2 * (Y1 + W2 + 2 * Y2 + Y1) + correction, 1)
    assert counted(run, last, INPUT)[4:] == (2 * (Y1 + W2 + Y2), 1)
    assert counted(run, last, WEIGHT)[1:3] == (2 * (Y1 + W2 + 2 * Y2) + correction, 1)


def test_a_norm_below_is_read_as_vectors() -> None:
    middle, after = places((LAYERS[1], Convolution("w", "d3", 7, 1, 4, 4)))
    run = Run("D", (middle, after), 5)
    y3, w3 = 5, 7 * 16
    assert counted(run, after, FORWARD)[1:3] == (2 * (Y2 + w3 + y3) + 4 * 4 * 7, 1)
    assert counted(run, after, INPUT)[1:3] == (2 * (2 * Y2 + w3 + y3) + 4 * 8 * 7, 1)
    assert counted(run, middle, AROUND)[1:3] == (0, 0)
    assert counted(run, middle, FORWARD)[2] == 1


def test_an_activation_at_the_end_is_gone_through_in_the_loads() -> None:
    (last,) = places([Convolution("w", "g5", 4, 3, 4, 4, 2, 1, transposed=True, activation="tanh")])
    run = Run("G", (last,), 5, to_data=True)
    x, w, y = 5 * 64, 192, 5 * 192
    assert counted(run, last, INPUT)[1] == counted(run, last, WEIGHT)[1] == 2 * (x + w + 2 * y)


def test_calls_and_unused_gradients_are_pytorchs_alone() -> None:
    run, _, last = run_of()
    twice = run_of(calls=2)[0]
    for direction in run.directions:
        once, both = counted(run, last, direction), counted(twice, last, direction)
        assert both[:3] == once[:3] and both.eager_launches == 2 * once.eager_launches
        assert both.eager_bytes - once.eager_bytes == (0 if direction == AROUND else 2 * W2)
    through = run_of((FORWARD, AROUND, INPUT), unused=(WEIGHT,))[0]
    wasted, weight = account(through, last), counted(run, last, WEIGHT)
    kept = total(counted(run, last, each) for each in (FORWARD, AROUND, INPUT))
    assert wasted[:3] == kept[:3]
    assert wasted.eager_bytes == kept.eager_bytes + weight.eager_bytes
    assert wasted.eager_flops == kept.eager_flops + weight.eager_flops


def test_the_gradient_of_the_data_is_formed_where_it_is_wanted() -> None:
    run, first, last = run_of()
    assert INPUT not in run.directions_of(first) and INPUT in run.directions_of(last)
    assert INPUT in run_of(to_data=True)[0].directions_of(first)


def test_what_autograd_keeps_is_counted_once() -> None:
    x = torch.randn(8, 4)
    linear = nn.Linear(4, 6)
    kept = 4 * 8 * 4
    assert saved_bytes(linear, x) == kept  # the weight lives anyway
    assert saved_bytes(nn.Sequential(linear, nn.Tanh()), x) == kept + 4 * 8 * 6
    assert saved_bytes(nn.Sequential(linear, nn.ReLU(), nn.Linear(6, 2)), x) == kept + 4 * 8 * 6  # one storage, twice
    assert saved_bytes(nn.Flatten(), x[:, :2]) == 0


def test_the_bytes_that_pytorch_keeps_of_a_network_are_its_outputs() -> None:
    """Per layer the raw output, the norm's, which the leaky ReLU keeps, and its own, which is the next one's input."""
    chain = list(networks("dcgan-64"))[1]
    module = nn.Sequential(*DCGANDiscriminator((3, 64, 64)).layers)  # no Chain
    kept = saved_bytes(module, torch.randn(2, 3, 64, 64))
    outputs = [2 * place.layer.outputs * (1 + (place.layer.activation != "none") + place.normed) for place in chain]
    vectors = sum(2 * place.layer.out_channels for place in chain if place.normed)  # of the batch
    logits = 2
    assert kept == 4 * (2 * chain[0].layer.inputs + sum(outputs) - logits + vectors)


def test_a_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("triton")
    assert accounting.main(["--workload", "dcgan-128", "--batch", "16", "--directions"]) == 0
    printed = capsys.readouterr().out
    assert "| D for G | d1 | PyTorch's unused |" in printed
    assert printed.count("predicted, not measured") == 2
    assert accounting.main(["--workload", "dcgan-128", "--batch", "16"]) == 0
    *_, all_of_it = (line for line in printed.splitlines() if line.startswith("| all |"))
    *_, same = (line for line in capsys.readouterr().out.splitlines() if line.startswith("| all |"))
    assert all_of_it.split("|")[-12:] == same.split("|")[-12:]


def test_an_impossible_batch_is_refused() -> None:
    with pytest.raises(SystemExit):
        accounting.main(["--batch", "0"])


def test_predictions_grow_with_the_work_and_name_each_choice() -> None:
    pytest.importorskip("triton")
    from fastgan.benchmarks.predictions import predicted

    small, large = (step("dcgan-64", batch)[1] for batch in (64, 512))
    for place in small.places:
        for direction in (FORWARD, WEIGHT):
            pairs = zip(predicted(small, place, direction, 90), predicted(large, place, direction, 90), strict=True)
            assert all(0 < few < many for few, many in pairs)
    plain = predicted(small, small.places[0], FORWARD, 80)
    assert plain.a == plain.b  # nothing to form


@pytest.mark.parametrize(("direction", "passes"), [(FORWARD, ["x"]), (INPUT, ["1.5 y"]), (WEIGHT, ["x"]), (AROUND, [])])
def test_what_is_formed_once_costs_a_pass_and_cudnns_epilogue_another(
    direction: str, passes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a layer between two norms, by prices that tell what was bought."""
    pytest.importorskip("triton")
    from fastgan.benchmarks import predictions
    from fastgan.kernels import cost

    run = step("dcgan-64", 4)[1]
    place = run.places[2]
    x, y = 8 * place.layer.inputs, 8 * place.layer.outputs
    sizes = {"x": x, "1.5 y": 1.5 * y}
    monkeypatch.setattr(predictions, "estimate", lambda *_: 1e9)
    monkeypatch.setattr(cost, "pass_us", lambda _, elements: elements)
    monkeypatch.setattr(cost, "library_estimate", lambda problem: 1e12 + (y if direction == FORWARD else 0))
    a, b, c = predictions.predicted(run, place, direction, 90)
    if direction == AROUND:
        assert (a, b, c) == (0, 0, 0)
        return
    formed = sum(sizes[each] for each in passes)
    beside = {FORWARD: 0.5 * y, INPUT: 1.5 * x, WEIGHT: 0.0}[direction]
    assert a > 1e9 and b == 1e9 + formed
    assert c == pytest.approx(1e12 + formed + beside, abs=1)


def test_where_no_gradient_of_the_data_is_wanted_the_weights_pays_for_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from fastgan.benchmarks import predictions
    from fastgan.kernels import cost

    run = step("dcgan-64", 4)[0]
    place = run.places[0]
    monkeypatch.setattr(predictions, "estimate", lambda *_: 0.0)
    monkeypatch.setattr(cost, "pass_us", lambda _, elements: elements)
    assert predictions.predicted(run, place, WEIGHT, 90).b == 1.5 * 4 * place.layer.outputs


@pytest.mark.parametrize("workload", SIDES)
def test_the_products_described_are_the_work_that_is_counted(workload: str) -> None:
    pytest.importorskip("triton")
    from fastgan.benchmarks.conv_problems import problem_of
    from fastgan.kernels.problem import Target

    for chain in networks(workload):
        for place in chain:
            for direction in (FORWARD, INPUT, WEIGHT):
                problem = problem_of(place.layer, 4, torch.bfloat16, direction, Target(90, "tf32"), raw=place.raw)
                assert 2 * problem.rows * problem.cols * problem.depth == 4 * place.layer.flops
                assert problem.op.endswith("_norm") is place.raw
                wide = min(place.layer.in_channels, place.layer.out_channels) % 16 == 0
                assert problem.vectors is wide, (place.layer.name, direction)


def test_the_page_shows_what_the_command_prints() -> None:
    pytest.importorskip("triton")
    table = "\n".join(accounting.report("dcgan-64", 128))
    assert table in PAGE.read_text(encoding="utf-8"), f"`python -m fastgan.benchmarks.accounting` prints now:\n{table}"
