"""Predicted scaling: from what a step really reduces, and the page shows what the command prints."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastgan.benchmarks import scaling
from fastgan.benchmarks.marks import placed
from fastgan.benchmarks.scaling import Counted, counted, known, reduction
from fastgan.benchmarks.step_workloads import workloads
from fastgan.nn.synced_batch_norm import sync
from fastgan.ops.peers import Peers

DOCS = Path(__file__).resolve().parents[2] / "docs"


@dataclass(frozen=True)
class Recorder(Peers):
    """Adds nothing up, and notes the bytes of each reduction."""

    reductions: list[int] = field(default_factory=list)

    def add_(self, values: Tensor) -> Tensor:
        self.reductions.append(values.numel() * values.element_size())
        return values


def test_the_page_shows_what_the_command_prints() -> None:
    page = (DOCS / "scaling.md").read_text(encoding="utf-8")
    assert placed(page, scaling.MARKED, scaling.page()) == page, (
        "`python -m fastgan.benchmarks.scaling --page docs/scaling.md`"
    )


@pytest.mark.parametrize("name", ["mlp", "dcgan-32"])
def test_reductions_are_those_of_a_step_on_the_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from fastgan.benchmarks.launch_count import counting
    from fastgan.ops.backend import backend
    from fastgan.train.capture import strict

    workload = {workload.name: workload for workload in workloads(small=True)}[name]
    with strict(), backend("triton"), counting():
        trainer = workload.trainer(4, torch.device("cpu"), precision="fp32")
        for network in (trainer.generator, trainer.discriminator):
            sync(network)
        step, recorder = trainer._iterate, Recorder(0, 2)
        step.peers = recorder
        step(step.pattern(0))
    monkeypatch.setitem(scaling.LAUNCHES, "dcgan-32", 0)
    predicted = sorted(counted(workload).reductions)
    assert sorted(recorder.reductions) == pytest.approx(predicted, rel=1e-4)  # a flat buffer begins each on 16 bytes


def test_parameters_are_those_of_the_preset() -> None:
    workload = known()["mlp"]
    networks = workload.trainer(4, torch.device("cpu")).players
    own = [sum(p.numel() for p in network.parameters()) for network in (networks.generator, networks.discriminator)]
    found = counted(workload)
    assert found.parameters == sum(own) and {4 * number for number in own} <= set(found.reductions)
    # G and D forward once, and backward by samples and by weights: 3 products of 2 operations a weight, D for two
    assert found.flops == pytest.approx(6 * (own[0] + 2 * own[1]), rel=0.1)


def test_launches_are_those_that_the_engines_page_lists() -> None:
    listed = re.findall(
        r"- ([\w-]+), batch \d+, bf16, backend `triton`: (\d+) launches", (DOCS / "engine.md").read_text()
    )
    assert listed and all(scaling.LAUNCHES[name] == int(number) for name, number in listed)


def test_more_gpus_cost_more_and_larger_batches_keep_more() -> None:
    step = Counted("", 0, 1e9, 50, (4_000_000, 1000))
    for batch in (1, 64, 4096):
        shares = [step.efficiency(batch, gpus) for gpus in (1, 8, 9, 64, 1024)]
        assert shares == sorted(shares, reverse=True) and 0 < shares[-1] < shares[0] < 1
        assert step.efficiency(batch, 64) < step.efficiency(2 * batch, 64)
    enough = step.enough(64)
    assert step.efficiency(enough, 64) >= 0.9 > step.efficiency(enough // 2, 64)
    assert reduction(0, 8) == scaling.NEAR and reduction(0, 64) == scaling.NEAR + 3 * scaling.HOP


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scaling.main(["--page", str(tmp_path / "absent.md")]) == 2
    assert "absent.md" in capsys.readouterr().err
