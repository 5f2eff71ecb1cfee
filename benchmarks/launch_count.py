"""What an iteration of the engine launches, counted without a GPU: nothing runs, and nobody knows.

Tensors of the CPU pass for tensors of a GPU. Our kernels end where they would be built; PyTorch's products give
memory of the right shape. What remains runs: it is small.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

ARCH, CARD, MULTIPROCESSORS = 90, "nvidia-h200", 132  # by whose estimates and tables choices are made
BETWEEN = "between"  # the phase of what no part of the step has asked for
ADDRESSES = "copy of addresses"
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_addmm_activation", "convolution", "convolution_backward")
FREE = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias", "lift_fresh")


@dataclass(frozen=True)
class Launched:
    """One launch: a kernel of ours by its name, an operator of PyTorch as ``aten.NAME``, or a copy from the host."""

    phase: str
    name: str


@dataclass
class Count:
    """Launches in their order, and the phases that are under way, outermost first."""

    launches: list[Launched] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)
    captures: bool = False  # what PyTorch says when it is asked

    def add(self, name: str) -> None:
        """Note a launch; in a backward pass it belongs to the network whose forward pass made its node."""
        phases = self.phases
        if torch._C._current_graph_task_id() != -1:
            node: Any = torch._C._current_autograd_node()
            owner = node.metadata.get("network") if node is not None else None
            phases = [*phases, f"{owner} backward" if owner else "backward"]
        self.launches.append(Launched(": ".join(dict.fromkeys(phases)) or BETWEEN, name))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Context of a phase."""
        self.phases.append(name)
        try:
            yield
        finally:
            self.phases.pop()

    def within(self, phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is a phase."""

        @functools.wraps(call)
        def within(*args: Any, **kwargs: Any) -> Any:
            with self.phase(phase):
                return call(*args, **kwargs)

        return within

    def network(self, name: str, module: nn.Module) -> None:
        """Have a network's forward pass be a phase, and its nodes known by its name."""
        forward = self.within(f"{name} forward", module.forward)

        @functools.wraps(forward)
        def marked(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            mark(output.grad_fn, name)
            return output

        module.forward = marked


class Watched:
    """A part of the step whose calls are phases: all of one, or each method of its own."""

    def __init__(self, part: Any, count: Count, phases: str | dict[str, str]) -> None:
        self._part, self._count, self._phases = part, count, phases

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._part, name)
        phase = self._phases if isinstance(self._phases, str) else self._phases.get(name)
        return self._count.within(phase, value) if phase and callable(value) else value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the part itself."""
        assert isinstance(self._phases, str)
        return self._count.within(self._phases, self._part)(*args, **kwargs)


def mark(node: Any, name: str) -> None:
    """Give the nodes of a graph that have no network yet their network's name; leaves have none."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node is None or "network" in node.metadata or node.name().endswith("AccumulateGrad"):
            continue
        node.metadata["network"] = name
        waiting += [following for following, _ in node.next_functions]


class Operators(TorchDispatchMode):
    """Counts PyTorch's operators that launch something; of products only the shapes are computed."""

    def __init__(self, count: Count) -> None:
        super().__init__()
        self._count = count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator."""
        kwargs = kwargs or {}
        space, _, name = func._schema.name.partition("::")
        if space != "aten" or name in FREE or func.is_view:
            return func(*args, **kwargs)
        self._count.add(f"aten.{name}")
        if name in PRODUCTS:
            return tree_map(as_memory, func(*tree_map(as_shape, args), **tree_map(as_shape, kwargs)))
        return func(*args, **kwargs)


def as_shape(value: Any) -> Any:
    """Return a tensor without memory."""
    return value.to("meta") if isinstance(value, Tensor) else value


def as_memory(value: Any) -> Any:
    """Return memory of any content for a tensor that has none."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)


@contextmanager
def counting() -> Iterator[Count]:
    """Context in which the CPU passes for an H200 and what it would launch is counted."""
    from fastgan.kernels import launch, problem
    from fastgan.kernels.problem import Target
    from fastgan.ops import backend, conv_choice, linear_choice, optimizer_table
    from fastgan.ops.backend import KERNEL_DTYPES, Choice

    count = Count()
    moving = optimizer_table.Table.moving

    def build(key: Any, build: Any, inputs: Any, outputs: Any, how: Any, groups: Any) -> None:
        count.add(build(*inputs, *outputs, *how, **groups).kernel.__name__)

    def choice(requested: str, op: str, device: torch.device, dtype: torch.dtype) -> Choice:
        ours = requested != "reference" and dtype in KERNEL_DTYPES
        return Choice(op, dtype, "triton" if ours else "reference", "it passes for an H200")

    def sent(table: Any, *what: Any) -> Tensor:
        count.add(ADDRESSES)  # in a capture always: gradients are where they have never been
        return moving(table, *what)

    targets = tuple(Target(ARCH, kind, CARD, MULTIPROCESSORS) for kind in ("tf32", "ieee"))
    with ExitStack() as stack:
        for owner, name, value in (
            (Tensor, "is_cuda", property(lambda tensor: True)),
            (Tensor, "get_device", lambda tensor: 0),
            (torch._C, "_len_torch_dispatch_stack", lambda: 0),  # or ops would go by operators of their own
            (torch.cuda, "is_current_stream_capturing", lambda: count.captures),
            (launch, "_run_in_full", build),
            (launch, "_replays", {}),
            (problem, "_targets", lambda device: targets),
            (backend, "_choice", choice),
            (backend, "_choices", {}),
            (linear_choice, "_answers", {}),
            (conv_choice, "_answers", {}),
            (optimizer_table.Table, "moving", sent),
        ):
            stack.enter_context(patch.object(owner, name, value, create=True))
        yield count


def iteration(trainer: Any, count: Count) -> list[Launched]:
    """Return what an iteration of a trainer that was built inside :func:`counting` launches.

    The one before it has made the optimisers' states.
    """
    step = trainer._iterate
    players, pattern = step.players, step.pattern(0)
    step(pattern)
    count.network("G", players.generator)
    count.network("D", players.discriminator)
    players.generator_optimizer.step = count.within("G's optimiser", players.generator_optimizer.step)
    players.discriminator_optimizer.step = count.within("D's optimiser", players.discriminator_optimizer.step)
    step.draws = Watched(step.draws, count, {"z": "latents", "real": "real batch", "noisy": "noise"})
    step.objective = Watched(step.objective, count, {"discriminator": "D's loss", "generator": "G's loss"})
    step.meter = Watched(step.meter, count, {"observe": "metrics and clock"})
    step.penalty = step.penalty and Watched(step.penalty, count, "penalty")
    count.launches.clear()
    count.captures = True
    with Operators(count):
        step(pattern)
    return [*count.launches]
