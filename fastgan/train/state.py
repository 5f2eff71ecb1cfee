"""The state of a run as named tensors and plain values, and back. Nothing is changed before all of it was checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from fastgan.errors import UserError
from fastgan.train.checkpoint import Checkpoint
from fastgan.train.metrics import Meter
from fastgan.train.sampler import Latents, RealBatches
from fastgan.train.step import Players
from fastgan.train.stream import Stream

SIDES = ("generator", "discriminator")


@dataclass(frozen=True)
class Parts:
    """What of a training has state."""

    players: Players
    batches: RealBatches
    latents: Latents
    meter: Meter
    stream: Stream


def gather(parts: Parts, counters: Mapping[str, Any]) -> Checkpoint:
    """Everything that decides how the run goes on. ``counters`` are plain values: step, images, seconds."""
    players, latents, meter = parts.players, parts.latents, parts.meter
    training = {
        **{f"rng.{kind}": value for kind, value in parts.stream.state().items()},
        "rng.latents": latents.generator.get_state(),
        "meter": meter.sums,
    }
    scalars: dict[str, Any] = {}
    for side in SIDES:
        for index, state in getattr(players, f"{side}_optimizer").state_dict()["state"].items():
            for key, value in state.items():
                into: dict[str, Any] = training if isinstance(value, Tensor) else scalars
                into[f"{side}_optimizer.{index}.{key}"] = value
    networks = {side: getattr(players, side).state_dict() for side in SIDES}
    values = {
        **counters,
        "drawn": parts.batches.drawn,
        "meter_counts": meter.counts,
        "latent_device": latents.device.type,
        "optimizer_scalars": scalars,
    }
    return Checkpoint({**networks, "training": training}, values)


def restore(checkpoint: Checkpoint, parts: Parts) -> None:
    """Put a checkpoint's state into freshly built parts. Raises UserError where it belongs to other networks."""
    players, latents = parts.players, parts.latents
    training = checkpoint.tensors["training"]
    for side in SIDES:
        check_network(side, getattr(players, side), checkpoint.tensors[side])
    optimizers = {side: _optimizer_state(side, players, checkpoint) for side in SIDES}
    for side in SIDES:
        getattr(players, side).load_state_dict(checkpoint.tensors[side])
        optimizer: Optimizer = getattr(players, f"{side}_optimizer")
        # hyperparameters are the configuration's affair, the moments are the checkpoint's
        optimizer.load_state_dict({"state": optimizers[side], "param_groups": optimizer.state_dict()["param_groups"]})
    parts.batches.drawn = int(checkpoint.values["drawn"])
    parts.meter.sums.copy_(training["meter"])
    parts.meter.counts = list(checkpoint.values["meter_counts"])
    parts.stream.load({name.removeprefix("rng."): value for name, value in training.items() if name.startswith("rng.")})
    if checkpoint.values["latent_device"] == latents.device.type:  # another kind of device has another generator
        latents.generator.set_state(training["rng.latents"])


def check_network(side: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError, naming the first difference, where ``tensors`` are not the state of such a module."""
    own = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    stored = {key: tuple(value.shape) for key, value in tensors.items()}
    if own == stored:
        return
    for key in sorted(own.keys() | stored.keys()):
        if own.get(key) != stored.get(key):
            raise UserError(
                f"the checkpoint belongs to another {side}: {key} is {stored.get(key, 'absent')} there and"
                f" {own.get(key, 'absent')} here; resume with the networks that it was written with"
            )


def _optimizer_state(side: str, players: Players, checkpoint: Checkpoint) -> dict[int, dict[str, Any]]:
    prefix = f"{side}_optimizer."
    optimizer: Optimizer = getattr(players, f"{side}_optimizer")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**checkpoint.tensors["training"], **checkpoint.values["optimizer_scalars"]}.items():
        if name.startswith(prefix):
            index, key = name.removeprefix(prefix).split(".", 1)
            state.setdefault(int(index), {})[key] = value
    for index, entries in state.items():
        if index >= len(parameters) or any(
            isinstance(value, Tensor) and value.ndim and value.shape != parameters[index].shape
            for value in entries.values()
        ):
            raise UserError(
                f"the checkpoint belongs to another optimiser of the {side}: resume with the one it was written with"
            )
    return state
