"""Parts that a user gives as objects: objectives as functions, and how a configuration says that they were given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastgan import models
from fastgan.data import Dataset
from fastgan.errors import UserError, unknown
from fastgan.nn import GANLoss
from fastgan.objectives import OBJECTIVES, Objective
from fastgan.objectives import objective as by_name
from fastgan.presets import Config, Network, from_dict, nested, preset
from fastgan.presets.own import is_marked, mark, refuse
from fastgan.train import build, classes
from fastgan.train.capture import runner_for
from fastgan.train.dials import Dials
from fastgan.train.state import SIDES
from fastgan.train.step import Players

Losses = Callable[..., Any]
Objectives = str | Objective | GANLoss | Losses | tuple[Losses, Losses]
HOW = (
    "objective takes a name, an Objective, a fastgan.nn.GANLoss, a function (real_logits, fake_logits) -> (loss of D,"
    " loss of G), or a pair of functions (real_logits, fake_logits) -> loss of D and (fake_logits) -> loss of G"
)


def as_objective(given: Any) -> Objective:
    """The objective that ``Trainer(objective=given)`` means. Raises UserError where it means none.

    A function of both batches' logits returns both losses, and the generator's update has real samples judged too; a
    pair of functions spares that, unless the second takes ``(fake_logits, real_logits)``.
    """
    if isinstance(given, Objective):
        return given
    if isinstance(given, str):
        return by_name(given)
    if isinstance(given, GANLoss):
        return Objective(given.name, given, given.generator, OBJECTIVES[given.name].needs_real)
    if isinstance(given, Sequence) and len(given) == 2 and all(map(callable, given)):
        of_d, of_g = given
        _check_takes(of_d, 2)
        _check_takes(of_g, 2 if _takes_both(of_g) else 1)
        return Objective("own", of_d, of_g, needs_real=_takes_both(of_g))
    if callable(given):
        _check_takes(given, 2)
        losses: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = _checked(given)
        return Objective(
            "own",
            lambda real_logits, fake_logits: losses(real_logits, fake_logits)[0],
            lambda fake_logits, real_logits: losses(real_logits, fake_logits)[1],
            needs_real=True,
        )
    raise UserError(f"{HOW}; not {type(given).__name__}")


def named(objective: Any) -> Any:
    """An objective of the house by its name; another one as it is."""
    known = isinstance(objective, Objective) and OBJECTIVES.get(objective.name) is objective
    return objective.name if known else objective


def configured(
    base: Config | str | None, parts: Mapping[str, object], keys: Mapping[str, Any]
) -> tuple[Config, Config]:
    """The configuration that a preset or ``base``, ``parts`` by name and ``keys`` make; and, second, with the marks.

    Raises UserError for keys and parts that are none.
    """
    start = preset(base) if isinstance(base, str) else base or Config()
    spoken = {part: given for part in ("data", "objective") if isinstance(given := parts[part], str)}
    plain = from_dict(nested({**keys, **spoken}), start)
    return plain, marked(plain, parts)


def marked(config: Config, given: Mapping[str, object]) -> Config:
    """The configuration with a mark for each part of ``given`` (generator, data, ...) that is no name nor None.

    Raises UserError for a part that is marked already and is not given this time, and for one of a wrong kind.
    """
    for part in ("generator", "discriminator", "data", "objective"):
        own, former = given[part], getattr(config, part)
        name = former.name if isinstance(former, Network) else former
        if own is not None:
            _check_kind(part, own)
        if own is None or isinstance(own, str):
            refuse(part, name)
            continue
        kind = mark(getattr(own, "__name__", type(own).__name__))
        changed: dict[str, Any] = {part: Network(kind) if isinstance(former, Network) else kind}
        config = replace(config, **changed)
    return config


def _check_kind(part: str, own: object) -> None:
    """Raise UserError for data and networks that are none; objectives are checked by ``as_objective``."""
    kind = f"the class {own.__name__}" if isinstance(own, type) else type(own).__name__
    if part == "data" and not isinstance(own, Tensor | Dataset | str):
        raise UserError(
            f"data takes a tensor (n, C, H, W) or (n, d), a Dataset or a name, not {kind}: torch.from_numpy makes a"
            " tensor of an array"
        )
    if part in SIDES and not isinstance(own, nn.Module):
        raise UserError(
            f"{part} takes a torch.nn.Module, not {kind}; keys of a network by name go as **{{'{part}.name': 'dcgan'}}"
        )


def own_data(given: Tensor | Dataset | str | None, config: Config, device: torch.device) -> Dataset:
    """A tensor or data set of the user's, or what the configuration names, on the device where it fits."""
    if not isinstance(given, Tensor | Dataset):
        return build.dataset(config, device)
    samples = build.first(given if isinstance(given, Dataset) else Dataset.from_tensor(given), config)
    return samples.to(device, resident=config.resident == "auto")


def build_players(
    config: Config,
    data: Dataset,
    dials: Dials,
    networks: Mapping[str, nn.Module | None],
    optimizers: Mapping[str, Optimizer],
) -> Players:
    """Networks in training mode on the dials' device and their optimisers; what is not given, from the configuration.

    Raises UserError for optimisers of another side, and for networks that tell classes apart which the data lack.
    """
    device, generator, discriminator = dials.clock.device, networks["generator"], networks["discriminator"]
    if generator is None or discriminator is None:
        for side, network in networks.items():
            if network is not None and is_marked(getattr(config, side).name):  # it will not be built
                config = replace(config, **{side: Network()})  # type: ignore[arg-type]
        built = build.networks(config, data.sample_shape, len(data.classes), data.table)
        for network in built:
            if isinstance(network, models.Prepared):
                network.prepare(data.images)
        if runner_for(device) is not None:  # a GPU, where weights of convolutions are read by whole vectors that way
            for network in built:
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        generator = built[0] if generator is None else generator
        discriminator = built[1] if discriminator is None else discriminator
    generator.to(device).train()
    discriminator.to(device).train()
    for network in (generator, discriminator):
        classes.check(network, data, config.pac)
    for side in optimizers:
        if side not in SIDES:
            raise unknown("side of optimizers", side, SIDES)
    if config.clip and "discriminator" in optimizers:
        raise UserError(
            f"clip is done by the configuration's optimiser: give yours weight_clip={config.clip:g}, and leave out clip"
        )
    return Players(
        generator,
        discriminator,
        optimizers.get("generator") or build.optimizer(generator, "generator", config, dials),
        optimizers.get("discriminator") or build.optimizer(discriminator, "discriminator", config, dials),
    )


def _check_takes(function: Callable[..., Any], batches: int) -> None:
    """Raise UserError for a function that cannot be called with so many batches of logits."""
    try:
        inspect.signature(function).bind(*[None] * batches)
    except TypeError as error:
        name = getattr(function, "__name__", type(function).__name__)
        raise UserError(f"{HOW}; {name} cannot be called so: {error}") from error
    except ValueError:  # of something built in, which does not say what it takes
        return


def _takes_both(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of something built in
        return False
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty for p in parameters) > 1


def _checked(function: Callable[..., Any]) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    def losses(real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
        both = function(real_logits, fake_logits)
        if not (isinstance(both, tuple) and len(both) == 2):
            raise UserError(f"{HOW}; this function returned {type(both).__name__}")
        return both

    return losses
