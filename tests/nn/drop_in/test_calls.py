"""Converted models in PyTorch's hands: compile, export, autocast, functional calls, checkpoints, DDP, weight norm."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import fastgan
from fastgan.nn.drop_in import converted

Twins = Callable[[nn.Module], tuple[nn.Module, nn.Module]]
Alike = Callable[..., None]


class Residual(nn.Module):
    """LeakyReLU in front of each convolution, a skip, and a head."""

    def __init__(self, wrap: Callable[[nn.Module], nn.Module] = lambda layer: layer) -> None:
        super().__init__()
        self.first, self.second = (wrap(nn.Conv1d(3, 3, 3, padding=1)) for _ in range(2))
        self.head = nn.Sequential(wrap(nn.ConvTranspose1d(3, 4, 4, 2, 1)), nn.BatchNorm1d(4), nn.ReLU(True))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(nn.functional.leaky_relu(x, 0.1))
        h = self.second(nn.functional.leaky_relu(h, 0.1))
        return self.head(x + h)


def steps(net: nn.Module, data: Tensor, count: int = 3, every: int = 1) -> list[float]:
    """Train a little, gradients of ``every`` passes added up."""
    optimizer, losses = torch.optim.SGD(net.parameters(), 0.05), []
    for at in range(count * every):
        loss = (net(data * (1 + at)) - 1).square().mean()
        loss.backward()
        losses.append(loss.item())
        if at % every == every - 1:
            optimizer.step()
            optimizer.zero_grad()
    return losses


@pytest.mark.usefixtures("programs")
def test_gradients_add_up_and_sampling_needs_none(twins: Twins, signal: Tensor) -> None:
    ours, theirs = twins(Residual())
    fastgan.convert(ours)
    assert steps(ours, signal, every=2) == pytest.approx(steps(theirs, signal, every=2), rel=1e-12)
    with torch.no_grad():
        assert not any(net(signal).requires_grad for net in (ours, theirs))
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(signal), theirs.eval()(signal))


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(twins: Twins, signal: Tensor, reentrant: bool) -> None:
    ours, theirs = twins(Residual())
    fastgan.convert(ours)
    for net in (ours, theirs):
        checkpoint(net, signal.clone().requires_grad_(), use_reentrant=reentrant).square().sum().backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("programs")
def test_functional_calls_and_transforms(twins: Twins, signal: Tensor) -> None:
    ours, theirs = twins(Residual().eval())
    fastgan.convert(ours)
    weights = {name: torch.randn_like(value) for name, value in ours.named_parameters()}
    found, wanted = (torch.func.functional_call(net, weights, (signal,)) for net in (ours, theirs))
    torch.testing.assert_close(found, wanted)
    slopes = [torch.func.grad(_summed(net, signal))(weights) for net in (ours, theirs)]
    torch.testing.assert_close(*slopes)


def _summed(net: nn.Module, signal: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
    return lambda weights: torch.func.functional_call(net, weights, (signal,)).sum()


def test_autocast_with_a_scaler(twins: Twins, signal: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converted, "always", True)
    ours = Residual()
    theirs = copy.deepcopy(ours)
    fastgan.convert(ours)
    for net in (ours, theirs):
        scaler, optimizer = torch.amp.GradScaler("cpu"), torch.optim.SGD(net.parameters(), 0.1)
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                loss = net(signal.float()).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


def test_compiled_and_exported_it_is_what_it_was(signal: Tensor) -> None:
    ours = Residual().eval()
    theirs = copy.deepcopy(ours)
    fastgan.convert(ours)
    data = signal.float()
    found = torch.compile(ours, backend="aot_eager", fullgraph=True)(data)
    torch.testing.assert_close(found, theirs(data))
    exported = torch.export.export(ours, (data,)).module()
    torch.testing.assert_close(exported(data), theirs(data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(ours, data)
    torch.testing.assert_close(traced(data), theirs(data))
    torch.testing.assert_close(torch.fx.symbolic_trace(ours)(data), theirs(data))


def test_made_on_the_meta_device() -> None:
    with torch.device("meta"):
        ours = Residual()
    report = fastgan.convert(ours)
    assert report.covered(torch.empty(5, 3, 9, device="meta")) == 1.0
    ours = ours.to_empty(device="cpu")
    ours.load_state_dict(Residual().state_dict())
    assert ours(torch.randn(5, 3, 9)).isfinite().all()


@pytest.mark.usefixtures("programs")
def test_wrapped_for_other_processes(twins: Twins, signal: Tensor, tmp_path: Any) -> None:
    ours, theirs = twins(Residual())
    fastgan.convert(ours)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(ours)
        assert steps(wrapped, signal) == pytest.approx(steps(theirs, signal), rel=1e-12)
        again = fastgan.convert(wrapped)
        assert {entry.path for entry in again.replaced} == {"module.first", "module.head.0"}
        assert steps(wrapped, signal) == pytest.approx(steps(theirs, signal), rel=1e-12)
    finally:
        dist.destroy_process_group()


OLD = {"weight_norm": nn.utils.weight_norm, "spectral_norm": nn.utils.spectral_norm}
NEW = {"weight_norm": parametrizations.weight_norm, "spectral_norm": parametrizations.spectral_norm}
UNDO = {"weight_norm": nn.utils.remove_weight_norm, "spectral_norm": nn.utils.remove_spectral_norm}


@pytest.mark.usefixtures("programs")
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", OLD)
@pytest.mark.parametrize("hooked", [True, False])
def test_normed_weights(twins: Twins, alike: Alike, signal: Tensor, name: str, hooked: bool) -> None:
    wrap = (OLD if hooked else NEW)[name]
    ours = Residual(wrap).double()
    theirs = Residual(wrap).double()
    theirs.load_state_dict(ours.state_dict())
    keys = list(ours.state_dict())
    report = fastgan.convert(ours)
    assert [entry.path for entry in report.replaced] == ["first", "head.0"]
    for _ in range(2):
        alike(ours, theirs, signal)
    assert list(ours.state_dict()) == keys
    alike(ours.eval(), theirs.eval(), signal)
    for net in (ours, theirs):
        for layer in (net.first, net.head[0]):
            if hooked:
                UNDO[name](layer)
            else:
                nn.utils.parametrize.remove_parametrizations(layer, "weight")
    assert type(ours.first) is nn.Conv1d
    alike(ours.train(), theirs.train(), signal)
    fastgan.revert(ours)
    alike(ours, theirs, signal)


@pytest.mark.usefixtures("programs")
def test_weights_parametrized_after_the_conversion(twins: Twins, alike: Alike, signal: Tensor) -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv1d(3, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.seen = self.layer(x)
            return self.seen

    ours, theirs = twins(Alone())
    assert [entry.why for entry in fastgan.convert(ours).replaced] == ["alone"]
    for net in (ours, theirs):
        torch.manual_seed(1)
        parametrizations.spectral_norm(net.layer)
    alike(ours, theirs, signal)
    for net in (ours, theirs):
        nn.utils.parametrize.remove_parametrizations(net.layer, "weight")
    assert isinstance(ours.layer, converted.Converted)
    alike(ours, theirs, signal)
    fastgan.revert(ours)
    assert type(ours.layer) is nn.Conv1d


@pytest.mark.usefixtures("programs")
def test_parametrized_layers_alone(twins: Twins, alike: Alike, signal: Tensor) -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = parametrizations.spectral_norm(nn.Conv1d(3, 2, 3))

        def forward(self, x: Tensor) -> Tensor:
            self.seen = self.layer(x)
            return self.seen

    ours, theirs = twins(Alone())
    report = fastgan.convert(ours)
    assert [(entry.path, entry.what, entry.why) for entry in report.replaced] == [("layer", "Conv1d", "alone")]
    assert type(ours.layer).__name__ == "ParametrizedConv1d" and report.covered(signal) == 1.0
    alike(ours, theirs, signal)
    ours.seen = None
    alike(copy.deepcopy(ours), copy.deepcopy(ours), signal)
    fastgan.revert(ours)
    assert not isinstance(ours.layer, converted.Converted) and type(ours.layer).__bases__ == (nn.Conv1d,)
    alike(ours, theirs, signal)
    fastgan.convert(ours)
    for net in (ours, theirs):
        nn.utils.parametrize.remove_parametrizations(net.layer, "weight")
    assert isinstance(ours.layer, converted.Converted)
    alike(ours, theirs, signal)
    fastgan.revert(ours)
    assert type(ours.layer) is nn.Conv1d


@pytest.mark.interpret
def test_who_looks_on_sees_the_model_that_it_was(signal: Tensor) -> None:
    """A hook on all modules, and a mode that sees each operation."""
    ours = Residual()
    theirs = copy.deepcopy(ours)
    fastgan.convert(ours)
    seen: dict[int, list[str]] = {}
    for net in (ours, theirs):
        calls = seen[id(net)] = []
        hook = register_module_forward_hook(lambda m, *_, calls=calls: calls.append(type(m).__name__))
        with hook, fastgan.backend("triton"):
            net(signal.float())
    assert seen[id(ours)] == seen[id(theirs)]
    counts = []
    for net in (ours, theirs):
        with fastgan.backend("triton"), FlopCounterMode(display=False) as counter:
            net(signal.float())
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.interpret
def test_on_the_kernels(signal: Tensor) -> None:
    ours = Residual()
    theirs = copy.deepcopy(ours)
    fastgan.convert(ours)
    leaves = [signal.float().clone().requires_grad_() for _ in range(2)]
    with fastgan.backend("triton"):
        found = ours(leaves[0])
        penalty = torch.autograd.grad(found.sum(), leaves[0], create_graph=True)[0].square().mean()
        (found.square().mean() + penalty).backward()
    wanted = theirs(leaves[1])
    penalty = torch.autograd.grad(wanted.sum(), leaves[1], create_graph=True)[0].square().mean()
    (wanted.square().mean() + penalty).backward()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    for one, other in zip((leaves[0], *ours.parameters()), (leaves[1], *theirs.parameters()), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()), rtol=1e-4, atol=1e-5)
