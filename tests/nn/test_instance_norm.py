"""InstanceNorm1dAct and InstanceNorm2dAct against torch.nn's modules, alone and in a Chain."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import fastgan
from fastgan.errors import UserError
from fastgan.nn import Chain, InstanceNorm1dAct, InstanceNorm2dAct
from fastgan.nn.chain_members import plan

PAIRS: list[tuple[Any, Any, tuple[int, ...]]] = [
    (InstanceNorm1dAct, nn.InstanceNorm1d, (3, 4, 5)),
    (InstanceNorm2dAct, nn.InstanceNorm2d, (2, 4, 3, 2)),
    (InstanceNorm2dAct, nn.InstanceNorm2d, (4, 3, 2)),  # without a batch
]
KINDS: list[dict[str, Any]] = [{}, {"affine": True, "eps": 0.5}, {"track_running_stats": True, "momentum": 0.3}]


@pytest.fixture(
    params=[
        pytest.param(("cpu", "auto"), id="reference"),
        pytest.param(("cpu", "triton"), id="interpreted", marks=pytest.mark.interpret),
        pytest.param(("cuda", "triton"), id="cuda", marks=pytest.mark.gpu),
    ]
)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device, with plain PyTorch or the kernels running there."""
    torch.manual_seed(0)
    with fastgan.backend(request.param[1]):
        yield request.param[0]


@pytest.mark.parametrize(("ours", "torchs", "size"), PAIRS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_is_torchs_module(device: str, ours: Any, torchs: Any, size: tuple[int, ...], kind: dict[str, Any]) -> None:
    """Names, values, gradients and statistics, in training and eval; states go both ways."""
    mine, theirs = ours(4, activation="tanh", **kind).to(device), torchs(4, **kind).to(device, torch.float64)
    assert isinstance(mine, torchs) and list(mine.state_dict()) == list(theirs.state_dict())
    for parameter in mine.parameters():
        nn.init.uniform_(parameter, 0.5, 1)
    theirs.load_state_dict(mine.state_dict())
    for training in (True, False):
        x = (2 * torch.randn(size, dtype=torch.float64) + 3).to(device)
        results = []
        for module, input in ((mine.train(training), x.float()), (theirs.train(training), x)):
            y = module(input.requires_grad_())
            y = y if module is mine else y.tanh()
            asked = [input, *module.parameters()]
            results.append([y, *torch.autograd.grad((y * y.sin()).sum(), asked), *module.buffers()])
        for got, wanted in zip(*results, strict=True):
            scale = max(1e-3, float(wanted.detach().abs().max()))
            torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=1e-4 * scale)
    ours(4, **kind).load_state_dict(mine.state_dict())


def test_copies_pickles_and_words() -> None:
    module, x = InstanceNorm2dAct(4, affine=True, activation="relu"), torch.randn(2, 4, 3, 3)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):  # noqa: S301 -- our own bytes
        assert torch.equal(copied(x), module(x))
    assert repr(module).endswith("activation=relu)") and "negative_slope" in repr(InstanceNorm1dAct(4))
    with pytest.raises(UserError, match="did you mean 'sigmoid'"):
        InstanceNorm2dAct(3, activation="sigmoidal")
    assert InstanceNorm2dAct(4, device="meta", affine=True)(torch.empty(2, 4, 3, 3, device="meta")).shape == (
        2,
        4,
        3,
        3,
    )


def test_a_chain_fuses_it(device: str) -> None:
    """With the activation that it has in it; one without takes the one behind it."""
    members = [nn.Conv2d(2, 4, 3), InstanceNorm2dAct(4, activation="tanh"), nn.Conv2d(4, 3, 1)]
    members += [InstanceNorm2dAct(3, activation="none"), nn.ReLU()]
    assert [len(step) for step in plan(list(members))] == [2]
    mine = Chain(*members).to(device)
    x = torch.randn(2, 2, 5, 4, device=device)
    torch.testing.assert_close(mine(x), nn.Sequential(*members)(x), rtol=1e-4, atol=1e-5)
