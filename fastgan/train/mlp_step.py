"""A whole iteration of a fully connected GAN as one phase table: when that applies, and the table of a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastgan.data import Dataset
from fastgan.objectives import OBJECTIVES
from fastgan.ops.gan_loss_formulas import RECIPES
from fastgan.ops.mlp_step import Program
from fastgan.ops.mlp_step_measured import Size
from fastgan.ops.mlp_step_recipe import Recipe, Side
from fastgan.ops.optimizer_step import Number, Rule
from fastgan.optim.entries import entry
from fastgan.optim.one_launch import OneLaunch
from fastgan.presets import Config
from fastgan.train.draws import LATENTS, ClockDraws
from fastgan.train.mlp_layers import Refused, layers_of
from fastgan.train.step import Pattern, Step

LARGEST_BATCH = 1024


def applies(step: Step, config: Config, data: Dataset) -> str | None:
    """Return in words why an iteration cannot be made from one table; None where it can."""
    try:
        _check(step, config, data)
        for side in ("generator", "discriminator"):
            try:
                _check_side(side, getattr(step.players, side), getattr(step.players, f"{side}_optimizer"))
            except Refused as refused:
                raise Refused(f"the {side}: {refused}") from None
        layers = layers_of(step.players.generator)
        if layers[0].weight.shape[1] != config.z_dim:
            raise Refused("the generator takes more than latents")
        if layers[-1].weight.shape[0] != data.images[0].numel():
            raise Refused("the generator's samples are not of the data's size")
    except Refused as refused:
        return str(refused)
    return None


def takes(pattern: Pattern) -> bool:
    """Whether the table has all that this iteration does; others go by the step itself, from the same state."""
    return not any(pattern.penalties) and not pattern.watched


def size(step: Step, config: Config, members: int = 0) -> Size:
    """Return what an iteration's time depends on, of one training or of an ensemble's."""
    networks = step.players.generator, step.players.discriminator
    weights = sum(parameter.numel() for network in networks for parameter in network.parameters())
    return Size(weights, config.batch_size, config.n_critic + (config.updates == "fresh"), members)


def program(step: Step, config: Config, data: Dataset, *, dtype: torch.dtype | None = None) -> Program:
    """Return the iterations of a training as one table over its own tensors.

    Args:
        dtype: of activations; None: the step's own precision.

    Raises:
        Refused: with the reason, where none can be made.
    """
    why = applies(step, config, data)
    if why is not None:
        raise Refused(why)
    players, meter, dials = step.players, step.meter, step.meter.dials
    generator, discriminator = (
        _side(getattr(players, side), getattr(players, f"{side}_optimizer")) for side in ("generator", "discriminator")
    )
    recipe = Recipe(
        images=data.images,
        clock=dials.clock,
        objective=step.objective.name,
        updates=config.updates,
        n_critic=config.n_critic,
        batch_size=config.batch_size,
        z_dim=config.z_dim,
        seed=config.seed,
        latent_seed=config.seed + LATENTS,
        latent=config.latent,
        flip=config.flip,
        critic=step.losses.valued,
        finite=meter.finite,
        table=dials.table if dials.names else None,
        values=dials.values if dials.names else None,
        sums=meter.sums,
        counts=meter.counts,
        mended=_mended(step, config),
        serves_both=config.updates == "generator_first" and step.serves_both,
        dtype=dtype or (torch.bfloat16 if step.bf16 else torch.float32),
    )
    return Program(generator, discriminator, recipe)


def _check(step: Step, config: Config, data: Dataset) -> None:
    """Raise Refused for what no table has."""
    draws, name = step.draws, step.objective.name
    if type(step) is not Step:
        raise Refused(f"method={config.method} has iterations of its own")
    if step.classes.told or step.classes.classifies:
        raise Refused("a network is told classes, or guesses them")
    if not isinstance(draws, ClockDraws):
        raise Refused("the host draws: on a GPU the clock does")
    if hasattr(draws, "conditions"):
        raise Refused("samples come with conditions")
    if draws.feeder is not None:
        raise Refused("the data do not lie on the device")
    if step.peers is not None:
        raise Refused("several processes train together")
    if step.pac > 1:
        raise Refused("samples are judged in packs")
    if OBJECTIVES.get(name) is not step.objective:
        raise Refused("the objective is one of your own")
    if RECIPES[name].relation != "none":
        raise Refused(f"{name} compares real with fake logits")
    if config.noise or "noise" in config.schedules:
        raise Refused("there is noise on the samples")
    for key in ("label_smoothing", "augment"):
        if getattr(config, key):
            raise Refused(f"it has {key}")
    if config.critic_warmup.updates:
        raise Refused("the number of the discriminator's updates changes")
    if config.balance != "none":
        raise Refused("balance skips updates of the discriminator")
    if config.batch_size > LARGEST_BATCH:
        raise Refused(f"the batch is larger than {LARGEST_BATCH}")
    if data.images.dtype not in (torch.uint8, torch.float32) or not data.images.is_contiguous():
        raise Refused("the data are neither uint8 nor fp32, in rows")


def _check_side(side: str, network: nn.Module, optimizer: Optimizer) -> None:
    """Raise Refused for a network or an optimiser that no table has."""
    layers = layers_of(network)
    if side == "discriminator":
        head = layers[-1]
        if len(head.weight) != 1 or head.activation != "none" or head.norm or head.dropout:
            raise Refused("its last layer is not one logit")
    if not isinstance(optimizer, OneLaunch):
        raise Refused(f"its optimiser is {type(optimizer).__name__}, not one of fastgan.optim")
    rules = [optimizer._rule(group) for group in optimizer.param_groups]
    if any(rule is None for rule in rules) or any(group["differentiable"] for group in optimizer.param_groups):
        raise Refused("its optimiser takes PyTorch's own step")
    if optimizer.unscale is not None or getattr(optimizer, "found_inf", None) is not None:
        raise Refused("its optimiser unscales gradients")
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    own = [p for layer in layers for p in layer.parameters if p is not None]
    if len({id(p) for p in own}) != len(own) or {id(p) for p in own} != moved:
        raise Refused("its optimiser moves other parameters than its layers', or one stands in two layers")


def _side(network: nn.Module, optimizer: OneLaunch) -> Side:
    """A player with its optimiser's states, which begin here where there are none yet."""
    rules: list[Rule] = []
    entries = []
    for at, group in enumerate(optimizer.param_groups):
        rule = optimizer._rule(group)
        assert rule is not None
        rules.append(rule)
        for p in group["params"]:
            shadow = None if optimizer.shadow_dtype is None else optimizer.shadow(p)
            how: dict[str, Any] = {"shadow": shadow, "group": at}
            entries.append(entry(p, optimizer.state[p], optimizer.STATES, rule.states, optimizer.averaging, **how))
            entries[-1] = _counted(optimizer, entries[-1])

    def numbers() -> Sequence[Sequence[Number]]:
        return [(*optimizer._numbers(group), *optimizer._common(group)) for group in optimizer.param_groups]

    counters: Tensor = optimizer._counts()
    guards = (optimizer.max_norm, optimizer.skip_non_finite)
    return Side(layers_of(network), entries, rules, numbers, counters, *guards)


def _counted(optimizer: OneLaunch, own: Any) -> Any:
    """An entry with a count of steps, which plain SGD keeps none of."""
    if own.step is not None:
        return own
    return own._replace(step=torch.zeros((), device=own.param.device))


def _mended(step: Step, config: Config) -> list[tuple[Tensor, Tensor]]:
    """Each buffer with what the guard keeps of it."""
    guard = getattr(step.watch.mend, "__self__", None)
    return [] if guard is None else list(guard._buffers)
