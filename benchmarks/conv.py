"""Suite ``conv``: each convolution of the networks that people train, against PyTorch at its best.

Forward (under no_grad), the gradient of the input, and that of the weights (one graph, differentiated again and again),
each of the convolution with its bias and activation; and the block as it stands in its network, its norm included,
forward and backward. bf16, TF32, IEEE fp32 and fp16; cuDNN on channels_last images, with its benchmark on.
"""

from __future__ import annotations

import functools
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fastgan.benchmarks.baselines import conv as torchs
from fastgan.benchmarks.baselines.conv import operands_of, work
from fastgan.benchmarks.baselines.linear import Forward
from fastgan.benchmarks.ceilings import MATRIX, TF32_ULP
from fastgan.benchmarks.contenders import field, raced, warned
from fastgan.benchmarks.conv_problems import by_ours
from fastgan.benchmarks.linear import DTYPES, SMOKE, Backward, graphs_kept
from fastgan.benchmarks.race import Contender, Workload
from fastgan.benchmarks.record import Row, Timed
from fastgan.benchmarks.setting import Setting
from fastgan.benchmarks.speedups import OURS, speedups, summary
from fastgan.benchmarks.suites import Suite, Task
from fastgan.benchmarks.workloads import CONVOLUTIONS, Convolution, Layer
from fastgan.errors import UserError, unknown

OP = "conv_act"
DIRECTIONS = ("block", "forward", "input", "weight")
TINY = {"batch": 2, "channels": 8, "size": 8}  # the sizes of the smoke form
NO_NORM = Layer("", "", 0, 0)  # all that ``Backward`` asks of a layer is whether a norm follows
CHOSEN, LEFT = "every product by ours", "by the library"  # how a note says who computes under auto
DCGAN = "dcgan-64"


def arguments(parser: ArgumentParser) -> None:
    """Add the filters."""
    names = list(dict.fromkeys(layer.workload for layer in CONVOLUTIONS))
    parser.add_argument("--workload", nargs="+", choices=names, help="only these networks")
    parser.add_argument("--layer", nargs="+", metavar="NAME", help="only these layers, as rows name them: g1, d2, up1")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="only these")
    parser.add_argument("--direction", nargs="+", choices=DIRECTIONS, help="only these")
    parser.add_argument("--batch", nargs="+", type=int, metavar="N", help="these batches instead of each network's own")
    parser.add_argument("--max-autotune", action="store_true", help="race max-autotune as well: minutes of compilation")


def tasks(setting: Setting) -> list[Task]:
    """Return one task for each layer, batch, dtype and direction; whole blocks in bf16 come first."""
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


def chosen(setting: Setting) -> Iterator[tuple[Convolution, int, int]]:
    """Yield layers with the rank of a batch and the batch; work that several share comes once, in small every kind."""
    options = vars(setting.options)
    wanted = [layer for layer in CONVOLUTIONS if layer.workload in (options.get("workload") or [layer.workload])]
    for name in options.get("layer") or ():
        if name not in {layer.name for layer in wanted}:
            raise unknown("layer", name, dict.fromkeys(layer.name for layer in wanted))
    if any(batch < 2 for batch in options.get("batch") or ()):
        raise UserError("--batch must be at least 2: a batch norm has no variance of one value")
    seen: set[object] = set()
    for layer in wanted:
        layer = shrunk(layer) if setting.smoke else layer
        own = options.get("batch") or layer.batches
        for turn, batch in enumerate((TINY["batch"],) if setting.smoke else own):
            work = (layer.likeness if setting.smoke else layer.shape, batch)
            if layer.name in (options.get("layer") or [layer.name]) and work not in seen:
                seen.add(work)
                yield layer, turn, batch


def shrunk(layer: Convolution) -> Convolution:
    """Return a layer of the same kind and of next to no size."""
    ins, outs = (min(channels, TINY["channels"]) for channels in (layer.in_channels, layer.out_channels))
    return replace(layer, in_channels=ins, out_channels=outs, size=min(layer.size, TINY["size"]))


def measure(setting: Setting, layer: Convolution, batch: int, dtype: str, direction: str) -> Iterator[Row]:
    """Race one layer in one direction; contenders that this machine cannot run say why not."""
    layer = layer if direction == "block" else replace(layer, norm=None)
    with torchs.cudnn(dtype), graphs_kept("both" if direction in ("block", "forward") else "backward"):
        inputs = functools.partial(operands_of, layer, batch, dtype, direction)
        contenders, absent = field(
            setting,
            OP,
            dtype,
            inputs,
            {"eager": torchs.eager(layer)},
            functools.partial(torchs.compiled, layer),
            ours(layer),
            functools.partial(directed, layer, direction),
        )
        flops, moved = work(layer, batch, direction, MATRIX[dtype].itemsize)
        workload = Workload(
            title(layer, direction),
            f"{batch}x{kind(layer)}",
            dtype,
            inputs,
            contenders,
            directed(layer, direction, torchs.eager(layer)),
            flops=flops,
            moved=moved,
            ulp=TF32_ULP if dtype == "tf32" else None,
        )
        said_of = functools.partial(remarks, setting, layer, batch, dtype, direction)
        rows = raced(workload, setting, absent, said_of)
    yield from rows


def title(layer: Convolution, direction: str) -> str:
    """Name what a row measures."""
    return f"{layer.workload} {layer.name} {direction}"


def kind(layer: Convolution) -> str:
    """Name the sizes, the geometry where it is not the plainest, and what stands around."""
    sides = ("x".join(map(str, (size,) * layer.dims)) for size in (layer.size, layer.out_size))
    ends = zip((layer.in_channels, layer.out_channels), sides, strict=True)
    words = [" to ".join(f"{channels}x{side}" for channels, side in ends), f"k{layer.kernel}"]
    words += [f"s{layer.stride}"] * (layer.stride > 1) + [f"d{layer.dilation}"] * (layer.dilation > 1)
    words += [f"up{layer.upsample}"] * (layer.upsample > 1) + ["transposed"] * layer.transposed
    around = [f"{layer.before} first"] * (layer.before != "none") + ["batch_norm"] * (layer.norm is not None)
    return " ".join([*words, " + ".join([*around, layer.activation])])


def remarks(
    setting: Setting, layer: Convolution, batch: int, dtype: str, direction: str, variant: str
) -> Iterator[str]:
    """Yield what a reader of a row must know."""
    from fastgan.ops.backend import backend, choose

    if layer.times > 1:
        yield f"its network has {layer.times} of them"
    if variant == "fastgan auto":
        with backend("auto"):
            choice = choose(OP, setting.device, MATRIX[dtype]).backend
        yield f"backend {choice}"
        if choice == "triton":
            directions = DIRECTIONS[1:] if direction == "block" else (direction,)
            library = [name for name in directions if not by_ours(layer, batch, dtype, name, setting.device)]
            yield f"{' and '.join(library)} {LEFT}" if library else CHOSEN


def ours(layer: Convolution) -> Forward:
    """Return the layer as this library offers it, of the operands of ``baselines.conv``."""
    if layer.norm is not None:
        return Chained(layer)
    from fastgan.ops import conv

    name = f"conv_transpose{layer.dims}d_act" if layer.transposed else f"conv{layer.dims}d_act"
    more = {"output_padding": layer.output_padding} if layer.transposed else {}
    more |= {"upsample": layer.upsample} if layer.upsample > 1 else {}
    return functools.partial(
        getattr(conv, name),
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        activation=layer.activation,
        negative_slope=layer.slope,
        pre_activation=layer.before,
        pre_negative_slope=layer.before_slope,
        **more,
    )


class Chained:
    """A block as a chain of its modules, one for each copy of the operands: they are the modules' parameters."""

    def __init__(self, layer: Convolution) -> None:
        self.layer = layer
        self.chains: dict[int, nn.Module] = {}  # by the count of batches, which they keep

    def __call__(self, x: Tensor, *operands: Tensor) -> Tensor:
        """Return the block's output."""
        count = id(operands[-1])
        if count not in self.chains:
            self.chains[count] = self.build(*operands)
        output: Tensor = self.chains[count](x)
        return output

    def build(self, *operands: Tensor) -> nn.Module:
        """Return a chain on these operands."""
        from fastgan.nn.chain import Chain

        layer = self.layer
        assert layer.norm is not None and layer.dims == 2
        ends = layer.in_channels, layer.out_channels, layer.kernel, layer.stride, layer.padding
        more: dict[str, Any] = {"dilation": layer.dilation, "bias": layer.bias, "device": "meta"}
        if layer.transposed:
            more["output_padding"] = layer.output_padding
        product = (nn.ConvTranspose2d if layer.transposed else nn.Conv2d)(*ends, **more)
        norm = nn.BatchNorm2d(layer.out_channels, layer.norm, device="meta")
        *values, norm.running_mean, norm.running_var, norm.num_batches_tracked = operands
        homes = [(product, "weight"), *[(product, "bias")] * layer.bias, (norm, "weight"), (norm, "bias")]
        for (module, name), tensor in zip(homes, values, strict=True):
            delattr(module, name)
            setattr(module, name, tensor)  # as it is and not as a Parameter: a leaf that gradients are asked for
        scaled = [nn.Upsample(scale_factor=float(layer.upsample))] if layer.upsample > 1 else []
        leaky = layer.activation == "leaky_relu"
        return Chain(*scaled, product, norm, nn.LeakyReLU(layer.slope) if leaky else nn.ReLU())


def directed(layer: Convolution, direction: str, forward: Forward) -> Contender:
    """Return a contender that runs ``forward`` in one direction."""
    if direction == "forward":
        return torch.no_grad()(forward)
    if direction != "block":
        return Backward(NO_NORM, forward)

    def block(*inputs: Tensor) -> tuple[Tensor | None, ...]:
        *operands, cotangent = inputs
        leaves = [tensor for tensor in operands if tensor.requires_grad]
        y = forward(*operands)
        gradients: list[Tensor | None] = list(torch.autograd.grad(y, leaves, cotangent))
        if layer.bias and layer.norm is not None:
            gradients[2] = None  # formed, but truly 0: nothing to compare
        return (y, *gradients)

    return block


def closing(rows: Sequence[Row]) -> Iterator[str]:
    """Say how much faster ours is than the best of the others, and how much of DCGAN's work auto gives to ours."""
    yield from warned(rows)
    for name in OURS:
        found = list(speedups(rows, name))
        for direction in DIRECTIONS:
            of_direction = [entry for entry in found if entry.row.workload.endswith(f" {direction}")]
            yield from summary(f"{name}, {direction}", of_direction)
    yield from taken(rows)


def taken(rows: Sequence[Row]) -> Iterator[str]:
    """Yield, by batch and dtype, the share of the FLOPs of ``dcgan-64`` that auto gave to our kernels."""
    flops = {title(layer, way): layer.flops for layer in CONVOLUTIONS for way in DIRECTIONS if layer.workload == DCGAN}
    whole: dict[tuple[str, str], list[tuple[int, bool]]] = {}
    for row in rows:
        if not isinstance(row, Timed) or row.variant != "fastgan auto" or row.workload not in flops:
            continue
        notes, direction = (row.note or "").split("; "), row.workload.split()[-1]
        if direction != "block" and "backend triton" in notes:
            key = row.shape.partition("x")[0], row.dtype
            whole.setdefault(key, []).append((flops[row.workload], CHOSEN in notes))
    for (batch, dtype), parts in whole.items():
        share = sum(of for of, by_us in parts if by_us) / sum(of for of, _ in parts)
        yield f"{DCGAN}, batch {batch}, {dtype}: auto gave {share:.0%} of the FLOPs of {len(parts)} products to ours"


SUITE = Suite(
    "conv",
    "each convolution of the networks that people train, by direction and as a block, against PyTorch at its best",
    tasks,
    arguments,
    closing,
    needs_ceilings=True,
)
