"""MinibatchStdLayer: the op as a layer without parameters."""

from __future__ import annotations

import copy

import torch

from fastgan.nn import MinibatchStdLayer
from fastgan.ops import minibatch_std


def test_it_is_the_op_and_has_no_state() -> None:
    x, layer = torch.randn(8, 6, 2, 2), MinibatchStdLayer(4, num_channels=3)
    assert torch.equal(layer(x), minibatch_std(x, 4, 3)) and layer(x).shape == (8, 9, 2, 2)
    assert torch.equal(MinibatchStdLayer(None)(x), minibatch_std(x, None))
    assert not layer.state_dict() and repr(copy.deepcopy(layer)) == repr(layer)
    assert repr(layer) == "MinibatchStdLayer(group_size=4, num_channels=3)"
