"""The state of a run as named tensors and plain values, and back. Nothing is changed before all of it was checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastgan.errors import UserError
from fastgan.ops.peers import Peers
from fastgan.optim import Averages
from fastgan.optim.one_launch import EXTRAS, OneLaunch
from fastgan.train.belongs import check_training, optimizer_state
from fastgan.train.checkpoint import Checkpoint
from fastgan.train.dials import Dials
from fastgan.train.distributed import Team, stored_by_all
from fastgan.train.draws import Draws
from fastgan.train.metrics import Meter
from fastgan.train.step import Players
from fastgan.train.stream import Stream

SIDES = ("generator", "discriminator")


@dataclass(frozen=True)
class Parts:
    """What of a training has state."""

    players: Players
    draws: Draws
    dials: Dials
    meter: Meter
    stream: Stream
    team: Team
    peers: Peers | None = None


def gather(parts: Parts, counters: Mapping[str, Any]) -> Checkpoint:
    """Everything that decides how the run goes on. ``counters`` are plain values: step, images, seconds."""
    players, meter = parts.players, parts.meter
    drawn, values = parts.draws.state()
    own = {**{f"rng.{kind}": value for kind, value in parts.stream.state().items()}, "meter": meter.sums}
    training = {**own, **drawn, "meter_counts": meter.counts, **parts.team.others(own)}
    if parts.peers is not None and parts.peers.generator is not None:
        training["rng.common"] = parts.peers.generator.get_state()
    scalars: dict[str, Any] = {}
    for side in SIDES:
        content = getattr(players, f"{side}_optimizer").state_dict()
        for index, state in (*content["state"].items(), *((key, content[key]) for key in (EXTRAS,) if key in content)):
            for key, value in state.items():
                into: dict[str, Any] = training if isinstance(value, Tensor) else scalars
                into[f"{side}_optimizer.{index}.{key}"] = value
    networks: dict[str, Mapping[str, Tensor]] = {side: getattr(players, side).state_dict() for side in SIDES}
    averages = averaged(players)
    if averages is not None:
        networks["generator_ema"] = averages
    return Checkpoint(
        {**networks, "training": training},
        {**counters, **values, "world": parts.team.size, "optimizer_scalars": scalars},
    )


def averages_of(optimizer: Optimizer) -> Averages | None:
    """The averages that an optimiser keeps; None where it keeps none."""
    return optimizer.ema if isinstance(optimizer, OneLaunch) and optimizer.averaging else None


def averaged(players: Players) -> dict[str, Tensor] | None:
    """The generator's state with averaged weights, its buffers as they are; None where none are kept."""
    averages = averages_of(players.generator_optimizer)
    if averages is None:
        return None
    own = dict(players.generator.named_parameters(remove_duplicate=False))
    known = set(averages)
    return {
        name: averages[own[name]].to(value.dtype) if name in own and own[name] in known else value
        for name, value in players.generator.state_dict().items()
    }


def restore(checkpoint: Checkpoint, parts: Parts) -> None:
    """Put a checkpoint's state into freshly built parts. Raises UserError where it belongs to other networks."""
    players = parts.players
    training = checkpoint.tensors["training"]
    for side in SIDES:
        check_network(side, getattr(players, side), checkpoint.tensors[side])
    optimizers = {side: optimizer_state(side, getattr(players, f"{side}_optimizer"), checkpoint) for side in SIDES}
    check_training(checkpoint, optimizers, parts.meter)
    for side in SIDES:
        getattr(players, side).load_state_dict(checkpoint.tensors[side])
        optimizer: Optimizer = getattr(players, f"{side}_optimizer")
        # hyperparameters are the configuration's affair, the moments are the checkpoint's
        optimizer.load_state_dict({**optimizers[side], "param_groups": optimizer.state_dict()["param_groups"]})
    refresh_shadows(players)
    parts.dials.set(checkpoint.step)
    parts.draws.load(training, checkpoint.values)
    team = parts.team
    if training["meter"].shape == parts.meter.sums.shape:  # else an older version's: its unfinished row starts anew
        own = team.own(training, "meter") if world(checkpoint) == team.size else None
        parts.meter.sums.copy_(torch.stack(stored_by_all(training, "meter")).mean(0) if own is None else own)
        parts.meter.counts.copy_(training["meter_counts"])
    states = {kind: team.own(training, f"rng.{kind}") for kind in ("cpu", "cuda")}
    parts.stream.load({kind: state for kind, state in states.items() if state is not None})
    common, generator = training.get("rng.common"), parts.peers.generator if parts.peers is not None else None
    if common is not None and generator is not None and common.shape == generator.get_state().shape:
        generator.set_state(common)  # where it is of the same kind of device


def world(checkpoint: Checkpoint) -> int:
    """How many processes trained the run that a checkpoint is of."""
    return int(checkpoint.values.get("world", 1))


def refresh_shadows(players: Players) -> None:
    """Have the weights' stand-ins agree with them: for when anybody but their optimisers has changed weights."""
    for side in SIDES:
        optimizer = getattr(players, f"{side}_optimizer")
        if isinstance(optimizer, OneLaunch):
            optimizer.refresh()


def check_network(side: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError, naming the first difference, where ``tensors`` are not the state of such a module."""
    own, stored = _kinds(module.state_dict()), _kinds(tensors)
    for key in sorted(own.keys() | stored.keys()):
        if own.get(key) != stored.get(key):
            raise UserError(
                f"the checkpoint belongs to another {side}: {key[:80]} is {stored.get(key, 'absent')} there and"
                f" {own.get(key, 'absent')} here; resume with the networks that it was written with"
            )


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Shape and dtype of each, as an error tells them."""
    return {key: f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}" for key, value in tensors.items()}
