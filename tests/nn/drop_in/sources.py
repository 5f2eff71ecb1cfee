"""Random networks as source code: what people put into a forward method, in any order that shapes allow."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import strategies as st

HEAD = """import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm


def slope(x, by=0.2):
    return F.leaky_relu(x, by)


class Block(nn.Module):
    def __init__(self, layer, norm, act):
        super().__init__()
        self.conv, self.norm, self.act = layer, norm, act

    def forward(self, x):
        return self.act(self.norm(self.conv(x)))


class Residual(nn.Module):
    def __init__(self, layer, inplace=False):
        super().__init__()
        self.body = nn.Sequential(nn.LeakyReLU(0.2, inplace), layer)
        self.scale = 0.5

    def forward(self, x, other=None):
        h = self.body(x)
        if other is not None:
            h = h + other
        return x + self.scale * h


class Again(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers, self.by = nn.ModuleList(layers), 0.1

    def forward(self, x):
        for layer in self.layers:
            x = self.soften(layer(F.leaky_relu(x, self.by)))
        return x

    def soften(self, x):
        return torch.tanh(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
"""
WRAPS = ("{}",) * 6 + (
    "weight_norm({})",
    "spectral_norm({})",
    "parametrizations.weight_norm({})",
    "parametrizations.spectral_norm({})",
)
NORMS = ("", "", "", "eps=0.8", "momentum=None", "affine=False", "track_running_stats=False", "momentum=0.5")
MODULES = (
    *("nn.ReLU()", "nn.ReLU(True)", "nn.LeakyReLU(0.2)", "nn.LeakyReLU(0.2, inplace=True)", "nn.LeakyReLU(0.01)"),
    *("nn.Tanh()", "nn.Sigmoid()", "nn.LeakyReLU(-0.3)", "nn.ELU()", "nn.Identity()", "nn.Dropout(0.3)"),
)
FUNCTIONS = (
    *("F.relu(x)", "F.relu(x, inplace=True)", "torch.relu(x)", "x.relu()", "x.relu_()", "F.elu(x)", "F.softplus(x)"),
    *("F.leaky_relu(x, 0.2)", "F.leaky_relu(x)", "F.leaky_relu(x, negative_slope=0.1, inplace=True)"),
    *("F.leaky_relu_(x, 0.3)", "F.leaky_relu(x, -0.3)", "torch.tanh(x)", "x.tanh()", "F.tanh(x)", "torch.sigmoid(x)"),
    *(
        "slope(x)",
        "slope(x, 0.3)",
        "x.sigmoid_()",
        "F.dropout(x, 0.3, self.training)",
        "x * 0.7",
        "F.instance_norm(x) if x.dim() == 4 else x",
    ),
)
MOVES = (
    *("layer",) * 5,
    *("norm",) * 2,
    *("activation",) * 3,
    *("function",) * 4,
    *("chain",) * 2,
    *("block", "block", "residual", "list"),
    *("save", "add", "add", "cat", "reuse", "keep", "branch", "resize", "note"),
)


class Writer:
    """Writes one network, and knows the shape of what is on its way."""

    def __init__(self, draw: Any) -> None:
        self.draw, self.numbers = draw, itertools.count()
        self.world = draw(st.sampled_from(["vector", "sequence", "signal", "image", "image"]))
        self.flat = self.world in ("vector", "sequence")
        self.channels, self.size = draw(st.integers(2, 5)), 0 if self.flat else 6
        dims = {"vector": (), "sequence": (3,), "signal": (6,), "image": (6, 6)}[self.world]
        self.shape = (*dims, self.channels) if self.flat else (self.channels, *dims)
        self.members: list[str] = []
        self.lines: list[str] = ["kept = []"]
        self.saved: list[tuple[str, int, int]] = []
        self.square: list[tuple[str, int, int]] = []  # members that may be called again where shapes agree

    def one_of(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def layer(self) -> str:
        """Return a layer; what is on its way has its shape from now on."""
        wide, bias = self.draw(st.integers(1, 6)), self.one_of("", ", bias=False")
        c, self.channels = self.channels, wide
        if self.flat:
            return self.one_of(*WRAPS).format(f"nn.Linear({c}, {wide}{bias})")
        d = 1 if self.world == "signal" else 2
        kinds = ["1", "3", "valid", "dilated", "grouped", "same"]
        kinds += ["down"] if self.size >= 4 else []
        kinds += ["up"] if self.size <= 6 else []
        kind = self.one_of(*kinds)
        if kind == "valid" and self.size < 4:
            kind = "1"
        if kind == "grouped":
            self.channels = wide = c
            return f"nn.Conv{d}d({c}, {c}, 3, padding=1, groups={c}{bias})"
        layer = {
            "1": f"nn.Conv{d}d({c}, {wide}, 1{bias})",
            "3": f"nn.Conv{d}d({c}, {wide}, 3, 1, 1{bias})",
            "same": f"nn.Conv{d}d({c}, {wide}, 3, padding='same'{bias})",
            "valid": f"nn.Conv{d}d({c}, {wide}, 3{bias})",
            "dilated": f"nn.Conv{d}d({c}, {wide}, 3, 1, padding=2, dilation=2{bias})",
            "down": f"nn.Conv{d}d({c}, {wide}, 4, 2, 1{bias})",
            "up": f"nn.ConvTranspose{d}d({c}, {wide}, 4, 2, 1{bias})",
        }[kind]
        self.size = {"valid": self.size - 2, "down": self.size // 2, "up": self.size * 2}.get(kind, self.size)
        return self.one_of(*WRAPS).format(layer)

    def keeping(self) -> str:
        """Return a layer that keeps the shape."""
        c, kind = self.channels, "Linear" if self.flat else f"Conv{1 if self.world == 'signal' else 2}d"
        return self.one_of(*WRAPS).format(f"nn.{kind}({c}, {c}{'' if self.flat else ', 3, 1, 1'})")

    def norm(self) -> str:
        told = self.one_of(*NORMS)
        if self.world == "sequence":
            return f"nn.LayerNorm({self.channels})"
        if self.world == "image" and self.one_of(True, False, False):
            return f"nn.InstanceNorm2d({self.channels}, affine={self.one_of(True, False)})"
        return f"nn.BatchNorm{2 if self.world == 'image' else 1}d({self.channels}{', ' if told else ''}{told})"

    def member(self, code: str) -> str:
        name = f"m{next(self.numbers)}"
        self.members.append(f"self.{name} = {code}")
        return name

    def call(self, code: str) -> None:
        self.lines.append(f"x = self.{self.member(code)}(x)")

    def move(self, what: str) -> None:
        """Write one statement, or none where there is nothing to do it with."""
        before = (self.channels, self.size)
        same = [name for name, *shape in self.saved if tuple(shape) == before]
        if what == "layer":
            self.call(self.layer())
            if (self.channels, self.size) == before:
                self.square.append((self.lines[-1].split("(")[0].removeprefix("x = "), *before))
        elif what == "norm":
            self.call(self.norm())
        elif what == "activation":
            self.call(self.one_of(*MODULES))
        elif what == "function":
            self.lines.append(f"x = {self.one_of(*FUNCTIONS)}")
        elif what == "chain":
            parts = [self.layer()]
            for _ in range(self.draw(st.integers(1, 4))):
                kind = self.one_of("layer", "norm", "activation", "activation")
                parts.append(self.one_of(*MODULES) if kind == "activation" else getattr(self, kind)())
            self.call(f"nn.Sequential({', '.join(parts)})")
        elif what == "block":
            self.call(f"Block({self.layer()}, {self.norm()}, {self.one_of(*MODULES)})")
        elif what in ("residual", "list"):
            layers = [self.keeping() for _ in range(1 if what == "residual" else self.one_of(1, 2))]
            if what == "list":
                self.call(f"Again([{', '.join(layers)}])")
            else:
                name = self.member(f"Residual({layers[0]}{self.one_of('', ', True')})")
                others = ["", ", None", *(f", {name}" for name in same), *(f", other={name}" for name in same)]
                self.lines.append(f"x = self.{name}(x{self.one_of(*others)})")
        elif what == "save":
            self.saved.append((f"s{next(self.numbers)}", *before))
            self.lines.append(f"{self.saved[-1][0]} = x")
        elif what == "add" and same:
            self.lines.append(self.one_of("x = x + {}", "x = {} + x", "x += {}", "x = 0.5 * x + {}").format(same[-1]))
        elif what == "cat" and self.channels < 12 and self.world != "sequence":
            for name, channels, _ in [saved for saved in self.saved if saved[2] == self.size][-1:]:
                self.lines.append(f"x = torch.cat([x, {name}], 1)")
                self.channels += channels
        elif what == "reuse" and (known := [m for m, *shape in self.square if tuple(shape) == before]):
            self.lines.append(f"x = {known[-1]}(x)")
        elif what == "keep":
            self.lines.append("kept.append(x)")
        elif what == "note":
            self.lines.append("self.seen = x")
        elif what == "branch" and self.one_of(True, False):
            self.lines += ["if self.training:", "    x = 1.1 * x"]
        elif what == "resize" and self.world == "image" and self.size <= 6:
            self.size *= 2
            if self.one_of(True, False):
                self.call("nn.Upsample(scale_factor=2)")
            else:
                self.lines.append("x = F.interpolate(x, scale_factor=2, mode='nearest')")

    def source(self) -> str:
        body = [f"        {line}" for line in self.members] or ["        pass"]
        run = [f"        {line}" for line in (*self.lines, "return x, kept")]
        return "\n".join([HEAD.rstrip(), *body, "", "    def forward(self, x):", *run, ""])


@st.composite
def sources(draw: Any, most: int = 10) -> tuple[str, tuple[int, ...]]:
    """A network's source and the shape of a sample."""
    writer = Writer(draw)
    for what in draw(st.lists(st.sampled_from(MOVES), min_size=2, max_size=most)):
        writer.move(what)
    return writer.source(), writer.shape
