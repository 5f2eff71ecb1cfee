"""SNGAN's residual networks at CIFAR's size: pre-activation blocks, (conditional) BatchNorm in G, spectral norm in D.

``norm`` is torch.nn.utils.spectral_norm (hooks) or torch.nn.utils.parametrizations.spectral_norm.
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils import parametrizations


class ConditionalBatchNorm2d(nn.Module):
    def __init__(self, num_features, num_classes):
        super().__init__()
        self.num_features = num_features
        self.bn = nn.BatchNorm2d(num_features, affine=False)
        self.embed = nn.Embedding(num_classes, num_features * 2)
        self.embed.weight.data[:, :num_features].normal_(1, 0.02)
        self.embed.weight.data[:, num_features:].zero_()

    def forward(self, x, y):
        out = self.bn(x)
        gamma, beta = self.embed(y).chunk(2, 1)
        out = gamma.view(-1, self.num_features, 1, 1) * out + beta.view(-1, self.num_features, 1, 1)
        return out


class GBlock(nn.Module):
    def __init__(self, in_channels, out_channels, upsample=False, num_classes=0, interpolate=True):
        super().__init__()
        self.activation = nn.ReLU(True)
        self.upsample = upsample
        self.interpolate = interpolate
        self.num_classes = num_classes
        self.learnable_sc = in_channels != out_channels or upsample

        self.c1 = nn.Conv2d(in_channels, out_channels, 3, 1, padding=1)
        self.c2 = nn.Conv2d(out_channels, out_channels, 3, 1, padding=1)
        if num_classes > 0:
            self.b1 = ConditionalBatchNorm2d(in_channels, num_classes)
            self.b2 = ConditionalBatchNorm2d(out_channels, num_classes)
        else:
            self.b1 = nn.BatchNorm2d(in_channels)
            self.b2 = nn.BatchNorm2d(out_channels)
        if not interpolate:
            self.up = nn.Upsample(scale_factor=2)
        nn.init.xavier_uniform_(self.c1.weight.data, math.sqrt(2.0))
        nn.init.xavier_uniform_(self.c2.weight.data, math.sqrt(2.0))
        if self.learnable_sc:
            self.c_sc = nn.Conv2d(in_channels, out_channels, 1, 1, padding=0)
            nn.init.xavier_uniform_(self.c_sc.weight.data, 1.0)

    def _grow(self, x):
        if not self.upsample:
            return x
        if self.interpolate:
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return self.up(x)

    def _residual(self, x, y):
        h = x
        h = self.b1(h, y) if self.num_classes > 0 else self.b1(h)
        h = self.activation(h)
        h = self.c1(self._grow(h))
        h = self.b2(h, y) if self.num_classes > 0 else self.b2(h)
        h = self.activation(h)
        h = self.c2(h)
        return h

    def _shortcut(self, x):
        if self.learnable_sc:
            return self.c_sc(self._grow(x))
        return x

    def forward(self, x, y=None):
        return self._residual(x, y) + self._shortcut(x)


class Generator(nn.Module):
    def __init__(self, nz=128, ngf=256, bottom_width=4, num_classes=0, interpolate=True):
        super().__init__()
        self.ngf = ngf
        self.bottom_width = bottom_width
        self.l1 = nn.Linear(nz, (bottom_width**2) * ngf)
        self.block2 = GBlock(ngf, ngf, True, num_classes, interpolate)
        self.block3 = GBlock(ngf, ngf, True, num_classes, interpolate)
        self.block4 = GBlock(ngf, ngf, True, num_classes, interpolate)
        self.b5 = nn.BatchNorm2d(ngf)
        self.c5 = nn.Conv2d(ngf, 3, 3, 1, padding=1)
        self.activation = nn.ReLU(True)
        nn.init.xavier_uniform_(self.l1.weight.data, 1.0)
        nn.init.xavier_uniform_(self.c5.weight.data, 1.0)

    def forward(self, x, y=None):
        h = self.l1(x)
        h = h.view(x.shape[0], -1, self.bottom_width, self.bottom_width)
        h = self.block2(h, y)
        h = self.block3(h, y)
        h = self.block4(h, y)
        h = self.b5(h)
        h = self.activation(h)
        h = torch.tanh(self.c5(h))
        return h


class DBlockOptimized(nn.Module):
    def __init__(self, in_channels, out_channels, norm):
        super().__init__()
        self.activation = nn.ReLU(True)
        self.c1 = norm(nn.Conv2d(in_channels, out_channels, 3, 1, 1))
        self.c2 = norm(nn.Conv2d(out_channels, out_channels, 3, 1, 1))
        self.c_sc = norm(nn.Conv2d(in_channels, out_channels, 1, 1, 0))

    def _residual(self, x):
        h = x
        h = self.c1(h)
        h = self.activation(h)
        h = self.c2(h)
        h = F.avg_pool2d(h, 2)
        return h

    def _shortcut(self, x):
        return self.c_sc(F.avg_pool2d(x, 2))

    def forward(self, x):
        return self._residual(x) + self._shortcut(x)


class DBlock(nn.Module):
    def __init__(self, in_channels, out_channels, downsample, norm):
        super().__init__()
        self.activation = nn.ReLU(False)  # the shortcut reads x as well
        self.downsample = downsample
        self.learnable_sc = (in_channels != out_channels) or downsample
        self.c1 = norm(nn.Conv2d(in_channels, in_channels, 3, 1, 1))
        self.c2 = norm(nn.Conv2d(in_channels, out_channels, 3, 1, 1))
        if self.learnable_sc:
            self.c_sc = norm(nn.Conv2d(in_channels, out_channels, 1, 1, 0))

    def _residual(self, x):
        h = x
        h = self.activation(h)
        h = self.c1(h)
        h = self.activation(h)
        h = self.c2(h)
        if self.downsample:
            h = F.avg_pool2d(h, 2)
        return h

    def _shortcut(self, x):
        if self.learnable_sc:
            x = self.c_sc(x)
            if self.downsample:
                return F.avg_pool2d(x, 2)
            return x
        return x

    def forward(self, x):
        return self._residual(x) + self._shortcut(x)


class Discriminator(nn.Module):
    def __init__(self, ndf=128, num_classes=0, norm=parametrizations.spectral_norm):
        super().__init__()
        self.num_classes = num_classes
        self.block1 = DBlockOptimized(3, ndf, norm)
        self.block2 = DBlock(ndf, ndf, True, norm)
        self.block3 = DBlock(ndf, ndf, False, norm)
        self.block4 = DBlock(ndf, ndf, False, norm)
        self.l5 = norm(nn.Linear(ndf, 1))
        if num_classes > 0:
            self.l_y = norm(nn.Embedding(num_classes, ndf))
        self.activation = nn.ReLU(True)

    def forward(self, x, y=None):
        h = x
        h = self.block1(h)
        h = self.block2(h)
        h = self.block3(h)
        h = self.block4(h)
        h = self.activation(h)
        # global sum pooling
        h = torch.sum(h, dim=(2, 3))
        output = self.l5(h)
        if self.num_classes > 0:
            output = output + torch.sum(self.l_y(y) * h, dim=1, keepdim=True)
        return output
