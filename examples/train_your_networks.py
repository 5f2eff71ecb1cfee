"""Networks and data of your own, trained by the engine: alarms, pictures, checkpoints and graphs are its affair.

python examples/train_your_networks.py [STEPS]
"""

import sys
import tempfile

import torch
from torch import nn

import fastgan
from fastgan.nn import Chain, LinearAct

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1].isdigit() else 3


class Spiral(nn.Module):
    """z (n, 4) -> points (n, 2): a network like any other; its Chain runs in few launches."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Chain(
            *(nn.Linear(4, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU()),
            *(nn.Linear(128, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU()),
            nn.Linear(128, 2),
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Map latents to points."""
        points: torch.Tensor = self.layers(z)
        return points


t = torch.rand(20_000, 1).sqrt() * 9
data = torch.cat((t * t.cos(), t * t.sin()), 1) / 9 + 0.02 * torch.randn(20_000, 2)
D = nn.Sequential(LinearAct(2, 128, negative_slope=0.2), LinearAct(128, 128, negative_slope=0.2), nn.Linear(128, 1))

with tempfile.TemporaryDirectory() as folder:
    trainer = fastgan.Trainer(
        generator=Spiral(),
        discriminator=D,
        data=data,
        z_dim=4,
        objective="relativistic",
        penalty={"name": "r1_r2", "weight": 0.1},
        batch_size=256,
        ema={"decay": 0.999},
        log_every=max(1, STEPS // 3),
        out=f"{folder}/spiral",
    )
    trainer.fit(STEPS, progress=False)
    for row in trainer.history:
        print(f"step {row['step'] - 1}: D {row['loss_d']:.3f}, G {row['loss_g']:.3f}, {row['diversity']:.2f} as varied")
    points = trainer.sample(1000, seed=0)  # by the averaged weights
    near = torch.cdist(points, data).min(1).values
    print(f"{(near < 0.06).float().mean():.0%} of 1,000 points lie on the spiral")
