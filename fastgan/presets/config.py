"""The configuration of a run: one dataclass, readable as YAML, every key settable from the command line."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args, get_type_hints

from fastgan.errors import UserError, unknown
from fastgan.presets import methods
from fastgan.presets.groups import Average, CriticWarmup, Network, Optimizer, Penalty, Schedule
from fastgan.presets.values import coerce


@dataclass(frozen=True)
class Config:
    """Everything that decides a run. ``updates`` says how the two players share fake batches within a step:

    - ``fresh``: Goodfellow's Algorithm 1: new noise for each of the ``n_critic`` discriminator updates and for G;
    - ``shared``: the generator is updated through the discriminator's last fake batch (DCGAN's example);
    - ``generator_first``: the generator moves first, the discriminator sees those same fakes (PyTorch-GAN's gan.py).

    ``threads`` is how many the CPU computes with; 0 leaves it to PyTorch. Small networks do best with 1: more of them
    wait for each other, and crawl on a busy machine.

    ``graph``: on a GPU, iterations are captured in CUDA graphs and replayed, ``unroll`` of them at a time.

    ``one_launch``: a fully connected GAN's iterations go in one launch of one kernel: ``auto`` where that was measured
    to be the faster way on this GPU, or under the backend ``cuda``; ``always``; or ``never``.

    ``resident``: ``never`` leaves the data on the host although the device has room for them: batches are read ahead
    there, as they are from a disk and where there is no room, by ``readers`` threads (0: as many as seem right).

    ``pac``: the discriminator judges so many samples at a time, as one (PacGAN).

    ``class_weight`` is that of the cross-entropy of a discriminator that guesses classes too (acgan), in both losses.

    ``noise`` is the standard deviation of normal noise on what the discriminator sees, real and fake (instance noise);
    ``flip`` mirrors each real image left to right with probability 1/2. ``schedules`` move what SCHEDULED names.

    ``limit``: only the first so many samples of the data are trained on.

    ``label_smoothing``: how much less than 1 the label of real samples is (Salimans et al., 2016, section 3.4: one
    side). ``clip``: the discriminator's weights are clamped to [-clip, clip] after each of its updates (Arjovsky et
    al., 2017, algorithm 1), 0 leaves them. ``critic_warmup``: iterations with more updates of it than ``n_critic``.

    ``augment``: steps of DiffAugment (``color``, ``translation``, ``cutout``, joined by commas) through which the
    discriminator sees every image, real and fake, in both players' updates (Zhao et al., 2020).

    ``balance``: ``auto`` skips updates of a discriminator that tells more than 4 of 5 samples of a batch rightly.

    ``on_nan``: what a loss that is no finite number does: ``stop`` the run, ``skip`` the updates that would spoil a
    weight, or ``rollback`` to the last checkpoint, with half the learning rates.

    ``keep_best`` names a metric (BEST) of which the best checkpoint is kept in ``checkpoints/best``.

    ``method``: what trains the networks, if no adversary by an objective: fastgan.presets.methods.

    ``tensorboard``: metrics and pictures go to ``tensorboard/`` in the run's folder too.
    """

    preset: str = "custom"
    method: Literal["adversarial", "vae", "nce", "predictability"] = "adversarial"
    data: str = "digits"
    image_size: int | None = None
    limit: int | None = None
    z_dim: int = 64
    latent: Literal["normal", "uniform", "discrete"] = "normal"
    generator: Network = Network()
    discriminator: Network = Network()
    objective: str = "non_saturating"
    class_weight: float = 1.0
    penalty: Penalty = Penalty()
    label_smoothing: float = 0.0
    n_critic: int = 1
    critic_warmup: CriticWarmup = CriticWarmup()
    clip: float = 0.0
    pac: int = 1
    updates: Literal["fresh", "shared", "generator_first"] = "fresh"
    generator_optimizer: Optimizer = Optimizer()
    discriminator_optimizer: Optimizer = Optimizer()
    ema: Average = Average()
    noise: float = 0.0
    flip: bool = False
    augment: str = ""
    balance: Literal["none", "auto"] = "none"
    on_nan: Literal["stop", "skip", "rollback"] = "stop"
    schedules: dict[str, Schedule] = field(default_factory=dict)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    batch_size: int = 64
    steps: int = 10_000
    seed: int = 0
    device: str = "auto"
    threads: int = 0
    graph: bool = True
    unroll: int = 1
    one_launch: Literal["auto", "always", "never"] = "auto"
    resident: Literal["auto", "never"] = "auto"
    readers: int = 0
    log_every: int = 50
    sample_every: int = 1000
    checkpoint_every: int = 1000
    keep_checkpoints: int = 3
    keep_best: str | None = None
    tensorboard: bool = False
    samples: int = 64

    def __post_init__(self) -> None:
        for name in COUNTS:
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.batch_size % self.pac:
            raise UserError(
                f"batch_size {self.batch_size} cannot be judged in packs of {self.pac}: take a multiple of {self.pac}"
            )
        if not 0 <= self.seed < 2**32 - 2:
            raise UserError(f"seed must be between 0 and 2^32 - 3, not {self.seed}")
        for name in ("steps", "threads", "readers"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be at least 0, not {getattr(self, name)}")
        if self.class_weight < 0:
            raise UserError(f"class_weight must be at least 0, not {self.class_weight:g}")
        if self.noise < 0:
            raise UserError(f"noise is a standard deviation of at least 0, not {self.noise:g}")
        if not 0 <= self.label_smoothing < 1 or self.clip < 0:
            raise UserError(
                "label_smoothing goes from 0 to below 1 and clip is at least 0, not"
                f" {self.label_smoothing:g} and {self.clip:g}"
            )
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit must be at least 1, or null for all of the data, not {self.limit}")
        for name in self.schedules:
            _check_schedule(name, self)
        if self.augment and self.pac > 1:
            raise UserError("augment changes samples one by one, and pac has D judge several: leave one of them out")
        if self.critic_warmup.most(self.n_critic) > 1 and self.updates == "generator_first":
            more = "n_critic=1" if self.n_critic > 1 else "critic_warmup.updates=0"
            raise UserError(f"updates=generator_first has one discriminator update a step: set {more} or updates=fresh")
        if self.keep_best not in (None, *BEST):
            raise unknown("metric to keep the best of", self.keep_best, BEST)
        for name in ("method", "latent", "updates", "balance", "on_nan", "precision", "resident", "one_launch"):
            choices = get_args(get_type_hints(Config)[name])
            if getattr(self, name) not in choices:
                raise unknown(name, getattr(self, name), choices)
        methods.check(self)


SCHEDULED: dict[str, Callable[[Config], float]] = {  # and where each starts
    "generator_lr": lambda config: config.generator_optimizer.lr,
    "discriminator_lr": lambda config: config.discriminator_optimizer.lr,
    "generator_beta1": lambda config: config.generator_optimizer.betas[0],
    "discriminator_beta1": lambda config: config.discriminator_optimizer.betas[0],
    "generator_momentum": lambda config: config.generator_optimizer.momentum,
    "discriminator_momentum": lambda config: config.discriminator_optimizer.momentum,
    "ema_decay": lambda config: config.ema.decay,
    "noise": lambda config: config.noise,
    "penalty_weight": lambda config: config.penalty.weight,
}


def _check_schedule(name: str, config: Config) -> None:
    """Raise UserError for a schedule of what is unknown, or that the configuration has no use for."""
    if name not in SCHEDULED:
        raise unknown("quantity to schedule", name, SCHEDULED)
    schedule, start = config.schedules[name], SCHEDULED[name](config)
    if name.endswith(("beta1", "decay", "momentum")) and schedule.to >= 1:
        raise UserError(f"schedules.{name}: to has to be below 1, not {schedule.to:g}")
    if schedule.shape == "exponential" and not (schedule.to > 0 and start > 0):
        raise UserError(f"schedules.{name}: an exponential one goes from above 0 to above 0; take linear")
    side, _, key = name.rpartition("_")
    if key in ("beta1", "momentum"):
        own: Optimizer = getattr(config, f"{side}_optimizer")
        if not own.reads({"beta1": "betas"}.get(key, key)):
            raise UserError(f"schedules.{name}: the {side}'s optimiser {own.name} has none: leave it out")
        if key == "momentum" and not start:  # without any, the optimiser keeps no velocity
            raise UserError(f"schedules.{name} starts from 0: set {side}_optimizer.momentum above 0, such as 0.5")


BEST = ("diversity", "wasserstein", "loss_g")  # nearest to 1, nearest to 0, lowest
COUNTS = (
    "z_dim",
    "n_critic",
    "pac",
    "batch_size",
    "log_every",
    "sample_every",
    "checkpoint_every",
    "keep_checkpoints",
    "samples",
    "unroll",
)
FREQUENCIES = ("log_every", "sample_every", "checkpoint_every")
KEEPING = ("keep_checkpoints", "keep_best", "tensorboard")
RUNNING = ("steps", "device", "threads", "graph", "unroll", "one_launch", "resident", "readers", "on_nan")
MAY_CHANGE_ON_RESUME = frozenset({*FREQUENCIES, *KEEPING, *RUNNING})


def to_dict(config: Config) -> dict[str, Any]:
    """Plain, nested data, as it is written to ``config.yaml``; a network's options stand beside its name."""
    plain = asdict(config)
    for side in ("generator", "discriminator"):
        options = plain[side].pop("options")
        plain[side] |= {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
        plain[f"{side}_optimizer"]["betas"] = list(plain[f"{side}_optimizer"]["betas"])
    return plain


def from_dict(values: Mapping[str, Any], base: Config | None = None) -> Config:
    """A configuration from nested data laid over ``base``. Unknown keys are refused with the nearest known name."""
    base = base or Config()
    hints = get_type_hints(Config)
    changes: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            raise unknown("key", key, hints)
        if key == "preset" and value != base.preset:
            raise UserError(
                f"the preset is {base.preset}: its keys can be set, it cannot become {reprlib.repr(value)} itself"
            )
        if hints[key] is Network:
            changes[key] = _network(key, value, getattr(base, key))
        elif hints[key] in (Optimizer, Penalty, Average, CriticWarmup):
            changes[key] = _group(key, value, getattr(base, key))
        elif key == "schedules":
            changes[key] = _schedules(value, base.schedules)
        else:
            changes[key] = coerce(key, value, hints[key])
    return replace(base, **changes)


def nested(assignments: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into nested data: ``{"generator.hidden": x}`` -> ``{"generator": {"hidden": x}}``."""
    tree: dict[str, Any] = {}
    for dotted, value in assignments.items():
        *parents, leaf = dotted.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise _both(".".join(parents))
        if isinstance(node.get(leaf), dict):
            if not isinstance(value, Mapping):
                raise _both(dotted)
            node[leaf] |= value
        else:
            node[leaf] = value
    return tree


def _both(dotted: str) -> UserError:
    return UserError(
        f"{dotted} is given both as a value and as a group of keys: give one (a network beside its options is"
        f" {dotted}.name)"
    )


def difference(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """The keys in which two configurations differ, dotted, with the old and the new value."""
    before, after = _flat(to_dict(old)), _flat(to_dict(new))
    return {key: (before.get(key), after.get(key)) for key in before | after if before.get(key) != after.get(key)}


def _network(key: str, value: Any, base: Network) -> Network:
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping):
        raise UserError(f"{key} is a network: give its name or keys such as name and hidden, not {reprlib.repr(value)}")
    name = coerce(f"{key}.name", value.get("name", base.name), str)
    kept = base.options if name == base.name else {}  # another family has other options
    return Network(name, {**kept, **{option: given for option, given in value.items() if option != "name"}})


def _group(key: str, value: Any, base: Any) -> Any:
    """Lay values over an optimiser, a penalty or the like; of those two the name alone says enough.

    Of an optimiser that becomes another one, the learning rate is kept.
    """
    if isinstance(value, str) and isinstance(base, Penalty | Optimizer):
        value = {"name": value}
    what, example = EXAMPLES[type(base)]
    if not isinstance(value, Mapping):
        raise UserError(f"{key} is {what}: give its keys, such as {key}.{example}, not {reprlib.repr(value)}")
    hints = get_type_hints(type(base))
    for name in value:
        if name not in hints:
            raise unknown(f"key of {key}", name, hints)
    given = {name: coerce(f"{key}.{name}", one, hints[name]) for name, one in value.items()}
    if isinstance(base, Optimizer) and given.get("name", base.name) != base.name:
        base = Optimizer(given["name"], base.lr)
    return replace(base, **given)


def _schedules(value: Any, base: Mapping[str, Schedule]) -> dict[str, Schedule]:
    """Lay schedules over those that are there; a quantity that is given None moves no more."""
    if not isinstance(value, Mapping):
        raise UserError(f"schedules is a group of quantities: give {SCHEDULE_EXAMPLE}, not {reprlib.repr(value)}")
    schedules = dict(base)
    for name, given in value.items():
        if name not in SCHEDULED:
            raise unknown("quantity to schedule", name, SCHEDULED)
        schedules.pop(name, None) if given is None else schedules.update({name: _schedule(name, given, base)})
    return schedules


def _schedule(name: str, given: Any, base: Mapping[str, Schedule]) -> Schedule:
    if name not in base and not (isinstance(given, Mapping) and {"to", "steps"} <= given.keys()):
        raise UserError(f"schedules.{name} needs to and steps, such as {SCHEDULE_EXAMPLE}")
    start = base.get(name) or Schedule(0.0, 0)
    schedule: Schedule = _group(f"schedules.{name}", given, start)
    return schedule


SCHEDULE_EXAMPLE = "schedules.noise.to=0 and schedules.noise.steps=5000"
EXAMPLES: dict[type, tuple[str, str]] = {
    Optimizer: ("an optimiser", "lr=1e-4"),
    CriticWarmup: ("a group of keys", "updates=100"),
    Penalty: ("a penalty", "name=r1"),
    Average: ("an average", "decay=0.999"),
    Schedule: ("a schedule", "to=0"),
}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
