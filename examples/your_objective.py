"""An objective of your own: a function of logits, here an f-GAN's, with alarms, penalties and graphs as for any other.

python examples/your_objective.py [STEPS]
"""

import sys

import torch
from torch import Tensor

import fastgan

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1].isdigit() else 3


def pearson(real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Pearson's chi-squared divergence (Nowozin et al., 2016, table 2): D maximises E T(x) - E T(y)^2 / 4 - E T(y)."""
    conjugate = fake_logits.square() / 4 + fake_logits
    return conjugate.mean() - real_logits.mean(), -conjugate.mean()


trainer = fastgan.Trainer(
    "ring8",
    objective=pearson,
    penalty={"name": "r1", "weight": 1.0},
    generator_optimizer={"lr": 5e-4},
    discriminator_optimizer={"lr": 5e-4},
    log_every=max(1, STEPS // 3),
    **{"generator.hidden": [64, 64], "discriminator.hidden": [64, 64]},
)
trainer.fit(STEPS, progress=False)
for row in trainer.history:
    print(f"step {row['step'] - 1}: D {row['loss_d']:.3f}, G {row['loss_g']:.3f}")
points = trainer.sample(2000, seed=0)
modes = trainer.data.modes
near = torch.cdist(points, modes.centres).min(1)
hit = near.values < 3 * modes.sigma
print(f"{len(near.indices[hit].unique())} of {len(modes.centres)} modes")
