"""``balance=auto``: updates of a discriminator that wins too easily are skipped, by a flag on the device.

As Wu et al. 2016, "Learning a Probabilistic Latent Space of Object Shapes via 3D Generative-Adversarial Modeling",
section 3.2: the discriminator is updated only where it tells at most 80% of a batch rightly. There the batch is the
last one, here the very one of the update.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.errors import UserError
from fastgan.objectives import Objective
from fastgan.ops import peers
from fastgan.train.guard import skips
from fastgan.train.step import Players

MOST = 0.8  # of a batch, real and fake, that may be told rightly


class Balance:
    """The flag, which the discriminator's optimiser reads at each step as that of a GradScaler: not 0 skips it whole.

    Raises UserError for an optimiser that cannot, and for a critic, whose logits have no sign to be right by.
    """

    def __init__(self, objective: Objective, players: Players, device: torch.device) -> None:
        if objective.name == "wasserstein":
            raise UserError("balance=auto judges a discriminator by what it tells rightly, and a critic tells nothing")
        optimizer = skips(players.discriminator_optimizer, "discriminator", "balance=auto")
        self.flag = torch.zeros(1, device=device)
        optimizer.found_inf = self.flag  # type: ignore[attr-defined]

    @torch.no_grad()
    def judge(self, rightly: Tensor) -> Tensor:
        """Raise the flag for the update at hand, or take it down; return it. ``rightly``: shares of real and fake."""
        self.flag.copy_(peers.mean(rightly.mean()).gt(MOST).reshape(1))
        return self.flag
