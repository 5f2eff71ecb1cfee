"""A run of a step under the eyes of somebody who forbids what a captured step cannot do, with the line that does it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import CodeType, FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastgan.errors import UserError
from fastgan.train import capture_blame as blame
from fastgan.train.capture_snapshot import Snapshot, memory

aten = torch.ops.aten
_READS = (
    *(torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu, torch.Tensor.__array__),
    *(torch.Tensor.__repr__, torch.Tensor.__format__),
)
WAITS = "asks the device for a value, which no captured step can wait for: return the tensor and read it after the call"
SHAPES = "has a result whose shape depends on values, and a captured step has fixed shapes: use torch.where or a mask"
BRINGS = "brings data from the host, which replays would not read again: make it an input of the step"
DRAWS = "draws random numbers on the host, which replays would repeat: draw on the device, or make them an input"

STANDS = "waits for the device, which no captured step can do: take it out, or wait after the call"
SCALES = "has a GradScaler ask the device whether to step: use bfloat16 without a scaler"
SCHEDULES = "moves a schedule, whose numbers a graph would freeze: call it after the captured step"


class Watch:
    """Context in which a forbidden call raises a ``UserError`` that names its line.

    Args:
        device: where the step runs. On the CPU it is a stand-in for a GPU: every tensor counts as lying on the device,
            and what optimisers do by themselves is let pass, as they do it otherwise there.
        state: what the step may write to.
    """

    def __init__(self, device: torch.device, state: Sequence[object]) -> None:
        self._before = Snapshot(state, values=False)
        self._ops = _Ops(device, self._before)
        self._calls = _Calls(self._ops)

    def __enter__(self) -> None:
        self._profile = sys.getprofile()
        self._calls.__enter__()
        self._ops.__enter__()
        sys.setprofile(_listen)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.setprofile(self._profile)
        self._ops.__exit__(kind, error, trace)
        self._calls.__exit__(kind, error, trace)
        if error is None:
            self._check_places()

    def _check_places(self) -> None:
        """Raise where a replay would read the old tensor for ever, because the step puts a new one in its place."""
        for change in self._before.replaced():
            if change.memory in self._ops.read:
                raise UserError(
                    f"the step reads {change.name} and then puts another tensor in its place, which no replay would"
                    " see: write into it instead: x.copy_(new)"
                )


def _listen(frame: FrameType, event: str, _: Any) -> None:
    """Hear of functions that no operator shows."""
    if event != "call":
        return
    code = frame.f_code
    said = _HEARD.get(code)
    if said is None and code.co_name == "step" and code.co_filename == torch.optim.lr_scheduler.__file__:
        said = SCHEDULES
    if said is not None:
        raise _refused(said)


def _codes() -> dict[CodeType, str]:
    waiting = (torch.cuda.synchronize, torch.cuda.Stream.synchronize, torch.cuda.Event.synchronize)
    scaling = (torch.amp.GradScaler.unscale_, torch.amp.GradScaler.step)
    return {
        **{function.__code__: STANDS for function in waiting},
        **{function.__code__: SCALES for function in scaling},
    }


_HEARD = _codes()


class _Calls(TorchFunctionMode):
    """Sees calls by name, which on the CPU reach no operator."""

    def __init__(self, ops: _Ops) -> None:
        super().__init__()
        self._ops = ops

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _READS and isinstance(args[0], Tensor) and self._ops.concerned([args[0]]):
            raise _refused(WAITS)
        return func(*args, **(kwargs or {}))


class _Ops(TorchDispatchMode):
    """Sees operators: those that wait, those of unknown shape, copies across, random numbers, and who writes where."""

    def __init__(self, device: torch.device, before: Snapshot) -> None:
        super().__init__()
        self.read: set[int] = set()
        self._device = device
        self._generators = before.generators
        self._known = {memory(tensor) for tensor in before.tensors()}
        self._made = {0}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self._judge(func, args, kwargs, tensors)
        results = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)]
        self._judge_results(func, made)
        own = {memory(tensor) for tensor in tensors} if func is not aten.lift_fresh.default else set()
        self.read |= own - self._made
        self._made |= {memory(tensor) for tensor in made} - own - self._known
        return results

    def concerned(self, tensors: Sequence[Tensor]) -> bool:
        """Whether a call for values of these tensors would have to wait for the device."""
        if not any(tensor.device.type == self._device.type for tensor in tensors):
            return False
        return not (self._device.type == "cpu" and blame.in_optimizer())

    def _judge(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]) -> None:
        said = _reason(func, args, kwargs)
        if said is not None and self.concerned(tensors):
            raise _refused(said)
        if func in (aten._to_copy.default, aten.copy_.default):
            self._judge_copy(func, args, kwargs)
        for generator in (leaf for leaf in kwargs.values() if isinstance(leaf, torch.Generator)):
            if not any(_alike(generator, known) for known in (*self._generators, *_defaults())):
                raise _refused("draws from a generator that the graph does not know: list it in state=[...]")
        if func._schema.is_mutable:
            self._judge_writes(func, args, kwargs)

    def _judge_copy(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse copies between host and device, except from and to pinned memory, for which nobody waits."""
        if func is aten.copy_.default:
            goal, source = args[0].device.type, args[1]
            pinned = [t for t in args[:2] if t.device.type == "cpu" and t.is_pinned()]
            free = bool(pinned) and (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        else:
            source, goal = args[0], torch.device(kwargs.get("device") or args[0].device).type
            free = kwargs.get("non_blocking", False) and source.device.type == "cpu" and source.is_pinned()
        if {goal, source.device.type} == {"cpu", "cuda"} and not free:
            raise _refused(WAITS if goal == "cpu" else BRINGS)

    def _judge_writes(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for at, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            given = kwargs.get(argument.name) if argument.kwarg_only or at >= len(args) else args[at]
            for tensor in tree_leaves(given):
                if isinstance(tensor, Tensor) and memory(tensor) not in self._made:
                    self._judge_write(tensor)

    def _judge_write(self, tensor: Tensor) -> None:
        told = f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        if memory(tensor) not in self._known:
            raise _refused(
                f"writes to a tensor, {told}, that is not in state: list it, or the module or optimiser that it belongs"
                " to, in state=[...]"
            )
        if tensor.device.type != self._device.type:
            raise _refused(f"writes to a tensor on the CPU, {told}, which no replay does: move it to {self._device}")

    def _judge_results(self, func: Any, made: Sequence[Tensor]) -> None:
        seeded = torch.Tag.nondeterministic_seeded in func.tags
        if seeded and any(tensor.device.type != self._device.type for tensor in made):
            raise _refused(DRAWS)
        if func is aten.lift_fresh.default and made[0].device.type == self._device.type:
            lists = made[0].dim() > 0 or self._device.type == "cuda"  # a number alone may be an argument of a launch
            if lists and self.concerned(made):
                raise _refused(BRINGS)


def _reason(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Say what is wrong with an operator whatever its operands hold; None where nothing is."""
    if torch.Tag.data_dependent_output in func.tags:
        return WAITS
    if func is aten.index.Tensor:
        return SHAPES if _by_mask(args[1]) else None
    if func in (aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default):
        return SHAPES if _by_mask(args[1]) and args[2].dim() > 0 else None  # a number goes by masked_fill
    if func is aten.repeat_interleave.Tensor:
        return None if kwargs.get("output_size") is not None else SHAPES
    return SHAPES if torch.Tag.dynamic_output_shape in func.tags else None


def _by_mask(indices: Sequence[Tensor | None]) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _alike(one: torch.Generator, other: torch.Generator) -> bool:
    """Whether they are one generator, which an operator is given as an object of its own: it has the same state."""
    return one.device == other.device and torch.equal(one.get_state(), other.get_state())


def _defaults() -> list[torch.Generator]:
    return [torch.default_generator, *getattr(torch.cuda, "default_generators", ())]


def _refused(said: str) -> UserError:
    return UserError(f"{blame.line()}: this line {said}")
