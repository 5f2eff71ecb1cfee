"""A small StyleGAN2, written as such networks are: only its second import line is this project's."""

import numpy as np
import torch

from fastgan.stylegan import bias_act, conv2d_resample, fma, upfirdn2d


def modulated_conv2d(x, weight, styles, noise=None, up=1, padding=0, resample_filter=None, demodulate=True):
    """A weight for each sample, by groups; or images that are scaled, in training."""
    batch, (_, in_channels, kh, kw) = x.shape[0], weight.shape
    w = weight.unsqueeze(0) * styles.reshape(batch, 1, -1, 1, 1)
    if demodulate:
        dcoefs = (w.square().sum(dim=[2, 3, 4]) + 1e-8).rsqrt()
    if torch.is_grad_enabled():
        x = x * styles.to(x.dtype).reshape(batch, -1, 1, 1)
        x = conv2d_resample.conv2d_resample(
            x=x, w=weight.to(x.dtype), f=resample_filter, up=up, padding=padding, flip_weight=(up == 1)
        )
        if demodulate:
            noise = torch.zeros([], dtype=x.dtype) if noise is None else noise
            x = fma.fma(x, dcoefs.to(x.dtype).reshape(batch, -1, 1, 1), noise.to(x.dtype))
        return x
    if demodulate:
        w = w * dcoefs.reshape(batch, -1, 1, 1, 1)
    x = x.reshape(1, -1, *x.shape[2:])
    w = w.reshape(-1, in_channels, kh, kw).to(x.dtype)
    x = conv2d_resample.conv2d_resample(
        x=x, w=w, f=resample_filter, up=up, padding=padding, groups=batch, flip_weight=(up == 1)
    )
    x = x.reshape(batch, -1, *x.shape[2:])
    return x if noise is None else x.add_(noise)


class FullyConnectedLayer(torch.nn.Module):
    def __init__(self, in_features, out_features, activation="linear", bias_init=0):
        super().__init__()
        self.activation = activation
        self.weight = torch.nn.Parameter(torch.randn([out_features, in_features]))
        self.bias = torch.nn.Parameter(torch.full([out_features], np.float32(bias_init)))
        self.weight_gain = 1 / np.sqrt(in_features)

    def forward(self, x):
        w = self.weight.to(x.dtype) * self.weight_gain
        return bias_act.bias_act(x.matmul(w.t()), self.bias.to(x.dtype), act=self.activation)


class Conv2dLayer(torch.nn.Module):
    def __init__(self, in_channels, out_channels, kernel_size, bias=True, activation="linear", down=1, conv_clamp=None):
        super().__init__()
        self.activation, self.down, self.conv_clamp = activation, down, conv_clamp
        self.register_buffer("resample_filter", upfirdn2d.setup_filter([1, 3, 3, 1]))
        self.padding = kernel_size // 2
        self.weight_gain = 1 / np.sqrt(in_channels * (kernel_size**2))
        self.act_gain = bias_act.activation_funcs[activation].def_gain
        self.weight = torch.nn.Parameter(torch.randn([out_channels, in_channels, kernel_size, kernel_size]))
        self.bias = torch.nn.Parameter(torch.zeros([out_channels])) if bias else None

    def forward(self, x, gain=1):
        w = self.weight * self.weight_gain
        b = self.bias.to(x.dtype) if self.bias is not None else None
        x = conv2d_resample.conv2d_resample(
            x=x, w=w.to(x.dtype), f=self.resample_filter, down=self.down, padding=self.padding
        )
        clamp = self.conv_clamp * gain if self.conv_clamp is not None else None
        return bias_act.bias_act(x, b, act=self.activation, gain=self.act_gain * gain, clamp=clamp)


class SynthesisLayer(torch.nn.Module):
    def __init__(self, in_channels, out_channels, w_dim, resolution, up=1, activation="lrelu", conv_clamp=2.0):
        super().__init__()
        self.up, self.activation, self.conv_clamp = up, activation, conv_clamp
        self.register_buffer("resample_filter", upfirdn2d.setup_filter([1, 3, 3, 1]))
        self.act_gain = bias_act.activation_funcs[activation].def_gain
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = torch.nn.Parameter(torch.randn([out_channels, in_channels, 3, 3]))
        self.register_buffer("noise_const", torch.randn([resolution, resolution]))
        self.noise_strength = torch.nn.Parameter(torch.full([], 0.1))
        self.bias = torch.nn.Parameter(torch.zeros([out_channels]))

    def forward(self, x, w):
        noise = self.noise_const * self.noise_strength
        x = modulated_conv2d(x, self.weight, self.affine(w), noise, self.up, 1, self.resample_filter)
        b = self.bias.to(x.dtype)
        return bias_act.bias_act(x, b, act=self.activation, gain=self.act_gain, clamp=self.conv_clamp)


class Generator(torch.nn.Module):
    def __init__(self, z_dim=6, w_dim=5, channels=2):
        super().__init__()
        self.mapping = FullyConnectedLayer(z_dim, w_dim, activation="lrelu")
        self.const = torch.nn.Parameter(torch.randn([channels, 4, 4]))
        self.conv0 = SynthesisLayer(channels, channels, w_dim, 4, activation="swish")
        self.conv1 = SynthesisLayer(channels, channels, w_dim, 8, up=2)
        self.register_buffer("resample_filter", upfirdn2d.setup_filter([1, 3, 3, 1]))
        self.rgb = torch.nn.ParameterList([torch.randn([3, channels, 1, 1]) for _ in range(2)])
        self.affine = FullyConnectedLayer(w_dim, channels, bias_init=1)

    def synthesis(self, w):
        x = self.conv0(self.const.unsqueeze(0).repeat([w.shape[0], 1, 1, 1]), w)
        img = modulated_conv2d(x, self.rgb[0], self.affine(w), demodulate=False)
        x = self.conv1(x, w)
        img = upfirdn2d.upsample2d(img, self.resample_filter)
        return img.add_(modulated_conv2d(x, self.rgb[1], self.affine(w), demodulate=False))

    def forward(self, z):
        return self.synthesis(self.mapping(z))


class MinibatchStdLayer(torch.nn.Module):
    def forward(self, x, group_size=2):
        _, channels, height, width = x.shape
        y = x.reshape(group_size, -1, 1, channels, height, width)
        y = ((y - y.mean(dim=0)).square().mean(dim=0) + 1e-8).sqrt().mean(dim=[2, 3, 4])
        return torch.cat([x, y.reshape(-1, 1, 1, 1).repeat(group_size, 1, height, width)], dim=1)


class Discriminator(torch.nn.Module):
    def __init__(self, channels=2, mbstd=None):
        super().__init__()
        self.fromrgb = Conv2dLayer(3, channels, kernel_size=1, activation="lrelu", conv_clamp=2.0)
        self.conv0 = Conv2dLayer(channels, channels, kernel_size=3, activation="lrelu", conv_clamp=2.0)
        self.conv1 = Conv2dLayer(channels, channels, kernel_size=3, activation="lrelu", down=2, conv_clamp=2.0)
        self.skip = Conv2dLayer(channels, channels, kernel_size=1, bias=False, down=2)
        self.mbstd = mbstd or MinibatchStdLayer()
        self.conv = Conv2dLayer(channels + 1, channels, kernel_size=3, activation="tanh")
        self.out = FullyConnectedLayer(channels * 16, 1)

    def forward(self, img):
        x = self.fromrgb(img)
        y = self.skip(x, gain=np.sqrt(0.5))
        x = self.conv1(self.conv0(x), gain=np.sqrt(0.5))
        x = self.conv(self.mbstd(y.add_(x)))
        return self.out(x.flatten(1))
