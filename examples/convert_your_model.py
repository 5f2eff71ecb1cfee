"""A DCGAN as PyTorch's example writes it, converted: what goes together now, and a step of its training as ever.

python examples/convert_your_model.py
"""

import torch
import torch.nn.functional as F
from torch import nn

import fastgan

device = "cuda" if torch.cuda.is_available() else "cpu"
G = nn.Sequential(
    *(nn.ConvTranspose2d(64, 128, 4, bias=False), nn.BatchNorm2d(128), nn.ReLU(True)),
    *(nn.ConvTranspose2d(128, 64, 4, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(True)),
    *(nn.ConvTranspose2d(64, 3, 4, 2, 1), nn.Tanh()),
).to(device)
D = nn.Sequential(
    *(nn.Conv2d(3, 64, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)),
    *(nn.Conv2d(64, 128, 4, 2, 1, bias=False), nn.BatchNorm2d(128), nn.LeakyReLU(0.2, inplace=True)),
    *(nn.Conv2d(128, 1, 4), nn.Flatten()),
).to(device)
g_optimizer, d_optimizer = (torch.optim.Adam(net.parameters(), 2e-4, (0.5, 0.999)) for net in (G, D))

for name, net in (("G", G), ("D", D)):
    print(f"{name}\n{fastgan.convert(net, channels_last=True)}\n")  # optimisers, state_dict, classes: as they were

real = torch.rand(16, 3, 16, 16, device=device) * 2 - 1
for step in range(3):
    fake = G(torch.randn(16, 64, 1, 1, device=device))
    d_loss = F.softplus(-D(real)).mean() + F.softplus(D(fake.detach())).mean()
    d_optimizer.zero_grad()
    d_loss.backward()
    d_optimizer.step()
    g_loss = F.softplus(-D(fake)).mean()
    g_optimizer.zero_grad()
    g_loss.backward()
    g_optimizer.step()
    print(f"step {step}: D {d_loss.item():.3f}, G {g_loss.item():.3f}")
