"""Networks that call StyleGAN's operations run by swapping an import, and train as on plain PyTorch, penalties too."""

from __future__ import annotations

import importlib
import inspect
import itertools
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastgan
from fastgan.errors import UserError
from fastgan.ops.backend import current_backend
from fastgan.stylegan import (
    MinibatchStdLayer,
    bias_act,
    conv2d_gradfix,
    conv2d_resample,
    filtered_lrelu,
    modulated_conv2d,
    normalized_modulated_conv2d,
    upfirdn2d,
)

NETWORKS = Path(__file__).with_name("networks.py").read_text(encoding="utf-8")
OURS, THEIRS = "from fastgan.stylegan import", "from torch_utils.ops import"
DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy interprets what wraps


def naive() -> types.ModuleType:
    """``torch_utils.ops`` in a few lines of plain PyTorch, as far as the networks call it."""
    gains = {"linear": 1.0, "lrelu": 2**0.5, "swish": 2**0.5, "tanh": 1.0}
    forms: dict[str, Any] = {
        "linear": lambda x: x,
        "lrelu": lambda x: F.leaky_relu(x, 0.2),
        "swish": lambda x: x * torch.sigmoid(x),
        "tanh": torch.tanh,
    }

    def act_of(x: Tensor, b: Tensor | None = None, act: str = "linear", gain: Any = None, clamp: Any = None) -> Tensor:
        x = x if b is None else x + b.view(1, -1, *[1] * (x.dim() - 2))
        y = forms[act](x) * (gains[act] if gain is None else gain)
        return y if clamp is None else y.clamp(-clamp, clamp)

    def filtered(x: Tensor, f: Tensor) -> Tensor:
        """Of a symmetric filter; what is padded stands around x already."""
        return F.conv2d(x, f.to(x.dtype).expand(x.shape[1], 1, 4, 4), groups=x.shape[1])

    def spread(x: Tensor, up: int) -> Tensor:
        wide = x.new_zeros(*x.shape[:2], up * x.shape[2], up * x.shape[3])
        wide[:, :, ::up, ::up] = x
        return wide

    def resampled(x: Tensor, w: Tensor, f: Any, up: int = 1, down: int = 1, padding: int = 0, **rest: Any) -> Tensor:
        w = w if rest.get("flip_weight", True) else w.flip([2, 3])
        if up == 2:
            x = filtered(F.pad(spread(x, 2), [padding + 2, padding + 1] * 2), f) * 4
        elif down == 2:
            x = F.pad(x, [padding + 1] * 4)
        else:
            x = F.pad(x, [padding] * 4)
        x = F.conv2d(x, w, groups=rest.get("groups", 1))
        return filtered(x, f)[:, :, ::2, ::2] if down == 2 else x

    ops: Any = types.ModuleType("torch_utils.ops")
    defaults = {name: types.SimpleNamespace(def_gain=gain) for name, gain in gains.items()}
    ops.bias_act = types.SimpleNamespace(bias_act=act_of, activation_funcs=defaults)
    ops.conv2d_resample = types.SimpleNamespace(conv2d_resample=resampled)
    ops.fma = types.SimpleNamespace(fma=lambda a, b, c: a * b + c)
    ops.upfirdn2d = types.SimpleNamespace(
        setup_filter=lambda taps: torch.outer(*[torch.tensor(taps) / sum(taps)] * 2),
        upsample2d=lambda x, f: filtered(F.pad(spread(x, 2), [2, 1, 2, 1]), f) * 4,
    )
    return ops


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The networks with the import line that they were written with, on plain PyTorch."""
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.ops", naive())
    assert NETWORKS.count(OURS) == 1
    return loaded(NETWORKS.replace(OURS, THEIRS))


def loaded(source: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "networks"}
    exec(compile(source, "networks.py", "exec"), namespace)
    return namespace


def trained(
    networks: dict[str, Any], steps: int, dtype: torch.dtype, device: str, batch: int = 4, **how: Any
) -> list[Tensor]:
    """A few steps of both players with R1 and a path length penalty: losses, samples, weights."""
    torch.manual_seed(0)
    g, d = networks["Generator"]().to(device, dtype), networks["Discriminator"](**how).to(device, dtype)
    players = [torch.optim.Adam(net.parameters(), lr=0.01, betas=(0.0, 0.99)) for net in (g, d)]
    seen = []
    for step in range(steps):
        images = (batch, 3, 8, 8)
        z, real, along = (draw(step, at, *size) for at, size in enumerate([(batch, 6), images, images]))
        z, real, along = z.to(device, dtype), real.to(device, dtype).requires_grad_(), along.to(device, dtype)
        logits = d(real)
        (slope,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
        loss_d = F.softplus(d(g(z).detach())).mean() + F.softplus(-logits).mean()
        loss_d = loss_d + slope.square().sum([1, 2, 3]).mean()
        players[1].zero_grad()
        loss_d.backward()
        players[1].step()
        w = g.mapping(z)
        image = g.synthesis(w)
        (path,) = torch.autograd.grad((image * along).sum() / 8, w, create_graph=True)
        loss_g = F.softplus(-d(image)).mean() + (path.square().sum(1).sqrt() - 1).square().mean()
        players[0].zero_grad()
        loss_g.backward()
        players[0].step()
        seen += [loss_d.detach(), loss_g.detach()]
    with torch.no_grad():
        seen.append(g(z))  # by the fused form, with groups
    return [*seen, *(p.detach() for net in (g, d) for p in net.parameters())]


def draw(step: int, at: int, *size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(10 * step + at), dtype=torch.float64)


def test_training_with_penalties_is_plain_pytorchs(plain: dict[str, Any]) -> None:
    ours = loaded(NETWORKS)
    wanted = trained(plain, 4, torch.float64, "cpu")
    torch.testing.assert_close(trained(ours, 4, torch.float64, "cpu"), wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        trained(ours, 4, torch.float64, "cpu", mbstd=MinibatchStdLayer(2)), wanted, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("device", DEVICES)
def test_training_on_the_kernels_is_plain_pytorchs(
    plain: dict[str, Any], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = loaded(NETWORKS)
    if device == "cpu":  # the convolutions' own kernels take the interpreter too long
        monkeypatch.setattr(importlib.import_module("fastgan.ops.conv"), "by_reference", lambda op, tensor: True)
    wanted = trained(plain, 1, torch.float64, device, batch=2)
    with fastgan.backend("triton"):
        got = trained(ours, 1, torch.float32, device, batch=2)
    for part, right in zip(got[:3], wanted[:3], strict=True):  # of weights Adam's first step shows signs alone
        torch.testing.assert_close(part.double(), right, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("up", "demodulate"), list(itertools.product((1, 2), (True, False))))
def test_the_modulated_convolution_is_the_networks_own(plain: dict[str, Any], up: int, demodulate: bool) -> None:
    x, weight, styles, noise = (
        torch.randn(size, dtype=torch.float64) for size in ((2, 3, 4, 4), (5, 3, 3, 3), (2, 3), ())
    )
    f = upfirdn2d.setup_filter([1, 3, 3, 1])
    with torch.no_grad():  # by groups
        wanted = plain["modulated_conv2d"](x, weight, styles, noise, up, 1, f, demodulate)
    for fused in (True, False):
        got = modulated_conv2d(x, weight, styles, noise, up, 1, 1, f, demodulate, up == 1, fused)
        torch.testing.assert_close(got, wanted)


SIGNATURES = {  # as people call them: names, order and defaults
    bias_act.bias_act: "x b=None dim=1 act='linear' alpha=None gain=None clamp=None impl='cuda'",
    upfirdn2d.setup_filter: "f device='cpu' normalize=True flip_filter=False gain=1 separable=None",
    upfirdn2d.upfirdn2d: "x f up=1 down=1 padding=0 flip_filter=False gain=1 impl='cuda'",
    upfirdn2d.filter2d: "x f padding=0 flip_filter=False gain=1 impl='cuda'",
    upfirdn2d.upsample2d: "x f up=2 padding=0 flip_filter=False gain=1 impl='cuda'",
    upfirdn2d.downsample2d: "x f down=2 padding=0 flip_filter=False gain=1 impl='cuda'",
    filtered_lrelu.filtered_lrelu: "x fu=None fd=None b=None up=1 down=1 padding=0 gain=1.4142135623730951 slope=0.2 "
    "clamp=None flip_filter=False impl='cuda'",
    conv2d_resample.conv2d_resample: "x w f=None up=1 down=1 padding=0 groups=1 flip_weight=True flip_filter=False",
    modulated_conv2d: "x weight styles noise=None up=1 down=1 padding=0 resample_filter=None demodulate=True "
    "flip_weight=True fused_modconv=True",
    normalized_modulated_conv2d: "x w s demodulate=True padding=0 input_gain=None",
    MinibatchStdLayer: "group_size num_channels=1",
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__name__)
def test_arguments_are_those_that_people_pass(function: Any) -> None:
    parameters = inspect.signature(function).parameters.values()
    written = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
    assert " ".join(written) == SIGNATURES[function]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backend that is set whenever one of the two ops looks."""
    seen: list[str] = []
    for name in ("gained_act", "upfirdn2d"):
        module = importlib.import_module(f"fastgan.ops.{name}")
        monkeypatch.setattr(module, "by_reference", lambda op, tensor: seen.append(current_backend()) or True)
    return seen


def test_impl_says_which_implementation_is_taken(asked: list[str]) -> None:
    x, f = torch.randn(1, 2, 4, 4), torch.ones(2, 2)
    calls: list[Any] = [
        lambda impl: bias_act.bias_act(x, act="relu", impl=impl),
        lambda impl: upfirdn2d.upfirdn2d(x, f, impl=impl),
        lambda impl: upfirdn2d.filter2d(x, f, impl=impl),
        lambda impl: upfirdn2d.upsample2d(x, f, impl=impl),
        lambda impl: upfirdn2d.downsample2d(x, f, impl=impl),
        lambda impl: filtered_lrelu.filtered_lrelu(x, f, f, padding=1, impl=impl),
    ]
    for call in calls:
        for impl, backend in (("ref", "reference"), ("cuda", "auto")):
            asked.clear()
            call(impl)
            assert set(asked) == {backend}
        with pytest.raises(UserError, match="did you mean 'cuda'"):
            call("cudaa")


def test_convolutions_that_need_no_fix() -> None:
    """``conv2d_gradfix``: torch's convolutions, and a context that changes nothing."""
    x, w = torch.randn(2, 4, 6, 6), torch.randn(6, 2, 3, 3)
    with conv2d_gradfix.no_weight_gradients():
        torch.testing.assert_close(
            conv2d_gradfix.conv2d(input=x, weight=w, padding=1, groups=2), F.conv2d(x, w, padding=1, groups=2)
        )
    w = torch.randn(4, 3, 3, 3)
    torch.testing.assert_close(conv2d_gradfix.conv_transpose2d(x, w, stride=2), F.conv_transpose2d(x, w, stride=2))


def test_compile_in_one_graph() -> None:
    """The calls themselves do not break it."""

    def block(x: Tensor, w: Tensor, b: Tensor, f: Tensor) -> Tensor:
        x = conv2d_resample.conv2d_resample(x, w, f, up=2, padding=1, flip_weight=False)
        x = bias_act.bias_act(x, b, act="lrelu", clamp=2.0)
        return filtered_lrelu.filtered_lrelu(x, f, f, padding=3)

    operands = torch.randn(2, 3, 4, 4), torch.randn(4, 3, 3, 3), torch.randn(4), upfirdn2d.setup_filter([1, 3, 3, 1])
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*operands), block(*operands))
