"""Either trained network of a run, whatever its method made of it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from fastgan.data.table import Table
from fastgan.errors import UserError, unknown
from fastgan.presets import Config
from fastgan.train import build, run, state
from fastgan.train.checkpoint import Checkpoint
from fastgan.train.state import SIDES


def load_network(path: str | Path, side: str = "discriminator", *, device: str = "cpu") -> nn.Module:
    """Return the network of one ``side`` of a run, in evaluation mode, with the weights of the last update.

    The discriminator: samples -> logits; of ``method=vae`` the encoder: samples -> mean and log variance of z; of
    ``nce`` samples -> log density; of ``predictability`` codes -> predictions. The generator: z -> samples; of ``nce``
    z -> noise, of ``predictability`` samples -> codes.

    Raises:
        UserError: where there is no run, no whole checkpoint, or another side is asked for.
    """
    if side not in SIDES:
        raise unknown("side", side, SIDES)
    folder = Path(path).expanduser()
    config, stored = run.opened(folder)
    if stored is None or not isinstance(stored.values.get("sample_shape"), list):
        raise UserError(f"{path} has no checkpoint yet: train further (fastgan train --resume --out {path})")
    return rebuilt(config, stored, side).to(build.device(device)).eval()


def rebuilt(config: Config, stored: Checkpoint, side: str) -> nn.Module:
    """The network of one ``side`` as the configuration builds it, with a checkpoint's weights."""
    shape, classes = tuple(stored.values["sample_shape"]), int(stored.values.get("classes", 0))
    text = stored.values.get("table")
    module = build.networks(config, shape, classes, None if text is None else Table.from_json(text))[SIDES.index(side)]
    state.check_network(side, module, stored.tensors[side])
    module.load_state_dict(stored.tensors[side])
    return module
