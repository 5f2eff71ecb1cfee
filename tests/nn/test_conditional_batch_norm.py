"""ConditionalBatchNorm2dAct against the module that people copy: a norm, and an embedding of scales and shifts."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import fastgan
from fastgan.errors import UserError
from fastgan.nn import ConditionalBatchNorm2dAct
from fastgan.nn.synced_batch_norm import SyncedBatchNorm2d, sync


class Copied(nn.Module):
    """The usual one, in plain PyTorch."""

    def __init__(self, features: int, classes: int, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(features, affine=False, momentum=momentum)
        self.embed = nn.Embedding(classes, 2 * features)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scale, shift = self.embed(y)[..., None, None].chunk(2, 1)
        return torch.tanh(scale * self.bn(x) + shift)


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


@pytest.mark.parametrize("momentum", [0.1, None])
def test_is_the_usual_module(device: str, momentum: float | None) -> None:
    """Its states load; values, gradients, second ones, and statistics, in training and eval."""
    theirs = Copied(5, 3, momentum).to(device).double()
    mine = ConditionalBatchNorm2dAct(5, 3, momentum=momentum, activation="tanh").to(device)
    mine.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(mine.state_dict())
    labels = torch.tensor([2, 0, 2, 1], device=device)
    for training in (True, True, False):
        x = (2 * torch.randn(4, 5, 3, 2, dtype=torch.float64) + 3).to(device)
        results = []
        for module, input in ((mine.train(training), x.float()), (theirs.train(training), x)):
            input = input.contiguous(memory_format=torch.channels_last).requires_grad_()
            y = module(input, labels)
            asked = [input, module.embed.weight]
            first = torch.autograd.grad((y * y.sin()).sum(), asked, create_graph=True)
            second = torch.autograd.grad(sum(part.square().sum() for part in first), asked)
            results.append([y, *first, *second, *module.buffers()])
        for got, wanted in zip(*results, strict=True):
            scale = max(1e-3, float(wanted.detach().abs().max()))
            torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=2e-4 * scale)
    assert int(mine.bn.num_batches_tracked) == 2


def test_begins_as_a_plain_norm(device: str) -> None:
    module = ConditionalBatchNorm2dAct(4, 3, activation="none").to(device)
    x = torch.randn(2, 4, 3, 3, device=device)
    wanted = nn.BatchNorm2d(4).to(device)(x)
    torch.testing.assert_close(module(x, torch.tensor([0, 2], device=device)), wanted, rtol=1e-4, atol=1e-5)


def test_copies_pickles_and_words() -> None:
    module, x, labels = ConditionalBatchNorm2dAct(4, 3), torch.randn(2, 4, 3, 3), torch.tensor([0, 2])
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):  # noqa: S301 -- our own bytes
        assert torch.equal(copied(x, labels), module.train()(x, labels))
    assert "activation=leaky_relu, negative_slope=0.2" in repr(module)
    with pytest.raises(UserError, match="did you mean 'sigmoid'"):
        ConditionalBatchNorm2dAct(3, 2, activation="sigmoidal")
    with pytest.raises(ValueError, match="expected 4D input"):
        module(x[0], labels)
    meta = ConditionalBatchNorm2dAct(4, 3, device="meta")
    assert meta(torch.empty(2, 4, 3, 3, device="meta"), torch.empty(2, dtype=torch.long, device="meta")).dim() == 4
    untracked = ConditionalBatchNorm2dAct(4, 3, track_running_stats=False, activation="none").eval()
    torch.testing.assert_close(untracked(x, labels), nn.functional.batch_norm(x, None, None, training=True))


def test_processes_that_train_together_share_its_statistics() -> None:
    """The norm in it is one that can be synchronised, and the op asks for all parts by itself."""
    module = ConditionalBatchNorm2dAct(4, 3)
    sync(module)
    assert type(module.bn) is SyncedBatchNorm2d
