"""Halves of a joint batch: chunk's results and gradients of any order, and no copy where none is needed."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastgan.ops.halves import halves


class Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def gradients(split, joint, weigh):
    first, second = split(joint)
    loss = weigh(first, second)
    return torch.autograd.grad(loss, joint, create_graph=True)[0]


@pytest.mark.parametrize("shape", [(6,), (6, 1), (4, 2, 3), (2,)])
@pytest.mark.parametrize(
    "weigh",
    [
        lambda a, b: (a**3).sum() + (b**2).sum(),
        lambda a, b: (a**3).sum(),
        lambda a, b: (b**3).sum(),
        lambda a, b: (a * b).sum(),
        lambda a, b: a.sum() + 2 * b.sum(),  # gradients without memory of their own
    ],
)
def test_as_chunk(shape, weigh):
    joint = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    for ours, theirs in zip(halves(joint), joint.chunk(2), strict=True):
        assert torch.equal(ours, theirs)
    ours, theirs = (gradients(split, joint, weigh) for split in (halves, lambda x: x.chunk(2)))
    assert torch.equal(ours, theirs)
    if ours.requires_grad:
        second = [torch.autograd.grad((g**2).sum(), joint)[0] for g in (ours, theirs)]
        torch.testing.assert_close(*second)
    assert torch.autograd.gradcheck(lambda x: weigh(*halves(x)), joint)
    assert torch.autograd.gradgradcheck(lambda x: weigh(*halves(x)) * x.sum(), joint)


def through(joint, first, second):
    """The gradient of the joint batch for given ones of the halves, and which operators it took."""
    parts = halves(joint)
    with Calls() as calls:
        torch.autograd.backward(parts, (first, second))
    return joint.grad, calls.names


def test_gradients_side_by_side_are_not_copied():
    slopes = torch.randn(8)
    joint = torch.randn(8, requires_grad=True)
    grad, called = through(joint, slopes[:4], slopes[4:])
    assert torch.equal(grad, slopes) and "cat" not in called


@pytest.mark.parametrize("second", [slice(5, 9), slice(0, 4), slice(2, 10, 2)])
def test_gradients_that_lie_otherwise_are_joined(second):
    slopes = torch.randn(12)
    joint = torch.randn(8, requires_grad=True)
    grad, called = through(joint, slopes[:4], slopes[second])
    assert torch.equal(grad, torch.cat((slopes[:4], slopes[second]))) and "cat" in called


def test_halves_of_two_storages_at_fitting_offsets_are_joined():
    first, second = torch.randn(8)[:4], torch.randn(8)[4:]
    grad, called = through(torch.randn(8, requires_grad=True), first, second)
    assert torch.equal(grad, torch.cat((first, second))) and "cat" in called
