"""From a configuration to the parts of a training: device, data, networks, optimisers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastgan import data, models, optim
from fastgan.data import Dataset
from fastgan.data.table import Table
from fastgan.errors import UserError, unknown
from fastgan.models.nce import Noise
from fastgan.ops import shadow
from fastgan.ops.diff_augment import check_policy
from fastgan.optim.one_launch import OneLaunch
from fastgan.presets import Config, Network
from fastgan.presets import Optimizer as Options
from fastgan.presets.groups import USES
from fastgan.presets.own import refuse
from fastgan.presets.values import coerce
from fastgan.train.capture import runner_for
from fastgan.train.conditions import told
from fastgan.train.dials import Dials
from fastgan.train.idle import Idle
from fastgan.train.packs import packed_shape

OPTIMIZERS: dict[str, Any] = {"adam": optim.Adam, "adamw": optim.AdamW, "rmsprop": optim.RMSprop, "sgd": optim.SGD}


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


_read: ContextVar[dict[object, Dataset] | None] = ContextVar("read", default=None)


@contextmanager
def data_read_once() -> Iterator[None]:
    """Context in which all who ask ``dataset`` for the same data get one and the same."""
    token = _read.set({})
    try:
        yield
    finally:
        _read.reset(token)


def dataset(config: Config, where: torch.device) -> Dataset:
    """The data that the configuration names, on the device where it fits."""
    known, key = _read.get(), (config.data, config.image_size, config.limit, where, config.resident)
    if known is not None and key in known:
        return known[key]
    found = first(data.load(config.data, image_size=config.image_size), config)
    found = found.to(where, resident=config.resident == "auto")
    if known is not None:
        known[key] = found
    return found


def first(samples: Dataset, config: Config) -> Dataset:
    """The samples that are trained on: the first ``config.limit``. Raises UserError where there are not so many."""
    if config.limit is None:
        return samples
    if config.limit > len(samples):
        raise UserError(f"limit {config.limit} is more than {samples.name} has ({len(samples)}): set limit=null")
    return samples.part(0, config.limit)


def check(config: Config, samples: Dataset) -> None:
    """Raise UserError where the data are of another kind than the configuration's keys."""
    images = len(samples.sample_shape) == 3
    if config.flip and not images:
        raise UserError(f"flip mirrors images, and {samples.name} holds points: set flip=false")
    if check_policy(config.augment) and not images:
        raise UserError(f"augment is for images, and {samples.name} holds points: leave it out")


def networks(
    config: Config, sample_shape: tuple[int, ...], num_classes: int = 0, table: Table | None = None
) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator on the CPU, initialised from ``config.seed`` alone, generator first.

    ``table`` is the one whose points the samples are. The discriminator takes packs of ``config.pac`` samples.
    """
    options = _options(config.discriminator, "discriminator")
    with _seeded(config):
        made = _generator(config, sample_shape, num_classes, table)
        first, *rest = sample_shape
        judged, name = packed_shape((first + told(made), *rest), config.pac), config.discriminator.name
        return made, models.discriminator(name, judged, options, num_classes, config.z_dim)


def generator(
    config: Config, sample_shape: tuple[int, ...], num_classes: int = 0, table: Table | None = None
) -> nn.Module:
    """The first of ``networks``, alone."""
    with _seeded(config):
        return _generator(config, sample_shape, num_classes, table)


def _generator(config: Config, sample_shape: tuple[int, ...], num_classes: int, table: Table | None) -> nn.Module:
    options, spans = _options(config.generator, "generator"), table.spans if table else None
    return models.generator(config.generator.name, config.z_dim, sample_shape, options, num_classes, spans)


@contextmanager
def _seeded(config: Config) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)  # torch.manual_seed would reseed every GPU of the caller
        yield


def optimizer(module: nn.Module, side: str, config: Config, dials: Dials) -> Optimizer:
    """The optimiser of one side's ``module``, over its parameters that require a gradient.

    It averages the generator's weights and clamps the discriminator's, where the configuration says so. Raises
    UserError where there are no parameters.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters and isinstance(module, Noise):
        return Idle(dials.clock.device)
    if not parameters:
        raise UserError(f"{type(module).__name__} has no parameter that requires a gradient: there is nothing to train")
    options: Options = getattr(config, f"{side}_optimizer")
    lr = dials[f"{side}_lr"]
    if runner_for(dials.clock.device) is not None:  # a graph reads it anew at each replay: it can be changed in place
        lr = torch.as_tensor(lr, dtype=torch.float32, device=dials.clock.device)
    made: OneLaunch = OPTIMIZERS[options.name](
        parameters,
        lr=lr,
        weight_decay=options.weight_decay,
        **_read_by(options, side, config, dials),
        ema=_average(config, dials) if side == "generator" else None,
        weight_clip=config.clip or None if side == "discriminator" else None,
        shadow=torch.bfloat16 if shadowed(config, dials.clock.device) else None,
    )
    if made.shadow_dtype is not None:
        for parameter in parameters:
            if parameter.dtype == torch.float32:
                shadow.attach(parameter, made.shadow(parameter))
    return made


def _read_by(options: Options, side: str, config: Config, dials: Dials) -> dict[str, Any]:
    """What an optimiser takes beside lr and weight_decay, of which some may move; and how PyTorch's own is to step."""
    taken: dict[str, Any] = {key: getattr(options, key) for key in USES[options.name]}
    moving: float | Tensor = 0.0
    if "betas" in taken:
        moving, beta2 = dials[f"{side}_beta1"], options.betas[1]
        taken["betas"] = (moving, torch.full_like(moving, beta2) if isinstance(moving, Tensor) else beta2)
    if "momentum" in taken:
        taken["momentum"] = moving = dials[f"{side}_momentum"]
    moves = isinstance(moving, Tensor)
    if options.name != "sgd":
        taken["capturable"] = config.graph and dials.clock.device.type == "cuda"  # where PyTorch's own step has to do
    if options.name != "rmsprop":
        taken["fused"] = not moves  # on the CPU one launch for all; but PyTorch's takes no number that moves
    return {**taken, "foreach": False if moves else None}


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
