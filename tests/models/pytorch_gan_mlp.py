"""Fully connected GAN in the manner of PyTorch-GAN: helper closures, one Sequential, BatchNorm1d(n, 0.8)."""

import numpy as np
import torch.nn as nn


class Generator(nn.Module):
    def __init__(self, latent_dim=100, img_shape=(1, 28, 28), widths=(128, 256, 512, 1024)):
        super().__init__()
        self.img_shape = img_shape

        def block(in_feat, out_feat, normalize=True):
            layers = [nn.Linear(in_feat, out_feat)]
            if normalize:
                layers.append(nn.BatchNorm1d(out_feat, 0.8))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            return layers

        a, b, c, d = widths
        self.model = nn.Sequential(
            *block(latent_dim, a, normalize=False),
            *block(a, b),
            *block(b, c),
            *block(c, d),
            nn.Linear(d, int(np.prod(img_shape))),
            nn.Tanh(),
        )

    def forward(self, z):
        img = self.model(z)
        img = img.view(img.size(0), *self.img_shape)
        return img


class Discriminator(nn.Module):
    def __init__(self, img_shape=(1, 28, 28), widths=(512, 256)):
        super().__init__()
        self.model = nn.Sequential(
            nn.Linear(int(np.prod(img_shape)), widths[0]),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Linear(widths[0], widths[1]),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Linear(widths[1], 1),
            nn.Sigmoid(),
        )

    def forward(self, img):
        img_flat = img.view(img.size(0), -1)
        validity = self.model(img_flat)
        return validity
