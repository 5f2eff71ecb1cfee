"""From a configuration to the parts of a training: device, data, networks, optimisers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastgan import data, models, optim
from fastgan.data import Dataset
from fastgan.errors import UserError, unknown
from fastgan.ops import shadow
from fastgan.presets import Adam, Config, Network
from fastgan.presets.own import refuse
from fastgan.presets.values import coerce
from fastgan.train.capture import runner_for
from fastgan.train.dials import Dials


def device(name: str) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` means here. Raises UserError where it is absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(name)
    except RuntimeError as error:
        raise unknown("device", name, ["auto", "cpu", "cuda"]) from error
    if wanted.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                f"--device {name}: PyTorch sees no CUDA device here; use --device cpu, or see 'fastgan doctor'"
            )
        if (wanted.index or 0) >= torch.cuda.device_count():
            raise UserError(
                f"--device {name}: there are {torch.cuda.device_count()} CUDA devices here, numbered from 0"
            )
    elif wanted.type != "cpu":
        raise unknown("device", name, ["auto", "cpu", "cuda"])
    return wanted


def bf16(config: Config, where: torch.device) -> bool:
    """Whether the networks run under bf16 autocast: ``auto`` means so on a GPU of compute capability 8.0 or later."""
    if config.precision == "auto":
        return where.type == "cuda" and torch.cuda.get_device_capability(where) >= (8, 0)
    return config.precision == "bf16"


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Context in which the CPU computes with ``count`` threads; 0 leaves their number alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def dataset(config: Config, where: torch.device) -> Dataset:
    """The data that the configuration names, on the device where it fits."""
    return data.load(config.data, image_size=config.image_size, device=where)


def check(config: Config, samples: Dataset) -> None:
    """Raise UserError where the data are of another kind than the configuration's keys."""
    if config.flip and len(samples.sample_shape) != 3:
        raise UserError(f"flip mirrors images, and {samples.name} holds points: set flip=false")


def networks(config: Config, sample_shape: tuple[int, ...]) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator on the CPU, initialised from ``config.seed`` alone, generator first."""
    options = {side: _options(getattr(config, side), side) for side in ("generator", "discriminator")}
    with _seeded(config):
        return (
            models.generator(config.generator.name, config.z_dim, sample_shape, options["generator"]),
            models.discriminator(config.discriminator.name, sample_shape, options["discriminator"]),
        )


def generator(config: Config, sample_shape: tuple[int, ...]) -> nn.Module:
    """The first of ``networks``, alone."""
    options = _options(config.generator, "generator")
    with _seeded(config):
        return models.generator(config.generator.name, config.z_dim, sample_shape, options)


@contextmanager
def _seeded(config: Config) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)  # torch.manual_seed would reseed every GPU of the caller
        yield


def adam(module: nn.Module, side: str, config: Config, dials: Dials) -> Optimizer:
    """Adam over the parameters of one side's ``module`` that require a gradient, averaging the generator's.

    Raises UserError where there are none.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise UserError(f"{type(module).__name__} has no parameter that requires a gradient: there is nothing to train")
    options: Adam = getattr(config, f"{side}_optimizer")
    lr, beta1 = dials[f"{side}_lr"], dials[f"{side}_beta1"]
    if runner_for(dials.clock.device) is not None:  # a graph reads it anew at each replay: it can be changed in place
        lr = torch.as_tensor(lr, dtype=torch.float32, device=dials.clock.device)
    moves = isinstance(beta1, Tensor)
    capturable = config.graph and dials.clock.device.type == "cuda"  # where PyTorch's own step has to do
    beta2 = torch.full_like(beta1, options.betas[1]) if isinstance(beta1, Tensor) else options.betas[1]
    optimizer = optim.Adam(
        parameters,
        lr=lr,
        betas=(beta1, beta2),
        eps=options.eps,
        weight_decay=options.weight_decay,
        fused=not moves,  # on the CPU one launch for all; but PyTorch's takes no beta that moves
        foreach=False if moves else None,
        capturable=capturable,
        ema=_average(config, dials) if side == "generator" else None,
        shadow=torch.bfloat16 if shadowed(config, dials.clock.device) else None,
    )
    if optimizer.shadow_dtype is not None:
        for parameter in parameters:
            if parameter.dtype == torch.float32:
                shadow.attach(parameter, optimizer.shadow(parameter))
    return optimizer


def shadowed(config: Config, where: torch.device) -> bool:
    """Whether optimisers keep bf16 copies of the weights for the kernels: where steps are captured, in bf16."""
    return bf16(config, where) and runner_for(where) is not None


def _average(config: Config, dials: Dials) -> optim.EMA | None:
    """What the generator's weights are averaged by; None where they are not."""
    decay = dials["ema_decay"]
    return optim.EMA(decay, config.ema.warmup) if isinstance(decay, Tensor) or decay else None


def _options(network: Network, side: str) -> Mapping[str, Any]:
    refuse(side, network.name)
    hints = models.options_of(network.name, side=side)
    for key in network.options:
        if key not in hints:
            raise unknown(f"key of {side}", key, ["name", *hints])
    return {key: coerce(f"{side}.{key}", value, hints[key]) for key, value in network.options.items()}
