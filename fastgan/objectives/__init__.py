"""Value functions of the two-player game: pure functions of logits. Real is label 1."""

from fastgan.objectives.adversarial import OBJECTIVES, Objective, discriminator_loss, generator_loss, objective

__all__ = ["OBJECTIVES", "Objective", "discriminator_loss", "generator_loss", "objective"]
