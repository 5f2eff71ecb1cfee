"""The methods beside the adversarial one, and which keys of a configuration mean nothing to each."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from fastgan.errors import UserError
from fastgan.presets.own import is_marked

if TYPE_CHECKING:
    from fastgan.presets.config import Config

ADVERSARIAL = "adversarial"
OF_OBJECTIVES = (
    *("objective", "penalty", "updates", "balance", "label_smoothing", "critic_warmup", "clip", "pac", "augment"),
    "class_weight",
)


@dataclass(frozen=True)
class Method:
    """Keys that have to keep their defaults, metrics that ``keep_best`` may name, and the families of its networks.

    An empty family is any that the adversarial method takes.
    """

    refused: tuple[str, ...]
    best: tuple[str, ...]
    generator: str
    discriminator: str
    latents: tuple[str, ...]


METHODS = {
    "vae": Method((*OF_OBJECTIVES, "n_critic", "noise"), ("loss_g",), "", "encoder", ("normal",)),
    "nce": Method(
        (*OF_OBJECTIVES, "n_critic", "flip", "ema", "generator_optimizer"), (), "nce", "nce", ("normal", "uniform")
    ),
    "predictability": Method(OF_OBJECTIVES, ("loss_g",), "predictability", "predictability", ("normal",)),
}
FAMILIES = {"encoder", "nce", "predictability"}  # of networks that the adversarial method has no use for
SCHEDULES = {"ema_decay": "ema", "noise": "noise", "penalty_weight": "penalty"}  # quantity: its key


def check(config: Config) -> None:
    """Raise UserError, in one line, where a key's value means nothing to the configuration's method."""
    method = METHODS.get(config.method, Method((), (), "", "", (config.latent,)))
    defaults = {field.name: field.default for field in fields(config)}
    for key in method.refused:
        if getattr(config, key) != defaults[key]:
            raise UserError(f"method={config.method} has no use for {key}: leave it at its default")
    for name in config.schedules:
        key = SCHEDULES.get(name) or f"{name.rpartition('_')[0]}_optimizer"
        if key in method.refused:
            raise UserError(f"method={config.method} has no use for {key}: leave out schedules.{name}")
    if config.latent not in method.latents:
        raise UserError(f"method={config.method} takes latent={' or '.join(method.latents)}, not {config.latent}")
    if config.method in METHODS and config.keep_best not in (None, *method.best):
        what = f"keeps the best by {', '.join(method.best)}" if method.best else "has no metric to keep the best of"
        raise UserError(f"method={config.method} {what}: leave keep_best={config.keep_best} out")
    for side in ("generator", "discriminator"):
        _check_network(config.method, side, getattr(method, side), getattr(config, side).name)


def _check_network(method: str, side: str, family: str, name: str) -> None:
    if is_marked(name) or name == family or (not family and name not in FAMILIES):
        return
    wanted = f"{side}={family}" if family else f"a {side} of the families mlp or dcgan"
    raise UserError(f"method={method} wants {wanted}, not {name}: see fastgan train {_preset_of(method)}")


def _preset_of(method: str) -> str:
    return {"predictability": "predictability-minimization", ADVERSARIAL: "gan-digits"}.get(method, method)
