"""The convolution modules: each is its torch.nn class in everything but its forward."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgan
from fastgan.errors import UserError
from fastgan.nn import Conv1dAct, Conv2dAct, ConvTranspose1dAct, ConvTranspose2dAct
from fastgan.ops.activation import ACTIVATIONS, activate

PAIRS: list[Any] = [
    (Conv1dAct, nn.Conv1d),
    (Conv2dAct, nn.Conv2d),
    (ConvTranspose1dAct, nn.ConvTranspose1d),
    (ConvTranspose2dAct, nn.ConvTranspose2d),
]
every_pair = pytest.mark.parametrize("mine, theirs", PAIRS)
DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]


def images(theirs: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    size = (2, 4, 6) if "1d" in theirs.__name__ else (2, 4, 6, 5)
    return torch.randn(size, dtype=dtype, requires_grad=True)


@every_pair
@pytest.mark.parametrize("bias", [True, False])
def test_parameters_are_those_of_torch(mine: Any, theirs: Any, bias: bool) -> None:
    """Same names, same initial values, and the generator of random numbers is left in the same state."""
    torch.manual_seed(3)
    plain, after = theirs(4, 6, 3, 2, 1, bias=bias, groups=2), torch.rand(1)
    torch.manual_seed(3)
    fused = mine(4, 6, 3, 2, 1, bias=bias, groups=2)
    assert torch.equal(torch.rand(1), after)
    assert isinstance(fused, theirs)
    torch.testing.assert_close(fused.state_dict(), plain.state_dict(), rtol=0, atol=0)
    plain.load_state_dict(fused.state_dict())


@every_pair
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forward_and_backward_are_those_of_three_modules(mine: Any, theirs: Any, activation: str) -> None:
    how = (4, 6, 3, 2, 1)
    more: dict[str, Any] = {"dilation": 2, "groups": 2, "dtype": torch.float64}
    if "Transpose" in theirs.__name__:
        more["output_padding"] = 1
    before = ACTIVATIONS[ACTIVATIONS.index(activation) - 1]
    slopes = {"negative_slope": 0.05, "pre_negative_slope": 0.3}
    fused = mine(*how, **more, activation=activation, pre_activation=before, **slopes)
    plain = theirs(*how, **more)
    plain.load_state_dict(fused.state_dict())
    x = images(theirs)
    results = []
    for y in (fused(x), activate(plain(activate(x, before, 0.3)), activation, 0.05)):
        results.append(
            (y, *torch.autograd.grad(y.square().sum(), (x, *(fused if not results else plain).parameters())))
        )
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("mine, theirs", PAIRS[:2])
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular", "zeros"])
@pytest.mark.parametrize("padding", [2, "same", "valid"])
def test_padding_as_torch(mine: Any, theirs: Any, mode: str, padding: int | str) -> None:
    """Also an even kernel's, which is padded more behind than before, after the activation of the input."""
    how = {"padding": padding, "padding_mode": mode, "dtype": torch.float64}
    fused, plain = mine(4, 3, 4, **how, pre_activation="sigmoid"), theirs(4, 3, 4, **how)
    plain.load_state_dict(fused.state_dict())
    x = images(theirs)
    torch.testing.assert_close(fused(x), F.leaky_relu(plain(x.sigmoid()), 0.2))
    torch.testing.assert_close(fused(x[0]), F.leaky_relu(plain(x[0].sigmoid()), 0.2))


@pytest.mark.parametrize("mine, theirs", PAIRS[2:])
def test_output_size_as_torch(mine: Any, theirs: Any) -> None:
    fused, plain = mine(4, 3, 3, 2, 1, dtype=torch.float64), theirs(4, 3, 3, 2, 1, dtype=torch.float64)
    plain.load_state_dict(fused.state_dict())
    x = images(theirs)
    size = [2 * side for side in x.shape[2:]]
    torch.testing.assert_close(fused(x, output_size=size), F.leaky_relu(plain(x, output_size=size), 0.2))
    with pytest.raises(ValueError, match="requested an output size"):
        fused(x, output_size=[4 * side for side in size])


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_upsampling(mode: str) -> None:
    fused = Conv2dAct(4, 3, 3, padding=1, padding_mode=mode, upsample=2, pre_activation="relu", dtype=torch.float64)
    plain = nn.Conv2d(4, 3, 3, padding=1, padding_mode=mode, dtype=torch.float64)
    plain.load_state_dict(fused.state_dict())
    x = images(nn.Conv2d)
    wanted = F.leaky_relu(plain(nn.Upsample(scale_factor=2)(x.relu())), 0.2)
    torch.testing.assert_close(fused(x), wanted)
    torch.testing.assert_close(fused(x[0]), wanted[0])


@every_pair
def test_copies_and_pickles(mine: Any, theirs: Any) -> None:
    module, x = mine(4, 3, 3, activation="tanh"), images(theirs, torch.float32)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):  # noqa: S301 -- our own bytes
        assert torch.equal(copied(x), module(x))


def test_shows_its_activations() -> None:
    assert repr(Conv2dAct(2, 3, 4, 2, 1)) == (
        "Conv2dAct(2, 3, kernel_size=(4, 4), stride=(2, 2), padding=(1, 1), activation=leaky_relu, negative_slope=0.2)"
    )
    assert repr(Conv1dAct(2, 3, 4, activation="tanh", pre_activation="leaky_relu")) == (
        "Conv1dAct(2, 3, kernel_size=(4,), stride=(1,), activation=tanh, "
        "pre_activation=leaky_relu, pre_negative_slope=0.2)"
    )
    assert repr(Conv2dAct(2, 3, 4, activation="none", upsample=2)).endswith("activation=none, upsample=2)")
    assert repr(ConvTranspose2dAct(2, 3, 4, activation="relu", bias=False)).endswith("bias=False, activation=relu)")


def test_mistakes_are_told() -> None:
    with pytest.raises(UserError, match="did you mean 'sigmoid'"):
        ConvTranspose1dAct(2, 3, 2, activation="sigmoidal")
    with pytest.raises(UserError, match="did you mean 'relu'"):
        Conv2dAct(2, 3, 2, pre_activation="relux")
    with pytest.raises(UserError, match="upsample 0"):
        Conv2dAct(2, 3, 2, upsample=0)


@pytest.mark.parametrize("device", DEVICES)
def test_training_by_the_kernels_is_training_by_torch(device: str) -> None:
    """A small network takes the same steps with the kernels as with torch's modules, to fp32 rounding."""
    torch.manual_seed(0)
    mine = nn.Sequential(
        Conv2dAct(2, 5, 4, 2, 1, negative_slope=0.05),
        ConvTranspose2dAct(5, 3, 2, 2, activation="tanh"),
        Conv2dAct(3, 4, 3, padding="same", activation="none", pre_activation="relu", upsample=2),
        Conv2dAct(4, 1, 8, activation="none"),
    )
    theirs = nn.Sequential(
        nn.Conv2d(2, 5, 4, 2, 1),
        nn.LeakyReLU(0.05),
        nn.ConvTranspose2d(5, 3, 2, 2),
        nn.Tanh(),
        nn.ReLU(),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(4, 1, 8),
    )
    for layer, twin in zip(mine, (theirs[0], theirs[2], theirs[6], theirs[7]), strict=True):
        twin.load_state_dict(layer.state_dict())
    x, target = torch.randn(3, 2, 4, 4, device=device), torch.rand(3, 1, 1, 1, device=device)
    losses = []
    former, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    for model in (mine.to(device), theirs.to(device)):
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            with fastgan.backend("triton"):
                loss = F.binary_cross_entropy_with_logits(model(x), target)
                loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    torch.backends.cudnn.allow_tf32 = former
    torch.testing.assert_close(losses[:3], losses[3:], rtol=1e-5, atol=1e-6)
