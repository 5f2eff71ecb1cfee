"""The groups of keys within a configuration: a network, an optimiser, a penalty, an average, schedules."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

from fastgan.errors import UserError, unknown


@dataclass(frozen=True)
class Network:
    """A network by name; ``options`` are keywords of its constructor (see fastgan.models)."""

    name: str = "mlp"
    options: dict[str, Any] = field(default_factory=dict)


USES = {  # keys that each optimiser reads, beside lr and weight_decay
    "adam": ("betas", "eps"),
    "adamw": ("betas", "eps"),
    "rmsprop": ("alpha", "eps", "momentum"),
    "sgd": ("momentum", "nesterov"),
}


@dataclass(frozen=True)
class Optimizer:
    """An optimiser by name and its hyperparameters, as torch.optim names them; a key that it does not read is refused.

    Kingma and Ba, 2015 (``adam``); betas (.5, .999) are DCGAN's. Loshchilov and Hutter, 2019 (``adamw``). Hinton,
    lecture 6e (``rmsprop``). ``sgd``: with ``momentum``, ``nesterov``'s too.
    """

    name: Literal["adam", "adamw", "rmsprop", "sgd"] = "adam"
    lr: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    alpha: float = 0.99
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        if self.name not in USES:
            raise unknown("optimiser", self.name, USES)
        if min(self.lr, self.eps, self.weight_decay) < 0 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(
                "an optimiser takes lr, eps and weight_decay of at least 0 and betas from 0 to below 1, not"
                f" lr {self.lr:g}, eps {self.eps:g}, weight_decay {self.weight_decay:g}, betas {list(self.betas)}"
            )
        if not (0 <= self.alpha < 1 and 0 <= self.momentum < 1):
            raise UserError(
                "an optimiser takes alpha and momentum from 0 to below 1, not"
                f" alpha {self.alpha:g}, momentum {self.momentum:g}"
            )
        for key in ("betas", "eps", "alpha", "momentum", "nesterov"):
            if not self.reads(key) and getattr(self, key) != getattr(type(self), key):
                able = ", ".join(name for name, keys in USES.items() if key in keys)
                raise UserError(f"the optimiser {self.name} does not read {key}: leave it out, or take {able}")
        if self.nesterov and not self.momentum:
            raise UserError("nesterov is a kind of momentum: set momentum too, such as 0.9")

    def reads(self, key: str) -> bool:
        """Whether this optimiser has a use for a key."""
        return key in (*USES[self.name], "lr", "weight_decay")


@dataclass(frozen=True)
class CriticWarmup:
    """Iterations in which the discriminator is updated ``updates`` times instead of ``n_critic``; 0 for none.

    Those are the ``first`` ones and, ``every`` not being 0, each whose number it divides, counted from 0. 100, 25, 500
    is what the authors of WGAN do: github.com/martinarjovsky/WassersteinGAN, main.py.
    """

    updates: int = 0
    first: int = 25
    every: int = 500

    def __post_init__(self) -> None:
        if min(self.updates, self.first, self.every) < 0:
            raise UserError(
                "critic_warmup takes updates, first and every of at least 0, not"
                f" {self.updates}, {self.first} and {self.every}"
            )

    def at(self, iteration: int, n_critic: int) -> int:
        """How many updates of the discriminator iteration number ``iteration`` has, where others have ``n_critic``."""
        warm = iteration < self.first or (self.every > 0 and iteration % self.every == 0)
        return self.updates if self.updates and warm else n_critic

    def before(self, iterations: int, n_critic: int) -> int:
        """How many the first so many iterations have together."""
        if not self.updates:
            return iterations * n_critic
        warm = min(iterations, self.first)
        if self.every and iterations > self.first:
            warm += -(-iterations // self.every) - -(-self.first // self.every)
        return iterations * n_critic + warm * (self.updates - n_critic)

    def most(self, n_critic: int) -> int:
        """How many an iteration has at most."""
        return max(self.updates, n_critic)


@dataclass(frozen=True)
class Penalty:
    """What is added to the discriminator's loss: ``weight`` times a penalty, every n-th update n times as heavy.

    Names and formulas are those of fastgan.objectives; ``r1_r2`` is the sum of both, ``none`` is nothing.
    """

    name: Literal["none", "gradient_penalty", "zero_centered", "r1", "r2", "r1_r2", "dragan"] = "none"
    weight: float = 10.0
    every: int = 1

    def __post_init__(self) -> None:
        choices = get_args(get_type_hints(Penalty)["name"])
        if self.name not in choices:
            raise unknown("penalty", self.name, choices)
        if self.weight < 0 or self.every < 1:
            raise UserError(
                f"a penalty takes a weight of at least 0 and every of at least 1, not {self.weight:g} and {self.every}"
            )


@dataclass(frozen=True)
class Average:
    """The generator's weights averaged over its updates, with which samples are drawn; a ``decay`` of 0 keeps none.

    ``decay`` and ``warmup`` are those of fastgan.optim.EMA. Karras et al., 2018, section 3 (of samples).
    """

    decay: float = 0.0
    warmup: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1 or (self.warmup != 0 and self.warmup < 1):
            raise UserError(
                "an average takes a decay from 0 (none) to below 1 and a warmup of 0 (none) or at least 1, not"
                f" {self.decay:g} and {self.warmup:g}"
            )


@dataclass(frozen=True)
class Schedule:
    """How a quantity moves: from its own key's value, held up to step ``begin``, ``to`` another within ``steps``."""

    to: float
    steps: int
    begin: int = 0
    shape: Literal["linear", "cosine", "exponential"] = "linear"

    def __post_init__(self) -> None:
        choices = get_args(get_type_hints(Schedule)["shape"])
        if self.shape not in choices:
            raise unknown("shape of a schedule", self.shape, choices)
        if self.steps < 0 or self.begin < 0 or self.to < 0:
            raise UserError(
                f"a schedule takes to, steps and begin of at least 0, not {self.to:g}, {self.steps} and {self.begin}"
            )
