"""A launch of a kernel: run once, described without being run, or run again at the cost of a look-up.

``submit`` is what host functions call. The first launch of its kind goes through Triton in full; what Triton then hands
to its launcher in C is kept, without the tensors, and every later launch of that kind only puts addresses into it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton import knobs

from fastgan.kernels import tile
from fastgan.kernels.replay import Replay, UnlikeError
from fastgan.kernels.ticket import tickets
from fastgan.kernels.tile import Config
from fastgan.kernels.variant import Variant

MOST_KINDS = 4096  # launches that are known at a time; at one more, all are forgotten

_current_device: Callable[[], int] = getattr(torch._C, "_cuda_getDevice", torch.cuda.current_device)
_runtime = knobs.runtime
_replays: dict[tuple[object, ...], Replay] = {}
_unlike: set[tuple[object, ...]] = set()  # kinds whose last launch could not be kept


@dataclass(frozen=True)
class Workspace:
    """Memory that a launch needs for itself alone: ``elements`` of any content."""

    elements: int
    dtype: torch.dtype = torch.float32

    def on(self, operand: Tensor) -> Tensor:
        """Allocate it."""
        return operand.new_empty(self.elements, dtype=self.dtype)


@dataclass(frozen=True)
class Tickets:
    """At least ``count`` tickets: int32 zeros, which the launch leaves as zeros."""

    count: int

    def on(self, operand: Tensor) -> Tensor:
        """Take those of the current stream."""
        return tickets(operand, self.count)


@dataclass(frozen=True)
class Launch:
    """One launch of one kernel: its runtime arguments and its constexprs by name, its grid and its tile.

    An argument is a tensor, a number, None, or a ``Workspace`` or ``Tickets`` for this launch alone.
    """

    kernel: Any
    arguments: Mapping[str, object]
    constexprs: Mapping[str, object]
    programs: int
    config: Config

    def run(self) -> Any:
        """Launch on the device and the current stream of the operands; return the compiled kernel."""
        operand = next(value for value in self.arguments.values() if isinstance(value, Tensor))
        with torch.cuda.device_of(operand):
            return self.kernel[(self.programs,)](
                **self._placed(operand),
                **self.constexprs,
                num_warps=self.config.warps,
                num_stages=self.config.stages,
                maxnreg=self.config.registers,
            )

    def _placed(self, operand: Tensor) -> dict[str, object]:
        """Return the arguments with memory for this launch in the places where it is described."""
        rooms = (Workspace, Tickets)
        return {
            name: value.on(operand) if isinstance(value, rooms) else value for name, value in self.arguments.items()
        }

    def variant(self, op: str, label: str, matrix_rows: int) -> Variant:
        """Describe the compiled form that Triton's launcher would make of these arguments (on the meta device too)."""
        from triton._C.libtriton import native_specialize_impl
        from triton.backends.compiler import BaseBackend

        arguments = self._placed(torch.empty(0, device="meta"))
        signature: dict[str, str] = {}
        constexprs = dict(self.constexprs)
        divisible = set()
        for parameter in self.kernel.params:
            name = parameter.name
            if name in constexprs:
                continue
            value, specialised = arguments[name], not parameter.do_not_specialize
            kind, key = native_specialize_impl(BaseBackend, value, False, specialised, True)
            if kind == "constexpr":
                constexprs[name] = value
            else:
                signature[name] = kind
                if key and "D" in key:
                    divisible.add(name)
        return Variant(
            op=op,
            kernel=self.kernel.__name__,
            fn=self.kernel,
            label=label,
            signature=signature,
            constexprs=constexprs,
            divisible=frozenset(divisible),
            num_warps=self.config.warps,
            num_stages=self.config.stages,
            max_registers=self.config.registers,
            register_cap=self.config.registers,
            matrix_rows=matrix_rows,
        )


def submit(
    build: Callable[..., Launch],
    inputs: tuple[Tensor | None, ...],
    outputs: tuple[Tensor | None, ...],
    *how: Hashable,
    **groups: object,
) -> None:
    """Launch what ``build(*inputs, *outputs, *how, **groups)`` describes; build it only where its kind is new.

    Its kind is all that ``build`` may go by: ``build`` itself, the device; sizes, strides, dtypes and 16-byte alignment
    of the inputs; dtypes and alignment of the outputs; which tensors are None; the values in ``how`` and ``groups``. A
    setting of PyTorch's (how fp32 is multiplied) goes into ``how``.

    Args:
        build: a function of a module, not a closure; what it returns depends on its arguments' kind alone.
        inputs: all on one device; the first is there.
        outputs: what the caller has just allocated, contiguous, in sizes that follow from the rest.
        how: hashable values, compared by ``==``; no tensors.
        groups: by name, None or tuples (named ones too, in one another) of tensors, None and hashable values.
    """
    operand = inputs[0]
    assert operand is not None
    device = operand.get_device()
    if device < 0:  # interpreted
        build(*inputs, *outputs, *how, **groups).run()
        return
    kind: list[object] = [build, device, how]
    addresses: list[int] = []
    for tensor in inputs:
        if tensor is None:
            kind.append(None)
            addresses.append(0)
        else:
            address = tensor.data_ptr()
            kind += (tensor.shape, tensor.stride(), tensor.dtype, address & 15)
            addresses.append(address)
    for tensor in outputs:
        if tensor is None:
            kind.append(None)
            addresses.append(0)
        else:
            address = tensor.data_ptr()
            kind += (tensor.dtype, address & 15)
            addresses.append(address)
    for name, group in groups.items():
        kind.append(name)
        _open(group, kind, addresses)
    key = tuple(kind)
    replay = _replays.get(key)
    if replay is None or _observed(replay):
        _run_in_full(key, build, inputs, outputs, how, groups)
    elif device == _current_device():
        replay(operand, device, addresses)
    else:
        with torch.cuda.device(device):
            replay(operand, device, addresses)


def forget() -> None:
    """Choose anew from now on: tables have been written."""
    _replays.clear()
    _unlike.clear()
    tile.forget()


def _open(group: object, kind: list[object], addresses: list[int]) -> None:
    """Add a group's members to the kind and its tensors to the addresses."""
    if isinstance(group, Tensor):
        address = group.data_ptr()
        kind += (group.shape, group.stride(), group.dtype, address & 15)
        addresses.append(address)
    elif isinstance(group, tuple):
        kind += (type(group), len(group))
        for member in group:
            _open(member, kind, addresses)
    else:
        kind.append(group)


def _tensors_in(group: object) -> list[Tensor]:
    """List the tensors of a group in the order of ``_open``."""
    if isinstance(group, Tensor):
        return [group]
    return [tensor for member in group for tensor in _tensors_in(member)] if isinstance(group, tuple) else []


def _observed(replay: Replay) -> bool:
    """Whether someone, such as a profiler, wants to be told of launches: Triton tells them."""
    enter, leave = _runtime.launch_enter_hook, _runtime.launch_exit_hook
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave) or replay.pre_run_hooks)


def _run_in_full(
    key: tuple[object, ...],
    build: Callable[..., Launch],
    inputs: tuple[Tensor | None, ...],
    outputs: tuple[Tensor | None, ...],
    how: tuple[Hashable, ...],
    groups: Mapping[str, object],
) -> None:
    """Build the launch, run it through Triton, and keep what it takes to run it again."""
    launch = build(*inputs, *outputs, *how, **groups)
    compiled = launch.run()
    if key in _replays:
        return
    tensors = [*inputs, *outputs, *_tensors_in(tuple(groups.values()))]
    rooms = [value for value in launch.arguments.values() if isinstance(value, (Workspace, Tickets))]
    arguments = {**launch.arguments, **launch.constexprs}
    if len(_replays) + len(_unlike) >= MOST_KINDS:
        _replays.clear()
        _unlike.clear()
    try:
        _replays[key] = Replay(launch.kernel, compiled, launch.programs, arguments, rooms, tensors)
    except UnlikeError as why:
        if key in _unlike:  # once is no habit: one tensor may have come in two places
            cost = "goes through Triton at every launch, which costs tens of microseconds"
            warnings.warn(f"{launch.kernel.__name__} {cost}: {why}", RuntimeWarning, stacklevel=2)
        _unlike.add(key)
