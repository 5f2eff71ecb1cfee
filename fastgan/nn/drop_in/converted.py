"""Converted modules: the class of an instance is swapped for a subclass of it that may run something faster."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from fastgan import ops
from fastgan.nn.chain_members import kind_of
from fastgan.nn.drop_in import program
from fastgan.nn.drop_in.calls import Key, key_of, one_tensor, signature_of
from fastgan.nn.drop_in.forward_code import RefusedError
from fastgan.nn.drop_in.members import NOTE, rebased, sequential
from fastgan.nn.drop_in.program import Part, Program
from fastgan.nn.drop_in.tracing import new_class
from fastgan.ops import chain
from fastgan.ops.backend import by_reference
from fastgan.ops.registration import traced, transformed

always = False  # whether programs run where the kernels do not: to check that they do what the forward does
MOST_CALLS = 16  # kinds of calls of one module that have programs, and how often one is made anew
_classes: WeakKeyDictionary[type[nn.Module], type[nn.Module]] = WeakKeyDictionary()


class Note:
    """What a converted instance keeps beside its state: its program, made anew for copies."""

    def __init__(self, escapes: bool = False) -> None:
        self.escapes = escapes
        self.programs: dict[Key, Program | None] = {}  # for each kind of call
        self.remade: Counter[Key] = Counter()

    def __reduce__(self) -> tuple[Any, ...]:
        return Note, (self.escapes,)

    def ready(self, module: nn.Module, key: Key) -> Program | None:
        """Return the program, made anew where the module is no longer what it was made of; None where there is none."""
        known = key in self.programs
        made = self.programs.get(key)
        if made is not None and made.holds(module):
            return made
        if made is not None:
            self.remade[key] += 1
            if self.remade[key] > MOST_CALLS:  # what it goes by is another at each call
                self.programs[key] = None
                return None
        if made is not None or (not known and len(self.programs) < MOST_CALLS):
            made = self.programs[key] = make(module, self.escapes, key)
        return made

    def usual(self, module: nn.Module) -> Program | None:
        """Return the program of calls with one tensor, the first argument, where no more need be given."""
        signature = signature_of(kind_of(module).forward)
        assert signature is not None
        first, *others = signature.usual
        alone = first[0] is Tensor and all(kind is not Tensor for kind, _ in others)
        return self.ready(module, signature.usual) if alone else None


class Converted:
    """Mixed into the class of a converted instance, in front."""

    def __init_subclass__(cls, **more: Any) -> None:
        pass  # a class that keeps a list of its subclasses need not hear of this one

    def __reduce_ex__(self, protocol: Any) -> Any:
        function, args, *rest = tuple(super().__reduce_ex__(protocol))
        kind = type(self)
        args = tuple(kind.converted_from if value is kind else value for value in args)
        return (_rebuilt, (function, args), *rest)


def _rebuilt(function: Callable[..., nn.Module], args: tuple[Any, ...]) -> nn.Module:
    module = function(*args)
    if not isinstance(module, Converted):
        module.__class__ = converted_class(type(module))
    return module


def converted_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the subclass of a class that its converted instances have: of the same name, and with the same forward
    but where a program runs."""
    if kind in _classes:
        return _classes[kind]
    plain: Callable[..., Any] = kind.forward
    signature = signature_of(plain)

    @functools.wraps(plain)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        values = None if signature is None else signature.bound(args, kwargs)
        key = None if values is None else key_of(values)
        if values is None or key is None:
            return plain(self, *args, **kwargs)
        tensors = [value for value in values if isinstance(value, Tensor)]
        note = vars(self).get(NOTE)  # a slice of a Sequential is made anew, of this class, and has none
        ready = note.ready(self, key) if note is not None and runs(tensors) else None
        return plain(self, *args, **kwargs) if ready is None else ready.run(self, self, *tensors)

    made = _classes[kind] = new_class(kind, Converted, forward=forward, converted_from=kind)
    return made


def runs(tensors: list[Tensor]) -> bool:
    """Whether a call goes by the program: on tensors that the kernels take, with nobody looking on."""
    if always or program.tally is not None:
        return True
    for value in tensors:
        if value.is_floating_point() and by_reference(chain.OP, value):
            return False
    return not (traced(*tensors) or transformed() or _has_any_global_hook())


def make(module: nn.Module, escapes: bool, key: Key) -> Program | None:
    """Make the program of a module for a kind of call; None where nothing of it goes together."""
    made: Program | None
    try:
        if sequential(module):
            made = program.in_order(module, escapes) if one_tensor(key) else None
        elif kind_of(module) in LONE:
            made = _alone(module) if one_tensor(key) else None
        else:
            made = program.traced(module, escapes, key)
    except RefusedError:
        return None
    return made if made is not None and made.parts else None


def swap(module: nn.Module, escapes: bool) -> Program | None:
    """Convert one instance, if that is worth it; return the program of its usual calls, or of those with all told."""
    signature = signature_of(kind_of(module).forward)
    note = Note(escapes)
    for key in () if signature is None else (signature.usual, signature.full):
        made = note.ready(module, key)
        if made is not None:
            module.__class__ = rebased(module, converted_class(kind_of(module)))
            vars(module)[NOTE] = note
            return made
    return None


def restore(module: nn.Module) -> None:
    """Give one instance its class back."""
    module.__class__ = rebased(module, kind_of(module))
    vars(module).pop(NOTE, None)


def _alone(module: nn.Module) -> Program:
    """Return the program of a layer that nothing is fused with."""
    call = LONE[kind_of(module)]

    def run(self: nn.Module, module: nn.Module, input: Tensor) -> Tensor:
        return call(module, input) if program.tally is None else program.tally.product(call, module, input)

    return Program(run, (Part("", kind_of(module).__name__, (module,)),))


def _convolve(op: Callable[..., Tensor]) -> Callable[[Any, Tensor], Tensor]:
    def call(m: Any, x: Tensor) -> Tensor:
        return op(x, m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups, activation="none")

    return call


def _spread(op: Callable[..., Tensor]) -> Callable[[Any, Tensor], Tensor]:
    def call(m: Any, x: Tensor) -> Tensor:
        how = m.stride, m.padding, m.output_padding, m.groups, m.dilation
        return op(x, m.weight, m.bias, *how, activation="none")

    return call


LONE: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    nn.Linear: lambda m, x: ops.linear_act(x, m.weight, m.bias, activation="none"),
    nn.Conv1d: _convolve(ops.conv1d_act),
    nn.Conv2d: _convolve(ops.conv2d_act),
    nn.ConvTranspose1d: _spread(ops.conv_transpose1d_act),
    nn.ConvTranspose2d: _spread(ops.conv_transpose2d_act),
}
