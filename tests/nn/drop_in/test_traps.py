"""Models that trip whoever rewrites them: what each does beside its layers stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import fastgan
from fastgan.benchmarks import drop_in_models

here = drop_in_models.load(Path(__file__).with_name("pairs.py"))
pytestmark = pytest.mark.usefixtures("programs")
code = drop_in_models.load(drop_in_models.FOLDER / "traps.py")
TRAPS = {trap.__name__: (trap, size) for trap, size in code.TRAPS.items()}
FP64 = torch.float64


def passes(networks: tuple[nn.Module, nn.Module], size: tuple[int, ...], tolerance: float = 1e-10) -> None:
    """In training, twice, since buffers move; and in eval."""
    for training in (True, True, False):
        results = [here.pass_over(net.train(training), here.to(here.drawn((4, *size)), FP64), True) for net in networks]
        here.same(results[1], results[0], tolerance)
    here.same_state(networks[1], networks[0], tolerance)


@pytest.mark.parametrize("name", TRAPS)
def test_it_does_what_it_did(name: str) -> None:
    build, size = TRAPS[name]
    theirs, mine, _ = here.twins(build)
    passes((theirs, mine), size)
    fastgan.revert(mine)
    passes((theirs, mine), size)


def test_features_are_stored_at_every_call() -> None:
    theirs, mine, _ = here.twins(code.KeepsFeatures)
    for seed in (1, 2):
        (x,) = here.drawn((2, *code.IMAGE), seed=seed)
        theirs(x), mine(x)
        torch.testing.assert_close(mine.features, theirs.features)
        assert mine.features.grad_fn is not None


def test_an_argument_may_come_or_not() -> None:
    theirs, mine, _ = here.twins(code.Conditional)
    (x,), y = here.drawn((4, 10)), torch.tensor([0, 3, 1, 1])
    for given, named in (((x,), {}), ((x, y), {}), ((x,), {"y": y}), ((), {"x": x, "y": None}), ((x,), {})):
        torch.testing.assert_close(mine(*given, **named), theirs(*given, **named))


def test_hooks_that_come_later_are_called() -> None:
    """Also those on members that a fused group runs, and only while they are there."""
    _, mine, _ = here.twins(code.Shared)
    (x,) = here.drawn((4, 10))
    seen: list[torch.Size] = []
    handles = [m.register_forward_hook(lambda *a: seen.append(a[2].shape)) for m in (mine.net[0], mine.net[2])]
    handles.append(mine.net[6].register_forward_pre_hook(lambda m, a: (a[0] * 2,)))
    doubled = mine(x)
    assert len(seen) == 4
    for handle in handles:
        handle.remove()
    assert not torch.equal(mine(x), doubled) and len(seen) == 4


def test_a_layer_may_be_replaced_afterwards() -> None:
    theirs, mine, _ = here.twins(code.NoiseInTraining)
    for net in (theirs, mine):
        torch.manual_seed(7)
        net.fc2 = nn.Linear(12, 5).double()
        net.bn = nn.Identity()
    passes((theirs, mine), (10,))


def test_frozen_layers_stay_frozen() -> None:
    theirs, mine, _ = here.twins(code.OddNorms)
    for net in (theirs, mine):
        net.a.requires_grad_(False)
        net.nb.eval()
    x = here.drawn((4, *code.IMAGE))
    for net in (theirs, mine):
        net(*x)[0].sum().backward()
    assert [p.grad is None for p in mine.parameters()] == [p.grad is None for p in theirs.parameters()]


@pytest.mark.parametrize("name", ["ByName", "CallsItsParts", "InPlaceSeenTwice", "OddNorms"])
def test_changed_after_the_conversion(name: str) -> None:
    """Dtype, weights, and training mode of a member: what counts is what stands there at the call."""
    build, size = TRAPS[name]
    theirs, mine, _ = here.twins(build, torch.float32)
    for net in (theirs, mine):
        net.double()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(0.9)
        next(m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))).bias = None
    passes((theirs, mine), size)
