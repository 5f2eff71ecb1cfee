"""convert and revert: someone else's model, faster, and nothing else about it changes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastgan.errors import UserError
from fastgan.nn.drop_in.converted import Converted, restore
from fastgan.nn.drop_in.report import ConversionReport, Entry
from fastgan.nn.drop_in.survey import Survey

CHANNELS_LAST = "_fastgan_channels_last"


def convert(module: nn.Module, *, channels_last: bool = False) -> ConversionReport:
    """Have a model run its layers on the kernels, in place, on this instance alone. ``revert`` takes it back.

    Layers with the norm, activation and dropout around them are found in ``nn.Sequential`` and in the forward methods
    of the model's own classes, as far as these do the same at every call. Instances get a subclass of their class, of
    the same name; parameters, buffers, ``state_dict``, paths, hooks and modes stay as they are. Where the kernels do
    not run (on the CPU, in float64, under torch.compile), the model runs its own code.

    Args:
        module: a model, not compiled yet. Converting twice changes nothing.
        channels_last: also lay out the weights of 2-D convolutions as ``module.to(memory_format=torch.channels_last)``.

    Returns:
        What was replaced, and what was kept and why.

    Raises:
        UserError: for what is not a module, and for a compiled one.
    """
    _check(module)
    revert(module)
    try:
        survey = Survey(module)
        survey.convert()
    except BaseException:
        revert(module)  # half a conversion is none
        raise
    if channels_last:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        vars(module)[CHANNELS_LAST] = True
    return ConversionReport(module, tuple(survey.replaced), tuple(survey.kept))


def revert(module: nn.Module) -> None:
    """Give a converted model, or a part of it, its classes back; of another, nothing changes.

    Raises:
        UserError: for what is not a module.
    """
    if not isinstance(module, nn.Module):
        raise UserError(f"revert takes a torch.nn.Module, not {_kind(module)}")
    for found in module.modules():
        if isinstance(found, Converted):
            restore(found)
    if vars(module).pop(CHANNELS_LAST, False):
        module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _check(module: Any) -> None:
    if not isinstance(module, nn.Module):
        raise UserError(f"convert takes a torch.nn.Module, not {_kind(module)}")
    if "_orig_mod" in module._modules:
        raise UserError("this model is compiled: convert it first, then torch.compile(model)")
    if getattr(module, "_compiled_call_impl", None) is not None:
        raise UserError("this model is compiled: convert it first, then model.compile()")
    if isinstance(module, torch.jit.ScriptModule):
        raise UserError("torch.jit has compiled this model: convert it before torch.jit.script or trace")


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


__all__ = ["ConversionReport", "Entry", "convert", "revert"]
