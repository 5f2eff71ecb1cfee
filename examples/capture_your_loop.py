"""Your own training loop, with its step replayed as one CUDA graph on a GPU; on a CPU it runs as it is.

python examples/capture_your_loop.py
"""

import torch
import torch.nn.functional as F
from torch import nn

import fastgan

device = "cuda" if torch.cuda.is_available() else "cpu"
G = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 2)).to(device)
D = nn.Sequential(nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1)).to(device)
rate = torch.tensor(1e-3, device=device)  # a tensor: a captured step reads it anew each time
g_optimizer, d_optimizer = (fastgan.optim.Adam(net.parameters(), rate, (0.5, 0.999)) for net in (G, D))


def step(real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Update D with a zero-centred penalty at real samples, then G."""
    fake = G(torch.randn(len(real), 16, device=device))
    seen = real.requires_grad_()
    judged = D(seen)
    (slope,) = torch.autograd.grad(judged.sum(), seen, create_graph=True)
    d_loss = F.softplus(-judged).mean() + F.softplus(D(fake.detach())).mean() + 0.05 * slope.square().sum(1).mean()
    d_optimizer.zero_grad()
    d_loss.backward()
    d_optimizer.step()
    g_loss = F.softplus(-D(fake)).mean()
    g_optimizer.zero_grad()
    g_loss.backward()
    g_optimizer.step()
    return d_loss.detach(), g_loss.detach()  # no .item(): it would wait for the device


captured = fastgan.capture(step, state=[G, D, g_optimizer, d_optimizer])
for number in range(3):
    rate.fill_(1e-3 * 0.9**number)  # a schedule
    angle = torch.rand(256, device=device) * 6.28318
    d_loss, g_loss = captured(torch.stack((angle.cos(), angle.sin()), 1))
    print(f"step {number}: D {d_loss.item():.3f}, G {g_loss.item():.3f}")
