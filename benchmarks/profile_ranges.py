"""Names for what a training step does: while they are installed, each phase and each layer is a range.

A range is seen by torch.profiler and, on a GPU, by Nsight (NVTX). Nothing is hooked on modules, which would keep a
Chain from fusing them: what calls modules, and the functions that a Chain's fused layers go through, are wrapped for as
long as somebody looks. Backward passes are named by hooks on the autograd nodes that a layer's forward pass has left.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.profiler import record_function

if TYPE_CHECKING:
    from fastgan.train import Trainer

FORWARD, BACKWARD, SECOND = "forward", "backward", "second backward"
LAYER_METHODS = {  # of a fused layer -> what it does
    "product": FORWARD,
    "settled": BACKWARD,
    "to_input": "input gradient",
    "to_weight": "weight gradient",
    "to_bias": "bias gradient",
    "apply": FORWARD,
    "differentiate": "input gradient",
}
record: Any = getattr(torch._C._profiler, "_RecordFunctionFast", record_function)  # costs a fiftieth of the latter
OWNER = "fastgan profile"  # the key of a node's metadata


class Range(NamedTuple):
    """A piece of a step: of which phase, and of which layer what."""

    phase: str
    layer: str = ""  # such as "G.layers.3 ConvTranspose2d"
    what: str = ""

    @property
    def name(self) -> str:
        """What profilers show."""
        return f"{self.layer} {self.what}".strip() or self.phase


STEP = Range("between")  # what no phase has asked for
OURS = Range("profiler")  # the profiler's own work, which is no part of the step


class Ranges:
    """The ranges that are under way, outermost first. ``emits``: whether profilers are told."""

    def __init__(self, device: torch.device, *, emits: bool) -> None:
        self.known = {range.name: range for range in (STEP, OURS)}
        self.fused: dict[str, tuple[str, ...]] = {}  # by layer: the kinds of the members that it takes in
        self._emits, self._nvtx = emits, emits and device.type == "cuda"
        self._stack: list[tuple[Range, Any]] = []
        self._labels: dict[int, str] = {}
        self._directions: dict[str, tuple[Range, Range]] = {}
        self._owners: dict[int, tuple[object, str]] = {}  # of fused layers, by id: itself, and its label
        self._cores: list[list[str]] = []

    @property
    def current(self) -> Range:
        """The innermost range."""
        return self._stack[-1][0] if self._stack else STEP

    def push(self, range: Range) -> None:
        """Begin a range. Backward may run on a thread of its own, but then its caller waits: one stack serves both."""
        name = range.name
        self.known.setdefault(name, range)
        seen = None
        if self._emits:
            if self._nvtx:
                torch.cuda.nvtx.range_push(name)
            seen = record(name)
            seen.__enter__()
        self._stack.append((range, seen))

    def pop(self) -> None:
        """End the innermost range."""
        _, seen = self._stack.pop()
        if seen is not None:
            seen.__exit__(None, None, None)
            if self._nvtx:
                torch.cuda.nvtx.range_pop()

    @contextlib.contextmanager
    def within(self, range: Range) -> Iterator[None]:
        """Context of a range."""
        self.push(range)
        try:
            yield
        finally:
            self.pop()

    def wrapped(self, call: Callable[..., Any], range: Range) -> Callable[..., Any]:
        """Return a function that is a range."""

        @functools.wraps(call)
        def within(*args: Any, **kwargs: Any) -> Any:
            self.push(range)
            try:
                return call(*args, **kwargs)
            finally:
                self.pop()

        return within

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Context of a whole step."""
        self._owners.clear()
        with self.within(STEP):
            yield

    @contextlib.contextmanager
    def installed(self, trainer: Trainer) -> Iterator[Ranges]:
        """Context in which a trainer's step is told apart. Afterwards everything is as it was."""
        from fastgan.nn import chain as chains
        from fastgan.ops import chain
        from fastgan.ops.chain_layer import Layer

        step = trainer._iterate
        self._labels = labels(trainer)
        self._directions = {
            label: (Range(f"{label[0]} forward", label, FORWARD), Range(f"{label[0]} backward", label, BACKWARD))
            for label in self._labels.values()
        }
        with contextlib.ExitStack() as stack:

            def swap(owner: object, name: str, value: object) -> None:
                stack.enter_context(swapped(owner, name, value))

            swap(nn.Module, "__call__", self._calling(nn.Module.__call__))
            swap(chains, "_run", self._running(chains._run))
            swap(chain, "run", self._pairing(chain.run))
            for name, what in LAYER_METHODS.items():
                swap(Layer, name, self._layered(getattr(Layer, name), what, follows=name == "differentiate"))
            for part, name, range in parts(trainer):
                swap(part, name, self.wrapped(getattr(part, name), range))
            if step.penalty is not None:
                lazy = step.penalty.lazy
                named = replace(lazy, penalty=self.wrapped(lazy.penalty, Range("penalty")))
                swap(step, "penalty", replace(step.penalty, lazy=named))
            try:
                yield self
            finally:
                self._labels = {}

    def _calling(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return what calls a module, a known one as a range, and names what it leaves for backward."""

        def calling(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            label = self._labels.get(id(module))
            if label is None or torch.compiler.is_compiling():
                return call(module, *args, **kwargs)
            forward, backward = self._directions[label]
            self.push(forward)
            try:
                output = call(module, *args, **kwargs)
            finally:
                self.pop()
            self.mark(nodes(output), nodes((*args, *kwargs.values())), backward)
            return output

        return calling

    def _running(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Return what runs a stretch of fused layers, and notes whose they are."""

        def running(stretch: list[Any], *args: Any) -> Any:
            labels = [self._labels.get(id(fused.core), "") for fused in stretch]
            for label, fused in zip(labels, stretch, strict=True):
                self.fused[label] = tuple(type(m).__name__ for m in fused.members if m is not fused.core)
            self._cores.append(labels)
            try:
                return run(stretch, *args)
            finally:
                self._cores.pop()

        return running

    def _pairing(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Return what runs fused layers as one function, each known by the module that it stands for."""

        def pairing(layers: Sequence[Any], *args: Any) -> Any:
            labels = self._cores[-1] if self._cores else []
            for layer, label in zip(layers, labels, strict=False):
                self._owners[id(layer)] = (layer, label)
            return run(layers, *args)

        return pairing

    def _layered(self, method: Callable[..., Any], what: str, follows: bool) -> Callable[..., Any]:
        """Return a method of a fused layer as a range. ``follows``: its result may be differentiated again."""

        @functools.wraps(method)
        def layered(layer: Any, *args: Any, **kwargs: Any) -> Any:
            _, label = self._owners.get(id(layer), (None, ""))
            if not label:
                return method(layer, *args, **kwargs)
            with self.within(Range(f"{label[0]} {FORWARD if what == FORWARD else BACKWARD}", label, what)):
                output = method(layer, *args, **kwargs)
            if follows:
                self.mark(nodes(output), nodes(args[0]), Range(f"{label[0]} backward", label, SECOND), through=False)
            return output

        return layered

    def mark(self, found: list[Any], before: list[Any], owner: Range, through: bool = True) -> None:
        """Have the nodes that lead from ``found`` back to ``before`` be a range when they run, but those that are one.

        ``through``: look behind the latter, too.
        """
        if not found:
            return
        with self.within(OURS):
            waiting, seen = found, {*before, None}
            while waiting:
                node = waiting.pop()
                if node in seen or node.name().endswith("AccumulateGrad"):  # a leaf belongs to nobody
                    continue
                seen.add(node)
                if OWNER not in node.metadata:
                    node.metadata[OWNER] = owner
                    self._hook(node, owner)
                elif not through:
                    continue
                waiting += [following for following, _ in node.next_functions]

    def _hook(self, node: Any, owner: Range) -> None:
        second = owner._replace(what=SECOND)

        def begin(given: Sequence[Tensor | None]) -> None:
            if self._labels:  # nobody looks any more: the graph outlived the profile
                self.push(owner)

        def end(formed: Sequence[Tensor | None], given: Sequence[Tensor | None]) -> None:
            if self._labels:
                self.pop()
                if torch.is_grad_enabled():
                    self.mark(nodes(formed), nodes(given), second, through=False)

        node.register_prehook(begin)
        node.register_hook(end)


def nodes(values: Any) -> list[Any]:
    """Return the autograd nodes that tensors, alone or in a sequence, came out of."""
    found = [values] if isinstance(values, Tensor) else values if isinstance(values, (tuple, list)) else ()
    return [value.grad_fn for value in found if isinstance(value, Tensor) and value.grad_fn is not None]


def labels(trainer: Trainer) -> dict[int, str]:
    """Name the modules of both networks, by id: path and class."""
    named: dict[int, str] = {}
    for side, network in (("G", trainer.generator), ("D", trainer.discriminator)):
        for path, module in network.named_modules():
            named.setdefault(id(module), f"{side}.{path} {type(module).__name__}".replace(". ", " "))
    return named


def parts(trainer: Trainer) -> Iterable[tuple[object, str, Range]]:
    """Yield the methods that are phases."""
    step, draws = trainer._iterate, trainer._draws
    for name, what in (("z", "latents"), ("real", "real batch"), ("noisy", "instance noise")):
        yield draws, name, Range("data", what)
    for side in ("generator", "discriminator"):
        yield step.objective, side, Range("loss", f"{side[0].upper()}'s loss")
        yield getattr(step.players, f"{side}_optimizer"), "step", Range("optimisers", f"{side[0].upper()}'s optimiser")
    yield step._to_generator, "form", Range("backward")
    yield step._to_discriminator, "form", Range("backward")
    yield step.losses, "scores", Range("metrics", "scores")
    yield step.meter, "observe", Range("metrics", "sums and clock")


@contextlib.contextmanager
def swapped(owner: Any, name: str, value: object) -> Iterator[None]:
    """Context in which an object's attribute is another, whether the object lets it be set or not."""
    own, before = name in vars(owner), vars(owner).get(name)
    plain = isinstance(owner, (type, ModuleType))
    put, remove = (setattr, delattr) if plain else (object.__setattr__, object.__delattr__)  # a frozen one, too
    put(owner, name, value)
    try:
        yield
    finally:
        if own:
            put(owner, name, before)
        else:
            remove(owner, name)
