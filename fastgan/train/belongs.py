"""Whether what a checkpoint says of a training belongs to it: asked of all of it before any of it is put back.

And what it says of the data, by which a generator is built again without them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fastgan.data import Dataset
from fastgan.data.table import Table
from fastgan.errors import UserError
from fastgan.ops.optimizer_table import dense, lies_as
from fastgan.optim.one_launch import EXTRAS, OneLaunch
from fastgan.train.checkpoint import Checkpoint
from fastgan.train.metrics import Meter

NEEDED = ("images", "seconds", "drawn", "optimizer_scalars")  # plain values without which no run goes on
REST = re.compile(r"(?:rank[0-9]{1,9}\.)?(?:meter|meter_counts|rng\.(cpu|cuda|latents|noise|common))")
ENTRY = re.compile(rf"(generator|discriminator)_optimizer\.([0-9]{{1,9}}|{EXTRAS})\.(.+)", re.DOTALL)
COUNTS = {"skipped", "averaged"}  # of EXTRAS


def described(data: Dataset, labelled: bool) -> dict[str, Any]:
    """What a checkpoint says of the data: the shape of samples, a table's columns, and how many classes are told."""
    values: dict[str, Any] = {"sample_shape": list(data.sample_shape)}
    values |= {"table": data.table.to_json()} if data.table else {}
    return values | ({"classes": len(data.classes)} if labelled else {})


def check_table(checkpoint: Checkpoint, data: Dataset) -> None:
    """Raise UserError where the data are rows of another table than the checkpoint's: numbers would mean others."""
    stored = checkpoint.values.get("table")
    if stored is not None and (data.table is None or Table.from_json(stored) != data.table):
        raise UserError(
            f"{data.name} is not the table that the run was trained on (its columns, their modes or categories differ):"
            " resume with that file, or start a new run"
        )


def optimizer_state(side: str, optimizer: Optimizer, checkpoint: Checkpoint) -> dict[str, Any]:
    """The state of one side's optimiser as its ``load_state_dict`` takes it. Raises UserError if it is another's."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    content: dict[str, Any] = {"state": {}}
    scalars = checkpoint.values.get("optimizer_scalars", {})
    for name, value in {**checkpoint.tensors["training"], **scalars}.items():
        parts = ENTRY.fullmatch(name)
        if parts and parts[1] == side:
            extra = parts[2] == EXTRAS
            into = content.setdefault(EXTRAS, {}) if extra else content["state"].setdefault(int(parts[2]), {})
            into[parts[3]] = value
    if EXTRAS in content:
        _check_counts(side, content[EXTRAS])
    if any(index >= len(parameters) for index in content["state"]):
        raise _another(f"optimiser of the {side}")
    if isinstance(optimizer, OneLaunch):  # another one's state may have any shape
        _check_moments(side, optimizer, content["state"])
    for index, entries in content["state"].items():
        entries |= {name: _lying_as(value, parameters[index]) for name, value in entries.items()}
    return content


def _lying_as(value: Any, parameter: Tensor) -> Any:
    """An entry in its parameter's memory order, by which fused optimisers go: files have rows, whatever was saved."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape or not dense(parameter):
        return value
    if lies_as(value, parameter):
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device, requires_grad=False).copy_(value)


def check_training(checkpoint: Checkpoint, optimizers: Mapping[str, Any], meter: Meter) -> None:
    """Raise UserError unless the rest of a checkpoint is that of a run, and says nothing that nobody would read."""
    for name in NEEDED:
        if name not in checkpoint.values:
            raise _another(f"version: it does not say {name}")
    training = checkpoint.tensors["training"]
    for name in [*training, *checkpoint.values["optimizer_scalars"]]:
        if not ENTRY.fullmatch(name) and not REST.fullmatch(name):
            raise _another(f"version: it has {name[:80]!r}")
    sums, counts = training.get("meter"), training.get("meter_counts")
    if sums is None or counts is None or sums.shape != counts.shape or sums.ndim != 1:
        raise _another("version: its sums of metrics are not whole")
    if sums.dtype != meter.sums.dtype or counts.dtype != meter.counts.dtype:
        raise _another("version: its sums of metrics are of another kind")
    device = checkpoint.values.get("latent_device", "cpu")
    if device not in ("cpu", "cuda"):
        raise _another(f"version: its latents are of the device {device[:20]!r}")
    for name, value in training.items():
        if (rest := REST.fullmatch(name)) and (kind := rest[1]):
            _check_generator(name, {"cpu": "cpu", "cuda": "cuda", "common": None}.get(kind, device), value)


def _check_generator(name: str, device: str | None, state: Tensor) -> None:
    """Raise UserError unless it is the state of a generator of the device; None: of the one that its size is of."""
    if device is None:
        device = "cpu" if state.shape == torch.Generator().get_state().shape else "cuda"
    if device == "cuda" and not torch.cuda.is_available():  # then it will not be used here
        return
    try:
        torch.Generator(device).set_state(state.clone())
    except (RuntimeError, TypeError) as error:
        raise _another(f"version: {name} is no state of a generator") from error


def _check_moments(side: str, optimizer: OneLaunch, states: Mapping[int, Mapping[str, Any]]) -> None:
    """Raise UserError unless the states are of such an optimiser, and fit its parameters."""
    keys: dict[bool, set[str]] = {}  # of real parameters, and of others
    owned = [(parameter, group) for group in optimizer.param_groups for parameter in group["params"]]
    for index, entries in states.items():
        parameter, group = owned[index]
        rule = optimizer._rule(group)
        fitting = all(_fits(value, parameter) for value in entries.values())
        if rule is not None:
            needed = {name for name, has in zip(optimizer.STATES, rule.states, strict=True) if has}
            fitting = fitting and entries.keys() - {"step", "ema"} == needed
        if not fitting or keys.setdefault(parameter.is_floating_point(), set(entries)) != set(entries):
            raise _another(f"optimiser of the {side}")


def _check_counts(side: str, counts: Mapping[str, Any]) -> None:
    whole = [int(value) for value in counts.values() if isinstance(value, Tensor) and _counts(value)]
    if counts.keys() != COUNTS or len(whole) < len(COUNTS) or min(whole) < 0:
        raise _another(f"optimiser of the {side}")


def _counts(value: Tensor) -> bool:
    return value.dtype == torch.int64 and value.numel() == 1


def _fits(value: Any, parameter: Tensor) -> bool:
    """Whether it may be an entry of a parameter's state: a scalar, or a tensor of its shape."""
    if not isinstance(value, Tensor):
        return True
    if not value.ndim:
        return value.dtype == torch.int64 or value.is_floating_point()
    return value.shape == parameter.shape and value.is_complex() == parameter.is_complex() and _real(value)


def _real(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _another(what: str) -> UserError:
    return UserError(f"the checkpoint belongs to another {what}; resume with the one that it was written with")
