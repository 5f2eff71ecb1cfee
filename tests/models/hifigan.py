"""Audio vocoder in the manner of HiFi-GAN: LeakyReLU in front of each convolution, weight norm everywhere.

``norm`` is torch.nn.utils.weight_norm (hooks) or torch.nn.utils.parametrizations.weight_norm.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn import Conv1d, Conv2d, ConvTranspose1d
from torch.nn.utils import parametrizations, parametrize, remove_weight_norm

LRELU_SLOPE = 0.1


def init_weights(m, mean=0.0, std=0.01):
    classname = m.__class__.__name__
    if classname.find("Conv") != -1:
        m.weight.data.normal_(mean, std)


def get_padding(kernel_size, dilation=1):
    return int((kernel_size * dilation - dilation) / 2)


def unwrap(layer):
    if parametrize.is_parametrized(layer):
        parametrize.remove_parametrizations(layer, "weight")
    else:
        remove_weight_norm(layer)


class ResBlock1(nn.Module):
    def __init__(self, channels, kernel_size=3, dilation=(1, 3, 5), norm=parametrizations.weight_norm):
        super().__init__()
        self.convs1 = nn.ModuleList(
            [
                norm(Conv1d(channels, channels, kernel_size, 1, dilation=d, padding=get_padding(kernel_size, d)))
                for d in dilation
            ]
        )
        self.convs1.apply(init_weights)
        self.convs2 = nn.ModuleList(
            [
                norm(Conv1d(channels, channels, kernel_size, 1, dilation=1, padding=get_padding(kernel_size, 1)))
                for _ in dilation
            ]
        )
        self.convs2.apply(init_weights)

    def forward(self, x):
        for c1, c2 in zip(self.convs1, self.convs2):  # noqa: B905
            xt = F.leaky_relu(x, LRELU_SLOPE)
            xt = c1(xt)
            xt = F.leaky_relu(xt, LRELU_SLOPE)
            xt = c2(xt)
            x = xt + x
        return x

    def remove_weight_norm(self):
        for layer in self.convs1:
            unwrap(layer)
        for layer in self.convs2:
            unwrap(layer)


class Generator(nn.Module):
    def __init__(
        self,
        mels=80,
        upsample_rates=(8, 8, 2, 2),
        upsample_kernel_sizes=(16, 16, 4, 4),
        upsample_initial_channel=512,
        resblock_kernel_sizes=(3, 7, 11),
        resblock_dilation_sizes=((1, 3, 5), (1, 3, 5), (1, 3, 5)),
        norm=parametrizations.weight_norm,
    ):
        super().__init__()
        self.num_kernels = len(resblock_kernel_sizes)
        self.num_upsamples = len(upsample_rates)
        self.conv_pre = norm(Conv1d(mels, upsample_initial_channel, 7, 1, padding=3))

        self.ups = nn.ModuleList()
        for i, (u, k) in enumerate(zip(upsample_rates, upsample_kernel_sizes)):  # noqa: B905
            wide = upsample_initial_channel // (2**i)
            self.ups.append(norm(ConvTranspose1d(wide, wide // 2, k, u, padding=(k - u) // 2)))

        self.resblocks = nn.ModuleList()
        for i in range(len(self.ups)):
            ch = upsample_initial_channel // (2 ** (i + 1))
            for k, d in zip(resblock_kernel_sizes, resblock_dilation_sizes):  # noqa: B905
                self.resblocks.append(ResBlock1(ch, k, d, norm))

        self.conv_post = norm(Conv1d(ch, 1, 7, 1, padding=3))
        self.ups.apply(init_weights)
        self.conv_post.apply(init_weights)

    def forward(self, x):
        x = self.conv_pre(x)
        for i in range(self.num_upsamples):
            x = F.leaky_relu(x, LRELU_SLOPE)
            x = self.ups[i](x)
            xs = None
            for j in range(self.num_kernels):
                if xs is None:
                    xs = self.resblocks[i * self.num_kernels + j](x)
                else:
                    xs += self.resblocks[i * self.num_kernels + j](x)
            x = xs / self.num_kernels
        x = F.leaky_relu(x)
        x = self.conv_post(x)
        x = torch.tanh(x)
        return x

    def remove_weight_norm(self):
        for layer in self.ups:
            unwrap(layer)
        for layer in self.resblocks:
            layer.remove_weight_norm()
        unwrap(self.conv_pre)
        unwrap(self.conv_post)


class DiscriminatorP(nn.Module):
    def __init__(self, period, widths=(32, 128, 512, 1024), kernel_size=5, stride=3, norm=parametrizations.weight_norm):
        super().__init__()
        self.period = period
        pad = (get_padding(5, 1), 0)
        ins = (1, *widths)
        self.convs = nn.ModuleList(
            [norm(Conv2d(a, b, (kernel_size, 1), (stride, 1), padding=pad)) for a, b in zip(ins, widths)]  # noqa: B905
        )
        self.convs.append(norm(Conv2d(widths[-1], widths[-1], (kernel_size, 1), 1, padding=(2, 0))))
        self.conv_post = norm(Conv2d(widths[-1], 1, (3, 1), 1, padding=(1, 0)))

    def forward(self, x):
        fmap = []

        # 1d to 2d
        b, c, t = x.shape
        if t % self.period != 0:  # pad first
            n_pad = self.period - (t % self.period)
            x = F.pad(x, (0, n_pad), "reflect")
            t = t + n_pad
        x = x.view(b, c, t // self.period, self.period)

        for layer in self.convs:
            x = layer(x)
            x = F.leaky_relu(x, LRELU_SLOPE)
            fmap.append(x)
        x = self.conv_post(x)
        fmap.append(x)
        x = torch.flatten(x, 1, -1)

        return x, fmap


class DiscriminatorS(nn.Module):
    """At the scale of the samples themselves: grouped convolutions."""

    def __init__(self, width=128, norm=parametrizations.weight_norm):
        super().__init__()
        w = width
        self.convs = nn.ModuleList(
            [
                norm(Conv1d(1, w, 15, 1, padding=7)),
                norm(Conv1d(w, w, 41, 2, groups=4, padding=20)),
                norm(Conv1d(w, w * 2, 41, 2, groups=16, padding=20)),
                norm(Conv1d(w * 2, w * 4, 41, 4, groups=16, padding=20)),
                norm(Conv1d(w * 4, w * 8, 41, 4, groups=16, padding=20)),
                norm(Conv1d(w * 8, w * 8, 5, 1, padding=2)),
            ]
        )
        self.conv_post = norm(Conv1d(w * 8, 1, 3, 1, padding=1))

    def forward(self, x):
        fmap = []
        for layer in self.convs:
            x = layer(x)
            x = F.leaky_relu(x, LRELU_SLOPE)
            fmap.append(x)
        x = self.conv_post(x)
        fmap.append(x)
        x = torch.flatten(x, 1, -1)
        return x, fmap


class MultiPeriodDiscriminator(nn.Module):
    def __init__(self, periods=(2, 3, 5, 7, 11), widths=(32, 128, 512, 1024), norm=parametrizations.weight_norm):
        super().__init__()
        self.discriminators = nn.ModuleList([DiscriminatorP(p, widths, norm=norm) for p in periods])

    def forward(self, y, y_hat):
        y_d_rs, y_d_gs, fmap_rs, fmap_gs = [], [], [], []
        for d in self.discriminators:
            y_d_r, fmap_r = d(y)
            y_d_g, fmap_g = d(y_hat)
            y_d_rs.append(y_d_r)
            fmap_rs.append(fmap_r)
            y_d_gs.append(y_d_g)
            fmap_gs.append(fmap_g)
        return y_d_rs, y_d_gs, fmap_rs, fmap_gs
