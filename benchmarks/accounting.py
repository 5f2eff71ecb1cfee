"""What a convolutional network's training step computes and moves: counted, not measured.

    python -m fastgan.benchmarks.accounting [--workload dcgan-64] [--batch 128] [--directions]

Bytes are those of each launch's operands and results, each once, in bf16 and fp32 vectors: what taps and tiles read
again comes from a cache. Ours: a raw output is stored once, normalised where the next layer loads it (choice a);
statistics, activations and their derivatives ride in epilogues. PyTorch as people write it: convolution, statistics,
normalisation, activation, and each one's backward pass. Losses, optimisers and the joining of batches are left out.

Times are predicted by kernels/cost.py, not measured, where a normalised operand or a corrected gradient is formed
(a) in the operand load, (b) once, by an elementwise kernel, for a plain kernel with our epilogue, or (c) once, for
cuDNN, with a pass for what the epilogue would do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from fastgan.benchmarks.chains import AROUND, DTYPE, FORWARD, INPUT, WORKLOADS, Place, Run, step
from fastgan.errors import UserError, require

if TYPE_CHECKING:
    from fastgan.benchmarks.predictions import Times

VECTOR = 4  # bytes of a number of a vector
CARDS = {"H200": 90, "A100": 80}  # by the architectures that the estimates know


class Counts(NamedTuple):
    """What is computed and moved."""

    flops: float = 0.0
    bytes: float = 0.0
    launches: int = 0
    eager_flops: float = 0.0
    eager_bytes: float = 0.0
    eager_launches: int = 0


def total(parts: Iterable[Counts]) -> Counts:
    """Add counts up."""
    flops, moved, launches, *eager = (sum(column) for column in zip(Counts(), *parts, strict=True))
    return Counts(flops, moved, int(launches), eager[0], eager[1], int(eager[2]))


def counted(run: Run, place: Place, direction: str) -> Counts:
    """Count one layer in one direction."""
    layer, width, n, calls = place.layer, DTYPE.itemsize, run.batch, run.calls
    x, y, w, product = n * layer.inputs, n * layer.outputs, layer.weights, float(n * layer.flops)
    activated, ends = layer.activation != "none", place.last and place.normed
    if direction == AROUND:
        passes, moved = activated + 2 * place.normed, width * y * (3 * activated + 5 * place.normed)
        return Counts(0.0, 3.0 * width * y * ends, int(ends), 0.0, moved, calls * passes)
    ours, eager, eager_launches = width * (x + y + w), width * (x + y + calls * w), calls
    into, out = VECTOR * layer.in_channels * place.raw, VECTOR * layer.out_channels * place.normed
    if direction == FORWARD:
        ours += 4 * into + 2 * out + 2 * width * y * ends
        eager += width * y * (3 * place.normed + 2 * activated)
        return Counts(product, ours, 1 + ends, product, eager, calls * (1 + 2 * place.normed + activated))
    ours += width * y * (place.normed or place.pending) + 3 * out  # what stands beside the gradient
    ours += width * x * place.activated + 8 * into if direction == INPUT else 4 * into
    return Counts(product, ours, 1, product, eager, eager_launches)


def unused(run: Run, place: Place) -> Counts:
    """Count what PyTorch computes for gradients that nobody uses."""
    return total(counted(run, place, direction)._replace(flops=0.0, bytes=0.0, launches=0) for direction in run.unused)


def account(run: Run, place: Place) -> Counts:
    """Count one layer in all directions of a run."""
    return total([*(counted(run, place, each) for each in run.directions_of(place)), unused(run, place)])


def saved_bytes(module: nn.Module, input: Tensor) -> int:
    """Run a module forward and return the bytes that autograd keeps for its backward pass.

    Each storage counts once and whole; the module's own parameters and buffers, which live anyway, do not.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}  # they stay alive here, so that no address comes twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(keep, lambda tensor: tensor):
        module(input)
    return sum(storage.nbytes() for storage in kept.values())


def report(workload: str, batch: int, by_direction: bool = False) -> Iterator[str]:
    """Yield a training step as a table of layers, or of their directions, and what it comes to."""
    require("triton", why="predicting what kernels take")
    from fastgan.benchmarks.predictions import Times, predicted

    words = ["run", "layer", *["direction"] * by_direction]
    heads = ["GFLOP", "MB", "PyTorch's MB", "launches", "PyTorch's"]
    heads += [f"{card} {choice}" for card in CARDS for choice in Times._fields]
    yield "| " + " | ".join([*words, *heads]) + " |"
    yield "|" + "---|" * len(words) + "---:|" * len(heads)
    counts: list[Counts] = []
    times: list[list[Times]] = []  # of each direction of each layer, by card
    for run in step(workload, batch):
        for place in run.places:
            directions = run.directions_of(place)
            found = [[predicted(run, place, each, arch) for arch in CARDS.values()] for each in directions]
            counts.append(account(run, place))
            times += found
            names = [run.name, place.layer.name]
            if by_direction:
                for direction, us in zip(directions, found, strict=True):
                    yield row([*names, direction], counted(run, place, direction), us)
                if run.unused:
                    yield row([*names, "PyTorch's unused"], unused(run, place), [Times()] * len(CARDS))
            else:
                yield row(names, counts[-1], [Times.total(of) for of in zip(*found, strict=True)])
    by_card = list(zip(*times, strict=True))
    yield row(["all", *[""] * (len(words) - 1)], total(counts), [Times.total(of) for of in by_card])
    yield ""
    yield from conclusions(workload, batch, total(counts), dict(zip(CARDS, by_card, strict=True)))


def row(names: Sequence[str], counts: Counts, times: Iterable[Times]) -> str:
    """Return one line of the table."""
    numbers = [f"{counts.flops / 1e9:.1f}", f"{counts.bytes / 1e6:.1f}", f"{counts.eager_bytes / 1e6:.1f}"]
    numbers += [str(counts.launches), str(counts.eager_launches)]
    return "| " + " | ".join([*names, *numbers, *(f"{us:.0f}" for of in times for us in of)]) + " |"


def conclusions(workload: str, batch: int, counts: Counts, times: dict[str, Sequence[Times]]) -> Iterator[str]:
    """Yield what a table comes to, a sentence a line."""
    yield (
        f"- {workload}, batch {batch}, bf16: ours {counts.flops / 1e9:.0f} GFLOP, {counts.bytes / 1e9:.2f} GB and"
        f" {counts.launches} launches a step, PyTorch {counts.eager_flops / 1e9:.0f} GFLOP,"
        f" {counts.eager_bytes / 1e9:.2f} GB and {counts.eager_launches}."
    )
    for card, found in times.items():
        ours, best = sum(min(each[:2]) for each in found) / 1e3, sum(min(each) for each in found) / 1e3
        yield f"- {card}, predicted, not measured: {ours:.2f} ms by the better of a and b, {best:.2f} ms by the best."


def main(argv: Sequence[str] | None = None) -> int:
    """Print the account of a training step."""
    parser = argparse.ArgumentParser("python -m fastgan.benchmarks.accounting", description="Count a training step.")
    parser.add_argument("--workload", choices=WORKLOADS, default=WORKLOADS[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--directions", action="store_true", help="a line for each direction of each layer")
    options = parser.parse_args(argv)
    if options.batch < 1:
        parser.error("--batch must be at least 1")
    try:
        print("\n".join(report(options.workload, options.batch, options.directions)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
