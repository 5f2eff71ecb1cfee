"""Suite ``linear``: each linear layer of the networks that people train, and square ones, against PyTorch at its best.

Forward (under no_grad), backward alone (one graph, differentiated again and again) and both; bf16, TF32, IEEE fp32 and
fp16. A layer with a norm is raced as a block with its activation, a joined one with its concatenation. Gradients are of
all operands, as for a layer in the middle of a network. Dropout is left out: each contender would draw its own mask.
"""

from __future__ import annotations

import contextlib
import functools
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fastgan.benchmarks.baselines import linear as torchs
from fastgan.benchmarks.baselines.linear import Forward, operands_of, work
from fastgan.benchmarks.ceilings import MATRIX, TF32_ULP, fp32_products
from fastgan.benchmarks.contenders import field, raced, warned
from fastgan.benchmarks.race import Contender, Workload
from fastgan.benchmarks.record import Row
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.speedups import OURS, shares, speedups, summary
from fastgan.benchmarks.suites import Suite, Task
from fastgan.benchmarks.workloads import LAYERS, Layer
from fastgan.errors import UserError, unknown

OP = "linear_act"
DTYPES = ("bfloat16", "tf32", "float32", "float16")  # as the ceilings call them; what matters most first
SMOKE = ("bfloat16", "float32")
DIRECTIONS = ("both", "forward", "backward")
TINY = {"batch": 8, "in": 16, "out": 8, "joined": 4}  # the sizes of the smoke form
BIAS = 2  # its place among the operands of a block
LARGE = 4096  # rows of a square product that ought to come near to the matrix rate


def arguments(parser: ArgumentParser) -> None:
    """Add the filters."""
    names = list(dict.fromkeys(layer.workload for layer in LAYERS))
    parser.add_argument("--workload", nargs="+", choices=names, help="only these networks")
    parser.add_argument("--layer", nargs="+", metavar="NAME", help="only these layers, as rows name them: g1, d2, 4096")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="only these")
    parser.add_argument("--direction", nargs="+", choices=DIRECTIONS, help="only these")
    parser.add_argument("--batch", nargs="+", type=int, metavar="N", help="these batches instead of each network's own")
    parser.add_argument("--max-autotune", action="store_true", help="race max-autotune as well: minutes of compilation")


def tasks(setting: Setting) -> list[Task]:
    """Return one task for each layer, batch, dtype and direction; the networks' own batches in bf16 come first."""
    options = vars(setting.options)
    asked = options.get("dtype") or (SMOKE if setting.smoke else DTYPES)
    dtypes = [name for name in asked if setting.on_gpu or name != "tf32"]  # a CPU has none
    if not dtypes:
        raise UserError("--dtype tf32 needs a GPU: a CPU multiplies fp32 in one way, --dtype float32")
    directions = options.get("direction") or DIRECTIONS
    plan = []
    for at, (layer, turn, batch) in enumerate(chosen(setting)):
        for dtype in dtypes:
            for direction in directions[:1] if setting.smoke and dtype != "float32" else directions:
                important = (DTYPES.index(dtype) > 1, turn, DTYPES.index(dtype), DIRECTIONS.index(direction), at)
                run = functools.partial(measure, setting, layer, batch, dtype, direction)
                plan.append((important, Task(f"{title(layer, direction)} batch {batch} {dtype}", run)))
    ordered = [task for _, task in sorted(plan, key=lambda entry: entry[0])]
    return [replace(task, priority=at) for at, task in enumerate(ordered)]


def chosen(setting: Setting) -> Iterator[tuple[Layer, int, int]]:
    """Yield layers with the rank of a batch and the batch; work that several networks share comes once."""
    options = vars(setting.options)
    wanted = [layer for layer in LAYERS if layer.workload in (options.get("workload") or [layer.workload])]
    for name in options.get("layer") or ():
        if name not in {layer.name for layer in wanted}:
            raise unknown("layer", name, dict.fromkeys(layer.name for layer in wanted))
    if any(batch < 2 for batch in options.get("batch") or ()):
        raise UserError("--batch must be at least 2: a batch norm has no variance of one row")
    seen: set[object] = set()
    for layer in wanted:
        layer = shrunk(layer) if setting.smoke else layer
        own = layer.batches if layer.workload == "square" else options.get("batch") or layer.batches
        for turn, batch in enumerate((TINY["batch"],) if setting.smoke else own):
            if layer.name in (options.get("layer") or [layer.name]) and (layer.shape, batch) not in seen:
                seen.add((layer.shape, batch))
                yield layer, turn, batch


def shrunk(layer: Layer) -> Layer:
    """Return a layer of the same kind and of next to no size."""
    joined = TINY["joined"] if layer.joined else 0
    return replace(
        layer, in_features=TINY["in"] + joined, out_features=min(layer.out_features, TINY["out"]), joined=joined
    )


def measure(setting: Setting, layer: Layer, batch: int, dtype: str, direction: str) -> Iterator[Row]:
    """Race one layer in one direction; contenders that this machine cannot run say why not."""
    with fp32_products("high" if dtype == "tf32" else "highest"), graphs_kept(direction):
        inputs = functools.partial(operands_of, layer, batch, dtype, direction)
        contenders, absent = field(
            setting,
            OP,
            dtype,
            inputs,
            {"eager": torchs.eager(layer)} | ({"cublaslt": lt} if (lt := torchs.cublaslt(layer)) is not None else {}),
            functools.partial(torchs.compiled, layer),
            ours(layer),
            functools.partial(directed, layer, direction),
        )
        flops, moved = work(layer, batch, direction, MATRIX[dtype].itemsize)
        workload = Workload(
            title(layer, direction),
            f"{batch}x{layer.in_features}x{layer.out_features} {kind(layer)}",
            dtype,
            inputs,
            contenders,
            directed(layer, direction, torchs.eager(layer)),
            flops=flops,
            moved=moved,
            ulp=TF32_ULP if dtype == "tf32" else None,
        )
        rows = raced(workload, setting, absent, functools.partial(remarks, setting, layer, dtype))
    yield from rows


def title(layer: Layer, direction: str) -> str:
    """Name what a row measures."""
    return f"{layer.workload} {layer.name} {direction}"


def kind(layer: Layer) -> str:
    """Say what follows a layer, and what is joined in front of it."""
    joined = f"joined {layer.joined} + " if layer.joined else ""
    norm = "batch_norm + " if layer.norm is not None else ""
    return joined + norm + (f"maxout {layer.pieces}" if layer.pieces > 1 else layer.activation)


def remarks(setting: Setting, layer: Layer, dtype: str, variant: str) -> Iterator[str]:
    """Yield what a reader of a row must know."""
    from fastgan.ops.backend import backend, choose

    if layer.dropout:
        yield f"without its dropout of {layer.dropout:g}"
    if variant == "fastgan auto":
        with backend("auto"):
            yield f"backend {choose('linear_act', setting.device, MATRIX[dtype]).backend}"


def ours(layer: Layer) -> Forward:
    """Return the layer as this library offers it, of the operands of ``baselines.linear``."""
    from fastgan.ops.concat_linear import Embedded, concat_linear_act
    from fastgan.ops.linear import linear_act
    from fastgan.ops.maxout import maxout

    def joined(x: Tensor, *operands: Tensor) -> Tensor:
        *beside, weight, bias = operands
        parts = [x, Embedded(*beside) if layer.classes else beside[0]]
        return concat_linear_act(parts, weight, bias, activation=layer.activation, negative_slope=layer.slope)

    if layer.norm is not None:
        return Chained(layer)
    if layer.pieces > 1:
        return functools.partial(maxout, pieces=layer.pieces)
    if layer.joined:
        return joined
    return functools.partial(linear_act, activation=layer.activation, negative_slope=layer.slope)


class Chained:
    """A block as a chain of its modules, one for each copy of the operands: they are the modules' parameters."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.chains: dict[int, torch.nn.Module] = {}  # by the count of batches, which they keep

    def __call__(self, x: Tensor, *operands: Tensor) -> Tensor:
        """Return the block's output (batch, out_features)."""
        count = id(operands[-1])
        if count not in self.chains:
            self.chains[count] = self.build(*operands)
        output: Tensor = self.chains[count](x)
        return output

    def build(self, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, *statistics: Tensor) -> torch.nn.Module:
        """Return a chain on these operands."""
        from fastgan.nn.chain import Chain

        assert self.layer.norm is not None
        linear = torch.nn.Linear(self.layer.in_features, self.layer.out_features, device="meta")
        norm = torch.nn.BatchNorm1d(self.layer.out_features, self.layer.norm, device="meta")
        norm.running_mean, norm.running_var, norm.num_batches_tracked = statistics
        for module, its in ((linear, (weight, bias)), (norm, (scale, shift))):
            for name, tensor in zip(("weight", "bias"), its, strict=True):
                delattr(module, name)
                setattr(module, name, tensor)  # as it is and not as a Parameter: a leaf that gradients are asked for
        leaky = self.layer.activation == "leaky_relu"
        return Chain(linear, norm, torch.nn.LeakyReLU(self.layer.slope) if leaky else torch.nn.ReLU())


def directed(layer: Layer, direction: str, forward: Forward) -> Contender:
    """Return a contender that runs ``forward`` in one direction."""
    if direction == "forward":
        return torch.no_grad()(forward)
    if direction == "backward":
        return Backward(layer, forward)

    def both(*inputs: Tensor) -> tuple[Tensor | None, ...]:
        *operands, cotangent = inputs
        y = forward(*operands)
        return (y, *gradients(layer, y, operands, cotangent))

    return both


class Backward:
    """The backward pass alone: a graph for each copy of the inputs, built at the first call with it.

    A graph has running statistics of its own: what moves them on spoils another's backward pass. Autograd runs a node
    on the stream of its forward pass, so a second graph is built on the stream that captures use.
    """

    def __init__(self, layer: Layer, forward: Forward) -> None:
        self.layer, self.forward = layer, forward
        self.graphs: dict[int, tuple[tuple[Tensor, ...], Tensor, Tensor | None]] = {}  # the inputs keep their ids

    def __call__(self, *inputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the operands."""
        *operands, cotangent = inputs
        if id(cotangent) not in self.graphs:
            self.graphs[id(cotangent)] = inputs, self.output(operands), self.captured(operands)
        _, y, captured = self.graphs[id(cotangent)]
        if captured is not None and torch.cuda.is_current_stream_capturing():
            y = captured
        return gradients(self.layer, y, operands, cotangent, keep=True)

    def output(self, operands: Sequence[Tensor]) -> Tensor:
        """Return a new graph's output."""
        return self.forward(*(tensor if tensor.requires_grad else tensor.clone() for tensor in operands))

    def captured(self, operands: Sequence[Tensor]) -> Tensor | None:
        """Return the output of a graph whose backward pass can be captured; None without a GPU."""
        if not operands[0].is_cuda:
            return None
        stream: torch.cuda.Stream = torch.cuda.graph(torch.cuda.CUDAGraph()).capture_stream  # type: ignore[assignment]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            y = self.output(operands)
        torch.cuda.current_stream().wait_stream(stream)
        return y


def gradients(
    layer: Layer, y: Tensor, operands: Sequence[Tensor], cotangent: Tensor, *, keep: bool = False
) -> tuple[Tensor | None, ...]:
    """Return the gradients of the operands; that of a bias before a norm is formed, but truly 0: nothing to compare."""
    leaves = [tensor for tensor in operands if tensor.requires_grad]
    parts: list[Tensor | None] = list(torch.autograd.grad(y, leaves, cotangent, retain_graph=keep))
    if layer.norm is not None:
        parts[BIAS] = None
    return tuple(parts)


def graphs_kept(direction: str) -> contextlib.AbstractContextManager[object]:
    """Return a context in which what is compiled may be differentiated again and again, where that is measured."""
    if direction != "backward":
        return contextlib.nullcontext()
    from torch._functorch import config

    return config.patch(donated_buffer=False)


def closing(rows: Sequence[Row]) -> Iterator[str]:
    """Say how much faster ours is than the best of the others, and how near to the matrix rate on large squares."""
    yield from warned(rows)
    for ours in OURS:
        found = list(speedups(rows, ours))
        for direction in DIRECTIONS:
            of_direction = [entry for entry in found if entry.row.workload.endswith(f" {direction}")]
            yield from summary(f"{ours}, {direction}", of_direction)
    yield from shares(rows, "square", LARGE)


SUITE = Suite(
    "linear",
    "each linear layer of the networks that people train, forward and backward, against PyTorch at its best",
    tasks,
    arguments,
    closing,
    needs_ceilings=True,
)
