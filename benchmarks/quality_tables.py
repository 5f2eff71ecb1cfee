"""The tables of the literature that are repeated: which systems, by which metric, and what their authors found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PACKED = "Lin et al., 2018 (PacGAN), table 1: 10 trials"
STACKED = (
    "Lin et al., 2018 (PacGAN), table 2; for RpGAN + R1 + R2 Huang et al., 2024 (R3GAN), whose networks are others"
)
ORACLE = "train[:10000], the estimator's oracle"
POINTS_RELATIVISTIC: dict[str, Any] = {
    "objective": "relativistic",
    "penalty": {"name": "r1_r2", "weight": 0.5},
}
POINTS_WASSERSTEIN: dict[str, Any] = {
    "objective": "wasserstein",
    "penalty": {"name": "gradient_penalty", "weight": 1.0},
    "n_critic": 3,
    "updates": "fresh",
    "generator.norm": False,
    "generator_optimizer": {"betas": [0.5, 0.9]},
    "discriminator_optimizer": {"betas": [0.5, 0.9]},
}
DIGITS_RELATIVISTIC: dict[str, Any] = {  # as the preset rpgan-r1r2: batch norm would mix what R1 and R2 take apart
    "objective": "relativistic",
    "penalty": {"name": "r1_r2", "weight": 1.0},
    "updates": "fresh",
    "generator.norm": False,
    "generator.activation": "leaky_relu",
    "discriminator.norm": False,
    "generator_optimizer": {"betas": [0.0, 0.99]},
    "discriminator_optimizer": {"betas": [0.0, 0.99]},
    "ema": {"decay": 0.999},
}


@dataclass(frozen=True)
class System:
    """A preset with keys over it, and its published figures by the names of the metric's values.

    Attributes:
        name, preset, keys, published: these.
        options: of the metric, over those of the table.
        steps: so many whatever is asked for; None: as the table and the command say.
    """

    name: str
    preset: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        name, title: what it is called on the command line and on the page.
        metric: a name of ``fastgan.evaluate``; ``values``: which of its values stand in the table.
        systems: its rows.
        steps: so many that the authors trained; ``short``: where nothing else is asked for on a CPU.
        seeds: runs of each system; ``short_seeds`` likewise.
        source: whose figures are beside ours.
        options: of the metric.
    """

    name: str
    title: str
    metric: str
    values: tuple[str, ...]
    systems: tuple[System, ...]
    steps: int
    short: int
    seeds: int
    source: str
    short_seeds: int = 3
    options: Mapping[str, Any] = field(default_factory=dict)


def _points(preset: str, packing: int, plain: tuple[str, str, str], packed: tuple[str, str, str]) -> tuple[System, ...]:
    """The four systems of a mixture in the plane."""
    named = "modes covered", "high quality %", "reverse KL"
    return (
        System("GAN", preset, {}, dict(zip(named, plain, strict=True))),
        System(f"PacGAN{packing}", preset, {"pac": packing}, dict(zip(named, packed, strict=True))),
        System("RpGAN + R1 + R2", preset, POINTS_RELATIVISTIC),
        System("WGAN-GP", preset, POINTS_WASSERSTEIN),
    )


TABLES = {
    table.name: table
    for table in (
        Table(
            "ring",
            "Eight Gaussians on a ring",
            "modes",
            ("modes covered", "high quality %", "reverse KL"),
            _points("ring8", 2, ("6.3", "98.2", "0.45"), ("7.9", "95.6", "0.07")),
            steps=400_000,
            short=10_000,
            seeds=10,
            source=PACKED,
        ),
        Table(
            "grid",
            "Twenty-five Gaussians on a grid",
            "modes",
            ("modes covered", "high quality %", "reverse KL"),
            _points("grid25", 4, ("17.3", "94.8", "0.70"), ("24.8", "93.6", "0.04")),
            steps=400_000,
            short=10_000,
            seeds=10,
            source=PACKED,
        ),
        Table(
            "parzen",
            "Parzen-window log-likelihood on MNIST",
            "parzen",
            ("log-likelihood", "standard error"),
            (
                System("Goodfellow et al.", "gan-mnist-2014", {}, {"log-likelihood": "225", "standard error": "2"}),
                System(ORACLE, "gan-mnist-2014", options={"oracle": True}, steps=0),
            ),
            steps=125_000,
            short=15_000,
            seeds=1,
            short_seeds=1,
            source="Goodfellow et al., 2014, table 1",
        ),
        Table(
            "stacked",
            "Stacked MNIST, a thousand modes",
            "stacked_mnist",
            ("modes covered", "KL to uniform"),
            (
                System("DCGAN", "stacked-mnist", {}, {"modes covered": "99", "KL to uniform": "3.40"}),
                System("PacDCGAN2", "stacked-mnist", {"pac": 2}, {"modes covered": "1000", "KL to uniform": "0.06"}),
                System(
                    "RpGAN + R1 + R2",
                    "stacked-mnist",
                    DIGITS_RELATIVISTIC,
                    {"modes covered": "1000", "KL to uniform": "0.03 to 0.08"},
                ),
            ),
            steps=100_000,
            short=3000,
            seeds=10,
            short_seeds=1,
            source=STACKED,
        ),
    )
}
