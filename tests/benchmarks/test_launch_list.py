"""The launch lists: counted as they say, every line explained, and the page shows what the command prints."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from fastgan.benchmarks.step_workloads import workloads
from fastgan.ops.backend import choose

pytest.importorskip("triton")

from fastgan.benchmarks import launch_list
from fastgan.benchmarks.launch_count import Count, Launched, Operators, counting
from fastgan.benchmarks.launch_list import Line, folded, launches, lines
from fastgan.benchmarks.launch_reasons import reason
from fastgan.benchmarks.marks import placed

PAGE = Path(__file__).resolve().parents[2] / "docs" / "engine.md"
ALL = {workload.name: workload for workload in workloads()}
MEND = "`python -m fastgan.benchmarks.launch_list --page docs/engine.md` writes them anew"


def test_the_page_shows_what_the_command_prints() -> None:
    lists = launch_list.page()
    assert launch_list.UNKNOWN not in lists, "launch_reasons.py has no rule for a launch"
    assert placed(PAGE.read_text(encoding="utf-8"), launch_list.MARKED, lists) == PAGE.read_text(encoding="utf-8"), MEND


@pytest.mark.parametrize("name", ["ring-8", "wgan-gp-mlp"])
def test_every_launch_has_a_reason(name: str) -> None:
    found = launches(ALL[name], ALL[name].batch, "auto")
    assert [launched for launched in found if reason(*launched) is None] == []


def test_an_iteration_is_what_its_networks_ask_for() -> None:
    found = launches(ALL["mlp"], 64)
    counts = Counter(found)
    assert counts[Launched("latents", "latent_kernel")] == 1
    assert counts[Launched("real batch", "real_batch_kernel")] == 1
    assert counts[Launched("G forward", "linear_fwd_kernel")] == 5
    assert counts[Launched("D forward", "linear_fwd_kernel")] == 3  # once for real, fake and both players
    assert counts[Launched("D backward", "linear_bwd_weight_kernel")] == 3
    assert counts[Launched("G backward", "linear_bwd_weight_kernel")] == 5
    assert counts[Launched("G backward", "linear_bwd_input_kernel")] == 4  # none of the latents
    for side in "GD":
        assert counts[Launched(f"{side}'s optimiser", "optimizer_step_kernel")] == 1
    assert counts[Launched("metrics and clock", "tick_kernel")] == 1
    assert counts[Launched("D's loss", "loss_kernel")] == 1
    assert "aten.sigmoid" not in {launched.name for launched in found}  # the loss's own launch gives the scores


def test_critic_updates_are_folded() -> None:
    found = launches(ALL["wgan-gp-mlp"], 64)
    times, repeated, rest = folded(lines(found))
    assert times == 5
    assert times * sum(line.times for line in repeated) + sum(line.times for line in rest) == len(found)
    assert sum(line.times for line in rest if line.name == "tick_kernel") == 5
    a, b, c = (Line("phase", name, 1) for name in "abc")
    assert folded([a, b, a, b, c]) == (2, [a, b], [c])
    assert folded([a, b, c]) == (1, [], [a, b, c])


def test_operators_are_counted_and_views_are_not() -> None:
    count = Count()
    a, image = torch.randn(4, 6), torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    big = torch.randn(1, 1).expand(10**5, 10**7)  # nobody waits for its product
    convolution = nn.Conv2d(3, 5, 3)
    with Operators(count), count.phase("x"):
        b = a.view(6, 4).t().unsqueeze(0)
        b = b + 1
        torch.empty(3).add_(1)
        assert (big @ big.t()[:, :3]).shape == (10**5, 3)
        assert convolution(image).is_contiguous(memory_format=torch.channels_last)
    names = [launched.name for launched in count.launches if launched.name in ("aten.add", "aten.add_", "aten.mm")]
    assert names == ["aten.add", "aten.add_", "aten.mm"]
    assert count.launches[-1] == Launched("x", "aten.convolution")


def test_backward_belongs_to_the_network_that_was_run() -> None:
    count, inner, outer = Count(), nn.Linear(3, 3), nn.Linear(3, 1)
    count.network("G", inner)
    count.network("D", outer)
    with Operators(count):
        outer(inner(torch.randn(5, 3)).relu()).sum().backward()
    phases = {launched.phase for launched in count.launches if launched.name == "aten.mm"}
    assert phases == {"D backward", "G backward"}
    assert Launched("backward", "aten.threshold_backward") in count.launches


def test_the_world_is_as_it_was() -> None:
    with counting():
        assert torch.zeros(1).is_cuda
        assert choose("linear_act", torch.device("cpu"), torch.float32).backend == "triton"
    assert not torch.zeros(1).is_cuda
    assert torch.zeros(1).get_device() == -1
    assert choose("linear_act", torch.device("cpu"), torch.float32).backend == "reference"


@pytest.mark.full
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch_list.main(["--workload", "ring-8", "--batch", "16"]) == 0
    assert "ring-8, batch 16, bf16, backend `triton`" in capsys.readouterr().out
    assert launch_list.main(["--page", str(tmp_path / "absent.md")]) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["mlp", "dcgan-64"])
def test_a_replay_launches_what_the_list_says(name: str) -> None:
    from fastgan.benchmarks.launches import count_launches
    from fastgan.benchmarks.step import stepping
    from fastgan.ops.backend import backend

    device = torch.device("cuda", torch.cuda.current_device())
    workload = ALL[name]
    with backend("triton"):
        call, _ = stepping(workload, workload.batch, device)
        _, seen = count_launches([call], device)
    listed = len(launches(workload, workload.batch))
    assert abs(seen - listed) <= 0.1 * listed  # estimates for another card normalise elsewhere
