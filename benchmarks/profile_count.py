"""What a training step launches, computes and moves, by range: counted as it runs, by the path that it takes anyway.

An operator of PyTorch that launches something and a kernel of ours count as one each. FLOPs are those of matrix
products and convolutions, two for a multiplication and addition, those with padding included. Bytes are each launch's
operands and results, each once: what is expanded counts as it lies in memory.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from fastgan.benchmarks.launch_count import FREE
from fastgan.benchmarks.profile_ranges import Range, Ranges, swapped

OUR_PRODUCTS = ("linear", "conv", "maxout")  # of the files of our kernels: how the names begin of those that multiply
PICKING = ("index_select", "index", "embedding", "gather")
DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}


@dataclass
class Counted:
    """What one range launches in one step."""

    launches: int = 0
    flops: float = 0.0
    bytes: float = 0.0
    pieces: list[tuple[str, float, float]] = field(default_factory=list)  # of each launch: dtype, FLOPs, bytes
    names: Counter[str] = field(default_factory=Counter)
    choices: Counter[str] = field(default_factory=Counter)  # what was decided about its products, and by what

    def add(self, name: str, dtype: str, flops: float, moved: float) -> None:
        """Note a launch."""
        self.launches += 1
        self.flops += flops
        self.bytes += moved
        self.pieces.append((dtype, flops, moved))
        self.names[name] += 1


class Counts(dict[Range, Counted]):
    """What each range launches."""

    def __missing__(self, range: Range) -> Counted:
        return self.setdefault(range, Counted())


class Operators(TorchDispatchMode):
    """Counts PyTorch's operators that launch something, and lets them run."""

    def __init__(self, counts: Counts, ranges: Ranges) -> None:
        super().__init__()
        self._counts, self._ranges = counts, ranges

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        space, _, name = func._schema.name.partition("::")
        if space == "aten" and name not in FREE and not func.is_view:
            tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
            formula = flop_registry.get(func._overloadpacket)
            flops = float(formula(*args, **kwargs, out_val=result)) if formula is not None else 0.0
            wide = [t for t in tensors if t.is_floating_point()]
            dtype = number(wide[0]) if wide else ""
            if name in PICKING:  # of the first operand no more than what is picked
                tensors = [t for t in tree_leaves((args[1:], result, result)) if isinstance(t, Tensor)]
            self._counts[self._ranges.current].add(f"aten.{name}", dtype, flops, float(sum(map(moved, tensors))))
        return result


@contextlib.contextmanager
def counting(ranges: Ranges, optimizers: Mapping[str, Optimizer] = MappingProxyType({})) -> Iterator[Counts]:
    """Context in which what runs is counted by range; no op takes another path for it.

    ``optimizers``: by the layer that their ranges name; one launch of ours gets a table of addresses only.
    """
    counts = Counts()
    with contextlib.ExitStack() as stack:
        stack.enter_context(swapped(torch._C, "_len_torch_dispatch_stack", lambda: 0))  # or ops would go by operators
        stack.enter_context(_submitting(counts, ranges, optimizers))
        stack.enter_context(_choosing(counts, ranges))
        stack.enter_context(Operators(counts, ranges))
        yield counts


@contextlib.contextmanager
def _submitting(counts: Counts, ranges: Ranges, optimizers: Mapping[str, Optimizer]) -> Iterator[None]:
    """Context in which our kernels' launches are counted, wherever their ``submit`` was imported to."""
    kernels: Any = sys.modules.get("fastgan.kernels.launch")
    if kernels is None:  # none was ever launched
        yield
        return
    submit = kernels.submit

    def counted(build: Callable[..., Any], inputs: Any, outputs: Any, *how: Any, **groups: Any) -> None:
        launch = build(*inputs, *outputs, *how, **groups)
        tensors = [t for t in tree_leaves((inputs, outputs, tuple(groups.values()))) if isinstance(t, Tensor)]
        size = sum(map(moved, tensors))
        asked = inspect.signature(build).bind(*inputs, *outputs, *how, **groups).arguments
        flops = product_flops(asked) if build.__module__.rpartition(".")[2].startswith(OUR_PRODUCTS) else 0.0
        name = f"{launch.kernel.__name__} {launch.config}" if flops else launch.kernel.__name__
        if asked.get("images") is not None and asked.get("out") is not None:  # a batch of a whole data set
            size += asked["out"].numel() * asked["images"].element_size() - moved(asked["images"])
        if build.__module__.endswith(".optimizer_step") and ranges.current.layer in optimizers:
            size += optimizer_bytes(optimizers[ranges.current.layer])
        counts[ranges.current].add(name, number(tensors[0]), flops, float(size))
        submit(build, inputs, outputs, *how, **groups)

    holders = [module for name, module in list(sys.modules.items()) if name.startswith("fastgan.kernels.")]
    with contextlib.ExitStack() as stack:
        for module in holders:
            if vars(module).get("submit") is submit:
                stack.enter_context(swapped(module, "submit", counted))
        try:
            yield
        finally:
            for name, late in list(sys.modules.items()):  # imported meanwhile
                if name.startswith("fastgan.kernels.") and late not in holders and vars(late).get("submit") is counted:
                    vars(late)["submit"] = submit


def optimizer_bytes(optimizer: Optimizer) -> int:
    """Return what a step of an optimiser has to move: gradients read, weights and states read and written, shadows."""
    total = 0
    for parameter in (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
        states = [s for s in optimizer.state[parameter].values() if isinstance(s, Tensor) and s.dim()]
        total += moved(parameter.grad) + 2 * sum(map(moved, (parameter, *states)))
    return total + sum(map(moved, getattr(optimizer, "_shadows", {}).values()))


def product_flops(asked: dict[str, Any]) -> float:
    """Return the FLOPs of one of our launches by its arguments' names; 0 where it is no product."""
    weight = next((asked[name] for name in ("w", "weight", "gw") if asked.get(name) is not None), None)
    rows = next((asked[name] for name in ("gy", "x", "y") if asked.get(name) is not None), None)
    if weight is None or rows is None:
        return 0.0
    if "geometry" in asked:
        high, wide = asked["geometry"][:2]
        return 2.0 * rows.shape[0] * high.grid * wide.grid * weight.numel()
    return 2.0 * math.prod(rows.shape[: 1 if weight.dim() == 3 else -1]) * weight.numel()


@contextlib.contextmanager
def _choosing(counts: Counts, ranges: Ranges) -> Iterator[None]:
    """Context in which is noted what is decided about each product, and by what."""
    from fastgan.ops import conv_choice, conv_compute, linear_choice, linear_compute

    def linear(*asked: Any, **more: Any) -> Any:
        given = inspect.signature(linear_choice.by_library).bind(*asked, **more)
        given.apply_defaults()
        return linear_choice._problem(*given.args)

    def told(decide: Callable[..., bool], problem: Callable[..., Any], library: str) -> Callable[..., bool]:
        def deciding(*asked: Any, **more: Any) -> bool:
            answer = decide(*asked, **more)
            who = library if answer else "our kernel"
            counts[ranges.current].choices[f"{who}: {why(problem(*asked, **more), library)}"] += 1
            return answer

        return deciding

    def convolution(problem: Callable[..., Any], *operands: Any) -> Any:
        return problem(*operands)

    with contextlib.ExitStack() as stack:
        stack.enter_context(swapped(linear_compute, "by_library", told(linear_choice.by_library, linear, "cuBLAS")))
        stack.enter_context(swapped(conv_compute, "by_library", told(conv_choice.by_library, convolution, "cuDNN")))
        yield


def why(problem: Any, library: str) -> str:
    """Return by what a product was given to our kernel or to the library."""
    from fastgan.kernels import cost, tables, tile
    from fastgan.ops.backend import only_ours

    if only_ours():
        return "backend 'triton' was asked for"
    entry = tables.nearest(problem)
    if entry is not None and entry.library_us is not None:
        return f"measured {entry.us:.3g} us, {library} {entry.library_us:.3g} us"
    ours, theirs = cost.estimate(problem, tile.choose(problem)), cost.library_estimate(problem)
    return f"estimated {ours:.3g} us, {library} {theirs:.3g} us"


def moved(tensor: Tensor) -> int:
    """Return the bytes of a tensor as they lie in memory."""
    if tensor.layout is not torch.strided or not tensor.numel():
        return 0
    lie = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return math.prod(lie) * tensor.element_size()


def number(tensor: Tensor) -> str:
    """Return how a tensor's numbers are multiplied, as the ceilings name it."""
    if tensor.dtype == torch.float32 and tensor.is_cuda:
        return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "float32"
    return DTYPES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
