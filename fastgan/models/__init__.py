"""Networks by name. Each is a short nn.Module; its constructor's keywords are what a configuration may set."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, get_type_hints, runtime_checkable

from torch import Tensor, nn

from fastgan.errors import UserError, unknown

NETWORKS = {  # name: module, generator, discriminator
    "mlp": ("fastgan.models.mlp", "MLPGenerator", "MLPDiscriminator"),
    "goodfellow": ("fastgan.models.goodfellow", "GoodfellowGenerator", "GoodfellowDiscriminator"),
    "dcgan": ("fastgan.models.dcgan", "DCGANGenerator", "DCGANDiscriminator"),
    "ctgan": ("fastgan.models.ctgan", "CTGANGenerator", "CTGANDiscriminator"),
    "resnet": ("fastgan.models.resnet", "ResNetGenerator", "ResNetDiscriminator"),
    "cgan": ("fastgan.models.cgan", "CGANGenerator", "CGANDiscriminator"),
    "cdcgan": ("fastgan.models.cdcgan", "ConditionalDCGANGenerator", "ProjectionDCGANDiscriminator"),
    "acgan": ("fastgan.models.acgan", "ACGANGenerator", "ACGANDiscriminator"),
    "cresnet": ("fastgan.models.cresnet", "ConditionalResNetGenerator", "ProjectionResNetDiscriminator"),
    # of other methods than adversarial: fastgan.presets.methods
    "encoder": ("fastgan.models.encoder", "", "Encoder"),
    "nce": ("fastgan.models.nce", "Noise", "LogDensity"),
    "predictability": ("fastgan.models.predictability", "Coder", "Predictors"),
}


@runtime_checkable
class Prepared(Protocol):
    """A network some of whose initial values come from the data that it is to be trained on."""

    def prepare(self, samples: Tensor) -> None:
        """Take them from ``samples`` (n, ...), as a Dataset holds them; called once, before training."""


GIVEN = ("z_dim", "sample_shape", "num_classes", "spans")  # set by the data and the latent, not a network's own options
Spans = Sequence[tuple[int, int, str]]


def generator(
    name: str,
    z_dim: int,
    sample_shape: tuple[int, ...],
    options: Mapping[str, Any],
    num_classes: int = 0,
    spans: Spans | None = None,
) -> nn.Module:
    """Build the generator of the family ``name``: z ``(n, z_dim)`` -> samples ``(n, *sample_shape)``.

    A family whose constructor takes ``num_classes`` takes labels ``(n,)`` after z, and raises UserError without any;
    one that takes ``spans``, those of the table whose points the samples are, raises UserError without a table.
    """
    given = {"z_dim": z_dim, "sample_shape": sample_shape, "num_classes": num_classes, "spans": spans}
    return _build(_constructor(name, 1), options, given)


def discriminator(
    name: str, sample_shape: tuple[int, ...], options: Mapping[str, Any], num_classes: int = 0, z_dim: int = 0
) -> nn.Module:
    """Build the discriminator of the family ``name``: samples ``(n, *sample_shape)`` -> logits ``(n,)``.

    One whose constructor takes ``num_classes`` takes labels ``(n,)`` after the samples; or, if its ``classifies`` is
    set, returns logits ``(n,)`` and class logits ``(n, num_classes)``. It raises UserError without any classes.
    ``z_dim`` is for those that have to do with latents: the second networks of other methods.
    """
    given = {"z_dim": z_dim, "sample_shape": sample_shape, "num_classes": num_classes}
    return _build(_constructor(name, 2), options, given)


def options_of(name: str, *, side: str) -> dict[str, Any]:
    """The options of a network and their types. ``side`` is ``generator`` or ``discriminator``."""
    build = _constructor(name, 1 if side == "generator" else 2)
    hints = get_type_hints(build.__init__)
    return {key: hints[key] for key in inspect.signature(build).parameters if key not in GIVEN}


def _constructor(name: str, index: int) -> Any:
    if name not in NETWORKS:
        raise unknown("network", name, NETWORKS)
    entry = NETWORKS[name]
    if not entry[index]:
        raise UserError(f"the family {name} has no generator: take mlp or dcgan")
    return getattr(importlib.import_module(entry[0]), entry[index])


def _build(constructor: Any, options: Mapping[str, Any], given: Mapping[str, Any]) -> nn.Module:
    takes = inspect.signature(constructor).parameters
    known, given = [key for key in takes if key not in GIVEN], {key: given[key] for key in takes if key in given}
    if given.get("num_classes") == 0:
        raise UserError(
            f"{constructor.__name__} tells classes apart, and the data have no labels: take data that have some"
            " (digits, mnist, ring8, a folder of a folder for each class), or a network such as mlp or dcgan"
        )
    if given.get("spans", ()) is None:
        made = constructor.__name__
        raise UserError(f"{made} makes rows of a table, and the data are none: take csv:FILE, or another network")
    for key in options:
        if key not in known:
            raise unknown(f"option of {constructor.__name__}", key, known)
    try:
        module: nn.Module = constructor(**given, **options)
    except UserError:
        raise
    except (RuntimeError, OverflowError, ValueError) as error:  # a layer larger than the memory, a number out of range
        reason = str(error).partition("\n")[0]
        raise UserError(f"{constructor.__name__} cannot be built: {reason}; mend its numbers") from error
    return module
