"""Losses as modules: torch.nn's binary cross entropies, and what either player of a GAN minimises."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastgan.ops.bce import bce, bce_with_logits
from fastgan.ops.gan_loss import check_options, gan_loss


class BCEWithLogitsLoss(nn.BCEWithLogitsLoss):
    """``nn.BCEWithLogitsLoss`` in one launch, and one backward: same arguments, buffers and ``state_dict``.

    Shape: input and target (*) -> (), or (*) for ``reduction="none"``. Gradients of any order; see
    ``fastgan.ops.bce_with_logits``.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits."""
        return bce_with_logits(input, target, self.weight, self.reduction, self.pos_weight)


class BCELoss(nn.BCELoss):
    """``nn.BCELoss`` in one launch, and one backward: same arguments, buffers and ``state_dict``.

    Shape: input and target (*) -> (), or (*) for ``reduction="none"``. Gradients of any order; see ``fastgan.ops.bce``.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of probabilities."""
        return bce(input, target, self.weight, self.reduction)


class GANLoss(nn.Module):
    """Both players' losses: ``loss(real_logits, fake_logits)`` and ``loss.generator(fake_logits)``.

    Args:
        name: of the objective, as ``fastgan.ops.gan_loss`` lists them.
        label_smoothing: how much less than 1 the real label is, or a pair: that, and how much more than 0 the fake one
            is.
        label_flip: the probability that a label is the other one.

    Shape: logits of any shape -> (), fp32; float64 logits give float64. Gradients of any order; see
    ``fastgan.ops.gan_loss``.

    Raises:
        UserError: for an unknown name, and an option that the objective has no use for.
    """

    def __init__(
        self, name: str, *, label_smoothing: float | tuple[float, float] = 0.0, label_flip: float = 0.0
    ) -> None:
        super().__init__()
        check_options(name, label_smoothing, label_flip)
        self.name = name
        self.label_smoothing = label_smoothing
        self.label_flip = label_flip

    def forward(self, real_logits: Tensor, fake_logits: Tensor, **options: Any) -> Tensor:
        """Return the discriminator's loss; ``options``: weights, ``rng`` and ``monitors`` of the op."""
        smoothing, flip = self.label_smoothing, self.label_flip
        return gan_loss(self.name, real_logits, fake_logits, label_smoothing=smoothing, label_flip=flip, **options)

    def generator(self, fake_logits: Tensor, real_logits: Tensor | None = None, **options: Any) -> Tensor:
        """Return the generator's loss; the relativistic ones need the real logits too."""
        return gan_loss(self.name, real_logits, fake_logits, side="generator", **options)

    def extra_repr(self) -> str:
        """Show the objective and what is done to its labels."""
        smoothing = f", label_smoothing={self.label_smoothing}" if self.label_smoothing else ""
        return f"{self.name!r}{smoothing}" + (f", label_flip={self.label_flip}" if self.label_flip else "")
