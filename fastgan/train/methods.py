"""From a configuration to the function that performs one training iteration."""

from __future__ import annotations

from fastgan.data import Dataset
from fastgan.errors import UserError
from fastgan.objectives import Objective
from fastgan.ops.diff_augment import check_policy
from fastgan.ops.peers import Peers
from fastgan.presets import Config
from fastgan.train import build
from fastgan.train.balance import Balance
from fastgan.train.capture import runner_for
from fastgan.train.classes import number_of
from fastgan.train.conditions import told
from fastgan.train.contrast import Contrast
from fastgan.train.dials import Dials
from fastgan.train.diversity import Diversity
from fastgan.train.draws import Draws
from fastgan.train.guard import Guard
from fastgan.train.metrics import Meter
from fastgan.train.nce import NCE
from fastgan.train.penalties import weighted
from fastgan.train.predictability import Predictability
from fastgan.train.step import Players, Step, Watch
from fastgan.train.vae import VAE

METHODS: dict[str, type[Contrast]] = {"vae": VAE, "nce": NCE, "predictability": Predictability}


def method_of(
    config: Config,
    players: Players,
    objective: Objective,
    draws: Draws,
    meter: Meter,
    dials: Dials,
    balance: Balance | None,
    guard: Guard,
    peers: Peers | None,
    samples: Dataset,
) -> Step:
    """The iteration that the configuration asks for, of these parts."""
    device = dials.clock.device
    kind: type[Step] = METHODS.get(config.method, Step)
    if issubclass(kind, Contrast):
        if number_of(players.generator) or told(players.generator):
            name, what = type(players.generator).__name__, "conditions" if told(players.generator) else "classes"
            raise UserError(
                f"method={config.method} tells no {what}, which {name} asks for: take generator=mlp or dcgan"
            )
        kind.prepare(config, players, samples)
    watch = Watch(
        config.log_every,
        Diversity(samples.sample_shape, device) if config.batch_size > 1 else None,
        balance.judge if balance else None,
        guard.mend if guard.kept else None,
    )
    return kind(
        players,
        objective,
        draws,
        meter,
        updates=config.updates,
        n_critic=config.n_critic,
        critic_warmup=config.critic_warmup,
        label_smoothing=config.label_smoothing,
        augment=check_policy(config.augment),
        pac=config.pac,
        bf16=build.bf16(config, device),
        penalty=weighted(config.penalty, dials["penalty_weight"], device),
        fixed_gradients=runner_for(device) is not None,
        peers=peers,
        watch=watch,
        class_weight=config.class_weight,
    )
