"""Races many small GANs: eager PyTorch one after another, torch.func's stacks in a graph, and ``fastgan.Ensemble``.

    python -m fastgan.benchmarks.ensemble                                # gan-digits, 132 members
    python -m fastgan.benchmarks.ensemble --members 1024 --rounds 7
    python -m fastgan.benchmarks.ensemble --members 2 --iterations 2 --rounds 1      # whether it runs, on a CPU too

An iteration moves each member's discriminator and generator once. PyTorch's data and latents lie ready, ours are drawn
within the iteration. Contenders take turns; a time is the least of some rounds'. Without a GPU nothing is captured, and
there is no launch for all: those figures say nothing of a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn import functional as F

from fastgan.benchmarks.baselines.digits import BATCH, LATENT, discriminator, generator
from fastgan.benchmarks.measure import WallClock
from fastgan.benchmarks.mlp_step_measure import UNROLL
from fastgan.ops import mlp_step_launch
from fastgan.train.ensemble import Ensemble
from fastgan.train.step import Pattern

PRESET, PIXELS = "gan-digits", 64
ADAM: dict[str, Any] = {"lr": 2e-4, "betas": (0.5, 0.999)}
WARMUP = 3
Iterations = Callable[[int], object]  # performs so many of all members


def eager(members: int, device: torch.device) -> Iterations:
    """Return members that are trained one after another, in fp32 and with torch's Adam, as users write them."""
    steps = [_eager_step(device) for _ in range(members)]

    def run(iterations: int) -> None:
        for step in steps:
            for _ in range(iterations):
                step()

    return run


def _eager_step(device: torch.device) -> Callable[[], None]:
    g, d = generator(PIXELS).to(device), discriminator(PIXELS).to(device)
    opt_g, opt_d = torch.optim.Adam(g.parameters(), **ADAM), torch.optim.Adam(d.parameters(), **ADAM)
    real, z = torch.rand(BATCH, PIXELS, device=device) * 2 - 1, torch.randn(2, BATCH, LATENT, device=device)
    ones, zeros = torch.ones(BATCH, 1, device=device), torch.zeros(BATCH, 1, device=device)

    def step() -> None:
        with torch.no_grad():
            fake = g(z[0])
        opt_d.zero_grad()
        loss = F.binary_cross_entropy_with_logits
        (loss(d(real), ones) + loss(d(fake), zeros)).backward()
        opt_d.step()
        opt_g.zero_grad()
        loss(d(g(z[1])), ones).backward()
        opt_g.step()

    return step


class Stacks:
    """Members whose weights torch.func stacks, under vmap, with one Adam over the stacks; captured on a GPU."""

    def __init__(self, members: int, device: torch.device, precision: torch.dtype | None) -> None:
        self.device, self.precision = device, precision
        self.networks = [
            _stacked([make(PIXELS).to(device) for _ in range(members)]) for make in (generator, discriminator)
        ]
        how = {**ADAM, "fused": True, "capturable": device.type == "cuda"}
        self.optimizers = [torch.optim.Adam(params.values(), **how) for _, params, _ in self.networks]
        self.real = torch.rand(members, BATCH, PIXELS, device=device) * 2 - 1
        self.z = torch.randn(2, members, BATCH, LATENT, device=device)
        self._replay = self._captured() if device.type == "cuda" else self.step

    def __call__(self, iterations: int) -> None:
        """Perform so many iterations of all members."""
        for _ in range(iterations):
            self._replay()

    def step(self) -> None:
        """Move all discriminators, then all generators: a sum of losses has each member's own gradients."""
        with torch.no_grad():
            fake = self._through(0, self.z[0])
        self._move(1, F.softplus(-self._through(1, self.real)) + F.softplus(self._through(1, fake)))
        self._move(0, F.softplus(-self._through(1, self._through(0, self.z[1]))))

    def _through(self, which: int, x: Tensor) -> Tensor:
        base, params, buffers = self.networks[which]
        cast = contextlib.nullcontext() if self.precision is None else torch.autocast(x.device.type, self.precision)
        with cast:
            out: Tensor = torch.vmap(lambda p, b, x: functional_call(base, (p, b), (x,)))(params, buffers, x)
        return out.float()

    def _move(self, which: int, losses: Tensor) -> None:
        self.optimizers[which].zero_grad()  # backward() then lays gradients as weights lie, which a fused Adam needs
        losses.mean((1, 2)).sum().backward(inputs=list(self.networks[which][1].values()))
        self.optimizers[which].step()

    def _captured(self) -> Callable[[], object]:
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(WARMUP):
                self.step()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        return graph.replay


def _stacked(networks: list[nn.Module]) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    params, buffers = stack_module_state(networks)
    return networks[0], params, buffers


def ours(members: int, device: torch.device, one_launch: str) -> Iterations:
    """Return an Ensemble's iterations, by graphs or by one launch, ``UNROLL`` at a time."""
    run = Ensemble(PRESET, members=members, device=str(device), unroll=UNROLL, one_launch=one_launch)
    alike = Pattern((False,) * run.config.n_critic)

    def iterate(iterations: int) -> None:
        for done in range(0, iterations, UNROLL):
            run._run((alike,) * min(UNROLL, iterations - done))

    return iterate


def contenders(members: int, device: torch.device) -> dict[str, Iterations]:
    """Return by name what is raced, eager PyTorch first."""
    half = torch.bfloat16 if device.type == "cuda" else None
    found: dict[str, Iterations] = {
        "eager, one after another": eager(members, device),
        "torch.func, a graph": Stacks(members, device, half),
        "fastgan.Ensemble, graphs": ours(members, device, "never"),
    }
    if mlp_step_launch.refusal(device) is None:
        found["fastgan.Ensemble, one launch"] = ours(members, device, "always")
    return found


def measured(members: int, device: torch.device, iterations: int, rounds: int) -> dict[str, float]:
    """Return by name the microseconds of an iteration of all members."""
    runs, clock = contenders(members, device), WallClock(device)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + rounds):  # the first is there to compile and to capture
        for name, run in runs.items():
            times[name].append(clock.sample([lambda run=run: run(iterations)]) / iterations)  # type: ignore[misc]
    return {name: min(own[1:]) for name, own in times.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Race and print a table."""
    parser = argparse.ArgumentParser(prog="python -m fastgan.benchmarks.ensemble", description=__doc__)
    parser.add_argument("--members", type=int, default=132)
    parser.add_argument("--iterations", type=int, default=100, help="of each member in a round")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    found = measured(given.members, device, given.iterations, given.rounds)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, nothing captured"
    print(f"{PRESET}, batch {BATCH}, {given.members} members, {where}\n")
    print("| contender | us for all | steps/s of all | times eager |\n|---|---:|---:|---:|")
    first = next(iter(found.values()))
    for name, us in found.items():
        print(f"| {name} | {us:.1f} | {given.members / us * 1e6:.0f} | {first / us:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
