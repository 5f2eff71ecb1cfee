"""A launch again: what Triton handed to its launcher in C, with new addresses in it.

How Triton calls that launcher differs between its releases, so it is not written down here: Triton's own Python half is
run once with the C half replaced by a listener, and what the listener hears is the call to repeat.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Room = Any  # what ``Launch`` calls ``Workspace`` and ``Tickets``: it has ``on(operand)``

current_stream: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 0)
_STREAM = object()


class UnlikeError(Exception):
    """Why a launch cannot be repeated without Triton."""


class Replay:
    """One launch of a compiled kernel without its tensors, to be called with their addresses."""

    __slots__ = ("_after", "_arguments", "_before", "_launch", "_nested", "_places", "_rooms", "pre_run_hooks")

    def __init__(
        self,
        kernel: Any,
        compiled: Any,
        programs: int,
        arguments: Mapping[str, object],
        rooms: Sequence[Room],
        tensors: Sequence[Tensor | None],
    ) -> None:
        """Learn the call.

        Args:
            kernel, compiled: the ``@triton.jit`` function, and what it returned from the launch.
            programs: the grid.
            arguments: the kernel's arguments and constexprs by name.
            rooms: which of them are taken anew for each launch: they follow the tensors.
            tensors: whose addresses will be given, in this order.

        Raises:
            UnlikeError: where repeating the call would not do what Triton does.
        """
        from triton.compiler import CompiledKernel
        from triton.runtime import JITFunction

        if not isinstance(kernel, JITFunction) or not isinstance(compiled, CompiledKernel):
            raise UnlikeError("Triton's launch returned no compiled kernel")
        if any(getattr(compiled.metadata, f"{kind}_scratch_size", 0) for kind in ("global", "profile")):
            raise UnlikeError("the compiled kernel asks Triton for scratch memory")
        places = {id(value): at for at, value in enumerate((*tensors, *rooms)) if value is not None}
        if len(places) < sum(value is not None for value in (*tensors, *rooms)):
            raise UnlikeError("one tensor was given twice")
        order = [arguments.get(parameter.name, parameter.default) for parameter in kernel.params]
        self._places = [(at, places[id(value)]) for at, value in enumerate(order) if id(value) in places]
        self._arguments = [None if id(value) in places else value for value in order]
        if any(isinstance(value, Tensor) for value in self._arguments):
            raise UnlikeError("it has a tensor that was not given")
        self._rooms = tuple(rooms)
        self.pre_run_hooks = kernel.pre_run_hooks
        self._learn(compiled, programs, len(order))

    def _learn(self, compiled: Any, programs: int, count: int) -> None:
        """Hear the call of the launcher in C, and find the stream and the kernel's arguments in it."""
        marks, heard = [object() for _ in range(count)], []
        try:
            launcher = copy.copy(compiled.run)
            self._launch = launcher.launch
            launcher.launch = lambda *call: heard.append(call)
            launcher(programs, 1, 1, _STREAM, compiled.function, compiled.packed_metadata, None, None, None, *marks)
            (call,) = heard
        except (AttributeError, TypeError, ValueError) as error:
            raise UnlikeError(f"this release of Triton launches in another way ({error})") from error
        self._nested = isinstance(call[-1], (tuple, list))
        told, fixed = (call[-1], call[:-1]) if self._nested else (call[-count:], call[:-count])
        streams = [at for at, value in enumerate(fixed) if value is _STREAM]
        if [id(value) for value in told] != [id(mark) for mark in marks] or len(streams) != 1:
            raise UnlikeError("this release of Triton launches in another way")
        self._before, self._after = fixed[: streams[0]], fixed[streams[0] + 1 :]

    def __call__(self, operand: Tensor, device: int, addresses: list[int]) -> None:
        """Launch on the current stream of the device, which is the current one and the operand's."""
        if self._rooms:
            held = [room.on(operand) for room in self._rooms]  # until the launch is queued
            addresses += [memory.data_ptr() for memory in held]
        arguments = self._arguments.copy()
        for at, which in self._places:
            arguments[at] = addresses[which]
        if self._nested:
            self._launch(*self._before, current_stream(device), *self._after, arguments)
        else:
            self._launch(*self._before, current_stream(device), *self._after, *arguments)
