"""What an iteration of the engine launches, counted without a GPU: nothing runs, and nobody knows.

Tensors of the CPU pass for tensors of a GPU. Our kernels end where they would be built; PyTorch's products give
memory of the right shape. What remains runs: it is small.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

ARCH, CARD, MULTIPROCESSORS = 90, "nvidia-h200", 132  # by whose estimates and tables choices are made
BETWEEN = "between"  # the phase of what no part of the step has asked for
METRICS = "metrics and clock"
ADDRESSES = "copy of addresses"
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_addmm_activation", "convolution", "convolution_backward")
ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
FREE = (*ALLOCATIONS, "detach", "alias", "lift_fresh", "_unsafe_view", "promote_types")


class Launched(NamedTuple):
    """One launch: a kernel of ours by its name, an operator of PyTorch as ``aten.NAME``, or a copy from the host."""

    phase: str
    name: str


class Watch:
    """Is told of each launch, after it was counted."""

    def kernel(self, build: Callable[[], Any]) -> Any:
        """One of ours, which ``build`` describes; returns what it has built."""
        return build()

    def operator(self, name: str, call: Any, args: Any, kwargs: Any, result: Any) -> None:
        """One of PyTorch's."""

    def copy(self) -> None:
        """A copy from the host."""

    def forget(self) -> None:
        """All that was counted so far does not count."""


@dataclass
class Count:
    """Launches in their order, and the phases that are under way, outermost first."""

    launches: list[Launched] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)
    captures: bool = False  # what PyTorch says when it is asked
    watch: Watch | None = None

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
            mark(output.grad_fn, name, [value.grad_fn for value in args if isinstance(value, Tensor)])
            return output

        module.forward = marked

    def methods(self, part: object, **phases: str) -> None:
        """Have methods of an object be phases; it stays the object that it is, lest somebody choose by that."""
        for name, phase in phases.items():
            setattr(part, name, self.within(phase, getattr(part, name)))


def mark(node: Any, name: str, before: Sequence[Any]) -> None:
    """Give the nodes of a graph their network's name, back to those that were there before it."""
    waiting, seen = [node], {*before, None}
    while waiting:
        node = waiting.pop()
        if node not in seen and not node.name().endswith("AccumulateGrad"):  # a leaf belongs to nobody
            seen.add(node)
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
        result = self._result(name, func, args, kwargs)
        if self._count.watch is not None:
            self._count.watch.operator(name, func, args, kwargs, result)
        return result

    def _result(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        if name not in PRODUCTS:
            return func(*args, **kwargs)
        if "out" in kwargs:
            return kwargs["out"]
        last = any(isinstance(value, Tensor) and channels_last(value) for value in args)
        shapes = func(*tree_map(as_shape, args), **tree_map(as_shape, kwargs))
        return tree_map(functools.partial(as_memory, last=last), shapes)


def channels_last(tensor: Tensor) -> bool:
    """Whether images lie so, and not contiguous as well; cuDNN then answers in kind."""
    return tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def as_shape(value: Any) -> Any:
    """Return a tensor without memory."""
    return value.to("meta") if isinstance(value, Tensor) else value


def as_memory(value: Any, last: bool) -> Any:
    """Return memory of any content for a tensor that has none; that of images by channels ``last``."""
    if not isinstance(value, Tensor):
        return value
    if last and value.dim() == 4:
        return torch.empty(value.shape, dtype=value.dtype, memory_format=torch.channels_last)
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)


@contextmanager
def counting(
    arch: int = ARCH, card: str = CARD, multiprocessors: int = MULTIPROCESSORS, watch: Watch | None = None
) -> Iterator[Count]:
    """Context in which the CPU passes for a card, an H200 unless told otherwise, and its launches are counted."""
    from fastgan.kernels import launch, problem
    from fastgan.kernels.problem import Target
    from fastgan.objectives import adversarial
    from fastgan.ops import backend, conv_choice, linear_choice, optimizer_table
    from fastgan.ops.backend import KERNEL_DTYPES, Choice

    count = Count(watch=watch)
    gan_loss = vars(adversarial)["gan_loss"]
    moving = optimizer_table.Table.moving

    def build(key: Any, build: Any, inputs: Any, outputs: Any, how: Any, groups: Any) -> None:
        described = functools.partial(build, *inputs, *outputs, *how, **groups)
        count.add((described() if watch is None else watch.kernel(described)).kernel.__name__)

    def choice(requested: str, op: str, device: torch.device, dtype: torch.dtype) -> Choice:
        ours = requested != "reference" and dtype in KERNEL_DTYPES
        return Choice(op, dtype, "triton" if ours else "reference", "it passes for an H200")

    def loss(*args: Any, side: str = "discriminator", **options: Any) -> Tensor:
        return count.within(f"{side[0].upper()}'s loss", gan_loss)(*args, side=side, **options)

    def sent(table: Any, *what: Any) -> Tensor:
        former, now = table._moving, moving(table, *what)
        if now is not former:  # gradients are where they have never been
            count.add(ADDRESSES)
            if watch is not None:
                watch.copy()
        return now

    targets = tuple(Target(arch, kind, card, multiprocessors) for kind in ("tf32", "ieee"))
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
            (adversarial, "gan_loss", loss),
        ):
            stack.enter_context(patch.object(owner, name, value, create=True))
        yield count


def iteration(trainer: Any, count: Count) -> list[Launched]:
    """Return what an iteration of a trainer that was built inside :func:`counting` launches.

    The one before it has made the optimisers' states.
    """
    step = trainer._iterate
    players, pattern = step.players, step.pattern(1)  # one in which nothing rare is due
    with Operators(count):
        step(pattern)
    count.network("G", players.generator)
    count.network("D", players.discriminator)
    count.methods(players.generator_optimizer, step="G's optimiser")
    count.methods(players.discriminator_optimizer, step="D's optimiser")
    count.methods(step.draws, z="latents", real="real batch", noisy="noise")
    count.methods(step.meter, observe=METRICS)
    if step.penalty is not None:
        lazy = step.penalty.lazy
        step.penalty = replace(step.penalty, lazy=replace(lazy, penalty=count.within("penalty", lazy.penalty)))
    count.launches.clear()
    if count.watch is not None:
        count.watch.forget()
    count.captures = True
    with Operators(count):
        step(pattern)
    return [*count.launches]
