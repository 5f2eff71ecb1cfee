"""DiffAugment: a discriminator's input, real or fake, randomly augmented in training."""

from __future__ import annotations

from torch import Tensor, nn

from fastgan.ops.diff_augment import POLICY, check_policy, diff_augment


class DiffAugment(nn.Module):
    """Differentiable Augmentation (Zhao et al. 2020) as a layer in front of a discriminator: one launch a direction.

    Like ``nn.Dropout`` it acts in training only: after ``eval()`` images pass as they are. It has no parameters.

    Args:
        policy: ``color``, ``translation`` and ``cutout``, joined by commas, in the order in which they are done, each
            at most once; ``""``: none.

    Shape: (N, C, H, W) -> (N, C, H, W). Gradients of any order; see ``fastgan.ops.diff_augment``. Each call draws anew,
    so that real and fake images differ in their draws as in the paper; ``rng`` of a call gives them draws in common.

    Raises:
        UserError: for an unknown or repeated step.
    """

    def __init__(self, policy: str = POLICY) -> None:
        super().__init__()
        self.policy = check_policy(policy)

    def forward(self, input: Tensor, rng: Tensor | None = None) -> Tensor:
        """Return the images augmented, in training; ``rng``: int64 (2), a seed and an offset, None for fresh ones."""
        return diff_augment(input, self.policy, rng=rng) if self.training else input

    def extra_repr(self) -> str:
        """Show the policy."""
        return f"policy={self.policy!r}"
