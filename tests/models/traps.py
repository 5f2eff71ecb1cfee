"""Short networks of the kind that trips whoever rewrites models: what each does beside its layers has to stay."""

import torch
import torch.nn.functional as F
from torch import nn


class NoiseInTraining(nn.Module):
    """Control flow on ``self.training``."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(10, 12)
        self.bn = nn.BatchNorm1d(12)
        self.fc2 = nn.Linear(12, 7)

    def forward(self, x):
        x = F.relu(self.bn(self.fc1(x)))
        if self.training:
            x = 1.5 * x
        return F.leaky_relu(self.fc2(x), 0.2)


class Shared(nn.Module):
    """One layer, norm and activation at two places."""

    def __init__(self):
        super().__init__()
        act = nn.LeakyReLU(0.2)
        layer = nn.Linear(10, 10)
        norm = nn.BatchNorm1d(10)
        self.net = nn.Sequential(layer, norm, act, layer, norm, act, nn.Linear(10, 3))

    def forward(self, x):
        return self.net(x)


class TiedWeights(nn.Module):
    """Two layers that hold the same Parameter."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(10, 10, bias=False)
        self.decode = nn.Linear(10, 10)
        self.decode.weight = self.encode.weight

    def forward(self, x):
        return torch.sigmoid(self.decode(torch.relu(self.encode(x))))


class KeepsFeatures(nn.Module):
    """A forward that stores what it saw on itself."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 4, 3, padding=1)
        self.features = None

    def forward(self, x):
        h = self.conv1(x)
        self.features = h
        h = F.leaky_relu(h, 0.2)
        return torch.tanh(self.conv2(h))


class CollectsByHooks(nn.Module):
    """Hooks that collect the outputs of some layers, registered by the model itself."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 1)
        )
        self.seen = []
        self.body[2].register_forward_hook(self._collect)

    def _collect(self, module, args, output):
        self.seen.append(output)

    def forward(self, x):
        self.seen.clear()
        out = self.body(x)
        return out, list(self.seen)


class OddNorms(nn.Module):
    """BatchNorm with a running average of all, without running statistics, without scale and shift, and frozen."""

    def __init__(self):
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6, momentum=None)
        self.b, self.nb = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6, track_running_stats=False)
        self.c, self.nc = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6, affine=False, eps=0.3)
        self.d, self.nd = nn.Conv2d(6, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.nd.eval()
        for p in self.nd.parameters():
            p.requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        self.nd.eval()
        return self

    def forward(self, x):
        x = F.relu(self.na(self.a(x)))
        x = F.leaky_relu(self.nb(self.b(x)), 0.2)
        x = self.nc(self.c(x)).relu()
        return self.nd(self.d(x)).tanh()


class ByName(nn.Module):
    """Layers in a ModuleDict, taken by strings."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({"in": nn.Linear(10, 12), "act": nn.LeakyReLU(0.1), "out": nn.Linear(12, 5)})
        self.order = ("in", "act", "out")

    def forward(self, x):
        for name in self.order:
            x = self.layers[name](x)
        return x


class Conditional(nn.Module):
    """An argument that may be missing."""

    def __init__(self):
        super().__init__()
        self.label = nn.Embedding(4, 12)
        self.fc1 = nn.Linear(10, 12)
        self.fc2 = nn.Linear(12, 1)

    def forward(self, x, y=None):
        h = F.leaky_relu(self.fc1(x), 0.2)
        if y is not None:
            h = h + self.label(y)
        return self.fc2(h)


class InPlaceSeenTwice(nn.Module):
    """In-place activations whose inputs have other readers."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.act = nn.LeakyReLU(0.2, inplace=True)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.conv3 = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x):
        a = self.conv1(x)
        skip = a + 0
        b = self.conv2(self.act(a))  # a itself is activated from here on
        c = F.relu_(b)
        return self.conv3(c) + a + b + skip


class OverwritesAMask(nn.Sequential):
    """In-place activations behind activations whose result is the mask of their own backward."""

    def __init__(self):
        super().__init__(
            *(nn.Linear(10, 12), nn.LeakyReLU(0.2), nn.ELU(inplace=True), nn.Linear(12, 12), nn.LeakyReLU(0.3)),
            *(nn.ReLU(inplace=True), nn.Linear(12, 5), nn.LeakyReLU(0.1), nn.Hardtanh(-0.1, 0.1, inplace=True)),
        )


class PreActivated(nn.Sequential):
    """The input itself is activated in place, which whoever calls sees."""

    def __init__(self):
        super().__init__(nn.LeakyReLU(0.2, inplace=True), nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True))


class CallsItsParts(nn.Module):
    """A Sequential of which some members are called one by one, sliced, and indexed from behind."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(10, 12), nn.LeakyReLU(0.2), nn.Linear(12, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3)
        )

    def forward(self, x):
        h = self.net[0](x)
        h = self.net[1:4](h)
        for layer in list(self.net)[4:]:
            h = layer(h)
        return h, self.net[-1].weight.norm()


class ReadsWeights(nn.Module):
    """A forward that looks at a layer's weight and at the class of a member."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(10, 12)
        self.out = nn.Linear(12, 3)

    def forward(self, x):
        h = F.relu(self.fc(x))
        if isinstance(self.fc, nn.Linear):
            h = h / self.fc.weight.norm()
        return self.out(h), F.linear(x, self.fc.weight, self.fc.bias)


class ActivatesTwice(nn.Module):
    """The raw output of a layer goes to the activation and into a list."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv1d(2, 4, 3, padding=1), nn.Conv1d(4, 4, 5, padding=2)])

    def forward(self, x):
        raw = []
        for conv in self.convs:
            x = conv(x)
            raw.append(x)
            x = F.leaky_relu(x, negative_slope=0.1)
        return x, raw


class OddActivations(nn.Module):
    """Slopes of 1 and below 0, an activation behind an activation, functional dropout by self.training."""

    def __init__(self):
        super().__init__()
        self.fc = nn.ModuleList(nn.Linear(10, 10) for _ in range(4))

    def forward(self, x):
        x = F.leaky_relu(self.fc[0](x), -0.3)
        x = F.leaky_relu(self.fc[1](x), 1.0)
        x = torch.tanh(F.relu(self.fc[2](x)))
        return F.dropout(torch.sigmoid(self.fc[3](x)), 0.4, self.training)


class Tokens(nn.Module):
    """Linear layers on sequences, written over behind them; the forward cannot be traced."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(10, 12), nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu_(self.fc1(x))
        if self.training:
            x = x / x.shape[1]
        x = self.fc2(x)
        x += 1
        return x


class OneChannel(nn.Module):
    """A signal of one channel that is written over, in a forward that cannot be traced."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(2, 1, 3, padding=1), nn.BatchNorm1d(1))
        self.head = nn.Conv1d(1, 1, 1)

    def forward(self, x):
        x = self.body(x).tanh_()
        if self.training:
            x = 2 * x
        return self.head(x).sigmoid_()


class Conditioned(nn.Module):
    """A norm whose scale and shift are each sample's own, written over behind it."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 2, 3, padding=1)
        self.bn = nn.BatchNorm2d(6, affine=False)
        self.vectors = nn.Linear(3, 12)
        self.act = nn.ReLU(True)

    def forward(self, x):
        scale, shift = self.vectors(x.mean((2, 3))).chunk(2, 1)
        h = self.conv1(x).contiguous(memory_format=torch.channels_last)
        h = scale.view(-1, 6, 1, 1) * self.bn(h) + shift.view(-1, 6, 1, 1)
        return self.conv2(self.act(h))


VECTOR, IMAGE, SIGNAL = (10,), (3, 6, 6), (2, 9)
TRAPS = {
    NoiseInTraining: VECTOR,
    Shared: VECTOR,
    TiedWeights: VECTOR,
    KeepsFeatures: IMAGE,
    CollectsByHooks: IMAGE,
    OddNorms: IMAGE,
    ByName: VECTOR,
    Conditional: VECTOR,
    InPlaceSeenTwice: IMAGE,
    OverwritesAMask: VECTOR,
    PreActivated: IMAGE,
    CallsItsParts: VECTOR,
    ReadsWeights: VECTOR,
    ActivatesTwice: SIGNAL,
    OddActivations: VECTOR,
    Conditioned: IMAGE,
    Tokens: (3, 10),
    OneChannel: SIGNAL,
}
