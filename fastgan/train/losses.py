"""The losses of both players at logits, with what is seen at them, and their slopes by each logit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastgan.errors import UserError
from fastgan.objectives import OBJECTIVES, Objective
from fastgan.ops import unit_gradient
from fastgan.ops.gan_loss import check_options

SCORED = ("minimax", "non_saturating", "least_squares", "wasserstein")  # whose monitors are the scores of metrics


class Losses:
    """An objective's losses, with the real label less than 1 by ``label_smoothing`` in the discriminator's.

    ``critic``: what D returns is a value, not log odds; so it is for least squares, whose D is to return 1 and 0
    (``valued``). ``balance`` takes the shares of real and fake that D tells rightly, says on the device whether D's
    update is to be skipped, and has told its optimiser so. Raises UserError where the objective has no labels to
    smooth.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        critic: bool = False,
        balance: Callable[[Tensor], Tensor] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        self.objective, self.balance = objective, balance
        squares = objective is OBJECTIVES["least_squares"]
        self.valued, self.bound = critic or squares, 0.5 if squares else 0.0
        self._options: dict[str, Any] = {}
        if label_smoothing:
            if OBJECTIVES.get(objective.name) is not objective:
                raise UserError("label_smoothing is for objectives by name: smooth the labels in your own")
            check_options(objective.name, label_smoothing, 0.0)
            self._options = {"label_smoothing": label_smoothing}

    def of_discriminator(self, real_logits: Tensor, fake_logits: Tensor, **more: Tensor) -> Tensor:
        """The discriminator's loss alone."""
        return self.objective.discriminator(real_logits, fake_logits, **self._options, **more)

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss, and what is seen at it: the loss, mean scores, whether its update is skipped.

        Where the loss is one launch, it brings the rest; on a CPU plain means cost less.
        """
        objective, balance = self.objective, self.balance
        scores = rightly = None
        if OBJECTIVES.get(objective.name) is objective and (real_logits.is_cuda or balance is not None):
            monitors = torch.empty(4, device=real_logits.device)
            loss = self.of_discriminator(real_logits, fake_logits, monitors=monitors)
            scores, rightly = monitors.split(2)
        else:
            loss = self.of_discriminator(real_logits, fake_logits)
        seen = {"loss_d": loss.detach()}
        if scores is not None and objective.name in SCORED:
            seen["d_real"], seen["d_fake"] = scores.unbind()
        else:
            seen |= self.scores(real_logits.detach(), fake_logits.detach())
        if balance is not None:
            seen["balanced"] = balance(_rightly(real_logits, fake_logits, self.bound) if rightly is None else rightly)
        return loss, seen

    def scores(self, real_logits: Tensor, fake_logits: Tensor) -> dict[str, Tensor]:
        """How both batches are judged: D(x), which is the sigmoid of a logit, or the value itself."""
        if self.valued:
            return {"d_real": real_logits.float().mean(), "d_fake": fake_logits.float().mean()}
        return {"d_real": real_logits.float().sigmoid().mean(), "d_fake": fake_logits.float().sigmoid().mean()}

    def slopes(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """What is seen at the discriminator's loss, and its slope by each logit."""
        leaves = [logits.detach().requires_grad_() for logits in (real_logits, fake_logits)]
        loss, seen = self.discriminator(*leaves)
        to_real, to_fake = torch.autograd.grad(loss, leaves, unit_gradient(loss))
        return seen, to_real, to_fake

    def generator_slopes(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
        """The generator's loss, and its slope by each logit of a fake sample."""
        leaf = fake_logits.detach().requires_grad_()
        given = (leaf, real_logits.detach()) if self.objective.needs_real else (leaf,)
        loss = self.objective.generator(*given)
        (slopes,) = torch.autograd.grad(loss, (leaf,), unit_gradient(loss))
        return loss.detach(), slopes


@torch.no_grad()
def _rightly(real_logits: Tensor, fake_logits: Tensor, bound: float) -> Tensor:
    """The shares of real and of fake samples that are told rightly by ``bound``."""
    return torch.stack([(real_logits > bound).float().mean(), (fake_logits <= bound).float().mean()])
