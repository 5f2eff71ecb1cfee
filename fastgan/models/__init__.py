"""Networks by name. Each is a short nn.Module; its constructor's keywords are what a configuration may set."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any, get_type_hints

from torch import nn

from fastgan.errors import UserError, unknown

NETWORKS = {
    "mlp": ("fastgan.models.mlp", "MLPGenerator", "MLPDiscriminator"),
    "dcgan": ("fastgan.models.dcgan", "DCGANGenerator", "DCGANDiscriminator"),
}
GIVEN = ("z_dim", "sample_shape")  # set by the data and the latent, not among a network's own options


def generator(name: str, z_dim: int, sample_shape: tuple[int, ...], options: Mapping[str, Any]) -> nn.Module:
    """Build the generator of the family ``name``: z ``(n, z_dim)`` -> samples ``(n, *sample_shape)``."""
    return _build(_constructor(name, 1), options, z_dim=z_dim, sample_shape=sample_shape)


def discriminator(name: str, sample_shape: tuple[int, ...], options: Mapping[str, Any]) -> nn.Module:
    """Build the discriminator of the family ``name``: samples ``(n, *sample_shape)`` -> logits ``(n,)``."""
    return _build(_constructor(name, 2), options, sample_shape=sample_shape)


def options_of(name: str, *, side: str) -> dict[str, Any]:
    """The options of a network and their types. ``side`` is ``generator`` or ``discriminator``."""
    build = _constructor(name, 1 if side == "generator" else 2)
    hints = get_type_hints(build.__init__)
    return {key: hints[key] for key in inspect.signature(build).parameters if key not in GIVEN}


def _constructor(name: str, index: int) -> Any:
    if name not in NETWORKS:
        raise unknown("network", name, NETWORKS)
    entry = NETWORKS[name]
    return getattr(importlib.import_module(entry[0]), entry[index])


def _build(constructor: Any, options: Mapping[str, Any], **given: Any) -> nn.Module:
    known = [key for key in inspect.signature(constructor).parameters if key not in GIVEN]
    for key in options:
        if key not in known:
            raise unknown(f"option of {constructor.__name__}", key, known)
    try:
        module: nn.Module = constructor(**given, **options)
    except (RuntimeError, OverflowError) as error:  # a layer larger than the memory
        reason = str(error).partition("\n")[0]
        raise UserError(f"{constructor.__name__} cannot be built: {reason}; make it smaller") from error
    return module
