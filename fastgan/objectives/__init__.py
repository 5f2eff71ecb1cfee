"""Value functions of the two-player game, and penalties: pure functions of logits and critics. Real is label 1."""

from fastgan.objectives.adversarial import OBJECTIVES, Objective, discriminator_loss, generator_loss, objective
from fastgan.objectives.lazy import Lazy
from fastgan.objectives.monitors import gradient_norm, weight_norm
from fastgan.objectives.penalties import (
    Anchors,
    Penalty,
    dragan,
    gradient_penalty,
    lecam,
    r1,
    r1_from,
    r2,
    zero_centered,
)

__all__ = [
    "OBJECTIVES",
    "Anchors",
    "Lazy",
    "Objective",
    "Penalty",
    "discriminator_loss",
    "dragan",
    "generator_loss",
    "gradient_norm",
    "gradient_penalty",
    "lecam",
    "objective",
    "r1",
    "r1_from",
    "r2",
    "weight_norm",
    "zero_centered",
]
