"""How training is expected to scale to many GPUs: predicted from counts and stated assumptions, not measured.

    python -m fastgan.benchmarks.scaling [--page docs/scaling.md]

Counted, from the step itself run on tensors without memory: floating-point operations a sample, and every reduction
that the kernels' path makes, with its bytes: one of each network's gradients at each update, and of each norm's vectors
two forward and one backward. Assumed: how fast a card computes, what a launch costs, and what a reduction costs over
NVLink and over InfiniBand. ``--page`` writes the tables into that page, between the lines that mark them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fastgan import models, objectives
from fastgan.benchmarks import marks
from fastgan.benchmarks.step_workloads import Workload, workloads
from fastgan.nn import Chain
from fastgan.presets import Config
from fastgan.train.penalties import weighted
from fastgan.train.step import Players, Step

MARKED = "predictions"  # the place in a page
RATE, SHARE = 989e12, 0.35  # bf16 operations a second of an H200 at its peak, and the share of it that is assumed
LAUNCH = 2e-6  # seconds of a launch within a graph, at the least
NODE = 8  # GPUs of a machine
NVLINK, INFINIBAND = 300e9, 40e9  # bytes a second of each GPU, within a machine and between machines
NEAR, HOP = 12e-6, 6e-6  # seconds of a reduction within a machine, and more for each doubling of the machines
LAUNCHES = {"ring-8": 53, "mlp": 42, "wgan-gp": 344, "dcgan-64": 62}  # of a step, by docs/engine.md where it lists them
SIZES = (8, 64, 1024)
BATCHES = (16, 128, 1024)  # of each GPU
WIDTHS = (32, 64, 128, 256)
ROWS = 2  # of the batch that is counted


@dataclass(frozen=True)
class Counted:
    """What a step does: operations a sample of its batch, launches, and the bytes of each reduction."""

    name: str
    parameters: int
    flops: float
    launches: int
    reductions: Sequence[int]

    def alone(self, batch: int) -> float:
        """Seconds of a step on one GPU."""
        return self.launches * LAUNCH + self.flops * batch / (RATE * SHARE)

    def together(self, batch: int, gpus: int) -> float:
        """Seconds of a step on so many GPUs with so large a batch on each."""
        return self.alone(batch) + sum(reduction(size, gpus) for size in self.reductions)

    def efficiency(self, batch: int, gpus: int) -> float:
        """Which share of ``gpus`` times the work of one they do."""
        return self.alone(batch) / self.together(batch, gpus)

    def enough(self, gpus: int, wanted: float = 0.9) -> int:
        """The smallest power of two as batch of each GPU with which ``gpus`` reach the efficiency that is wanted."""
        batch = 1
        while self.efficiency(batch, gpus) < wanted:
            batch *= 2
        return batch


def reduction(size: int, gpus: int) -> float:
    """Seconds in which so many bytes are added up over so many GPUs: each sends and receives them almost twice."""
    machines = -(-gpus // NODE)
    hops = (machines - 1).bit_length()
    return NEAR + HOP * hops + 2 * (gpus - 1) / gpus * size / (INFINIBAND if machines > 1 else NVLINK)


class _Operations(TorchDispatchMode):
    """Counts the floating-point operations of products."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = call(*args, **(kwargs or {}))
        if call._overloadpacket in flop_registry:
            self.total += flop_registry[call._overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


class _Nothing:
    """Draws on the device that has no memory."""

    def __init__(self, sample: tuple[int, ...], z_dim: int) -> None:
        self._sample, self._z_dim = sample, z_dim

    def real(self, at: int) -> Tensor:
        return torch.empty(ROWS, *self._sample, device="meta")

    def z(self, at: int) -> Tensor:
        return torch.empty(ROWS, self._z_dim, device="meta")

    def noisy(self, samples: Tensor, at: int) -> Tensor:
        return samples


def counted(workload: Workload, width: int | None = None) -> Counted:
    """Run a workload's step, of networks of that width, on tensors without memory, and count."""
    config: Config = workload.config()
    with torch.device("meta"):
        networks = workload.networks() if workload.networks else _networks(config, workload.sample, width)
    parameters = [list(network.parameters()) for network in networks]
    optimizers: list[Any] = [SimpleNamespace(param_groups=[{"params": own}], step=lambda: None) for own in parameters]
    reductions = [4 * sum(p.numel() for p in own) for own in (parameters[0], *[parameters[1]] * config.n_critic)]
    for chain in (member for network in networks for member in network.modules() if isinstance(member, Chain)):
        chain.register_forward_hook(partial(_note, reductions))
    meter: Any = SimpleNamespace(critic=config.objective == "wasserstein", observe=lambda **_: None)
    step = Step(
        Players(*networks, *optimizers),
        objectives.objective(config.objective),
        _Nothing(workload.sample, config.z_dim),  # type: ignore[arg-type]
        meter,
        updates=config.updates,
        n_critic=config.n_critic,
        penalty=weighted(config.penalty, config.penalty.weight, torch.device("meta")),
    )
    step.serves_both = step.serves_both and config.updates == "generator_first"
    with _Operations() as counter:
        step(step.pattern(0))
    name = workload.name if width is None else f"{workload.name}, width {width}"
    numbers = sum(p.numel() for own in parameters for p in own)
    flops = counter.total / ROWS
    return Counted(name, numbers, flops, LAUNCHES[workload.name], tuple(reductions))


def _note(reductions: list[int], chain: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
    """Note the bytes of the reductions that a pass through a chain's norms makes, and its way back."""
    groups = given[1] if len(given) > 1 else 1
    for norm in chain:  # type: ignore[attr-defined]
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            vector = 4 * groups * norm.num_features
            reductions += [vector, vector] + [2 * vector] * torch.is_grad_enabled()


def _networks(config: Config, sample: tuple[int, ...], width: int | None) -> tuple[Any, Any]:
    options = [dict(getattr(config, side).options) for side in ("generator", "discriminator")]
    if width is not None:
        for own in options:
            own.update(width=width, max_width=16 * width)
    return (
        models.generator(config.generator.name, config.z_dim, sample, options[0]),
        models.discriminator(config.discriminator.name, sample, options[1]),
    )


def known() -> dict[str, Workload]:
    """The workloads that are predicted, the smallest first."""
    found = {workload.name: workload for workload in workloads()}
    return {name: found[name] for name in LAUNCHES}


def table(rows: Sequence[Counted], cell: Callable[[Counted, int], str], *more: str) -> Iterator[str]:
    """Yield a table with a line for each of ``rows`` and a column for each number of GPUs."""
    yield "| step | " + " | ".join([*more, *(f"{size:,} GPUs" for size in SIZES)]) + " |"
    yield "|---|" + "---:|" * (len(more) + len(SIZES))
    for row in rows:
        yield (
            f"| `{row.name}` | " + " | ".join([*_facts(row)[: len(more)], *(cell(row, size) for size in SIZES)]) + " |"
        )


def _facts(row: Counted) -> list[str]:
    volume = f"{sum(row.reductions) / 1e6:,.2f}"
    return [f"{row.parameters:,}", f"{row.flops / 1e9:,.3f}", str(len(row.reductions)), volume]


def page() -> str:
    """Return the predictions as tables, with what they rest on."""
    rows = [counted(workload) for workload in known().values()]
    widths = [counted(known()["dcgan-64"], width) for width in WIDTHS]
    facts = ("parameters", "GFLOP a sample", "reductions", "MB reduced")
    parts = [
        "Time a step that reductions add, in microseconds:",
        *table(rows, lambda row, gpus: f"{1e6 * (row.together(1, gpus) - row.alone(1)):,.0f}", *facts),
    ]
    for batch in BATCHES:
        title = f"Efficiency with a batch of {batch:,} on each GPU:"
        parts += ["", title, "", *table(rows, lambda row, gpus, b=batch: f"{row.efficiency(b, gpus):.0%}")]  # type: ignore[misc]
    parts += ["", "The batch on each GPU from which 90% is kept, in powers of two:", ""]
    parts += table(rows, lambda row, gpus: f"{row.enough(gpus):,}")
    parts += ["", "The same network in several sizes, with a batch of 128 on each GPU:", ""]
    parts += table(widths, lambda row, gpus: f"{row.efficiency(128, gpus):.0%}", *facts)
    parts += ["", *conclusions(rows, widths)]
    parts.insert(1, "")
    return "\n".join(parts)


def conclusions(rows: Sequence[Counted], widths: Sequence[Counted]) -> Iterator[str]:
    """Yield what stops scaling first."""
    most = SIZES[-1]
    worst = min(rows, key=lambda row: row.efficiency(128, most))
    best = max(rows, key=lambda row: row.efficiency(128, most))
    yield (
        f"- **Which network stops first:** with 128 samples on each GPU `{worst.name}`, at"
        f" {worst.efficiency(128, SIZES[0]):.0%} on {SIZES[0]} GPUs and {worst.efficiency(128, most):.0%} on {most:,};"
        f" `{best.name}` keeps {best.efficiency(128, most):.0%}."
    )
    dcgan = rows[-1]
    small, large = BATCHES[0], BATCHES[-1]
    few, many = dcgan.efficiency(small, most), dcgan.efficiency(large, most)
    yield (
        f"- **Which batch stops first:** the small one. `{dcgan.name}` on {most:,} GPUs keeps {few:.0%} with {small}"
        f" samples on each and {many:.0%} with {large:,}: a reduction costs the same whatever the batch."
    )
    narrow, wide = widths[0].efficiency(128, most), widths[-1].efficiency(128, most)
    yield (
        f"- **Which size stops first:** of one network the {'narrow' if narrow < wide else 'wide'} one, from"
        f" {narrow:.0%} at width {WIDTHS[0]} to {wide:.0%} at width {WIDTHS[-1]} on {most:,} GPUs: operations"
        " and bytes both grow with the square of the width, and the time of launches and of empty messages does not."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print or place the predictions."""
    parser = argparse.ArgumentParser("python -m fastgan.benchmarks.scaling", description="Predict scaling.")
    marks.add_option(parser, MARKED)
    options = parser.parse_args(argv)
    return marks.serve(options, MARKED, page, page)


if __name__ == "__main__":
    sys.exit(main())
